"""What is done with a finished run: publish its report, draw more images, score it again, compare it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic import plugins
from osmotic.errors import ConfigError, plain
from osmotic.runs import resolve
from osmotic.storage import checkpoint, strict_json
from osmotic.storage.folder import RunDir
from osmotic.tensors import group

if TYPE_CHECKING:
    from osmotic.config.schema import Config
    from osmotic.data.dataset import Dataset
    from osmotic.runs.display import Display
    from osmotic.runs.scoring import Scoring
    from osmotic.runs.study import Study


def publish(run: RunDir, json: bool) -> bool:
    """Writes model card and report of a finished run, and prints its table, or with `json` its summary.

    Returns: False, with the reason on stderr, if no client was ever counted: the model is then the untrained one.
    """
    path = report(run.path)
    summary = strict_json.read_table(run.summary)
    if json:
        print(strict_json.dumps(summary))
    else:
        from osmotic.report import traffic

        _table(summary)
        if told := traffic.words(summary.get("traffic")):
            print(f"traffic  {told}")
        print(f"samples  {_grid(run)}")
        print(f"model    {run.model}")
        print(f"report   {path}")
    if reason := untrained(summary):
        print(f"osmotic: error: {reason}", file=sys.stderr)
    return reason is None


def report(directory: Path) -> Path:
    """Writes model card and report of a finished run; returns the report's path.

    Exchange and pieces that are not known here are warned of: card and report cannot say what they send.
    """
    from osmotic.report import card, learning_rule, page, reading

    plugins.load_installed()  # their words for a piece stand on the page
    if strangers := learning_rule.unknown(reading.read(directory)):
        rule = "so card and report cannot tell what it sends; --plugin FILE names the file of it"
        warnings.warn(f"{plain(', '.join(strangers))}: not known here, {rule}", stacklevel=2)
    card.write(directory)
    return page.write(directory)


def untrained(summary: Mapping[str, Any]) -> str | None:
    """Why a run that came to its end is worth nothing, or None."""
    if summary["images_seen"] or summary["server_steps"]:
        return None
    reason = summary["failures"][0]["reason"] if summary["failures"] else "nobody was asked"
    return f"no client was counted in any round, the model is untrained: {reason}"


def _grid(run: RunDir) -> str:
    """Where the last images are to be seen, and whose they are where every client has its own model."""
    from osmotic.report import narrative, reading

    read = reading.read(run.path)
    if read.samples:
        return str(read.samples[-1][1])
    if not read.own_grids:
        return "none"
    first, merged = read.own_grids[0]
    stage = ", before merging" if narrative.before_merging(read.quality) else ""
    after = f"; {merged.path.name} after merging" if merged else ""
    return f"{first.path} (the model of {first.client}, one of {len(read.own_grids)}{stage}{after})"


def _table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from osmotic.report import narrative
    from osmotic.report.formatting import DASH, count, duration, fd_name, figure, plural, size

    quality = summary["quality"] or {}
    table = Table(
        title=f"{summary['preset']}: {plural(summary['num_clients'], 'client')}, {plural(summary['rounds'], 'round')}",
        show_header=False,
    )
    fd = fd_name(quality.get("encoder"))
    conditions = f"{quality.get('encoder', DASH)}; {count(quality.get('num_samples'))} samples, {quality.get('sampler', DASH)}, {quality.get('nfe', DASH)} evaluations, guidance {quality.get('guidance', DASH)}"
    scores = [
        (f"{fd} ({conditions})", figure(quality.get("fd"))),
        (
            f"  with {count(quality.get('floor_samples'))} samples, and the floor of as many real images",
            f"{figure(quality.get('fd_at_floor'))}, {figure(quality.get('fd_floor'))}",
        ),
        *_beside(quality),
        ("KID", figure(quality.get("kid"))),
        ("precision, recall", f"{figure(quality.get('precision'))}, {figure(quality.get('recall'))}"),
        (f"{fd} per client{_own_count(quality)}: mean, worst", f"{figure((quality.get('mean') or {}).get('fd_own'))}, {figure((quality.get('worst') or {}).get('fd_own'))}"),
    ]  # fmt: skip
    rows = [
        *(_over_clients(quality, fd, conditions) if narrative.is_personal(quality) else scores),
        *_own_rows(quality),
        *_own_metrics(quality),
        ("bytes up, down", f"{size(summary['bytes_up'])}, {size(summary['bytes_down'])}"),
        ("images seen, optimiser steps", f"{count(summary['images_seen'])}, {count(summary['client_steps'])}"),
        ("failures", count(len(summary["failures"]))),
        ("time", duration(summary["wall_seconds"])),
    ]  # fmt: skip
    for left, right in rows:
        table.add_row(left, right)
    Console().print(table)


def _own_count(quality: Mapping[str, Any]) -> str:
    """How many clients stand behind own scores, as " (3 of 10)"; nothing in runs of earlier versions."""
    from osmotic.metrics.federated import MIN_OWN

    mean = quality.get("mean") or {}
    if "clients_own" not in mean:
        return ""
    own, clients = mean["clients_own"], mean["clients"]
    # A dash alone would look like a fault.
    return f" ({own} of {clients})" if own else f" (none of {clients} has {MIN_OWN} images to compare)"


def _beside(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a score against the training images cannot tell: held-out images, and copies; rows of what there is."""
    from osmotic.report.formatting import count, figure

    rows = []
    if held_out := quality.get("held_out"):
        against = f"  against {count(held_out['images'])} held-out images, and the floor of training images"
        rows.append((against, f"{figure(held_out['fd'])}, {figure(held_out['floor'])}"))
    if found := quality.get("near_copies"):
        shares = " and ".join(f"{found[view]:.1%}" for view in ("features", "pixels"))
        shares += f" (of fresh images {found['expected']:.1%})"
        rows.append(("near-copies of training images, by features and pixels", shares))
    return rows


