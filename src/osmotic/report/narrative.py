"""What a run was, in sentences: shared by the page, the model card and the comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.engines import WHERE
from osmotic.errors import plain
from osmotic.methods import METHODS
from osmotic.report import formatting
from osmotic.report.learning_rule import exchange_of, rule_name, words_of
from osmotic.report.reading import Run

OWN_SCORES = ("fd_all", "fd_own", "kid_all", "kid_own")  # scores that are taken client by client
OWN_EVIDENCE = ("fd_held_out", "near_copies")  # what they must be read with; of own models alone
# What a score of a client compares with.
REALS = {"all": "all clients' images", "own": "own images", "held_out": "held-out images"}
# By `data.partition`; the fields are those of `partition_phrase`.
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


def sentence(run: Run) -> str:
    """What this run was: exchange and pieces, network, data, clients, rounds; in the words of its exchange."""
    summary, exchange = run.summary, exchange_of(run)
    model = model_kind(run) + size_words(run)
    simulated = where(run) and not at_sites(run)
    kind = "site" if at_sites(run) else "simulated client" if simulated else "client"
    clients = formatting.plural(int(summary.get("num_clients") or 0), kind)
    told = exchange.sentence.format(
        clients=clients + (" on one machine" if simulated else ""),
        model=f"{'an' if model[:1] in 'aeiou' else 'a'} {model}",
        data=data_name(run),
        rounds=formatting.plural(summary.get("rounds") or 0, "round"),
        split=partition_phrase(run),
        shared=shared_parts(run) or words_of(exchange.shared),
        method=rule_name(run),
    )
    # No exchange can say so of itself: own models beside a global one are the work of a piece.
    own_beside = exchange.global_model and summary.get("personal")
    return told + (" Each client also has a model of its own." if own_beside else "")


def size_words(run: Run) -> str:
    """` of 702,753 parameters`, and beside it how many of an adapter alone were trained; empty where that is not known."""
    trained, whole = run.summary.get("parameters"), whole_parameters(run)
    if trained is None:
        return ""
    if not has_adapter(run):
        return f" of {formatting.count(trained)} parameters"
    size = "" if whole is None else f" of {formatting.count(whole)} parameters"
    return f"{size} (through a low-rank adapter of {formatting.count(trained)}; all else stayed as it was)"


def has_adapter(run: Run) -> bool:
    """Whether an adapter of a pretrained network was all that was trained."""
    rank = run.setting("adapter.rank", 0)
    return formatting.is_number(rank) and rank > 0


def whole_parameters(run: Run) -> int | None:
    """Parameters of the whole network; None where the folder tells those of an adapter alone."""
    told: int | None = run.summary.get("parameters_whole")
    return run.summary.get("parameters") if told is None and not has_adapter(run) else told


def pretrained_name(run: Run) -> str:
    """The weights that the run started from, as `public/model`, without the path to a folder; empty where there were none."""
    place = str(run.setting("model.pretrained", "") or "")
    # A name on a hub has two parts; a longer path, or one from the root or from home, is nobody's business on a card.
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", place):
        return place
    return plain(Path(place).name or "a folder") if place else ""


def started_from(run: Run) -> list[tuple[str, str]]:
    """(what, words): the pretrained weights and the adapter of them; empty where a run has neither."""
    name = pretrained_name(run)
    lines = [("start", f"the pretrained weights {name}")] if name else []
    if has_adapter(run):
        rank, alpha, targets = (run.setting(f"adapter.{key}") for key in ("rank", "alpha", "targets"))
        layers = ", ".join(plain(target) for target in targets or ())
        factors = "A and B" if run.setting("adapter.trains") == "both" else "B, with A drawn once"
        scale = f", alpha {formatting.figure(alpha)}" if formatting.is_number(alpha) else ""
        lines.append(
            (
                "adapter",
                f"low-rank, rank {rank}{scale}; of the layers {layers}; trained was {factors} (arXiv 2106.09685)",
            )
        )
    return lines


def where(run: Run) -> str:
    """Where the clients were, such as `a simulation: all clients share one machine`; empty where the engine is not known.

    Also where one trainer held all images: there are no clients then.
    """
    method = METHODS.get(str(run.summary.get("method")))
    return "" if method and method.pools_data else WHERE.get(str(run.summary.get("engine")), "")


def at_sites(run: Run) -> bool:
    """Whether the clients were sites of their own, and no simulation."""
    return run.summary.get("engine") == "sites"


def data_name(run: Run) -> str:
    """The images in words, without the path of a folder or file, which is nobody's business on a card."""
    if at_sites(run):
        return "images of their own"
    source = str(run.setting("data.source", "") or "")
    kind, _, rest = source.partition(":")
    if source == "python":
        return "images handed over in Python"
    if kind in ("folder", "npz") and rest:
        return f"images of the {'folder' if kind == 'folder' else 'file'} {Path(rest).name or rest}"
    if kind == "hf" and rest:
        return f"{rest} from the Hugging Face Hub"
    return source or "unnamed data"


