"""How fast is each codec, how many bytes does it write, and how much does it lose?

Speed: the change of `unet-32` (143 MB), encoded and decoded as client and server do; GB/s of float32, median, all cores. It is drawn from a normal
distribution per tensor, since speed hardly depends on the values. Bytes and error: the change that a client's local training makes
to `unet-8`, here 120 steps on scikit-learn's digits; error is |decoded - change|^2 / |change|^2 of one packet, without feedback. `learned` has learned from three
such changes of other seeds; its network is not in the bytes.
Lossless coding: the codes of each quantiser on that change through Zstandard, as the codecs do, and through the range coder of
`constriction` (where that is installed) with one table of counts for all codes; bytes and MB/s of codes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import numpy as np
import torch

from osmotic import codecs, models
from osmotic.codecs import entropy
from osmotic.codecs.buffer import row_of
from osmotic.config import schema
from osmotic.data import sources
from osmotic.federation.blueprint import Blueprint
from osmotic.flat import Flat, FlatLayout
from osmotic.training.images import Images
from osmotic.training.loop import fit
from osmotic.training.network import FlatNetwork

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "int8": ("int8", {}),
    "int8, at random": ("int8", {"stochastic": True}),
    "int8, entropy": ("int8", {"entropy": True}),
    "int4": ("int4", {}),
    "int4, max": ("int4", {"clip": "max"}),
    "int4, entropy": ("int4", {"entropy": True}),
    "int2": ("int2", {}),
    "int2, max": ("int2", {"clip": "max"}),
    "int2, entropy": ("int2", {"entropy": True}),
    "sparse 5 %": ("sparse", {"density": 0.05}),
    "sparse 1 %": ("sparse", {}),
    "sparse 1 %, signs": ("sparse", {"bits": 1}),
    "sparse 0.1 %, signs": ("sparse", {"bits": 1, "density": 0.001, "chunk": 65536}),
    "learned 0.5 bits": ("learned", {"bits": 0.5}),
    "learned 0.1 bits": ("learned", {"bits": 0.1}),
}
FIRST = 3  # round in which `learned` learns, after its two of warm-up


def main() -> None:
    """Measures every codec and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps, repeats = (2, 2) if args.quick else (120, args.repeats)
    change, others = trained(steps, 0), [trained(steps, seed) for seed in (1, 2, 3)]
    big = change if args.quick else normal("unet-32", 32, 3)
    rows = []
    for case, (name, options) in CASES.items():
        row = {"case": case, **quality(taught(name, options, change.layout, others), change)}
        rows.append(row | speed(taught(name, options, big.layout, [big]), big, repeats))
    found = {name: lossless(name, change) for name in ("int8", "int4", "int2")}
    told = ", ".join(
        f"{row['case']} {row['factor']:.4g}x (error {row['error']:.2g}, {row['encode_gb_s']:.2f} and {row['decode_gb_s']:.2f} GB/s)"
        for row in rows
    )
    machine.emit({"benchmark": "codecs", "results": rows, "lossless": found}, f"times less than fp32: {told}")


def taught(name: str, options: dict[str, Any], layout: FlatLayout, changes: list[Flat]) -> codecs.Codec:
    """A codec; one that is itself trained has learned from these changes."""
    codec = codecs.make(name, options={name: options})
    codec.prepare(layout)
    codec.learn({str(i): codec.observe(one.named("model/")) for i, one in enumerate(changes)})
    codec.refresh(FIRST)
    return codec


def layout_of(network: str, side: int, channels: int, classes: int = 0) -> FlatLayout:
    """The layout of a network for images of this side."""
    spec = models.resolve(network, side, channels, classes, 0.0)
    return FlatLayout(models.layout(spec), spec.part_names())


def normal(network: str, side: int, channels: int) -> Flat:
    """A change of a network that is normal within each tensor, of scales from 1e-4 to 1e-2."""
    layout, rng = layout_of(network, side, channels), np.random.default_rng(0)
    made = Flat(layout, rng.standard_normal(layout.size, np.float32))
    for place in layout.slices.values():
        made.buffer[place] *= np.float32(10 ** rng.uniform(-4, -2))
    return made


