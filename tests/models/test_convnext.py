"""FedDiffuse's network: the paper's counts, its cost, what it refuses, and the folder it travels in.

Source of the figures: arXiv:2406.12575, Table 2 and its code.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from osmotic import models
from osmotic.errors import ConfigError
from osmotic.models import NetworkSpec, parts, pipeline
from osmotic.models.construct import with_weights
from osmotic.runs import plan, resolve, study

PLAIN, TOLD = NetworkSpec("convnext-unet", 8, 1), NetworkSpec("convnext-unet", 8, 3, 2)
V = {"target": "v", "schedule": "cosine", "timesteps": 1000}


@pytest.mark.parametrize("size,channels,total", [(28, 1, 2_996_315), (32, 3, 3_872_471), (64, 3, 14_892_477)])
def test_it_has_as_many_parameters_as_the_paper_counts(size: int, channels: int, total: int) -> None:
    spec = NetworkSpec("convnext-unet", size, channels)
    with torch.device("meta"):
        built = spec.network.construct(spec)
    assert models.count(models.layout(spec)) == total
    assert sum(p.numel() for p in built.parameters()) == total


def test_its_parts_have_as_many_parameters_as_the_paper_counts() -> None:
    # The bottleneck by hand, 112 channels and a time embedding of 112: a block has 112 * 49 + 112 (depthwise)
    # + 112 * 112 + 112 (time) + 224 + 112 * 224 * 9 + 224 + 448 + 224 * 112 * 9 + 112 = 470,848 parameters, attention
    # 224 + 384 * 112 + 128 * 112 + 112 = 57,680; 2 * 470,848 + 57,680 = 999,376.
    layout = models.layout(NetworkSpec("convnext-unet", 28, 1))
    counts = {
        part: models.count({name: layout[name] for name in parts.names(layout, [part])})
        for part in parts.PARTS
    }
    assert counts == {"encoder": 1_280_642, "bottleneck": 999_376, "decoder": 716_297}


def test_a_class_embedding_adds_a_row_per_class_and_one_to_the_decoder() -> None:
    layout = models.layout(NetworkSpec("convnext-unet", 28, 1, 10))
    assert layout["class_embedding.weight"] == (11, 4 * 28)
    assert models.count(layout) == 2_996_315 + 11 * 4 * 28
    assert "class_embedding.weight" in parts.names(layout, ["decoder"])


@pytest.mark.parametrize(
    "size,channels,cost,digits", [(28, 1, 280e6, 1e6), (32, 3, 468e6, 1e6), (64, 3, 6.9e9, 0.1e9)]
)
def test_an_image_costs_what_the_papers_network_costs(
    size: int, channels: int, cost: float, digits: float
) -> None:
    # Multiply-adds of convolutions, linear layers and attention's products, two FLOP each, which is all that torch
    # counts: norms, softmax and activations are not in the figure. It is off by half its last digit at most.
    from torch.utils.flop_counter import FlopCounterMode

    spec = NetworkSpec("convnext-unet", size, channels)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        spec.network.construct(spec)(torch.zeros(1, channels, size, size), torch.zeros(1))
    assert counter.get_total_flops() / 2 == pytest.approx(cost, abs=digits / 2)


@pytest.mark.parametrize("size", [2, 10, 30])
def test_a_user_is_told_which_sizes_it_takes(size: int) -> None:
    cfg = resolve.load(sets=["model.network=convnext-unet", f"data.image_size={size}"])
    told = rf"^data\.image_size = {size}: must be a multiple of 4 pixels for network convnext-unet"
    with pytest.raises(ConfigError, match=told):
        plan.network(cfg)
    with pytest.raises(ConfigError, match=told):
        study.prepare(cfg)


def test_a_user_is_told_that_it_has_no_dropout() -> None:
    cfg = resolve.load(sets=["model.network=convnext-unet", "recipe.dropout=0.1"])
    told = r"^recipe\.dropout = 0\.1: network convnext-unet has no dropout"
    with pytest.raises(ConfigError, match=told):
        plan.network(cfg)
    with pytest.raises(ConfigError, match=told):
        study.prepare(cfg)


def test_its_time_embedding_starts_from_sines_then_cosines() -> None:
    # Frequencies run from 1 down to 1/10000 in 28 / 2 = 14 steps of equal ratio.
    time_proj = with_weights(
        NetworkSpec("convnext-unet", 28, 1), models.initial(NetworkSpec("convnext-unet", 28, 1), 0)
    ).time_proj
    angles = 7.5 * 10000.0 ** -(np.arange(14) / 13)
    wanted = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(time_proj(torch.tensor([7.5]))[0].numpy(), wanted, atol=1e-5)


def test_linear_attention_of_equal_keys_adds_the_mean_value_to_every_pixel() -> None:
    # With keys 0 every pixel weighs 1/16, so the summary is the mean value in each of 32 rows; queries, softmaxed over
    # those rows, sum to 1, and are scaled by 32^-1/2.
    from osmotic.models.convnext_unet_2d import LinearAttention

    torch.manual_seed(0)
    attention = LinearAttention(8)
    seen: list[torch.Tensor] = []
    attention.to_out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        attention.to_qkv.weight[128:256] = 0
        x = torch.randn(2, 8, 4, 4)
        attention(x)
        values = attention.to_qkv(attention.norm(x))[:, 256:]
    wanted = values.mean(dim=(2, 3), keepdim=True).expand_as(values) * 32**-0.5
    torch.testing.assert_close(seen[0], wanted, rtol=1e-4, atol=1e-6)


def test_full_attention_is_that_of_torch() -> None:
    from osmotic.models.convnext_unet_2d import FullAttention

    torch.manual_seed(0)
    attention = FullAttention(8)
    x = torch.randn(2, 8, 4, 4)
    qkv = attention.to_qkv(attention.norm(x)).reshape(2, 3, 4, 32, 16).transpose(3, 4)
    heads = torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(1))
    wanted = x + attention.to_out(heads.transpose(2, 3).reshape(2, 128, 4, 4))
    torch.testing.assert_close(attention(x), wanted, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_but_the_rows_of_classes_not_seen() -> None:
    model = models.build(TOLD)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    model(x, torch.tensor([3, 900]), class_labels=torch.tensor([0, 2]), return_dict=False)[
        0
    ].square().sum().backward()
    still = [name for name, weight in model.named_parameters() if not weight.grad.abs().max() > 0]
    assert not still
    rows = model.class_embedding.weight.grad.abs().amax(dim=1)
    assert rows[0] > 0 and rows[1] == 0 and rows[2] > 0


def test_at_four_pixels_attention_over_the_one_pixel_left_has_nothing_to_learn() -> None:
    # A softmax over one pixel is 1 whatever the keys; where it alone reads the queries, they do not matter either.
    spec = NetworkSpec("convnext-unet", 4, 1)
    model = models.build(spec)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model(x, torch.tensor([3, 900]), return_dict=False)[0].square().sum().backward()
    assert not [n for n, weight in model.named_parameters() if not weight.grad.abs().max() > 0]
    queries, keys, values = model.mid_block.attention.to_qkv.weight.grad.chunk(3)
    assert queries.abs().max() == keys.abs().max() == 0 and values.abs().max() > 0
    assert model.down_blocks[2].attention.to_qkv.weight.grad.chunk(3)[1].abs().max() == 0


def test_labels_must_be_given_exactly_where_there_are_classes() -> None:
    plain, told = (with_weights(spec, models.initial(spec, 0)) for spec in (PLAIN, TOLD))
    with pytest.raises(ValueError, match="class_labels: must be given if, and only if"):
        plain(torch.zeros(1, 1, 8, 8), torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="class_labels: must be given if, and only if"):
        told(torch.zeros(1, 3, 8, 8), torch.zeros(1))


def test_one_time_for_all_images_is_that_time_for_each() -> None:
    model = with_weights(PLAIN, models.initial(PLAIN, 0))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        each = model(x, torch.tensor([7, 7]), return_dict=False)[0]
        assert torch.equal(model(x, torch.tensor(7)).sample, each)
        assert torch.equal(model(x, 7).sample, each)


LOADER = """
import sys
sys.modules["osmotic"] = None  # whoever imports it fails
import numpy as np, torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline
base = sys.argv[1]
torch.set_num_threads(int(sys.argv[2]))

