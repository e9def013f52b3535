"""Pretrained weights and adapters of them: layers by hand, what travels, what is saved, and weights that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_runs import SMALL, Crash, Silent, crash_at

from osmotic import models
from osmotic.errors import ConfigError
from osmotic.models import adapted_layers, pretrained
from osmotic.models.adapter import Adapter, merged
from osmotic.runs import launch, plan, resolve, saved
from osmotic.runs.summary import weights_sha256
from osmotic.storage.folder import RunDir

LAYERS = ("to_q", "conv1", "class_embedding")
ENCODER = ("model.pretrained=PLACE", "adapter.rank=2", 'adapter.targets=["conv_in"]')


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run, whose model others start from."""
    sets = [*SMALL, "training.rounds=1"]
    return launch.start(
        resolve.load(sets=sets), tmp_path_factory.mktemp("begun") / "run", lambda r, c: Silent()
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors")


def keys(begun: RunDir, *more: str) -> tuple[str, ...]:
    return (f"model.pretrained={begun.model}", *more)


# --- the layers ---


@pytest.mark.parametrize("trains", ["b", "both"])
def test_an_adapted_network_is_the_whole_one_with_the_product_in_its_weights(trains: Any) -> None:
    whole = models.resolve("unet-8", 8, 1, 10, 0.0)
    adapter = Adapter(3, 6.0, LAYERS, trains)
    spec = models.NetworkSpec(**{**vars(whole), "adapter": adapter})
    base = models.initial(whole, 1)
    model = models.build(spec)
    adapted_layers.load_base(model, base)
    layout = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert dict(models.layout(spec)) == layout
    assert all(name.rpartition(".")[2] in ("lora_A", "lora_B") for name in layout)
    assert {n for part in spec.part_names().values() for n in part} == set(layout)

    rng = np.random.default_rng(0)
    factors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(factors[name]))
    full = models.build(whole)
    table = merged(adapter, base, factors)
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            parameter.copy_(torch.from_numpy(table[name]))
    moved = {n for n in base if not np.array_equal(base[n], table[n])}
    assert moved and {n.split(".")[-2] for n in moved} == set(LAYERS)
    for n in moved:
        change = (table[n] - base[n]).reshape(len(base[n]), -1)
        assert np.linalg.matrix_rank(change, tol=1e-4) == 3
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    model.eval(), full.eval()
    with torch.no_grad():
        ours, theirs = (m(x, t, class_labels=y, return_dict=False)[0] for m in (model, full))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_layer_of_another_kind_is_refused_by_its_name() -> None:
    model = torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(8, 8, 3)})
    with pytest.raises(
        ConfigError, match="up is a ConvTranspose2d: only convolutions, linear layers and emb"
    ):
        adapted_layers.adapt(model, Adapter(2, 8.0, ("up",), "b"))


def test_a_fresh_adapter_changes_nothing_and_a_frozen_factor_is_the_same_everywhere() -> None:
    whole = models.resolve("unet-8", 8, 1, 0, 0.0)
    adapter = Adapter(2, 2.0, LAYERS, "b")
    spec = models.NetworkSpec(**{**vars(whole), "adapter": adapter})
    drawn = models.initial(spec, 5)
    assert not any(w.any() for w in drawn.values()), "B is 0"
    base = models.initial(whole, 1)
    assert all(np.array_equal(w, base[n]) for n, w in merged(adapter, base, drawn).items())
    a = adapter.frozen("mid_block.attentions.0.to_q", (64, 64))
    assert a.shape == (2, 64) and np.array_equal(a, adapter.frozen("mid_block.attentions.0.to_q", (64, 64)))
    assert not np.array_equal(a, adapter.frozen("mid_block.attentions.0.to_k", (64, 64)))


