"""The model card: what a user of the model folder must know, taken from the run's own files and from nowhere else.

Source: the sections of a model card after Mitchell et al., arXiv 1810.03993.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from osmotic.report import evidence, formatting, learning_rule, narrative, tables, templates, traffic
from osmotic.report.reading import Run, read

LICENCE = "Apache License 2.0"  # osmotic's own


def write(run_dir: Path | str) -> list[Path]:
    """Writes README.md into each pipeline folder of the run, atomically, and returns the paths.

    Raises: ConfigError if the folder is no finished run or one of its files cannot be read.
    """
    from osmotic.storage.atomic import write_text

    run = read(run_dir)
    paths, clients = [], tables.client_rows(run)
    for folder in narrative.model_folders(run):
        path = run.path / folder / "README.md"
        write_text(path, render(run, folder, clients))
        paths.append(path)
    return paths


def render(run: Run, folder: str = "model", clients: Sequence[tables.ClientRow] | None = None) -> str:
    """The card in Markdown for one pipeline folder.

    Args:
        run: the run.
        folder: relative to it: `model`, or that of one client, as `model/client-003` or `personal/client-003`.
        clients: what `tables.client_rows` gives, where it is known already.
    """
    q = run.quality
    # A model in the run folder is one that its client gave away, and the card has to say so.
    own_folders = [f for f in narrative.model_folders(run) if f != "model"]
    clients = tables.client_rows(run) if clients is None else clients
    spreads = [
        (tables.score_heading(key, q), narrative.spread(c.scores.get(key) for c in clients))
        for key in tables.score_keys(clients, q)
        if not key.startswith("own_images")  # told once, above the scores
    ]
    sizes = run.summary.get("client_sizes") or []
    # Cards are published: sizes and scores are told as a spread, without the names of the clients.
    client = folder.partition("/")[2]
    entry = tables.own_entries(q, client)[0] if client else q
    return (
        templates.markdown()
        .get_template("card.md.jinja")
        .render(
            run=run,
            summary=run.summary,
            quality=q,
            fd_name=formatting.fd_name(q.get("encoder")),
            conditions=narrative.score_conditions(run),
            sentence=narrative.sentence(run),
            exchange=learning_rule.exchange_of(run),
            pieces=learning_rule.pieces_of(run),
            rule=learning_rule.rule_lines(run) + narrative.started_from(run),
            pretrained=narrative.pretrained_name(run),
            pretrained_sha256=run.setting("model.pretrained_sha256"),
            adapter=narrative.has_adapter(run),
            parameters=narrative.whole_parameters(run),
            where=narrative.where(run),
            sites=narrative.at_sites(run),
            traffic=traffic.words(run.summary.get("traffic")),
            data=narrative.data_name(run),
            network=narrative.network_name(run),
            target=narrative.target(run),
            licence=LICENCE,
            score_rows=evidence.score_rows(run),
            copies=evidence.copies(entry),
            held_out=bool(entry.get("held_out")),
            own_basis=evidence.own_basis(q),
            phrase=narrative.partition_phrase(run),
            sizes=narrative.spread(sizes),
            clients=formatting.plural(run.summary.get("num_clients") or 0, "client"),
            total=sum(sizes),
            client=client,
            own_folders=own_folders,
            own_scored=bool(narrative.own_quality(q)),
            beside_global=bool(client) and not folder.startswith("model/"),
            own=tables.scores_of(q, client) if client else [],
            personal=narrative.is_personal(q),
            # The means over all clients stand in the card of the global model; a client's own card has its own scores.
            personal_rows=[] if client else narrative.personal_rows(q),
            own_metrics=tables.own_metrics(q),
            before=narrative.before_merging(q),
            shared=narrative.shared_parts(run),
            spreads=[(name, values) for name, values in spreads if values],
            snippet=narrative.load_snippet(run, "."),
            repeat=narrative.repeat_command(run),
            failed=len(run.failures),
        )
    )
