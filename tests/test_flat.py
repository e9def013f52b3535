"""One buffer for all weights: where what lies in it, and that everything that reads it whole reads what stands under the names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from osmotic.codecs import CODECS, EXACT, BadPacket, make
from osmotic.config.schema import TrainingConfig
from osmotic.diffusion.ema import Ema
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.gate import Gate, Refused
from osmotic.protocol.messages import Client, Task, changes
from osmotic.training.network import FlatNetwork
from osmotic.training.optimizers import load_moments, make_optimizer, moments_of, steps_of

SHAPES = {"down.weight": (4, 2, 3, 5), "down.bias": (3,), "mid": (16,), "up.a": (2, 8), "up.z": (1,)}
NAMES = {"encoder": ["down.bias", "down.weight"], "bottleneck": ["mid"], "decoder": ["up.a", "up.z"]}
LAYOUT = FlatLayout(SHAPES, NAMES)


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def same(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[n], other[n]) for n in other)


def test_parts_are_slices_and_odd_sizes_come_last() -> None:
    # 4 * 2 * 3 * 5 = 120 is no multiple of 16 either, so within the encoder names alone decide.
    assert list(LAYOUT) == ["down.bias", "down.weight", "mid", "up.a", "up.z"]
    assert LAYOUT.part_slices == {
        "encoder": slice(0, 123),
        "bottleneck": slice(123, 139),
        "decoder": slice(139, 156),
    }
    assert list(FlatLayout.whole({"a": (1,), "b": (16,)})) == ["b", "a"]


def test_weights_with_four_axes_lie_channels_last() -> None:
    weights = drawn()
    flat = Flat.of(LAYOUT, weights)
    assert same(flat, weights)
    stored = flat.buffer[LAYOUT.slices["down.weight"]]
    assert np.array_equal(stored, weights["down.weight"].transpose(0, 2, 3, 1).reshape(-1))
    view = LAYOUT.view(torch.from_numpy(flat.buffer), "down.weight")
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_neighbouring_parts_are_a_view_and_others_a_copy() -> None:
    flat = Flat.of(LAYOUT, drawn())
    assert np.shares_memory(flat.parts(["encoder", "bottleneck"]).buffer, flat.buffer)
    apart = flat.parts(["decoder", "encoder"])
    assert list(apart.layout.part_names) == ["encoder", "decoder"] and not np.shares_memory(
        apart.buffer, flat.buffer
    )
    assert same(apart, {n: flat[n] for n in [*NAMES["encoder"], *NAMES["decoder"]]})
    assert len(flat.parts([])) == 0


def test_the_hash_of_a_layout_tells_names_shapes_and_parts_apart() -> None:
    other_parts = {"encoder": NAMES["encoder"], "bottleneck": [], "decoder": [*NAMES["decoder"], "mid"]}
    others = [
        FlatLayout({**SHAPES, "mid": (4, 4)}, NAMES),
        FlatLayout(SHAPES, other_parts),
        LAYOUT.named("x/"),
    ]
    assert len({LAYOUT.sha256, *(o.sha256 for o in others)}) == 4
    assert FlatLayout(dict(reversed(SHAPES.items())), NAMES) == LAYOUT


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_packet_of_a_network_lies_as_its_buffer_and_one_by_name_is_another(codec: str) -> None:
    # Parts in another order than their names.
    turned = FlatLayout(
        SHAPES, {"encoder": NAMES["decoder"], "bottleneck": ["mid"], "decoder": NAMES["encoder"]}
    )
    flat = Flat.of(turned, drawn()).named("model/")
    wanted, layout, coder = flat.layout.wanted, flat.layout, make(codec)
    data, by_name = coder.encode(flat, {}), coder.encode(dict(flat), {})
    if codec == "fp32":
        assert data.endswith(flat.buffer.tobytes())
    whole = coder.read(data, {}, wanted, layout)
    if codec != "fp16":  # which works tensor by tensor
        assert isinstance(whole, Flat) and whole.layout == layout
    assert codec != "fp32" or same(whole, flat)
    assert list(whole) == list(flat) != sorted(flat), "in the order of the buffer"
    # What is coded tensor by tensor is the same values in both; which order is which no packet says twice.
    if codec not in ("sparse", "learned"):  # whose chunks run across tensors
        assert len(by_name) == len(data) and same(dict(coder.decode(by_name, {}, wanted)), whole)
    assert whole.keys() == coder.read(by_name, {}, wanted).keys()
    for packet, how in ((data, {}), (by_name, {"layout": layout})):
        with pytest.raises(BadPacket, match=r"holds other tensors|more than the"):
            coder.read(packet, {}, wanted, **how)


def test_a_torn_buffer_is_a_bad_packet() -> None:
    data = bytearray(EXACT.encode(Flat.of(LAYOUT, drawn()), {}))
    for spoilt in (
        data[:-4],
        bytes(data) + b"\0\0\0\0",
        bytes(data[:-1]) + bytes([data[-1] ^ 1]),
        b"",
        data[:20],
    ):
        with pytest.raises(BadPacket):
            EXACT.read(bytes(spoilt), {}, LAYOUT.wanted, LAYOUT)


@pytest.mark.parametrize("where", range(5))
@pytest.mark.parametrize("value, kind", [(np.nan, "bad"), (np.inf, "bad"), (11.0, "range"), (-11.0, "range")])
def test_the_gate_sees_one_wrong_value_anywhere_in_the_buffer_and_names_it(
    where: int, value: float, kind: str
) -> None:
    name = list(SHAPES)[where]
    task = Task(Client(0, "a", 5), "train", returns=tuple(NAMES))
    expected = Gate(SHAPES, NAMES, TrainingConfig(max_abs_update=10.0)).expect(task)
    flat = Flat.of(LAYOUT, drawn()).named("model/")
    assert expected.check(flat, 5) == 5
    flat[f"model/{name}"].reshape(-1)[-1:] = value  # a view only of what has no more than three axes
    if flat[f"model/{name}"].ndim == 4:
        flat.buffer[LAYOUT.slices[name].stop - 1] = value
    with pytest.raises(Refused, match=name) as caught:
        expected.check(flat, 5)
    assert caught.value.kind == kind


def test_sums_of_buffers_and_of_single_arrays_are_the_same_bits() -> None:
    replies = [
        (drawn(k), 3 + k, parts)
        for k, parts in enumerate([tuple(NAMES), ("decoder",), ("encoder", "decoder")])
    ]
    flats, arrays, mixed = (Accumulator(50, 10.0) for _ in range(3))
    for k, (weights, weight, parts) in enumerate(replies):
        flat = Flat.of(LAYOUT, weights).parts(parts)
        flats.add(flat, weight)
        arrays.add(dict(flat), weight)
        mixed.add(dict(flat) if k == 0 else flat, weight)
    assert flats.weights == arrays.weights == {**dict.fromkeys(SHAPES, 8), "mid": 3, "up.a": 12, "up.z": 12}
    means = [total.mean() for total in (flats, arrays, mixed)]
    assert same(means[0], means[1]) and same(means[2], means[1])
    assert same(dict(flats.drain()), means[1])


def test_averages_of_buffers_and_of_single_arrays_are_the_same_bits() -> None:
    one, other, restored = Ema([100.0, 0.0]), Ema([100.0, 0.0]), Ema([100.0, 0.0])
    for k in range(3):
        weights = drawn(k)
        one.update(Flat.of(LAYOUT, weights), 30)
        other.update(weights, 30)
        restored.restore(*other.state())
    assert same(one.average(100.0), other.average(100.0)) and same(one.average(0.0), drawn(2))
    restored.update(Flat.of(LAYOUT, drawn(3)), 30)
    other.update(drawn(3), 30)
    assert same(restored.average(100.0), other.average(100.0))


def test_changes_stay_one_buffer_under_their_own_names() -> None:
    flat = Flat.of(LAYOUT, drawn())
    assert changes(flat.named("model/")).buffer is flat.buffer  # type: ignore[attr-defined]
    assert set(changes({"model/mid": flat["mid"], "scaffold/x": flat["mid"]})) == {"mid"}


class Net(torch.nn.Module):
    """Parameters of LAYOUT, and a loss that moves all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.Module()
        self.down.weight, self.down.bias = (
            torch.nn.Parameter(torch.ones(4, 2, 3, 5)),
            torch.nn.Parameter(torch.ones(3)),
        )
        self.mid, self.up = torch.nn.Parameter(torch.ones(16)), torch.nn.Module()
        self.up.a, self.up.z = torch.nn.Parameter(torch.ones(2, 8)), torch.nn.Parameter(torch.ones(1))

    def loss(self) -> torch.Tensor:
        return sum(((p - k) ** 2).sum() for k, p in enumerate(self.parameters()))


