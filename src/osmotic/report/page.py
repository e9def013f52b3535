"""report.html: one self-contained page that tells a run, opened from disk, without network and without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.report import (
    bars,
    crowds,
    curves,
    evidence,
    formatting,
    gallery,
    learning_rule,
    narrative,
    tables,
    templates,
    tiles,
)
from osmotic.report.reading import Run, read

MAX_METRICS = 24  # small curves of a kind; a piece that tells a figure per client would fill the page


def write(run_dir: Path | str) -> Path:
    """Writes report.html into a run folder, atomically, and returns its path.

    Raises: ConfigError if the folder is no finished run or one of its files cannot be read.
    """
    from osmotic.storage.atomic import write_text

    run = read(run_dir)
    path = run.path / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page of a run as HTML; the same folder gives the same bytes."""
    q = run.quality
    # A Fréchet distance is called FID on Inception-v3 features alone; said of others it would invite a comparison.
    fd_name = formatting.fd_name(q.get("encoder"))
    clients = tables.client_rows(run)
    many = len(clients) > crowds.MOST
    failures = [(tables.failed_client(run, f), f) for f in run.failures[: crowds.MOST]]
    draw, table = crowds if many else bars, crowds.quantile_table if many else tables.client_table
    folders = narrative.model_folders(run)
    return (
        templates.html()
        .get_template("page.html.jinja")
        .render(
            run=run,
            where=narrative.where(run),
            summary=run.summary,
            quality=q,
            fd_name=fd_name,
            sentence=narrative.sentence(run),
            rule=learning_rule.rule_lines(run) + narrative.started_from(run),
            pretrained=narrative.pretrained_name(run),
            pretrained_sha256=run.setting("model.pretrained_sha256"),
            adapter=narrative.has_adapter(run),
            conditions=narrative.score_conditions(run),
            tiles=tiles.tiles(run),
            # Not the best grid, nor a chosen one: the last.
            last=gallery.picture(run.samples[-1]) if run.samples else None,
            real=gallery.real(run),
            nearest=gallery.nearest(run),
            own_nearest=gallery.own_nearest(run),
            strip=gallery.strip(run),
            own=gallery.own_pictures(run),
            personal=narrative.is_personal(q),
            before=narrative.before_merging(q),
            shared=narrative.shared_parts(run),
            drawings=drawings(run, fd_name, many),
            metrics=metrics(run),
            corrected=corrected(run),
            many=many,
            partition_plot=run.partition and draw.partition(run.partition),
            client_plot=draw.client_scores(
                q.get("per_client") or [],
                fd_name,
                narrative.stage_words(q),
                # One model for all: against all clients' images its clients have one score, the headline's.
                ("own",) if q.get("fd") is not None else ("all", "own"),
            ),
            client_losses=([], 0) if many else curves.client_losses(run.training_rounds),
            score_rows=evidence.score_rows(run),
            copies=evidence.copies(q),
            own_basis=evidence.own_basis(q),
            own_means=evidence.means(q, "own"),
            all_means=evidence.means(q, "all"),
            further=tables.further_scores(q),
            own_metrics=tables.own_metrics(q),
            over_clients=tables.over_clients(q),
            personal_rows=narrative.personal_rows(q),
            own_evidence=narrative.evidence_rows(q, q) if narrative.is_personal(q) else [],
            own_copies=evidence.own_copies(q),
            personal_models=narrative.own_models(q.get("personal") or {}),
            clients=clients,
            score_columns=tables.score_keys(clients, q),
            client_table=table(clients, tables.columns(clients, q)),
            own_table=table(*tables.own_columns(clients, q)),
            personal_basis=evidence.own_basis(q.get("personal") or {}),
            ends=crowds.ends(clients, q) if many else [],
            client_floors=any(c.get("fd_own_floor") is not None for c in q.get("per_client") or ()),
            ledger=tables.ledger_rows(run),
            failures=failures,
            kept=[r.number for r in run.training_rounds if r.kept_old_weights],
            snippet=narrative.load_snippet(run),
            repeat=narrative.repeat_command(run),
            whole_model="model" in folders,
            own_folders=[folder for folder in folders if folder != "model"],
        )
    )


def drawings(run: Run, fd_name: str, many: bool = False) -> list[str]:
    """The curves and bars that the run has figures for, as <svg> elements; scores first.

    Args:
        run: the run.
        fd_name: FD, or FID where the encoder is Inception-v3.
        many: whether the clients are so many that each is not drawn for itself.
    """
    scored = [r.quality for r in run.scored_rounds if r.quality]
    # A run that ended without a last score is told by the last one there is.
    last: Mapping[str, Any] = {
        **(scored[-1] if scored else {}),
        **{k: v for k, v in run.quality.items() if v is not None},
    }
    merged = run.quality.get("after")
    made = [
        curves.score(run.scored_rounds, "fd", fd_name, last.get("fd_floor")),
        curves.score(run.scored_rounds, "kid", "KID"),
        curves.own_scores(run.scored_rounds, "fd_all", fd_name, merged),
        curves.own_scores(run.scored_rounds, "kid_all", "KID", merged),
        curves.loss(run.training_rounds),
        crowds.losses(run.training_rounds) if many else None,
        curves.traffic(run.ledger),
        bars.class_histogram(
            last.get("class_histogram") or [],
            last.get("class_histogram_data") or [],
            run.partition.class_names if run.partition else (),
        ),
        bars.failures(run.failures, int(run.summary.get("rounds") or 0)),
    ]
    return [drawing for drawing in made if drawing]


def corrected(run: Run) -> list[tuple[int, str]]:
    """(round, what told it) of the rounds in which learning was found slow and the server trained for it."""
    entries = (run.summary.get("auxiliary") or {}).get("corrected") or ()
    # Under "loss" stands by what share it had fallen over the window.
    return [
        (
            int(e["round"]),
            ", ".join(
                f"loss down by {100 * v:.1f} %" if k == "loss" else f"{k} {formatting.figure(v, 3)}"
                for k, v in e.items()
                if k != "round" and formatting.is_number(v)
            ),
        )
        for e in entries
        if isinstance(e, dict) and formatting.is_number(e.get("round"))
    ]


def metrics(run: Run) -> list[tuple[str, list[str], int]]:
    """(heading, small curves as <svg> elements, how many there are) of the figures that have a name and nothing else.

    Those of the exchange and its pieces come from every phase, the user's own ones with the scores. At most 24 of a kind
    are drawn; a kind without any is left out.
    """
    kinds = {
        "Figures of the learning rule": curves.points_by_name(run.rounds, lambda r: r.metrics),
        "Own metrics": curves.points_by_name(
            run.scored_rounds, lambda r: (r.quality or {}).get("metrics") or {}
        ),
    }
    found, number = [], 0
    for heading, figures in kinds.items():
        made = []
        for name, points in list(figures.items())[:MAX_METRICS]:
            made.append(curves.metric(points, name, number, [n for n, _ in corrected(run)]))
            number += 1  # over both kinds: the ids of the page must differ
        drawn = [drawing for drawing in made if drawing]
        if drawn:
            found.append((heading, drawn, len(figures)))
    return found