def network_name(run: Run) -> str:
    """The network that was trained, such as `unet-8`: what `auto` stood for, where the folder tells it."""
    chosen = str(run.setting("model.network", formatting.DASH))
    return str(run.summary.get("network") or chosen) if chosen == "auto" else chosen


def shared_parts(run: Run) -> str:
    """What clients with personal parts average, such as `the decoder`; empty where all is averaged, or nothing."""
    exchange = exchange_of(run)
    if exchange.global_model or not exchange.shared:
        return ""
    every = run.setting("method.encoder_every", 0)
    return words_of(exchange.shared) + (f", and every {every} rounds the encoder" if every else "")


def is_personal(quality: Mapping[str, Any]) -> bool:
    """Whether the scores are those of the clients' own models, because no global one exists."""
    over = (quality.get(group) or {} for group in ("mean", "worst"))
    return quality.get("fd") is None and any(group.get("fd_all") is not None for group in over)


def own_quality(quality: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of the clients' own models, with `mean`, `weighted`, `worst` and `per_client`; empty without such models.

    Where no global model exists they are the scores themselves, else they stand beside those of the global one.
    """
    return quality if is_personal(quality) else quality.get("personal") or {}


def repeat_command(run: Run) -> str:
    """The command that repeats the run, with the plugins that it says it needs.

    The folder's own text is believed in this narrow form alone: names of files, nothing that a shell would act on.
    """
    if at_sites(run):
        return "osmotic hub run config.toml"
    form = r"`(osmotic run config\.toml(?: --plugin [\w.-]+)*)` repeats"
    found = re.search(form, run.config_toml.partition("\n")[0])
    return found[1] if found else "osmotic run config.toml"


def personal_rows(quality: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(score, mean, weighted by images, worst) of clients' own models beside a global one; empty where there are none.

    For page, card and terminal alike. Runs without a global model are told otherwise: their own models are the result.
    """
    own = quality.get("personal") or {}
    return rows_over(own, quality, OWN_SCORES) + evidence_rows(own, quality)


def evidence_rows(own: Mapping[str, Any], quality: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The same of what own models' scores must be read with: held-out images, and near-copies.

    Args:
        own: scores of own models, with `per_client`.
        quality: of the run, which names the encoder.
    """
    entries = own.get("per_client") or ()
    stage = "before" if any(c.get("stage") == "before" for c in entries) else "after"
    return rows_over(over(entries, stage), quality, OWN_EVIDENCE)


def over(entries: Iterable[Mapping[str, Any]], stage: str) -> dict[str, dict[str, float]]:
    """`mean`, `weighted` and `worst` of OWN_EVIDENCE over the clients that have it: the summary has no groups of these.

    Args:
        entries: of `per_client`.
        stage: whose entries are taken.
    """
    groups: dict[str, dict[str, float]] = {"mean": {}, "weighted": {}, "worst": {}}
    mine = [c for c in entries if c.get("stage") == stage]
    for key in OWN_EVIDENCE:
        found = [(value, c.get("num_examples") or 0) for c in mine if (value := score_of(c, key)) is not None]
        if not found:
            continue
        groups["mean"][key] = sum(value for value, _ in found) / len(found)
        groups["worst"][key] = max(value for value, _ in found)
        if total := sum(images for _, images in found):
            groups["weighted"][key] = sum(value * images for value, images in found) / total
    return groups


def score_of(client: Mapping[str, Any], key: str) -> float | None:
    """One score out of an entry of `per_client`, by its name there or in OWN_EVIDENCE; None where it was not measured."""
    if key == "fd_held_out":
        return (client.get("held_out") or {}).get("fd")
    if key == "near_copies":
        return (client.get("near_copies") or {}).get("features")
    return client.get(key)


def rows_over(
    over: Mapping[str, Any], quality: Mapping[str, Any], keys: Iterable[str]
) -> list[tuple[str, str, str, str]]:
    """(score, mean, weighted by images, worst) of those scores of `keys` that `over` has a figure of.

    Args:
        over: holds the groups `mean`, `weighted` and `worst`.
        quality: of the run, which names the encoder.
    """
    rows = []
    for key in keys:
        values = [(over.get(group) or {}).get(key) for group in ("mean", "weighted", "worst")]
        if any(value is not None for value in values):
            mean, weighted, worst = map(score_writer(key), values)
            rows.append((score_name(key, quality), mean, weighted, worst))
    return rows


def score_name(key: str, quality: Mapping[str, Any]) -> str:
    """`fd_all` as `FD against all clients' images`; FID where the encoder is Inception-v3."""
    if key == "near_copies":
        return "near-copies of training images"
    metric, _, reals = key.partition("_")
    name = formatting.fd_name(quality.get("encoder")) if metric == "fd" else "KID"
    return f"{name} against {REALS[reals]}"


def score_writer(key: str) -> Callable[[float | None], str]:
    """How a score of this name is written: a share in percent, all others as figures."""
    return formatting.percent if key == "near_copies" else formatting.figure


def own_count(quality: Mapping[str, Any]) -> int:
    """How many clients' own models `mean`, `weighted` and `worst` are over."""
    # A client stands there once per stage, and is one model all the same.
    stage = "before" if before_merging(quality) else "after"
    per_client = quality.get("per_client") or ()
    return sum(1 for c in per_client if c.get("stage") == stage and c.get("fd_all") is not None)


def own_models(quality: Mapping[str, Any]) -> str:
    """The same in words: `5 clients' own models`."""
    count = own_count(quality)
    return "1 client's own model" if count == 1 else f"{formatting.count(count)} clients' own models"


def own_words(quality: Mapping[str, Any]) -> str:
    """`FD of 5 clients' own models: mean 11.00, weighted by images 11.01, worst 12.00`; empty without such models."""
    own = own_quality(quality)
    if not own:
        return ""
    stage = ", before the last average is merged" if before_merging(quality) else ""
    mean, weighted, worst = (
        formatting.figure((own.get(group) or {}).get("fd_all")) for group in ("mean", "weighted", "worst")
    )
    name = formatting.fd_name(quality.get("encoder"))
    return f"{name} of {own_models(own)}{stage}: mean {mean}, weighted by images {weighted}, worst {worst}"


def before_merging(quality: Mapping[str, Any]) -> bool:
    """Whether the clients' own models were scored as trained, before the last average was merged into them."""
    # The clients of a global model are of the stage `before` too where a piece personalises it: nothing is merged then.
    entries = quality.get("per_client") or ()
    return quality.get("fd") is None and any(c.get("stage") == "before" for c in entries)


def stage_words(quality: Mapping[str, Any]) -> dict[str, str]:
    """What the stages of `per_client` are called; empty names where there is only one, as nothing came after it."""
    stages = {c.get("stage") or "before" for c in quality.get("per_client") or ()}
    step = "merging" if quality.get("after") else "personalising"
    return {stage: f"{stage} {step}" if len(stages) > 1 else "" for stage in ("before", "after")}


def model_kind(run: Run) -> str:
    """What was trained, such as `class-conditional diffusion model`."""
    if is_autoencoder(run):
        return "autoencoder"
    latent = "latent " if run.setting("model.autoencoder") else ""
    return f"{'class-conditional' if is_conditional(run) else 'unconditional'} {latent}diffusion model"


def is_autoencoder(run: Run) -> bool:
    """Whether the network is an autoencoder, which draws nothing by itself."""
    return network_name(run) == "autoencoder"


def target(run: Run) -> str:
    """What the network predicts, or is trained for."""
    return "reconstruction" if is_autoencoder(run) else str(run.setting("model.target"))


def is_conditional(run: Run) -> bool:
    """Whether the model takes class labels, as far as the folder says."""
    if is_autoencoder(run):
        return False
    chosen = run.setting("model.conditional", "auto")
    # "auto" was resolved by the labels of the data, and so it is here.
    if isinstance(chosen, bool):
        return chosen
    labelled = run.partition and (run.partition.counts or (at_sites(run) and run.partition.class_names))
    return bool(labelled)


def partition_phrase(run: Run) -> str:
    """How the images were spread, such as `split evenly at random`."""
    if at_sites(run):
        return "kept where they were"
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
    if (told := q.get("reference_sites")) is not None:
        images = formatting.plural(q.get("reference_images") or 0, "image")
        parts.append(
            f"against sums of features of {len(told)} of {formatting.plural(run.summary.get('num_clients') or 0, 'site')}, {images}"
        )
    return " · ".join(parts)


def model_folders(run: Run) -> list[str]:
    """Pipeline folders relative to the run: `model` where there is a global model, else `model/NAME` per client.

    Clients' own models beside a global one follow as `personal/NAME`.
    """
    root = run.path / "model"
    # Of an autoencoder the folder is diffusers' own of one model, and no pipeline's.
    whole = any((root / name).is_file() for name in ("model_index.json", "config.json")) or not root.is_dir()
    return (["model"] if whole else _pipelines(run, "model") or ["model"]) + _pipelines(run, "personal")


def _pipelines(run: Run, folder: str) -> list[str]:
    """Folders of `folder` that hold a pipeline, relative to the run, by name."""
    return sorted(f"{folder}/{p.parent.name}" for p in (run.path / folder).glob("*/model_index.json"))


def load_snippet(run: Run, folder: str | None = None) -> str:
    """Python that draws images from the run's model with diffusers alone.

    Args:
        run: the run.
        folder: what to load; by default the first pipeline folder, seen from the run folder.
    """
    path = folder if folder is not None else model_folders(run)[0]
    if is_autoencoder(run):
        return "\n".join(
            [
                "from diffusers import AutoencoderKL",
                "",
                f"autoencoder = AutoencoderKL.from_pretrained({json.dumps(path)})",
            ]
        )
    index = _model_index(run)
    # The snippet is run by people who have diffusers and not osmotic: only classes that are not its own need the flag.
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
    """model_index.json of the first pipeline; empty if there is none, as the page must not fail for want of a snippet."""
    path = run.path / model_folders(run)[0] / "model_index.json"
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def spread(values: Iterable[float | None]) -> tuple[float, float, float] | None:
    """(least, median, greatest) of the values that were measured; None if none was."""
    from statistics import median

    known = sorted(v for v in values if v is not None)
    return (known[0], median(known), known[-1]) if known else None
