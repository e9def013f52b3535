"""Networks of the user's own: registered from outside, they draw, train, split and save as those of the package do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from osmotic import models
from osmotic.diffusion import sampler
from osmotic.diffusion.process import Process
from osmotic.errors import ConfigError
from osmotic.models import NetworkSpec, construct, pipeline
from osmotic.models.dropout import make_seeded, seeded


class Mixer(nn.Module):
    """A denoiser without convolutions: one hidden layer, told time and class through random frequencies."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        pixels = spec.channels * spec.image_size**2
        self.register_buffer("frequencies", torch.randn(4))
        self.into = nn.Linear(pixels, 16)
        self.time = nn.Linear(4, 16)
        self.classes = nn.Embedding(spec.num_classes + 1, 16) if spec.num_classes else None
        self.drop = nn.Dropout(spec.dropout)
        self.out = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, pixels))

    def forward(
        self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        """[B, C, H, W], [B], [B] -> ([B, C, H, W],)."""
        hidden = self.into(x.flatten(1)) + self.time((t[:, None] * self.frequencies / 1000).cos())
        if self.classes is not None:
            hidden = hidden + self.classes(class_labels)
        return (self.out(self.drop(hidden)).reshape(x.shape),)


SPEC = NetworkSpec("mixer", 4, 1, 3)
PARTS = {"encoder": ("into", "time"), "decoder": ("out", "classes")}
V = {"target": "v", "schedule": "cosine", "timesteps": 1000}


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    before = dict(models.NETWORKS)
    yield
    models.NETWORKS.clear()
    models.NETWORKS.update(before)


@pytest.fixture
def mixer() -> None:
    models.register_network("mixer", Mixer, multiple=2, parts=PARTS, has_dropout=True)


def register(build: Callable[[NetworkSpec], Any], **options: Any) -> NetworkSpec:
    models.register_network("mine", build, **options)
    return NetworkSpec("mine", 4, 1)


def test_presets_and_networks_are_one_table(mixer: None) -> None:
    assert models.PRESETS is models.NETWORKS and "mixer" in models.PRESETS


def test_its_layout_is_that_of_its_parameters_by_hand(mixer: None) -> None:
    assert models.layout(SPEC) == {
        "classes.weight": (4, 16),
        "into.bias": (16,),
        "into.weight": (16, 16),
        "out.0.bias": (16,),
        "out.0.weight": (16, 16),
        "out.2.bias": (16,),
        "out.2.weight": (16, 16),
        "time.bias": (16,),
        "time.weight": (16, 4),
    }


def test_registering_imports_no_torch() -> None:
    code = (
        "import sys; from osmotic import models; models.register_network('mine', lambda spec: None, multiple=4);"
        "models.resolve('mine', 8, 1, 0, 0.0); assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_resolved_like_any_other(mixer: None) -> None:
    assert models.resolve("mixer", 4, 1, 3, 0.5) == NetworkSpec("mixer", 4, 1, 3, 0.5)
    with pytest.raises(
        ConfigError, match=r"image_size = 5: must be a multiple of 2 pixels for network mixer"
    ):
        models.resolve("mixer", 5, 1, 3, 0.0)
    register(Mixer)
    with pytest.raises(ConfigError, match="network mine has no dropout"):
        models.resolve("mine", 4, 1, 0, 0.5)
    assert models.norm_groups(SPEC) == 0


def test_its_parts_are_those_it_was_registered_with(mixer: None) -> None:
    assert SPEC.part_names() == {
        "encoder": ["into.bias", "into.weight", "time.bias", "time.weight"],
        "bottleneck": [],
        "decoder": ["classes.weight", "out.0.bias", "out.0.weight", "out.2.bias", "out.2.weight"],
    }


def test_without_parts_all_of_it_is_the_decoder() -> None:
    spec = register(Mixer)
    assert spec.part_names() == {"encoder": [], "bottleneck": [], "decoder": sorted(models.layout(spec))}


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"decoder": ("out",)}, "'into.weight': must begin with one of out"),
        ({"encoder": ("into", "time"), "decoder": "out"}, None),  # a lone text is one beginning
        (
            {"encoder": ("into", "time", "out.0"), "decoder": ("out",)},
            "'out.0.weight': must belong to one part",
        ),
        (
            {"encoder": ("in",), "decoder": ("out", "time")},
            "'into.weight': must begin with one of in, out, time",
        ),
    ],
)
def test_every_parameter_must_belong_to_one_part(parts: dict[str, Any], told: str | None) -> None:
    spec = register(Mixer, parts=parts)
    if told is None:
        assert sum(map(len, spec.part_names().values())) == 8
        return
    with pytest.raises(ConfigError, match=r"model\.network = 'mine': parameter ") as error:
        spec.part_names()
    assert told.replace("weight", "") in str(error.value).replace("weight", "").replace("bias", "")