def answer(pipe, name):
    given = np.load(f"{base}/{name}.npz")
    x, t, y = (torch.from_numpy(given[key]) for key in ("x", "t", "y"))
    with torch.no_grad():
        found = pipe.unet(x, t, class_labels=y if len(y) else None, return_dict=False)[0].numpy()
    assert found.tobytes() == given["answer"].tobytes(), name

def draw(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    image = pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), **arguments).images[0]
    assert image.size == (8, 8)

for cls in (DDIMPipeline, DDPMPipeline, DiffusionPipeline):
    plain = cls.from_pretrained(f"{base}/plain", trust_remote_code=True)
    answer(plain, "plain")
    draw(plain)
told = DiffusionPipeline.from_pretrained(f"{base}/told", custom_pipeline=f"{base}/told", trust_remote_code=True)
answer(told, "told")
draw(told, class_labels=["cat", 1], guidance_scale=2.0)
# What was loaded can be saved and loaded again, by stock pipelines as well.
for pipe, name in ((plain, "plain"), (told, "told")):
    pipe.save_pretrained(f"{base}/again/{name}")
    answer(DiffusionPipeline.from_pretrained(f"{base}/again/{name}", trust_remote_code=True), name)
"""


def test_plain_diffusers_loads_it_where_osmotic_is_not_installed(tmp_path: Path) -> None:
    for spec, name in ((PLAIN, "plain"), (TOLD, "told")):
        weights = models.initial(spec, 1)
        names = ("cat", "dog") if spec.num_classes else ()
        pipeline.save(tmp_path / name, spec, weights, V, names)
        x = torch.randn(2, spec.channels, 8, 8, generator=torch.Generator().manual_seed(0))
        t, y = torch.tensor([3, 900]), torch.arange(spec.num_classes)
        with torch.no_grad():
            answer = with_weights(spec, weights)(
                x, t, class_labels=y if spec.num_classes else None, return_dict=False
            )[0]
        np.savez(tmp_path / f"{name}.npz", x=x, t=t, y=y, answer=answer)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path), str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("spec", [PLAIN, TOLD], ids=["plain", "told"])
def test_the_folder_brings_the_network_and_names_no_place_of_this_machine(
    tmp_path: Path, spec: NetworkSpec
) -> None:
    folder = pipeline.save(tmp_path / "model", spec, models.initial(spec, 0), V)
    assert (folder / "unet" / "convnext_unet_2d.py").is_file()
    index = (folder / "model_index.json").read_text()
    assert '"convnext_unet_2d",\n    "ConvNeXtUNet2DModel"' in index
    here = Path(models.__file__).resolve().parents[3]
    for path in folder.rglob("*"):
        held = path.read_bytes() if path.is_file() else b""
        assert not any(str(place).encode() in held for place in (tmp_path, here, Path.home())), path
        assert b"import osmotic" not in held and b"from osmotic" not in held


def test_without_trust_its_code_is_not_run(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline

    folder = pipeline.save(tmp_path / "model", PLAIN, models.initial(PLAIN, 0), V)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DDIMPipeline.from_pretrained(folder)


# --- the forward pass, written a second time from the paper's description, one operation a line ---


def by_hand(w: dict[str, Tensor], x: Tensor, t: Tensor, side: int, y: Tensor | None = None) -> Tensor:
    """The answer of weights `w`: arXiv 2406.12575, Fig. 2 and its code, without modules."""
    half = side // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
    angles = t[:, None].float() * frequencies[None]
    time = torch.cat([angles.sin(), angles.cos()], dim=1)
    time = F.linear(time, w["time_embedding.linear_1.weight"], w["time_embedding.linear_1.bias"])
    time = F.linear(F.gelu(time), w["time_embedding.linear_2.weight"], w["time_embedding.linear_2.bias"])
    time = time if y is None else time + w["class_embedding.weight"][y]

    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **how)

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
        scaled = centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def block(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.depthwise", x, padding=3, groups=x.shape[1])
        if f"{name}.time_emb_proj.weight" in w:
            told = F.linear(F.gelu(time), w[f"{name}.time_emb_proj.weight"], w[f"{name}.time_emb_proj.bias"])
            h = h + told[:, :, None, None]
        h = F.gelu(conv(f"{name}.conv1", norm(f"{name}.norm1", h), padding=1))
        h = conv(f"{name}.conv2", norm(f"{name}.norm2", h), padding=1)
        return h + (conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in w else x)

    def attention(name: str, x: Tensor, linear: bool) -> Tensor:
        images, _, height, width = x.shape
        qkv = conv(f"{name}.to_qkv", norm(f"{name}.norm", x)).reshape(images, 3, 4, 32, height * width)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]  # images, heads, channels, pixels
        if linear:
            q, k = q.softmax(dim=-2) / 32**0.5, k.softmax(dim=-1)
            context = torch.einsum("bhdn,bhen->bhde", k, v)
            out = torch.einsum("bhde,bhdn->bhen", context, q)
        else:
            weights = torch.einsum("bhdi,bhdj->bhij", q / 32**0.5, k).softmax(dim=-1)
            out = torch.einsum("bhij,bhdj->bhdi", weights, v)
        out = conv(f"{name}.to_out", out.reshape(images, 128, height, width))
        return x + (norm(f"{name}.norm_out", out) if linear else out)

    def level(name: str, x: Tensor) -> Tensor:
        return attention(
            f"{name}.attention", block(f"{name}.blocks.1", block(f"{name}.blocks.0", x)), linear=True
        )

    first = level("down_blocks.0", conv("conv_in", x, padding=3))
    second = level("down_blocks.1", conv("down_blocks.0.resample", first, stride=2, padding=1))
    third = level("down_blocks.2", conv("down_blocks.1.resample", second, stride=2, padding=1))
    x = attention("mid_block.attention", block("mid_block.blocks.0", third), linear=False)
    x = block("mid_block.blocks.1", x)
    for i, skip in enumerate((third, second)):  # the first level's is not used
        x = level(f"up_blocks.{i}", torch.cat([x, skip], dim=1))
        name = f"up_blocks.{i}.resample"
        x = F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    return conv("conv_out", block("block_out", x))


@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_forward_pass_is_the_papers(num_classes: int) -> None:
    spec = NetworkSpec("convnext-unet", 12, 2, num_classes)
    model = models.build(spec).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # also norms and biases, which start at 1 and 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 2, 12, 12, generator=generator)
    t = torch.tensor([3, 700])
    y = torch.tensor([1, 3]) if num_classes else None
    with torch.no_grad():
        found = model(x, t, class_labels=y, return_dict=False)[0]
        expected = by_hand(dict(model.named_parameters()), x, t, 12, y)
    # Sums of a few thousand products in another order: some 1e-6 of the largest value.
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