def test_with_a_frozen_the_average_of_products_is_the_product_of_averages() -> None:
    adapter, rng = Adapter(2, 4.0, ("layer",), "b"), np.random.default_rng(0)
    base = {"layer.weight": rng.normal(size=(5, 7)).astype(np.float32)}
    ones = [{"layer.lora_B": rng.normal(size=(5, 2)).astype(np.float32)} for _ in range(3)]
    mean = {"layer.lora_B": np.mean([one["layer.lora_B"] for one in ones], axis=0)}
    products = np.mean([merged(adapter, base, one)["layer.weight"] for one in ones], axis=0)
    np.testing.assert_allclose(merged(adapter, base, mean)["layer.weight"], products, rtol=1e-5, atol=1e-6)


# --- runs ---


def test_a_run_starts_from_pretrained_weights_and_writes_their_hash_down(
    make_server: Any, begun: RunDir
) -> None:
    server = make_server(*keys(begun))
    published = weights(begun.model)
    assert all(np.array_equal(w, published[n]) for n, w in server.state.weights.items())
    assert server.config.model.pretrained_sha256 == pretrained.sha256(published)
    assert server.blueprint.contract()["pretrained"] == pretrained.sha256(published)
    drawn = make_server(*keys(begun), "codec.first_contact=seed", "training.rounds=1", name="drawn")
    drawn.run()
    sent = make_server(*keys(begun), "training.rounds=1", name="sent")
    sent.run()
    assert drawn.state.totals.bytes_down == 0, "who holds them is sent nothing"
    assert all(np.array_equal(w, sent.state.weights[n]) for n, w in drawn.state.weights.items())


@pytest.mark.parametrize("trains", ["b", "both"])
def test_only_the_adapter_travels_and_killed_and_resumed_it_has_equal_bits(
    make_server: Any, begun: RunDir, trains: str
) -> None:
    sets = keys(
        begun, "adapter.rank=2", f"adapter.trains={trains}", "codec.up=int8", "codec.error_feedback=true"
    )
    unbroken = make_server(*sets, name="unbroken")
    unbroken.run()
    assert not unbroken.state.failures
    with pytest.raises(Crash):
        make_server(*sets, name="broken", at=crash_at(2, 1)).run()
    resumed = make_server(*sets, name="broken", resume=True)
    resumed.run()
    assert weights_sha256(resumed.state.weights) == weights_sha256(unbroken.state.weights)
    figures = plan.plan(unbroken.config)
    assert figures["bytes_up"] == unbroken.state.totals.bytes_up
    assert figures["bytes_down"] == unbroken.state.totals.bytes_down
    full = plan.plan(resolve.load(sets=[*SMALL, "codec.up=int8", "codec.error_feedback=true"]))
    assert figures["bytes_up"] < full["bytes_up"] / (10 if trains == "b" else 5)
    moved = [n for n, w in unbroken.state.weights.items() if w.any() and n.endswith("lora_B")]
    assert moved


