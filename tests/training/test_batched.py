"""Clients trained as one: every client ends where the plain loop would have taken it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osmotic.config.schema import TrainingConfig
from osmotic.diffusion.process import Process, Question
from osmotic.flat import FlatLayout
from osmotic.methods.base import Method
from osmotic.methods.fedavg import FedAvg
from osmotic.methods.usplit import USplit
from osmotic.models import NETWORKS, layout, norms
from osmotic.models.dropout import make_seeded
from osmotic.models.spec import NetworkSpec
from osmotic.models.unet import ResidualUNet
from osmotic.pieces.base import Piece
from osmotic.pieces.chain import Chain
from osmotic.pieces.prox import Prox
from osmotic.pieces.scaffold import Scaffold
from osmotic.protocol.messages import Client
from osmotic.protocol.view import Step
from osmotic.tensors import Tensors
from osmotic.training.batched import Job, fit_many
from osmotic.training.images import Images
from osmotic.training.loop import Cancelled, fit
from osmotic.training.network import FlatNetwork
from osmotic.training.replay import Replays
from osmotic.training.stack import Stack

# Images of each client; in batches of 3 the second pass of the third begins while the last is done.
SIZES = (7, 6, 4, 2)
STEPS = (6, 5, 4, 1)
TRAINING = TrainingConfig(batch_size=3, learning_rate=0.01)
RATE = 0.01


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", ResidualUNet((8, 16), 1, (False, True), 4, 8))


@dataclass(frozen=True, kw_only=True, eq=False)
class InFloat64(Process):
    """A process whose network and losses are float64, so that rounding is far below any mistake."""

    def losses_of(self, model: Any, question: Question) -> Tensor:
        seen, level = question.seen.double(), question.level
        output = model(seen, level, class_labels=question.labels, return_dict=False)[0]
        distances = (output - question.goal.double()).square().mean((1, 2, 3))
        return distances if question.weight is None else question.weight.double() * distances


@dataclass
class Case:
    """What both ways of training are given."""

    classes: int = 3
    dropout: float = 0.0
    target: str = "v"
    training: TrainingConfig = TRAINING
    flip: bool = False
    dtype: torch.dtype = torch.float64
    sizes: Sequence[int] = SIZES

    @property
    def spec(self) -> NetworkSpec:
        return NetworkSpec("tiny", 4, 1, self.classes, self.dropout)

    @property
    def layout(self) -> FlatLayout:
        return FlatLayout(layout(self.spec), self.spec.part_names())

    @property
    def process(self) -> Process:
        kind = InFloat64 if self.dtype == torch.float64 else Process
        return kind(target=self.target, num_classes=self.classes, label_dropout=0.5)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.spec.network.construct(self.spec)
        make_seeded(model)
        norms.guard(model)
        return model.to(self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def network(self) -> FlatNetwork:
        made = self.build()
        size = self.layout.size
        buffers = (torch.zeros(size, dtype=self.dtype), torch.zeros(size, dtype=self.dtype))
        return started(FlatNetwork(made, self.layout, buffers), 0)

    def stack(self, clients: int = 5) -> Stack:
        """One more than the clients, so that a row stays idle."""
        made = Stack(self.build, clients, self.layout)
        for network in made.networks:
            started(network, 0)
        return made

    def images(self) -> list[Images]:
        rng = np.random.default_rng(1)
        return [
            Images.of(
                rng.integers(0, 256, (size, 4, 4, 1), dtype=np.uint8),
                rng.integers(0, self.classes, size) if self.classes else None,
                torch.device("cpu"),
                flip=self.flip,
            )
            for size in self.sizes
        ]


def started(network: FlatNetwork, seed: int) -> FlatNetwork:
    """All weights drawn anew, so that none is zero or one."""
    drawn = np.random.default_rng(seed).standard_normal(network.layout.size) * 0.2
    network.start.buffer[:] = drawn
    network.begin()
    return network


def rng(client: int) -> np.random.Generator:
    return np.random.default_rng([7, client])


MakeRule = Callable[[int, FlatNetwork], Any]


def no_rule(client: int, network: FlatNetwork) -> None:
    return None


def alone(
    case: Case, rules: MakeRule = no_rule, moments: Sequence[Tensors] | None = None
) -> tuple[list[tuple[float, int]], list[Tensor], list[Any]]:
    """The plain loop, client by client: its answers, the weights at the end, and the rules."""
    answers, weights, made = [], [], []
    for i, images in enumerate(case.images()):
        network = case.network()
        made.append(rules(i, network))
        answers.append(
            fit(
                network,
                images,
                case.process,
                case.training,
                steps=STEPS[i],
                learning_rate=RATE,
                rng=rng(i),
                rule=made[-1],
                moments=None if moments is None else moments[i],
            )
        )
        weights.append(network.weights.clone())
    return answers, weights, made


def together(
    case: Case,
    rules: MakeRule = no_rule,
    moments: Sequence[Tensors] | None = None,
    stack: Stack | None = None,
) -> tuple[list[Any], Stack, list[Any]]:
    stack = stack or case.stack()
    made = [rules(i, network) for i, network in enumerate(stack.networks[: len(case.sizes)])]
    jobs = [
        Job(images, STEPS[i], rng(i), made[i], None if moments is None else moments[i])
        for i, images in enumerate(case.images())
    ]
    return fit_many(stack, jobs, case.process, case.training, learning_rate=RATE), stack, made


def compare(case: Case, rules: MakeRule = no_rule) -> tuple[list[Any], list[Any]]:
    """Both ways end alike; returns both lists of rules."""
    answers, weights, one = alone(case, rules)
    found, stack, many = together(case, rules)
    assert [seen for _, seen in found] == [seen for _, seen in answers]
    for (loss, _), (wanted, _) in zip(found, answers, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-9)
    for row, wanted in zip(stack.weights, weights, strict=False):
        # Weights near 0.2, moved by 0.01 in a step: 1e-9 is a ten-millionth of a step. Adam divides by the root of a mean
        # square plus 1e-8, so that rounding of 1e-17 in a gradient of zero can move a weight by 1e-11.
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(stack.weights[-1], case.network().weights, rtol=0, atol=0)  # the idle one
    return one, many


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(classes=0, target="epsilon", flip=True),
        Case(target="sample", dropout=0.3),
        Case(target="edm", classes=0, training=replace(TRAINING, grad_clip=0.0)),
        Case(training=replace(TRAINING, optimizer="sgd", grad_clip=0.05)),
        Case(training=replace(TRAINING, optimizer="adam", grad_clip=0.05), dropout=0.2, flip=True),
    ],
    ids=["v", "epsilon-flip", "sample-dropout", "edm-unclipped", "sgd-clipped", "adam-clipped-dropout-flip"],
)
def test_every_client_ends_where_it_would_have_alone(case: Case) -> None:
    compare(case)


def test_clipping_is_active_in_these_cases() -> None:
    # Otherwise a norm taken over all clients would not be seen above.
    clipped, free = Case(training=replace(TRAINING, optimizer="sgd", grad_clip=0.05)), Case()
    free.training = replace(clipped.training, grad_clip=0.0)
    for one, other in zip(alone(clipped)[1], alone(free)[1], strict=True):
        assert not torch.allclose(one, other, atol=1e-4)


class Pull(Piece):
    """A piece with a share in the loss: half the squared distance of the first convolution to where it began."""

    def local_loss(self, step: Step, work: Any, loss: Tensor, model: nn.Module) -> Tensor:
        assert model.conv_in.weight is step.parameters["conv_in.weight"]  # type: ignore[union-attr]
        return loss + (model.conv_in.weight - step.received["conv_in.weight"] + 0.1).square().sum() / 2  # type: ignore[union-attr, operator]


def rule_of(case: Case, method: Method, pieces: dict[str, Piece], returns: Callable[[int], Any]) -> MakeRule:
    """A client's rule as `federation/client.py` opens it."""

    def make(client: int, network: FlatNetwork) -> Any:
        parts = case.spec.part_names()
        step = Step(
            client=Client(client, f"client-{client}", case.sizes[client]),
            phase="train",
            server_round=1,
            seed=0,
            training=case.training,
            learning_rate=RATE,
            returns=returns(client),
            part_names=parts,
            extras={
                f"scaffold/{n}": np.full(network.layout[n], 0.01, np.float32)
                for part in returns(client)
                for n in parts[part]
            },
            model=network.model,
            received=network.received,
            parameters=network.parameters,
        )
        return Chain(pieces).open(method, step, {})

    return make


