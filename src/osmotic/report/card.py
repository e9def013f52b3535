"""The model card: what a user of the model folder must know, taken from the run's own files and from nowhere else.

Source: the sections of a model card after Mitchell et al., arXiv 1810.03993.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from osmotic.report import formatting, narrative, page
from osmotic.report.reading import Run, read


def write(run_dir: Path | str) -> list[Path]:
    """Writes README.md into each pipeline folder under model/ and returns the paths.

    Raises: ConfigError if the folder is no finished run or one of its files cannot be read.
    """
    from osmotic.storage.atomic import write_text

    run = read(run_dir)
    paths = []
    for folder in narrative.model_folders(run):
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
        return formatting.DASH if value is None or isinstance(value, Undefined) or value == "" else str(value)

    env.filters |= {
        "md": lambda v: escape(told(v)),
        "count": lambda v: formatting.count(None if isinstance(v, Undefined) else v),
        "figure": lambda v: formatting.figure(None if isinstance(v, Undefined) else v),
        "bytesize": lambda v: formatting.size(None if isinstance(v, Undefined) else v),
    }
    q = run.quality
    clients = page.client_rows(run)
    spreads = [
        (
            page.score_heading(key, q),
            narrative.spread(c.scores.get(key) for c in clients),
        )
        for key in page.score_keys(clients)
    ]
    return env.get_template("card.md.jinja").render(
        run=run,
        summary=run.summary,
        quality=q,
        fd_name=formatting.fd_name(q.get("encoder")),
        conditions=narrative.score_conditions(run),
        sentence=narrative.sentence(run),
        kind=narrative.model_kind(run),
        data=run.setting("data.source"),
        phrase=narrative.partition_phrase(run),
        sizes=narrative.spread(run.summary.get("client_sizes") or []),
        clients=formatting.plural(run.summary.get("num_clients") or 0, "client"),
        total=sum(run.summary.get("client_sizes") or []),
        client=(client := folder.partition("/")[2]),
        own=own_scores(run, client),
        personal=narrative.is_personal(q),
        before=narrative.before_merging(q),
        shared=narrative.shared_parts(run),
        method=run.summary.get("method"),
        spreads=[(name, values) for name, values in spreads if values],
        snippet=narrative.load_snippet(run, "."),
        failed=len(run.failures),
    )


def own_scores(run: Run, client: str) -> list[tuple[str, float | None, float | None]]:
    """(score, before or only stage, after merging) of this client's own model; empty where it has none."""
    q = run.quality
    if not narrative.is_personal(q):
        return []
    found = [c for c in q.get("per_client") or () if c.get("name") == client]
    stages = {str(c.get("stage")): c for c in found}
    scored, merged = (
        stages.get("before" if narrative.before_merging(q) else "after", {}),
        stages.get("after", {}),
    )
    name = formatting.fd_name(q.get("encoder"))
    keys = ("fd_all", "fd_own", "kid_all", "kid_own")
    labels = [
        f"{name if key.startswith('fd') else 'KID'} against {page.REALS[key.partition('_')[2]]}, lower is better"
        for key in keys
    ]
    return [(label, scored.get(key), merged.get(key)) for label, key in zip(labels, keys, strict=True)]


def escape(text: str) -> str:
    """Plain text that stays plain in Markdown: no markup, no HTML, no table cell or line break of its own."""
    flat = " ".join(text.split())
    return (
        re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
