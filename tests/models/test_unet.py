"""Networks of every kind: sizes that are known, shapes worked out by hand, initial weights that follow from the seed alone."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from osmotic import models
from osmotic.errors import ConfigError
from osmotic.models import NetworkSpec, parts
from osmotic.models.autoencoder import Autoencoder
from osmotic.models.construct import with_weights
from osmotic.models.unet import ResidualUNet

SMALL = NetworkSpec("unet-8", 8, 1, 10)


@pytest.mark.parametrize("num_classes", [0, 10])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name,size",
    [
        *[("unet-8", 8), ("unet-8", 14), ("unet-28", 28), ("unet-32", 32)],
        *[("convnext-unet", size) for size in (4, 8, 16, 28, 32, 64)],
    ],
)
def test_layout_is_the_state_dict_of_the_built_network(
    name: str, size: int, channels: int, num_classes: int
) -> None:
    spec = NetworkSpec(name, size, channels, num_classes, dropout=0.1 * (name != "convnext-unet"))
    with torch.device("meta"):
        state = spec.network.construct(spec).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == models.layout(spec)
    assert all(value.dtype == torch.float32 for value in state.values())


def test_published_parameter_counts() -> None:
    # google/ddpm-cifar10-32 has 35,746,307; unet-8 has 702,753 with 11 class rows of 4 * 32 numbers each.
    assert models.count(models.layout(NetworkSpec("unet-32", 32, 3))) == 35_746_307
    assert models.count(models.layout(SMALL)) == 702_753
    assert models.count(models.layout(NetworkSpec("unet-8", 8, 1))) == 702_753 - 11 * 128


def test_layouts_and_parts_import_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; from osmotic import models; from osmotic.models import parts;"
        "s = models.resolve('auto', 32, 3, 10, 0.0); l = models.layout(s); parts.names(l, ['decoder']);"
        "models.count(l); models.norm_groups(s);"
        "[models.layout(models.resolve(name, 32, 3, 10, 0.0)) for name in models.NETWORKS if name != 'autoencoder'];"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "size,name",
    [(2, "unet-8"), (8, "unet-8"), (16, "unet-8"), (20, "unet-28"), (28, "unet-28"), (32, "unet-32")],
)
def test_auto_picks_by_image_size(size: int, name: str) -> None:
    assert models.resolve("auto", size, 1, 10, 0.0) == NetworkSpec(name, size, 1, 10, 0.0)


@pytest.mark.parametrize(
    "network,size,multiple",
    [
        ("auto", 9, 2),
        ("auto", 18, 4),
        ("auto", 36, 8),
        ("unet-28", 14, 4),
        ("unet-32", 28, 8),
        ("unet-8", 0, 2),
        *[("convnext-unet", size, 4) for size in (0, 1, 2, 10, 30)],
    ],
)
def test_a_size_it_cannot_halve_is_refused_with_the_multiple(network: str, size: int, multiple: int) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.image_size = {size}: must be a multiple of {multiple} "):
        models.resolve(network, size, 1, 0, 0.0)


def test_an_unknown_network_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.network = 'unet-23'.*nearest[^)]*: unet-(28|32|8)\)$"):
        models.resolve("unet-23", 28, 1, 0, 0.0)


@pytest.mark.parametrize("spec", [SMALL, NetworkSpec("convnext-unet", 8, 1, 10)], ids=str)
def test_initial_weights_follow_from_the_seed_alone_and_leave_the_global_generator_untouched(
    spec: NetworkSpec,
) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = models.initial(spec, 7)
    models.build(spec)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = models.initial(spec, 7), models.initial(spec, 8)
    assert list(first) == sorted(models.layout(spec))
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in first.values())
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["conv_in.weight"], other["conv_in.weight"])


def test_initial_weights_do_not_depend_on_what_other_threads_build() -> None:
    alone = [models.initial(SMALL, seed)["conv_out.weight"] for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        noise = [pool.submit(models.build, SMALL) for _ in range(3)]
        crowd = list(pool.map(lambda seed: models.initial(SMALL, seed)["conv_out.weight"], range(6)))
    assert all(job.result() is not None for job in noise)
    assert all(np.array_equal(a, b) for a, b in zip(alone, crowd, strict=True))


def test_dropout_changes_no_weight() -> None:
    plain, dropped = models.initial(SMALL, 0), models.initial(NetworkSpec("unet-8", 8, 1, 10, 0.3), 0)
    assert all(np.array_equal(plain[name], dropped[name]) for name in plain)
    rates = {
        m.p
        for m in models.build(NetworkSpec("unet-8", 8, 1, 10, 0.3)).modules()
        if isinstance(m, torch.nn.Dropout)
    }
    assert 0.3 in rates


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        NetworkSpec("unet-28", 28, 1, 10),
        NetworkSpec("unet-8", 16, 3, 2),
        NetworkSpec("convnext-unet", 28, 1, 10),
        NetworkSpec("convnext-unet", 16, 3, 2),
    ],
    ids=str,
)
def test_channels_last_gives_the_same_answer(spec: NetworkSpec) -> None:
    model = with_weights(spec, models.initial(spec, 0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, spec.channels, spec.image_size, spec.image_size, generator=generator)
    t, y = torch.tensor([3, 900]), torch.tensor([0, spec.num_classes])
    with torch.no_grad():
        plain = model(x, t, class_labels=y, return_dict=False)[0]
        model.to(memory_format=torch.channels_last)
        fast = model(x.to(memory_format=torch.channels_last), t, class_labels=y, return_dict=False)[0]
    assert fast.shape == x.shape
    # The same sums in another order: float32 rounding of numbers near 1.
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [SMALL, NetworkSpec("convnext-unet", 8, 1, 10)], ids=str)
def test_time_may_be_a_fraction_and_each_class_row_is_heard(spec: NetworkSpec) -> None:
    model = with_weights(spec, models.initial(spec, 0))
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1)
    with torch.no_grad():
        y = torch.tensor([1, 1, 1])
        low, mid, high = model(x, torch.tensor([0.25, 0.75, 1.0]), class_labels=y, return_dict=False)[0]
        whole = model(x, torch.tensor([1, 1, 1]), class_labels=y, return_dict=False)[0]
        rows = model(x, torch.zeros(3), class_labels=torch.tensor([0, 9, 10]), return_dict=False)[0]
    assert not torch.allclose(low, mid) and not torch.allclose(mid, high)
    torch.testing.assert_close(whole[0], high)
    assert not torch.allclose(rows[0], rows[2]) and not torch.allclose(rows[1], rows[2])


@pytest.mark.parametrize("name", list(models.NETWORKS))
def test_every_parameter_has_exactly_one_part(name: str) -> None:
    spec = NetworkSpec(name, 32, 3, 10)
    layout, table = models.layout(spec), spec.part_names()
    prefixes = spec.network.parts
    assert tuple(table) == parts.PARTS
    assert [part for part in parts.PARTS if not table[part]] == (
        ["bottleneck"] if name == "autoencoder" else []
    )
    assert table == {part: parts.names(layout, [part], prefixes) for part in parts.PARTS}
    every = parts.names(layout, parts.PARTS, prefixes)
    assert sorted(n for part in table.values() for n in part) == every == list(layout)


@pytest.mark.parametrize("kind", ["UNet2DModel", "UNet2DConditionModel"])
@pytest.mark.parametrize("rows", [None, 11])
def test_every_parameter_of_a_latent_network_has_exactly_one_part(kind: str, rows: int | None) -> None:
    import diffusers

    # Latents of the usual autoencoders have 4 channels; the conditional kind is that of Stable Diffusion, made small.
    told = {"cross_attention_dim": 16} if kind == "UNet2DConditionModel" else {}
    with torch.device("meta"):
        model = getattr(diffusers, kind)(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            num_class_embeds=rows,
            **told,
        )
    names = list(model.state_dict())
    split = {part: parts.names(names, [part]) for part in parts.PARTS}
    assert sorted(name for part in split.values() for name in part) == sorted(names)
    assert "time_embedding.linear_1.weight" in split["encoder"]
    assert all(name.startswith("mid_block.") for name in split["bottleneck"])
    assert ("class_embedding.weight" in split["decoder"]) == (rows is not None)


@pytest.mark.parametrize(
    "name,part",
    [
        ("conv_in.weight", "encoder"),
        ("time_embedding.linear_2.bias", "encoder"),
        ("down_blocks.1.resnets.0.time_emb_proj.weight", "encoder"),
        ("mid_block.attentions.0.to_q.weight", "bottleneck"),
        ("up_blocks.0.resnets.1.time_emb_proj.weight", "decoder"),
        ("conv_norm_out.bias", "decoder"),
        ("block_out.conv1.weight", "decoder"),
        ("conv_out.weight", "decoder"),
        ("class_embedding.weight", "decoder"),
    ],
)
def test_parts_are_those_of_the_paper(name: str, part: str) -> None:
    assert parts.part_of(name) == part


def test_unknown_parts_and_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="part 'middle': must be one of encoder, bottleneck, decoder"):
        parts.names(["conv_in.weight"], ["middle"])
    with pytest.raises(ValueError, match=r"parameter 'conv_inside\.weight': must begin with one of conv_in"):
        parts.part_of("conv_inside.weight")
    with pytest.raises(ValueError, match=r"'net\.0\.w': must belong to one part, not to encoder and decoder"):
        parts.part_of("net.0.w", {"encoder": ("net",), "decoder": ("net.0",)})


def test_norm_groups_divide_every_width() -> None:
    built_in = {n: network for n, network in models.NETWORKS.items() if not network.own}
    assert len(built_in) == 5
    for name, network in built_in.items():
        assert models.norm_groups(NetworkSpec(name, 32, 1)) == network.norm_groups
        widths = network.widths if isinstance(network, ResidualUNet | Autoencoder) else (32,)
        assert all(width % network.norm_groups == 0 for width in widths)


def test_a_missing_or_misshapen_weight_is_refused() -> None:
    weights = models.initial(SMALL, 0)
    with pytest.raises(RuntimeError, match=r"conv_in\.weight"):
        with_weights(SMALL, {name: value for name, value in weights.items() if name != "conv_in.weight"})
    with pytest.raises(RuntimeError, match=r"conv_in\.bias"):
        with_weights(SMALL, {**weights, "conv_in.bias": np.zeros(3, np.float32)})
    assert math.prod(weights["conv_in.weight"].shape) == 32 * 9