def flat_steps(network: FlatNetwork, names: list[str], steps: int, moments: dict[str, np.ndarray]) -> None:
    network.train(None if len(names) == len(SHAPES) else names)
    runs = network.trained(steps_of(moments))
    optimizer = make_optimizer([run for _, run in runs.values()], "adamw", 0.1)
    load_moments(optimizer, network, runs, moments)
    for _ in range(steps):
        network.gradient.zero_()
        network.model.loss().backward()
        torch.nn.utils.clip_grad_norm_([run for _, run in runs.values()], 1.0)
        optimizer.step()
    moments.update(moments_of(optimizer, network, runs))


def test_steps_on_the_buffer_are_steps_on_the_parameters() -> None:
    """Parts frozen for a while have seen fewer steps: their moments must not be mixed with their neighbours'."""
    plain, flat = Net(), Net()
    network, moments = FlatNetwork(flat, LAYOUT), dict[str, np.ndarray]()
    everything, some = list(SHAPES), ["mid", "up.a", "up.z"]
    optimizers = {}
    for names, steps in ((some, 2), (everything, 1), (some, 3)):
        flat_steps(network, names, steps, moments)
        # One optimiser per name on the plain side, whose clipping is over those that are trained.
        named = dict(plain.named_parameters())
        for _ in range(steps):
            plain.zero_grad()
            plain.loss().backward()
            torch.nn.utils.clip_grad_norm_([named[n] for n in names], 1.0)
            for name in names:
                optimizers.setdefault(name, torch.optim.AdamW([named[name]], lr=0.1)).step()
    for name, parameter in plain.named_parameters():
        # A norm of one buffer rounds otherwise than one of norms: relative 2**-24 for each of some steps.
        np.testing.assert_allclose(network.copy()[name], parameter.detach().numpy(), rtol=6 * 2.0**-22)
        assert float(moments[f"{name}|step"]) == (6 if name in some else 1)