def test_initial_weights_follow_from_the_seed_and_disturb_nothing(mixer: None) -> None:
    before = torch.get_rng_state()
    first, again, other = (models.initial(SPEC, s) for s in (7, 7, 8))
    models.layout(SPEC), models.build(SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == list(models.layout(SPEC))
    assert all(value.dtype == np.float32 for value in first.values())
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not np.array_equal(first["into.weight"], other["into.weight"])


def test_random_constants_are_the_same_at_every_site(mixer: None) -> None:
    torch.manual_seed(1)
    here = models.build(SPEC)
    torch.manual_seed(2)
    there = construct.with_weights(SPEC, models.initial(SPEC, 0))
    assert here.training and not there.training
    assert torch.equal(here.frequencies, there.frequencies)


def test_given_weights_are_copied_and_checked(mixer: None) -> None:
    weights = models.initial(SPEC, 0)
    model = construct.with_weights(SPEC, {n: w.astype(np.float64) for n, w in weights.items()})
    named = dict(model.named_parameters())
    assert all(
        named[n].dtype == torch.float32 and np.array_equal(named[n].detach(), weights[n]) for n in named
    )
    with torch.no_grad():
        named["into.bias"].add_(1)
    assert not np.array_equal(named["into.bias"].detach(), weights["into.bias"])
    with pytest.raises(RuntimeError, match=r"missing or too many are into\.bias"):
        construct.with_weights(SPEC, {n: w for n, w in weights.items() if n != "into.bias"})
    with pytest.raises(RuntimeError, match=r"time\.weight must have shape \(16, 4\), got \(4,\)"):
        construct.with_weights(SPEC, {**weights, "time.weight": np.zeros(4, np.float32)})


def test_it_trains_and_draws_as_networks_of_the_package_do(mixer: None) -> None:
    process, model = Process(target="v", num_classes=3), models.build(SPEC)
    generator = torch.Generator().manual_seed(0)
    process.loss(model, torch.zeros(6, 1, 4, 4), torch.arange(6) % 3, generator).backward()
    assert all(p.grad is not None for p in model.parameters())
    images, _ = sampler.sample(model, process, torch.arange(3), (3, 1, 4, 4), "ddim", 3, 0, 2.0)
    assert images.shape == (3, 1, 4, 4) and images.isfinite().all()


def test_its_dropout_draws_from_the_generator_it_is_given(mixer: None) -> None:
    model = models.build(NetworkSpec("mixer", 4, 1, 3, 0.5))
    make_seeded(model)
    answers = []
    for _ in range(2):
        for dropout in seeded(model):
            dropout.generator = torch.Generator().manual_seed(3)
        answers.append(model(torch.ones(2, 1, 4, 4), torch.ones(2), class_labels=torch.zeros(2).long())[0])
    assert torch.equal(*answers)


def test_a_build_that_the_meta_device_cannot_do_is_built_for_real() -> None:
    class Orthogonal(nn.Module):
        def __init__(self, spec: NetworkSpec) -> None:
            super().__init__()
            weight = torch.randn(spec.image_size, spec.image_size)
            # Reads a value, which tensors on the meta device do not have.
            self.weight = nn.Parameter(weight / weight.abs().max().item())

    assert models.layout(register(Orthogonal)) == {"weight": (4, 4)}


def test_what_is_wrong_with_a_build_is_told_as_it_is() -> None:
    def broken(spec: NetworkSpec) -> nn.Module:
        raise KeyError("no such option")

    with pytest.raises(KeyError, match="no such option"):
        models.layout(register(broken))


def half(spec: NetworkSpec) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).half())