def _own_metrics(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The user's own metrics, by the names that they were registered under."""
    from osmotic.errors import plain
    from osmotic.report.formatting import figure

    return [
        (f"metric {plain(name)}", figure(value)) for name, value in (quality.get("metrics") or {}).items()
    ]


def _own_rows(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Scores of clients' own models beside a global one, where there are both."""
    from osmotic.report import narrative

    rows = [(f"  {name}", ", ".join(figures)) for name, *figures in narrative.personal_rows(quality)]
    return [("clients' own models:", "mean, weighted, worst"), *rows] if rows else []


def _over_clients(quality: Mapping[str, Any], fd: str, conditions: str) -> list[tuple[str, str]]:
    """Scores of the clients' own models: mean, weighted by images, and worst, before and after the last average is merged."""
    from osmotic.report import narrative
    from osmotic.report.formatting import figure

    stage = ", before merging" if narrative.before_merging(quality) else ""
    rows = [(f"{narrative.own_models(quality)}{stage}:", "mean, weighted, worst")]
    named = {
        "fd_all": f"{fd} ({conditions})",
        "fd_own": f"{fd} against own images{_own_count(quality)}",
        "kid_all": "KID",
    }
    for key, name in named.items():
        for label, groups in ((name, quality), ("  after merging", quality.get("after"))):
            if groups:
                figures = (
                    figure((groups.get(group) or {}).get(key)) for group in ("mean", "weighted", "worst")
                )
                rows.append((label, ", ".join(figures)))
    return rows


def finished(directory: Path) -> RunDir:
    """The run in a folder. Raises ConfigError if it has not come to its end."""
    run = RunDir.existing(directory)
    if not run.summary.is_file():
        raise ConfigError(
            str(directory), None, f"is not finished yet; go on with `osmotic resume {directory}`"
        )
    return run


def sample(
    directory: Path,
    count: int,
    label: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    client: str | None,
    out: Path | None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Draws `count` images from the saved model and writes them as PNG; returns folder, grid and count.

    Raises: ConfigError for an unknown label or client, or a folder that is not empty.
    """
    run = finished(directory)
    folder = out or run.samples / "-".join(["new", str(seed), *([client] if client else [])])
    if out is None and folder.exists():
        raise ConfigError("--seed", seed, f"{folder} is there already: give another --seed, or --out")
    RunDir.refuse_used(folder)
    from osmotic.report import pictures
    from osmotic.runs import saved

    pixels, labels = saved.draw(run, count, label, steps, guidance, seed, client, quiet)
    names = saved.class_names(run)
    for i, image in enumerate(pixels):
        name = f"{i:05d}" + (f"-{names[labels[i]]}" if labels is not None else "")
        pictures.save_png(folder / f"{name.replace('/', '_')}.png", image)
    scale = max(1, 64 // pixels.shape[1])
    pictures.save_png(folder / "grid.png", pictures.grid(pixels, 10, scale=scale))
    return {"folder": str(folder), "grid": str(folder / "grid.png"), "count": count}


def evaluate(
    directory: Path,
    sets: Sequence[str] = (),
    ema: float | None = None,
    dataset: Dataset | None = None,
    keys: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Quality of a run's models with other `score.` keys, or another average; the run itself is not changed.

    Args:
        sets: `score.KEY=VALUE`, as `--set`.
        keys: the same as values.
        ema: half-life in images; 0 for the raw weights, None for the one the run scored.
        dataset: where the run was begun with images of the caller's own, the same ones.
        quiet: say nothing of how far it is.
    Raises: ConfigError for keys outside `score.`, or a half-life that was not kept.
    """
    run = finished(directory)
    for text in sets:
        key = resolve.parse_set(text)[0]
        if not key.startswith("score."):
            raise ConfigError("--set", text, "only keys of [score] can change after training")
    cfg = resolve.load(run.config, sets=sets, keys=keys, own_data=dataset is not None)
    if cfg.engine.name == "sites":
        raise ConfigError(
            "DIR", str(run.path), "was trained at sites, and their images are not here to score against"
        )
    kept = cfg.recipe.ema_half_lives
    if ema is not None and ema != 0 and ema not in kept:
        raise ConfigError("--ema", ema, "must be 0 or one of " + ", ".join(f"{h:g}" for h in kept))
    from osmotic.runs.display import Display

    with Display(quiet) as display:
        return _evaluated(run, cfg, ema, dataset, display)


def _evaluated(
    run: RunDir, cfg: Config, ema: float | None, dataset: Dataset | None, display: Display
) -> dict[str, Any]:
    display.at("starting")
    from osmotic.diffusion.sampler import NotFinite
    from osmotic.runs.estimate import Estimate, scoring
    from osmotic.runs.launch import refuse_other_images
    from osmotic.runs.saved import autoencoder_of
    from osmotic.runs.scoring import Scoring
    from osmotic.runs.study import make_deterministic, prepare

    # Its own copy of the autoencoder: what lies at the place that it was trained with may be another one now.
    model = replace(cfg.model, autoencoder=autoencoder_of(run, cfg))
    study = prepare(replace(cfg, model=model), dataset, display.read)
    refuse_other_images(run, study)
    make_deterministic(study)
    _, tensors, notes = checkpoint.load_latest(run.checkpoints, mark_damaged=False, run_id=run.run_id)
    kept = cfg.recipe.ema_half_lives
    half_life = ema if ema is not None else (kept[0] if kept else 0)
    scorer, shared = Scoring(study, None, display.worked), study.blueprint.method().global_model
    if ema is not None and not shared:
        raise ConfigError(
            "--ema", ema, f"method {cfg.method.name} has no global model: leave this option out"
        )
    own = study.blueprint.chain().personal or not shared
    pools = shared + own * len(study.holdings)
    known = sum(len(h.train) for h in study.holdings)
    display.at("")
    display.estimate = Estimate([scoring(study.config, pools, known, scorer.encoder_steps)], {})
    if shared:
        weights = _averaged(tensors, notes, kept, half_life)
        score = partial(scorer.score_global, weights, cfg.training.rounds)
    else:
        score = partial(_personal, study, run, scorer)
    try:
        quality = score()
        if shared and own:  # as the run did, though `--ema` may have the global one at another average
            found = _personal(study, run, scorer)
            quality["personal"] = {k: found[k] for k in ("mean", "weighted", "worst", "per_client")}
    except NotFinite as error:
        raise ConfigError(str(run.path), None, f"cannot be scored: {error}") from None
    return {"half_life": half_life, **quality}


def _averaged(
    tensors: Mapping[str, np.ndarray], notes: Mapping[str, Any], kept: tuple[float, ...], half_life: float
) -> Mapping[str, np.ndarray]:
    """The server's weights in a checkpoint, averaged over this half-life; 0 gives them as they are."""
    from osmotic.diffusion.ema import Ema
    from osmotic.federation.state import average_of

    averages = Ema(kept)
    averages.restore(group(tensors, "ema"), notes["ema"])
    return average_of(group(tensors, "weights"), averages, half_life)


def _personal(study: Study, run: RunDir, scoring: Scoring) -> dict[str, Any]:
    """Scores of every client's own model, as it stood after its last training, and what it gained beside a global one; the run is not changed."""
    from osmotic.federation.interfaces import Stage
    from osmotic.runs import gains, launch

    labels, samples = scoring.labels(), scoring.samples
    models, gained = launch.personal_models(study, run)
    pools = {name: scoring.draw(weights, labels, samples)[0] for name, weights in models.items()}
    method = study.blueprint.method()
    stage: Stage = "before" if method.shared and not method.global_model else "after"
    quality = scoring.score_personal(pools, stage, study.config.training.rounds)
    return gains.beside(quality, gained) if method.global_model else quality


def quality_text(quality: dict[str, Any]) -> str:
    """The scores for a person."""
    from osmotic.report import narrative
    from osmotic.report.formatting import fd_name, figure

    name = fd_name(quality["encoder"])
    if quality["fd"] is None:
        mean, weighted, worst = (figure(quality[group]["fd_all"]) for group in ("mean", "weighted", "worst"))
        stage = ", before the last average is merged" if narrative.before_merging(quality) else ""
        first = f"{name} of {narrative.own_models(quality)}{stage}: mean {mean}, weighted by images {weighted}, worst {worst}"
    else:
        first = (
            f"{name} {figure(quality['fd'])}  (at {quality['floor_samples']} samples {figure(quality['fd_at_floor'])}, "
            f"floor {figure(quality['fd_floor'])})\nKID {figure(quality['kid'])}  "
            f"precision {figure(quality['precision'])}  recall {figure(quality['recall'])}"
        )
        first += "".join(
            f"\n{left.strip().removesuffix(':')}: {right}"
            for left, right in (*_beside(quality), *_own_rows(quality), *_own_metrics(quality))
        )
    return (
        f"{first}\n{quality['num_samples']} samples, {quality['sampler']}, guidance {quality['guidance']:g}, "
        f"{quality['nfe']} evaluations, encoder {quality['encoder']}, average over {quality['half_life']:g} images"
    )


def compare(directories: Sequence[Path], out: Path | None, json: bool, csv: Path | None = None) -> None:
    """Prints the runs side by side, and writes the page and the CSV files if asked to."""
    from rich.console import Console

    from osmotic.report.compare import compare as side_by_side

    plugins.load_installed()
    comparison = side_by_side(directories)
    if out is not None:
        comparison.write_html(out)
    written = [out] if out is not None else []
    if csv is not None:
        from osmotic.report import spreadsheet

        written += spreadsheet.write(comparison, csv)
    if json:
        print(strict_json.dumps(comparison.as_dicts()))
        return
    console = Console()
    for table in (comparison.table(), *comparison.group_tables()):
        console.print(table)
    for path in written:
        print(path)