def test_a_gradient_put_in_the_place_of_the_view_is_taken_over() -> None:
    network = FlatNetwork(Net(), LAYOUT)
    network.parameters["mid"].grad = torch.full((16,), 7.0)
    network.parameters["up.z"].grad = None
    network.gradient.fill_(3.0)
    network.gather()
    found = Flat(LAYOUT, network.gradient.numpy())
    assert (found["mid"] == 7).all() and (found["up.z"] == 0).all() and (found["up.a"] == 3).all()
    assert network.parameters["mid"].grad.data_ptr() == found["mid"].ctypes.data  # type: ignore[union-attr]


def test_frozen_parameters_have_no_gradient_and_stay() -> None:
    network = FlatNetwork(Net(), LAYOUT)
    flat_steps(network, ["mid"], 1, {})
    assert [n for n, p in network.parameters.items() if p.grad is not None] == ["mid"]
    assert {n for n, w in network.copy().items() if (w != 1).any()} == {"mid"}


def test_loading_and_the_change_since() -> None:
    network, weights = FlatNetwork(Net(), LAYOUT), drawn()
    network.load(weights)
    assert same(network.copy(), weights) and same(
        {n: t.numpy() for n, t in network.received.items()}, weights
    )
    with torch.no_grad():
        network.weights += 1
    change = network.change(["encoder", "decoder"])
    assert list(change.layout.part_names) == ["encoder", "decoder"]
    assert all(np.array_equal(change[n], (weights[n] + np.float32(1)) - weights[n]) for n in change)