def test_pieces_of_the_learning_rule_bend_each_client_as_they_would_alone() -> None:
    case = Case(dropout=0.2)
    pieces: dict[str, Piece] = {"pull": Pull(), "prox": Prox(mu=0.5), "scaffold": Scaffold()}
    everything = ("encoder", "bottleneck", "decoder")
    one, many = compare(case, rule_of(case, FedAvg(), pieces, lambda client: everything))
    for wanted, found in zip(one, many, strict=True):
        variates, extras = wanted.close(dict)[1:], found.close(dict)[1:]
        for expected, given in zip(variates, extras, strict=True):
            assert expected.keys() == given.keys() != set()
            for name in expected:
                np.testing.assert_allclose(given[name], expected[name], rtol=0, atol=1e-9)


def test_parts_that_one_client_freezes_are_trained_by_another() -> None:
    case = Case(training=replace(TRAINING, grad_clip=0.05))
    parts = [("encoder",), ("bottleneck", "decoder"), ("encoder", "bottleneck"), ("decoder",)]
    frozen = USplit(freeze=True)
    compare(case, rule_of(case, frozen, {"scaffold": Scaffold(), "prox": Prox(mu=0.5)}, parts.__getitem__))
    # What nobody trains asks for no gradient at all.
    compare(case, rule_of(case, frozen, {}, lambda client: ("bottleneck",)))


