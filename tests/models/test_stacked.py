"""Networks of many clients as one: answers and gradients are those of the networks one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from osmotic.models import NETWORKS, resolve, stacked
from osmotic.models.dropout import SeededDropout, make_seeded
from osmotic.models.spec import NetworkSpec
from osmotic.models.stacked import Crowd, NotStackable, stack
from osmotic.models.unet import ResidualUNet

CLIENTS, BATCH = 3, 2


@pytest.fixture(params=["grouped", "windows"])
def convolutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to compute a convolution of many clients, whatever the device would take."""
    monkeypatch.setattr(stacked, "GROUPED", {"cpu"} if request.param == "grouped" else set())
    yield request.param


@pytest.fixture(autouse=True)
def like_unet_32(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unet-32` with two narrow levels: padding by hand before the strided convolution, one head, other time frequencies."""
    extra = NETWORKS["unet-32"].extra  # type: ignore[attr-defined]
    monkeypatch.setitem(NETWORKS, "tiny-32", ResidualUNet((8, 16), 2, (False, True), 4, None, extra))


def networks(spec: NetworkSpec) -> list[nn.Module]:
    """One per client and one to stack, in float64, each with weights of its own and none of them zero."""
    torch.manual_seed(0)
    made = [spec.network.construct(spec).double() for _ in range(CLIENTS + 1)]
    for model in made:
        make_seeded(model)
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
    return made


def largest_gaps(spec: NetworkSpec) -> tuple[float, float]:
    """Largest difference of answers and of gradients, stacked from one by one, by the largest value of each."""
    *apart, last = networks(spec)
    named = [dict(model.named_parameters()) for model in apart]
    weights = {n: torch.stack([own[n].detach() for own in named]).requires_grad_() for n in named[0]}
    generators = [torch.Generator().manual_seed(i) for i in range(CLIENTS)]
    model = stack(last, Crowd(CLIENTS, weights, [BATCH] * CLIENTS, generators))
    x = torch.randn(CLIENTS * BATCH, spec.channels, spec.image_size, spec.image_size, dtype=torch.float64)
    level = torch.randint(0, 1000, (len(x),))
    labels = torch.randint(0, spec.num_classes + 1, (len(x),)) if spec.num_classes else None
    answers = model(x, level, class_labels=labels, return_dict=False)[0]
    back = torch.randn_like(answers)
    answers.backward(back)
    expected = []
    for i, own in enumerate(apart):
        mine = slice(i * BATCH, (i + 1) * BATCH)
        generator = torch.Generator().manual_seed(i)
        for module in own.modules():
            if isinstance(module, SeededDropout):
                module.generator = generator
        given = None if labels is None else labels[mine]
        answer = own(x[mine], level[mine], class_labels=given, return_dict=False)[0]
        answer.backward(back[mine])
        expected.append(answer.detach())
    wanted = {n: torch.stack([gradient(own[n]) for own in named]) for n in weights}
    largest = max(float(g.abs().max()) for g in wanted.values())
    return gap(answers.detach(), torch.cat(expected)), max(
        float((gradient(weights[n]) - wanted[n]).abs().max()) for n in weights
    ) / largest


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("network", "side", "channels", "classes", "dropout"),
    [
        ("unet-8", 4, 1, 3, 0.0),
        ("unet-8", 8, 1, 0, 0.3),
        ("unet-28", 4, 3, 2, 0.1),
        ("tiny-32", 6, 3, 0, 0.0),
        ("convnext-unet", 8, 1, 3, 0.0),
    ],
)
def test_answers_and_gradients_are_those_of_each_network_by_itself(
    network: str, side: int, channels: int, classes: int, dropout: float, convolutions: str
) -> None:
    # 53 bits, some ten layers deep, sums of up to a few thousand products: 1e-12 is far above their rounding, and far below
    # a tap of a kernel, a bias or a client's image in the wrong place.
    answers, gradients = largest_gaps(resolve(network, side, channels, classes, dropout))
    assert answers < 1e-12
    assert gradients < 1e-12


def test_a_frozen_input_or_weight_asks_for_no_gradient() -> None:
    x, weight = torch.randn(2, 3, 5, 5, 4), torch.randn(2, 6, 4, 3, 3)
    for which in (x, weight):
        which.requires_grad_()
        stacked.Windows.apply(x, weight, (1, 1), (1, 1)).sum().backward()
        assert which.grad is not None
        which.requires_grad_(False)
    other = torch.zeros_like(x)
    stacked.Windows.apply(other, weight.requires_grad_(), (1, 1), (1, 1)).sum().backward()
    assert other.grad is None


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))


def test_a_layer_that_would_mix_clients_is_named_and_nothing_is_changed() -> None:
    model = WithBatchNorm()
    with pytest.raises(NotStackable, match=r"layer stem\.1 \(BatchNorm2d\)"):
        stack(model, Crowd())
    assert type(model.stem[0]) is nn.Conv2d
    with pytest.raises(NotStackable, match="stem pads with circular"):
        stack(nn.ModuleDict({"stem": nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")}), Crowd())


def test_weights_that_belong_to_no_layer_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(NotStackable, match="Sequential"):
        stack(model, Crowd())
