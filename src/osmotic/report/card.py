"""The model card: what a user of the model folder must know, taken from the run's own files and from nowhere else.

Source: the sections of a model card after Mitchell et al., arXiv 1810.03993.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from osmotic.report import page, story, words
from osmotic.report.rundir import Run, read


def write(run_dir: Path | str) -> list[Path]:
    """Writes README.md into each pipeline folder under model/ and returns the paths.

    Raises: ConfigError if the folder is no finished run or one of its files cannot be read.
    """
    from osmotic.atomic import write_text

    run = read(run_dir)
    paths = []
    for folder in story.model_folders(run):
        path = run.path / folder / "README.md"
        write_text(path, render(run, folder))
        paths.append(path)
    return paths


def render(run: Run, folder: str = "model") -> str:
    """The card in Markdown for the pipeline folder `folder` (relative to the run, as `model/client-003`)."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined

    env = Environment(
        loader=PackageLoader("osmotic", "report"),
        autoescape=False,  # Markdown, not HTML: every figure goes through `md`
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda v: "" if v is None else v,
    )

    def told(value: Any) -> str:
        return words.DASH if value is None or isinstance(value, Undefined) or value == "" else str(value)

    env.filters |= {
        "md": lambda v: escape(told(v)),
        "count": lambda v: words.count(None if isinstance(v, Undefined) else v),
        "figure": lambda v: words.figure(None if isinstance(v, Undefined) else v),
        "bytesize": lambda v: words.size(None if isinstance(v, Undefined) else v),
    }
    q = run.quality
    clients = page.client_rows(run)
    spreads = [
        (
            page.score_heading(key, words.fd_name(q.get("encoder"))),
            story.spread(c.scores.get(key) for c in clients),
        )
        for key in page.score_keys(clients)
    ]
    return env.get_template("card.md.jinja").render(
        run=run,
        summary=run.summary,
        quality=q,
        fd_name=words.fd_name(q.get("encoder")),
        conditions=story.score_conditions(run),
        sentence=story.sentence(run),
        kind=story.model_kind(run),
        data=run.setting("data.source"),
        phrase=story.partition_phrase(run),
        sizes=story.spread(run.summary.get("client_sizes") or []),
        clients=words.plural(run.summary.get("num_clients") or 0, "client"),
        total=sum(run.summary.get("client_sizes") or []),
        client=folder.partition("/")[2],
        method=run.summary.get("method"),
        spreads=[(name, values) for name, values in spreads if values],
        snippet=story.load_snippet(run, "."),
        failed=len(run.failures),
    )


def escape(text: str) -> str:
    """Plain text that stays plain in Markdown: no markup, no HTML, no table cell or line break of its own."""
    flat = " ".join(text.split())
    return (
        re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