def test_moments_are_kept_for_each_client_by_itself() -> None:
    case = Case()
    parts = [("encoder",), ("bottleneck", "decoder"), ("encoder",), ("decoder",)]
    rules = rule_of(case, USplit(freeze=True), {}, parts.__getitem__)
    kept: list[list[Tensors]] = [[{} for _ in SIZES], [{} for _ in SIZES]]
    for bent in (
        rules,
        no_rule,
    ):  # the second time, parameters of one client have seen different numbers of steps
        _, weights, _ = alone(case, bent, kept[0])
        _, stack, _ = together(case, bent, kept[1])
        for row, wanted in zip(stack.weights, weights, strict=False):
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-9)
    for wanted, found in zip(*kept, strict=True):
        assert wanted.keys() == found.keys() != set()
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-9)


def test_in_float32_weights_stay_within_rounding() -> None:
    # Plain SGD: the change is linear in gradients whose sums of up to 16 x 9 x 3 x 16 products, in some 30 layers one after
    # the other, lose at most a few hundred units in the last place: 1e-4 of the change is 1,700 such units.
    case = Case(dtype=torch.float32, training=replace(TRAINING, optimizer="sgd"))
    _, weights, _ = alone(case)
    _, stack, _ = together(case)
    start = case.network().weights
    for row, wanted in zip(stack.weights, weights, strict=False):
        assert (row - wanted).norm() <= 1e-4 * (wanted - start).norm()


def test_a_loss_that_is_not_finite_harms_nobody_else() -> None:
    case = Case(dtype=torch.float32)
    answers, good, _ = together(case)
    stack = case.stack()
    jobs = [Job(images, STEPS[i], rng(i)) for i, images in enumerate(case.images())]
    stack.weights[1, 5] = math.inf
    found = fit_many(stack, jobs, case.process, case.training, learning_rate=RATE)
    assert not math.isfinite(found[1][0])  # type: ignore[index]
    assert not torch.isfinite(stack.weights[1]).all()
    for i in (0, 2, 3):
        assert found[i] == answers[i]
        assert torch.equal(stack.weights[i], good.weights[i])


class Fails:
    """A rule whose hooks raise from a step on."""

    bends_loss = True

    def __init__(self, at: int) -> None:
        self.left = at

    def trainable(self) -> None:
        return None

    def objective(self, loss: Tensor, model: nn.Module) -> Tensor:
        if self.left == 0:
            raise RuntimeError("the site's own bug")
        return loss

    def after_backward(self) -> None: ...

    def stepped(self) -> None:
        self.left -= 1


def test_a_rule_that_raises_is_its_own_clients_failure() -> None:
    case = Case(dtype=torch.float32)
    answers, good, _ = together(case)
    found, stack, _ = together(case, lambda client, network: Fails(2) if client == 1 else None)
    assert isinstance(found[1], RuntimeError) and str(found[1]) == "the site's own bug"
    for i in (0, 2, 3):
        assert found[i] == answers[i]
        assert torch.equal(stack.weights[i], good.weights[i])


def test_what_is_recorded_once_gives_the_same_bits_again_and_again() -> None:
    # On a GPU the recording is a CUDA graph; here it is the computation itself on the tensors that it was recorded with.
    case = Case(dtype=torch.float32)
    recorded: list[Any] = []

    def record(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded.append(compute)
        return compute

    plain = case.stack()
    plain.replays = Replays(lambda compute: compute)
    wanted, plain, _ = together(case, stack=plain)
    first = plain.weights.clone()
    stack = case.stack()
    stack.replays = Replays(record)
    for _ in range(2):  # the second round replays what the first one has recorded
        for network in stack.networks:
            started(network, 0)
        assert together(case, stack=stack)[0] == wanted
        assert torch.equal(stack.weights, first)
    # Clients drop out one after the other: 4, 3, 2 and 1 of them.
    assert len(recorded) == 4
    # Whatever draws or bends in between is not recorded.
    together(case, lambda client, network: Fails(99), stack=stack)
    assert len(recorded) == 4


def test_a_stop_ends_all_of_them() -> None:
    case = Case()
    jobs = [Job(images, STEPS[i], rng(i)) for i, images in enumerate(case.images())]
    steps: list[int] = []
    with pytest.raises(Cancelled):
        fit_many(
            case.stack(),
            jobs,
            case.process,
            TRAINING,
            learning_rate=RATE,
            stop=lambda: len(steps) >= 4,
            stepped=lambda: steps.append(1),
        )
    assert len(steps) == 4  # one each


def test_jobs_are_as_many_as_networks_and_by_falling_number_of_steps() -> None:
    case = Case()
    images = case.images()
    jobs = [Job(images[0], 1, rng(0)), Job(images[1], 2, rng(1))]
    with pytest.raises(ValueError, match="falling"):
        fit_many(case.stack(), jobs, case.process, TRAINING, learning_rate=RATE)
    for wrong in ([], jobs):
        with pytest.raises(ValueError, match="1 to 1"):
            fit_many(case.stack(1), wrong, case.process, TRAINING, learning_rate=RATE)