def trained(steps: int, seed: int) -> Flat:
    """What so many steps of local training change in `unet-8`, on digits; the seed draws order and noise."""
    config = schema.Config()
    dataset = sources.load(config.data)
    blueprint = Blueprint.of(config, 8, 1, 10)
    network = FlatNetwork(blueprint.model(torch.device("cpu")), blueprint.flat)
    network.load(blueprint.initial())
    images = Images.of(dataset.train.images, dataset.train.labels, torch.device("cpu"), blueprint.space)
    fit(
        network,
        images,
        blueprint.process,
        config.training,
        steps=steps,
        learning_rate=config.training.learning_rate,
        rng=np.random.default_rng(seed),
    )
    return network.change(blueprint.part_names)


def quality(codec: codecs.Codec, change: Flat) -> dict[str, Any]:
    """Bytes of the packet of a change, and its relative squared error."""
    data = codec.encode(change, {}, np.random.default_rng(0))
    got = Flat.over(change.layout, codec.read(data, {}, None, change.layout))
    off = float(np.square(got.buffer - change.buffer, dtype=np.float64).sum())
    return {
        "bytes": len(data),
        "bytes_at_most": codec.packet_bytes(change.layout.wanted),
        "factor": round(change.buffer.nbytes / len(data), 2),
        "error": off / float(np.square(change.buffer, dtype=np.float64).sum()),
    }


def speed(codec: codecs.Codec, change: Flat, repeats: int) -> dict[str, float]:
    """GB/s of float32 both ways, medians."""
    data = codec.encode(change, {}, np.random.default_rng(0))
    works: list[Callable[[], object]] = [
        lambda: codec.encode(change, {}, np.random.default_rng(0)),
        lambda: codec.read(data, {}, None, change.layout),
    ]
    taken = [statistics.median(seconds(work) for _ in range(repeats)) for work in works]
    rates = [change.buffer.nbytes / 1e9 / one for one in taken]
    return {"encode_gb_s": round(rates[0], 3), "decode_gb_s": round(rates[1], 3)}


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lossless(name: str, change: Flat) -> dict[str, Any]:
    """Bytes and MB/s of codes by each way to code them without loss."""
    codec = codecs.make(name)
    packed = codec.write(change.buffer, row_of(change.layout), None)  # type: ignore[attr-defined]
    found: dict[str, Any] = {"bytes": {"plain": len(packed)}, "mb_s": {}}
    out = entropy.compress(packed)
    found["bytes"]["zstandard"] = len(out)
    found["mb_s"]["zstandard"] = [
        round(len(packed) / 1e6 / min(seconds(work) for _ in range(5)))
        for work in (
            lambda: entropy.compress(packed),
            lambda: entropy.decompress(memoryview(out), len(packed)),
        )
    ]
    if importlib.util.find_spec("constriction"):
        found["bytes"]["range coder"], found["mb_s"]["range coder"] = range_coded(
            packed, {"int8": 8, "int4": 4, "int2": 2}[name]
        )
    return found


def range_coded(packed: bytes, bits: int) -> tuple[int, list[int]]:
    """Bytes by constriction's range coder, with a table of 16-bit counts, and MB/s of packed codes both ways."""
    import constriction

    whole = np.frombuffer(packed, np.uint8)
    symbols = ((whole[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)).reshape(-1).astype(np.int32)
    counts = np.bincount(symbols, minlength=2**bits).astype(np.float32)
    model = constriction.stream.model.Categorical(np.maximum(counts, 0.5) / counts.sum(), perfect=False)

    def encode() -> np.ndarray:
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(symbols, model)
        return coder.get_compressed()

    words = encode()

    def decode() -> np.ndarray:
        return constriction.stream.queue.RangeDecoder(words).decode(model, len(symbols))

    assert np.array_equal(decode(), symbols)
    rates = [round(len(packed) / 1e6 / min(seconds(work) for _ in range(5))) for work in (encode, decode)]
    return words.nbytes + 2 * 2**bits, rates


if __name__ == "__main__":
    main()