def counting(spec: NetworkSpec) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (half, r"parameter or buffer 1\.weight is torch\.float16: must be torch\.float32"),
        (counting, r"parameter or buffer 1\.num_batches_tracked is torch\.int64: must be torch\.float32"),
        (lambda spec: nn.ReLU(), "its module has no parameters to train"),
        (lambda spec: "unet", r"its build must return a torch\.nn\.Module, not str"),
    ],
)
@pytest.mark.parametrize("use", [models.layout, models.build, lambda spec: models.initial(spec, 0)])
def test_what_could_not_travel_is_refused(
    build: Callable[[NetworkSpec], Any], told: str, use: Callable[[NetworkSpec], Any]
) -> None:
    with pytest.raises(ConfigError, match=r"^model\.network = 'mine': " + told):
        use(register(build))


def test_constants_that_are_not_saved_may_be_of_any_kind() -> None:
    class Masked(nn.Module):
        def __init__(self, spec: NetworkSpec) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("mask", torch.ones(3, dtype=torch.bool), persistent=False)

    spec = register(Masked)
    assert construct.with_weights(spec, models.initial(spec, 0)).mask.all()


def test_weights_that_do_not_follow_from_the_seed_are_refused() -> None:
    def careless(spec: NetworkSpec) -> nn.Module:
        model = nn.Linear(2, 2)
        with torch.no_grad():
            model.bias.copy_(torch.from_numpy(np.random.default_rng().normal(size=2)))
        return model

    with pytest.raises(ConfigError, match="parameter bias differs from build to build"):
        models.initial(register(careless), 0)


@pytest.mark.parametrize("name", ["auto", "unet-8", "convnext-unet"])
def test_a_name_of_the_package_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match="is taken"):
        models.register_network(name, Mixer)


def test_an_own_name_may_be_registered_again_and_nonsense_is_refused() -> None:
    register(lambda spec: nn.Linear(2, 2))
    assert models.layout(register(lambda spec: nn.Linear(3, 1)))["weight"] == (1, 3)
    with pytest.raises(ValueError, match="part 'head': must be one of encoder, bottleneck, decoder"):
        register(Mixer, parts={"head": ("out",)})
    with pytest.raises(ValueError, match="multiple must be >= 1"):
        register(Mixer, multiple=0)


def test_it_is_saved_as_weights_and_a_description_and_read_back(mixer: None, tmp_path: Path) -> None:
    weights = models.initial(SPEC, 1)
    folder = pipeline.save(tmp_path / "model", SPEC, weights, V, ("a", "b", "c"), steps=7, guidance=1.5)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == {
        "name": "mixer",
        "image_size": 4,
        "channels": 1,
        "num_classes": 3,
        "dropout": 0.0,
        "process": V,
        "class_names": ["a", "b", "c"],
        "default_steps": 7,
        "default_guidance": 1.5,
    }
    model = construct.with_weights(SPEC, load_file(folder / "weights.safetensors"))
    again = construct.with_weights(SPEC, weights)
    x, t, y = torch.ones(3, 1, 4, 4), torch.tensor([1, 2, 3]), torch.arange(3)
    assert torch.equal(model(x, t, class_labels=y)[0], again(x, t, class_labels=y)[0])
    # Saved again over it, as after a longer run; the weights must fit.
    pipeline.save(folder, SPEC, models.initial(SPEC, 2), V)
    assert json.loads((folder / "config.json").read_text())["class_names"] == []
    with pytest.raises(RuntimeError, match="missing or too many"):
        pipeline.save(folder, SPEC, {}, V)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_own_diffusers_model_becomes_a_pipeline(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline, UNet2DModel

    def small(spec: NetworkSpec) -> nn.Module:
        return UNet2DModel(
            sample_size=spec.image_size,
            in_channels=spec.channels,
            out_channels=spec.channels,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )

    spec = register(small, multiple=2, norm_groups=4)
    weights = models.initial(spec, 0)
    folder = pipeline.save(tmp_path / "model", spec, weights, V)
    loaded = DDIMPipeline.from_pretrained(folder, low_cpu_mem_usage=False).unet.state_dict()
    assert all(np.array_equal(loaded[name].numpy(), weights[name]) for name in weights)