def test_it_is_saved_as_an_adapter_and_as_a_merged_pipeline(begun: RunDir, tmp_path: Path) -> None:
    sets = [*SMALL, *keys(begun, "adapter.rank=2"), "training.rounds=1", "after.pieces=personalise"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    summary = json.loads(run.summary.read_text())
    before, table = weights(begun.model), weights(run.model)
    whole = sum(w.size for w in table.values())
    assert summary["parameters"] < 30_000 and summary["parameters_whole"] == whole
    # fp32 FedAvg of the whole network: 3 clients, one round, both ways.
    assert summary["traffic"]["fp32_fedavg_bytes"] == 4 * 2 * whole * 3 and summary["traffic"]["factor"] > 50
    assert summary["model_weights_sha256"] == weights_sha256(table)
    assert summary["scored_weights_sha256"] == weights_sha256(load_file(run.model / "adapter.safetensors"))
    moved = {n for n in table if not np.array_equal(table[n], before[n])}
    assert table.keys() == before.keys() and moved and all(n.endswith(".weight") for n in moved)
    with safe_open(run.model / "adapter.safetensors", "np") as file:
        assert file.metadata()["rank"] == "2" and len(file.metadata()["pretrained_sha256"]) == 64
    factors = load_file(run.model / "adapter.safetensors")
    adapter = Adapter(2, 8.0, tuple(resolve.recorded(run.config).adapter.targets), "b")
    again = merged(adapter, before, factors)
    assert all(np.array_equal(again[n], table[n]) for n in table)
    images, _ = saved.draw(run, 2)
    assert images.shape == (2, 8, 8, 1)
    assert len(list(run.personal.glob("*/adapter.safetensors"))) == 3


def test_a_name_on_a_hub_is_downloaded_and_one_that_cannot_be_had_is_one_line(
    make_server: Any, begun: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name != "some/model":
            raise OSError("no such name\nand more")
        return str(begun.model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    server = make_server("model.pretrained=some/model")
    published = weights(begun.model)
    assert all(np.array_equal(w, published[n]) for n, w in server.state.weights.items()) and asked
    with pytest.raises(ConfigError, match=r"cannot be had from the hub \(no such name\)$"):
        make_server("model.pretrained=other/model", name="other")


def test_weights_of_other_float_types_are_taken(make_server: Any, begun: RunDir, tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_tensors

    (tmp_path / "unet").mkdir()
    table = {n: torch.from_numpy(w).bfloat16() for n, w in weights(begun.model).items()}
    save_tensors(table, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    server = make_server(f"model.pretrained={tmp_path}")
    assert np.array_equal(server.state.weights["conv_in.bias"], table["conv_in.bias"].float().numpy())


def test_constants_of_an_adapted_network_are_those_of_the_whole_one() -> None:
    """Drawn at every build from a seed of their own, whatever the process has drawn before."""

    class Waves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(1, 4, 3)
            self.register_buffer("waves", torch.randn(4), persistent=False)

        def forward(self, x: Any, t: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
            return (x,)

    models.register_network("waves", lambda spec: Waves())
    try:
        whole = models.resolve("waves", 8, 1, 0, 0.0)
        adapted = models.NetworkSpec(**{**vars(whole), "adapter": Adapter(1, 1.0, ("conv1",), "b")})
        torch.manual_seed(7)
        found = [dict(models.build(spec).named_buffers())["waves"] for spec in (whole, adapted, adapted)]
        assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    finally:
        del models.NETWORKS["waves"]


# --- what does not fit ---


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("adapter.rank=2",), "model.pretrained names none"),
        (("adapter.alpha=4",), "is of an adapter: set adapter.rank"),
        (
            (
                "model.pretrained=PLACE",
                "adapter.rank=2",
                "after.pieces=personalise",
                "after.personalise.trains=adapter",
            ),
            "is of a whole network, and this run trains an adapter",
        ),
        (("model.pretrained=nowhere",), "is no folder, and no name on a hub"),
        (
            ("model.pretrained=PLACE", "data.channels=3"),
            r"conv_in\.weight is \[32, 1, 3, 3\] there, and \[32, 3, 3, 3\] here",
        ),
        (("model.pretrained=PLACE", "model.conditional=false"), r"it has besides class_embedding\.weight"),
        (
            ("model.pretrained=PLACE", "adapter.rank=2", 'adapter.targets=["to_z"]'),
            "name no layer of network unet-8",
        ),
        (
            ("model.pretrained=PLACE", "adapter.rank=2", 'adapter.targets=["conv1", "nope"]'),
            "name no layer of network unet-8 with 'nope'",
        ),
        (("model.pretrained=PLACE", "adapter.rank=1024"), "adapter.rank = 1024: must be below "),
        (("model.pretrained=PLACE", "adapter.rank=2", "engine.batched_clients=2"), "knows no adapters"),
        (
            (*ENCODER, "after.pieces=personalise", "after.personalise.trains=decoder"),
            r"adapter\.targets = \['conv_in'\]: piece personalise: nothing can be trained in the decoder",
        ),
        (
            (*ENCODER, "method.name=usplit", "method.freeze=true"),
            r"adapter\.targets = \['conv_in'\]: method usplit: nothing can be trained in the decoder",
        ),
        (
            (*ENCODER, "method.name=udec"),
            r"adapter\.targets = \['conv_in'\]: method udec: nothing can be trained in the decoder",
        ),
        (
            (*ENCODER, "method.name=ulatdec"),
            r"adapter\.targets = \['conv_in'\]: method ulatdec: nothing can be trained in the bottleneck and decoder",
        ),
        ((f"model.pretrained_sha256={'0' * 64}",), "and model.pretrained names none"),
        (
            ("model.pretrained=PLACE", f"model.pretrained_sha256={'0' * 64}"),
            "has the hash .* and what was agreed on 000",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    make_server: Any, begun: RunDir, sets: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        make_server(*(word.replace("PLACE", str(begun.model)) for word in sets))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "sets",
    [
        ("method.name=usplit",),
        ("method.name=udec", "method.encoder_every=2"),
        ("method.name=local",),
        ("after.pieces=personalise",),
    ],
)
def test_an_adapter_of_one_part_is_taken_where_that_part_is_shared_in_some_round(
    make_server: Any, begun: RunDir, sets: tuple[str, ...]
) -> None:
    server = make_server(*(word.replace("PLACE", str(begun.model)) for word in (*ENCODER, *sets)))
    server.run()
    assert not server.state.failures
    assert (server.state.totals.bytes_up > 0) is ("method.name=local" not in sets)


def test_weights_that_are_torn_gone_or_not_finite_are_one_line(
    make_server: Any, begun: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(begun.model, tmp_path / "copy")
    file = tmp_path / "copy/unet/diffusion_pytorch_model.safetensors"
    table = weights(begun.model)
    save_file(table | {"conv_in.bias": np.full_like(table["conv_in.bias"], np.nan)}, file)
    with pytest.raises(ConfigError, match=r"conv_in\.bias holds values that are no finite numbers"):
        make_server(f"model.pretrained={tmp_path / 'copy'}")
    save_file(table | {"conv_in.bias": table["conv_in.bias"].astype(np.int32)}, file)
    with pytest.raises(ConfigError, match=r"conv_in\.bias is of type int32, and weights are real numbers"):
        make_server(f"model.pretrained={tmp_path / 'copy'}")
    file.write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_server(f"model.pretrained={tmp_path / 'copy'}")
    file.unlink()
    with pytest.raises(ConfigError, match="neither itself nor in unet/"):
        make_server(f"model.pretrained={tmp_path / 'copy'}")


@pytest.mark.parametrize("method", ["fedavg", "local"])
def test_without_an_adapter_the_weights_in_the_folder_are_those_that_were_scored(
    tmp_path: Path, method: str
) -> None:
    sets = [*SMALL, "training.rounds=1", f"method.name={method}"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    summary = json.loads(run.summary.read_text())
    assert summary["model_weights_sha256"] == summary["scored_weights_sha256"]
    assert summary["parameters_whole"] == summary["parameters"]


def test_a_plan_with_an_adapter_counts_the_network_under_it(begun: RunDir) -> None:
    sets = [*SMALL, *keys(begun, "adapter.rank=2")]
    figures = plan.plan(resolve.load(sets=sets))
    factors, whole = figures["parameters"], sum(w.size for w in weights(begun.model).values())
    assert factors < 30_000 and figures["parameters_whole"] == whole
    # Three clients in three rounds, both ways.
    assert figures["traffic"]["fp32_fedavg_bytes"] == 4 * 2 * whole * 9 and figures["traffic"]["factor"] > 50
    # A client: seven copies of the factors; the network as it was read, and in the one that trains. The server: six copies of the
    # factors, two averages of 8 bytes twice, and the network as it was read.
    assert figures["memory_bytes"] == {
        "client": 7 * 4 * factors + 2 * 4 * whole,
        "server": (6 * 4 + 2 * 2 * 8) * factors + 4 * whole,
    }
    told = plan.text(figures)
    assert f"{whole:,} parameters under an adapter of {factors:,}, codec" in told
    assert "times less than fp32 FedAvg" in told
