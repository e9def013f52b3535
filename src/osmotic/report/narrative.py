"""What a run was, in sentences: shared by the page, the model card and the comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.report import formatting
from osmotic.report.reading import Run

PARTITIONS = {
    "iid": "split evenly at random",
    "dirichlet": "split by class with a Dirichlet({alpha:g}) draw",
    "l-skew": "split by class with a capped Dirichlet({alpha:g}) draw",
    "q-skew": "split into sizes of a Dirichlet({alpha:g}) draw",
    "shards": "split into label-sorted shards, {shards} per client",
    "pathological": "split so that each client holds {classes} classes",
    "linear": "split into linearly growing sizes",
    "exponential": "split into exponentially growing sizes",
}
SHARED = {
    "ulatdec": "bottleneck and decoder",
    "udec": "the decoder",
}  # what methods with personal parts average


def sentence(run: Run) -> str:
    """What this run was, in one sentence: method, network, data, clients, rounds."""
    summary = run.summary
    method = str(summary.get("method") or "")
    clients = int(summary.get("num_clients") or 0)
    size = summary.get("parameters")
    model = f"{model_kind(run)} diffusion model" + (
        f" of {formatting.count(size)} parameters" if size is not None else ""
    )
    article = "an" if model[:1] in "aeiou" else "a"
    data = str(run.setting("data.source", "unnamed data"))
    rounds = formatting.plural(summary.get("rounds") or 0, "round")
    if method == "central":
        return f"One trainer held all images of {data} and trained {article} {model} for {rounds}: the upper baseline."
    if method == "local":
        return (
            f"Each of {formatting.plural(clients, 'client')} trained {article} {model} alone on its own part of {data}, "
            f"{partition_phrase(run)}, for {rounds}: the lower baseline."
        )
    if method in SHARED:
        return (
            f"Each of {formatting.plural(clients, 'client')} trained {article} {model} of its own on {data} with {method}, "
            f"for {rounds}: they share {shared_parts(run)}, the rest is personal; the images, {partition_phrase(run)}, "
            "stayed where they were."
        )
    by = "usplit, each returning a part of it," if method == "usplit" else f"{method},"
    return (
        f"{formatting.plural(clients, 'client')} trained {article} {model} together on {data} with {by} "
        f"for {rounds}; the images, {partition_phrase(run)}, stayed where they were."
    )


def shared_parts(run: Run) -> str:
    """What clients with personal models average, such as `the decoder`; empty where they share nothing."""
    parts = SHARED.get(str(run.summary.get("method")), "")
    every = run.setting("method.encoder_every", 0)
    return parts + (f", and every {every} rounds the encoder" if parts and every else "")


def is_personal(quality: Mapping[str, Any]) -> bool:
    """Whether the scores are those of the clients' own models, because no global one exists."""
    over = (quality.get(group) or {} for group in ("mean", "worst"))
    return quality.get("fd") is None and any(group.get("fd_all") is not None for group in over)


def own_count(quality: Mapping[str, Any]) -> int:
    """How many clients' own models `mean`, `weighted` and `worst` are over."""
    stage = "before" if before_merging(quality) else "after"
    per_client = quality.get("per_client") or ()
    return sum(1 for c in per_client if c.get("stage") == stage and c.get("fd_all") is not None)


def own_models(quality: Mapping[str, Any]) -> str:
    """The same in words: `5 clients' own models`."""
    count = own_count(quality)
    return "1 client's own model" if count == 1 else f"{formatting.count(count)} clients' own models"


def before_merging(quality: Mapping[str, Any]) -> bool:
    """Whether the clients' own models were scored as trained, before the last average was merged into them."""
    return any(c.get("stage") == "before" for c in quality.get("per_client") or ())


def stage_words(quality: Mapping[str, Any]) -> dict[str, str]:
    """What the stages of `per_client` are called; empty names where there is only one, as nothing came after it."""
    stages = {c.get("stage") or "before" for c in quality.get("per_client") or ()}
    step = "merging" if quality.get("after") else "personalising"
    return {stage: f"{stage} {step}" if len(stages) > 1 else "" for stage in ("before", "after")}


def model_kind(run: Run) -> str:
    return "class-conditional" if is_conditional(run) else "unconditional"


def is_conditional(run: Run) -> bool:
    """Whether the model takes class labels, as far as the folder says."""
    chosen = run.setting("model.conditional", "auto")
    if isinstance(chosen, bool):
        return chosen
    return bool(run.partition and run.partition.counts)


def partition_phrase(run: Run) -> str:
    """How the images were spread, such as `split evenly at random`."""
    name = str(run.setting("data.partition", ""))
    if name.startswith("by:"):
        return f"split by the column {name[3:]}"
    return PARTITIONS.get(name, "split between them").format(
        alpha=float(run.setting("data.dirichlet_alpha", 0.5)),
        shards=run.setting("data.shards_per_client", 2),
        classes=run.setting("data.classes_per_client", 2),
    )


def score_conditions(run: Run) -> str:
    """What every score must be read with: encoder, sample count, sampler, evaluations and guidance."""
    q = run.quality
    parts = [f"encoder {q.get('encoder') or formatting.DASH}"]
    parts.append(f"{formatting.count(q.get('num_samples'))} samples")
    nfe = q.get("nfe")
    parts.append(
        f"{q.get('sampler') or formatting.DASH}"
        + (f", {formatting.plural(nfe, 'evaluation')} each" if nfe else "")
    )
    if (scale := q.get("guidance")) is not None:
        parts.append(f"guidance {scale:g}")  # it can turn the order of two methods around
    return " · ".join(parts)


def model_folders(run: Run) -> list[str]:
    """Pipeline folders under model/, relative to the run; `model` alone where there is one global model."""
    root = run.path / "model"
    if (root / "model_index.json").is_file() or not root.is_dir():
        return ["model"]
    return sorted(f"model/{p.parent.name}" for p in root.glob("*/model_index.json")) or ["model"]


def load_snippet(run: Run, folder: str | None = None) -> str:
    """Python that draws images from the run's model with diffusers alone.

    Args:
        run: the run.
        folder: what to load; by default the first pipeline folder, seen from the run folder.
    """
    path = folder if folder is not None else model_folders(run)[0]
    index = _model_index(run)
    custom = isinstance(index.get("_class_name"), list) or index.get("unet", ["diffusers"])[0] != "diffusers"
    steps = int(run.setting("score.steps", 20))
    lines = ["from diffusers import DiffusionPipeline", ""]
    if custom:
        lines += [
            "# trust_remote_code lets diffusers use the classes in the folder",
            f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(path)}, trust_remote_code=True)",
        ]
    else:
        lines.append(f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(path)})")
    if is_conditional(run):
        classes = len(run.partition.class_names) if run.partition else 10
        wanted = ", ".join(str(k) for k in range(min(classes, 10)))
        lines.append(f"images = pipeline(class_labels=[{wanted}], num_inference_steps={steps}).images")
    else:
        lines.append(f"images = pipeline(batch_size=10, num_inference_steps={steps}).images")
    return "\n".join([*lines, 'images[0].save("image.png")'])


def _model_index(run: Run) -> dict[str, Any]:
    path = run.path / model_folders(run)[0] / "model_index.json"
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def spread(values: Iterable[float | None]) -> tuple[float, float, float] | None:
    """(least, median, greatest) of the measured values; None without any."""
    from statistics import median

    known = sorted(v for v in values if v is not None)
    return (known[0], median(known), known[-1]) if known else None
