"""At equal bytes, which way of writing a client's change loses least, once and with error feedback? See rates.md.

python experiments/frontier/rates.py changes [OUT.npz]   # a short FedAvg whose server keeps every change; goes on where it was cut off
python experiments/frontier/rates.py table [CHANGES.npz] # rows of rates.jsonl, those that are missing; then the tables
python experiments/frontier/rates.py tables              # rates.md, from the rows
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comparators
import numpy as np
import torch

import osmotic
from osmotic import codecs, models
from osmotic.codecs import Codec, ErrorFeedback
from osmotic.codecs.learned import Learned
from osmotic.codecs.uniform import Int8
from osmotic.federation.blueprint import Blueprint
from osmotic.flat import Flat, FlatLayout
from osmotic.pieces.base import Piece
from osmotic.tensors import Tensors

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import machine

HERE = Path(__file__).parent
SOURCE = Path("runs/frontier/changes.npz")
RESULTS = HERE / "rates.jsonl"
SEED, ROUNDS, CLIENTS = 100, 20, 10
WARMUP = 2  # rounds that whatever learns has seen, as decoded from int8
TARGETS = (2.0, 1.0, 0.5, 0.25, 0.1, 0.05)  # bits per weight
ONCE = (10, 20)  # rounds of which every client's change is sent once, nothing owed
OWED = (5, 10, 20)  # rounds after which what is owed is looked at
FEW = 3  # clients that send with error feedback
RENEW = 5  # rounds after which the learned network is renewed, where it is
NEVER = 100_000
IMAGES, STEPS = (2, 10, 50), 600  # of the test of synthetic inputs

FEDAVG = {
    "data.source": "npz:../shared/data/fashion-mnist.npz",
    "data.image_size": 8,
    "data.max_images": 6000,
    "data.clients": CLIENTS,
    "data.partition": "dirichlet",
    "data.dirichlet_alpha": 0.1,
    "data.partition_seed": SEED,
    "model.network": "unet-8",
    "training.rounds": ROUNDS,
    "training.local_epochs": 2.5,
    "training.batch_size": 64,
    "seed": SEED,
    "score.every": 0,
    "score.samples": 2,  # the last round is always scored
    "checkpoint.every": 1,
    "track.backends": [],
    # What is registered here is known to this process alone.
    "engine.processes": False,
    "engine.workers": 1,
    "server.pieces": ["keep-changes"],
}


@cache
def layout() -> FlatLayout:
    """Where the weights of unet-8 lie in a change [size]."""
    spec = models.resolve("unet-8", 8, 1, 10, 0.0)
    return FlatLayout(models.layout(spec), spec.part_names())


# --- real changes ---


@osmotic.register("keep-changes")
@dataclass(frozen=True, kw_only=True)
class KeepChanges(Piece):
    """The server writes down each round's weights and the changes that came back; nothing else is otherwise.

    Folder `into`: r01.npz and so on, `changes` float32 [clients, size], `weights` [size] that were sent, `num_examples` [clients].
    """

    section = "server"
    left = reveals = ""

    into: str = osmotic.key("", "an existing folder")

    def gather(self, view: Any, gathered: Any, reply: Any) -> dict[str, tuple[int, np.ndarray]]:
        """Client -> (num_examples, change [size])."""
        change = Flat.of(layout(), reply.change).buffer
        return {**(gathered or {}), reply.task.client.name: (reply.weight, change)}

    def change(self, view: Any, state: Any, gathered: Any, phase: Any, mean: Any) -> Any:
        """The mean as it is, [...] by name."""
        came = [gathered[name] for name in sorted(gathered)]
        np.savez(
            Path(self.into) / f"r{phase.server_round:02}.npz",
            changes=np.stack([change for _, change in came]),
            num_examples=np.array([count for count, _ in came]),
            weights=Flat.of(layout(), view.weights).buffer,
        )
        return mean, state, {}


def changes(out: Path) -> None:
    """Runs FedAvg, or goes on with it, and gathers its rounds in one file: "r01/changes" and so on."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    keys = FEDAVG | {"server.keep-changes.into": str(folder)}
    if (folder / "run/config.toml").exists():
        osmotic.load(folder / "run").resume()
    else:
        osmotic.run(preset="fedavg", keys=keys, out=folder / "run")
    rounds = [np.load(folder / f"r{r:02}.npz") for r in range(1, ROUNDS + 1)]
    np.savez(out, **{f"r{r:02}/{name}": one[name] for r, one in enumerate(rounds, 1) for name in one.files})


# --- ways to write a change ---


def package(name: str, **options: object) -> Callable[[float], Codec]:
    """A codec of the package; the option that is None is its parameter."""
    free = next((key for key, value in options.items() if value is None), None)

    def make(parameter: float) -> Codec:
        given = options if free is None else options | {free: parameter}
        return codecs.make(name, options={name: given})

    return make


def learned(every: int) -> Callable[[float], Codec]:
    """`learned` as it is after the warm-up, its network to be learned by the first `refresh`."""

    def make(bits: float) -> Codec:
        codec = codecs.make("learned", options={"learned": {"bits": bits, "every": every}})
        codec.prepare(layout())
        for observed in _warm_moments():
            codec.learn(observed)
        return codec

    return make


def chunk_pca(bits: float) -> Codec:
    """PCA of chunks, of the same changes."""
    codec = comparators.ChunkPca(bits=bits)
    codec.use(_chunks())
    return codec


# Name -> (codec by its parameter, where that is sought). The first are fitted to every target, the others are as they are.
FITTED: dict[str, tuple[Callable[[float], Codec], tuple[float, float]]] = {
    "sparse, signs": (package("sparse", bits=1, density=None), (1e-4, 0.5)),
    "sparse, 2 bits": (package("sparse", bits=2, density=None), (1e-4, 0.5)),
    "learned, frozen": (learned(NEVER), (0.01, 4.0)),
    "learned, renewed": (learned(RENEW), (0.01, 4.0)),
    "PCA of chunks": (chunk_pca, (0.01, 4.0)),
    "low rank": (lambda bits: comparators.LowRank(bits=bits), (0.01, 4.0)),
}
FIXED = {
    "int8": package("int8", entropy=True),
    "int4": package("int4", entropy=True),
    "int2": package("int2", entropy=True),
    "sparse 1 %": package("sparse"),
}


def fitted(
    make: Callable[[float], Codec], limits: tuple[float, float], bits: float, probe: Flat
) -> float | None:
    """The parameter at which the packet of a change takes so many bits per weight; None where none comes within 5 %."""
    parameter = float(np.clip(bits, *limits))
    best = (0.05, None)
    for _ in range(8):  # length is nearly a power of the parameter
        codec = make(parameter)
        codec.refresh(WARMUP + 1)
        found = 8 * len(codec.encode(probe, {})) / layout().size
        best = min(best, (abs(found / bits - 1), parameter), key=lambda one: one[0])
        if best[0] < 0.01:
            break
        parameter = float(np.clip(parameter * bits / found, *limits))
    return best[1]


def came_in(server_round: int) -> np.ndarray:
    """The changes of a round, float32 [clients, size]."""
    with np.load(SOURCE) as file:
        return file[f"r{server_round:02}/changes"]


@cache
def _warm() -> list[np.ndarray]:
    """The changes of the first rounds as int8 decodes to them, float32 [clients, size] each."""
    codec, found = Int8(entropy=True), []
    for r in range(1, WARMUP + 1):
        heard = [
            codec.read(codec.encode(Flat(layout(), one), {}), {}, None, layout()).buffer for one in came_in(r)
        ]
        found.append(np.stack(heard))
    return found


@cache
def _warm_moments() -> list[dict[str, Tensors]]:
    codec = Learned()
    codec.prepare(layout())
    return [
        {f"client-{k:03}": codec.observe(Flat(layout(), one).named("model/")) for k, one in enumerate(heard)}
        for heard in _warm()
    ]


@cache
def _chunks() -> comparators.Chunks:
    return comparators.Chunks(np.concatenate(_warm()))


# --- measures ---


def measured(codec: Codec) -> dict[str, Any]:
    """What a codec loses on the real changes of rounds after the warm-up.

    Returns: per round of ONCE, means over all clients: bits, error |decoded - change|^2 / |change|^2, cosine, and by_layer of the first
    of them; with error feedback, means over FEW clients: fed_bits, residual |owed|^2 / |change|^2 after rounds of OWED, sum_error
    |sum sent - sum meant| / |sum meant| at the end; network_bytes of each network that was sent.
    """
    feedback, renews = ErrorFeedback(codec), getattr(codec, "every", NEVER) == RENEW
    memory: list[Tensors] = [{} for _ in range(CLIENTS)]
    found: dict[str, Any] = {"network_bytes": []}
    meant, fed_bits = np.zeros((FEW, layout().size)), []
    for r in range(WARMUP + 1, ROUNDS + 1):
        new = codec.refresh(r)
        if new is not None:
            found["network_bytes"].append(new["net"].nbytes)
        came = came_in(r)
        if r in ONCE:
            found |= {f"{name}_{r}": value for name, value in _once(codec, came).items()}
        meant += came[:FEW]
        observed = {}
        # A network that is renewed learns from everybody's packets.
        for k in range(CLIENTS if renews else FEW):
            data = feedback.encode(Flat(layout(), came[k]), memory[k])
            if k < FEW:
                fed_bits.append(8 * len(data) / layout().size)
            if renews:
                heard = codec.read(data, {}, None, layout())
                observed[f"client-{k:03}"] = codec.observe(Flat.over(layout(), heard).named("model/"))
        codec.learn(observed)
        if r in OWED:
            shares = [_power(_owed(memory[k])) / _power(came[k]) for k in range(FEW)]
            found[f"residual_{r}"] = float(np.mean(shares))
    sums = [np.sqrt(_power(_owed(memory[k])) / _power(meant[k])) for k in range(FEW)]
    return found | {"sum_error": float(np.mean(sums)), "fed_bits": float(np.mean(fed_bits))}


def _once(codec: Codec, came: np.ndarray) -> dict[str, Any]:
    bits, errors, cosines, layers = [], [], [], []
    for change in came:
        data = codec.encode(Flat(layout(), change), {})
        heard = Flat.over(layout(), codec.read(data, {}, None, layout())).buffer
        bits.append(8 * len(data) / layout().size)
        errors.append(_power(heard - change) / _power(change))
        cosines.append(cosine(heard, change))
        layers.append(
            [_power((heard - change)[places]) / _power(change[places]) for places in groups().values()]
        )
    by_layer = dict(zip(groups(), np.mean(layers, axis=0).tolist(), strict=True))
    return {
        "bits": float(np.mean(bits)),
        "error": float(np.mean(errors)),
        "cosine": float(np.mean(cosines)),
        "by_layer": by_layer,
    }


@cache
def groups() -> dict[str, np.ndarray]:
    """Places in the buffer, int64 [n]: of the five largest tensors, all other matrices, all vectors."""
    places = {name: np.arange(place.start, place.stop) for name, place in layout().slices.items()}
    vectors = [name for name, shape in layout().items() if len(shape) < 2]
    largest = sorted(places, key=lambda name: (-len(places[name]), name))[:5]
    others = [name for name in places if name not in vectors and name not in largest]
    return {name: places[name] for name in largest} | {
        "all other matrices": np.concatenate([places[name] for name in others]),
        "all vectors": np.concatenate([places[name] for name in vectors]),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two changes [size]; 0 where one is nothing."""
    return float(a.astype(np.float64) @ b) / max(1e-30, (_power(a) * _power(b)) ** 0.5)


def _power(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _owed(memory: Tensors) -> np.ndarray:
    return Flat.of(layout(), {name: memory[f"residual/{name}"] for name in layout()}).buffer


def synthetic(count: int) -> dict[str, Any]:
    """The first test of synthetic inputs: the first client's change of round 10, and others in as many bytes."""
    folder = SOURCE.with_suffix("")
    blueprint = Blueprint.of(osmotic.load(folder / "run").config, 8, 1, 10)
    with np.load(SOURCE) as file:
        weights = Flat(layout(), file["r10/weights"])
    network = blueprint.model(torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name].copy()))
    change = came_in(10)[0]
    has = np.array(json.loads((folder / "run/partition.json").read_text())["counts"][0])
    labels = np.random.default_rng(SEED).choice(10, count, p=has / has.sum()).tolist()
    began = time.perf_counter()
    got = comparators.synthetic_inputs(network, blueprint.process, layout(), change, labels, STEPS, SEED)
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - began,
        "bytes": got.num_bytes,
        "cosine": got.rounded,
        "cosines": got.cosines,
    }
    probe = Flat(layout(), change)
    # One chunk for all, as a scale for each 4096 numbers would be more than such a packet may take.
    rivals = {"sparse": (package("sparse", bits=1, chunk=2**22, density=None), (1e-5, 0.5))}
    rivals["low rank"] = (FITTED["low rank"][0], (1e-4, 4.0))
    rivals["learned"] = FITTED["learned, frozen"]
    for name, (make, limits) in rivals.items():
        parameter = fitted(make, limits, 8 * got.num_bytes / layout().size, probe)
        if parameter is not None:
            codec = make(parameter)
            codec.refresh(WARMUP + 1)
            data = codec.encode(probe, {})
            heard = Flat.over(layout(), codec.read(data, {}, None, layout())).buffer
            found |= {f"bytes_{name}": len(data), f"cosine_{name}": cosine(heard, change)}
    return found


def table() -> None:
    """Measures what no row is there of yet."""
    rows = _rows()
    probe = Flat(layout(), came_in(WARMUP + 1)[0])
    for case, work in _cases(probe):
        if case not in rows:
            print(case, file=sys.stderr, flush=True)
            rows[case] = {"case": case, "seed": SEED, "machine": machine(), **work()}
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


def _cases(probe: Flat) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for way, make in FIXED.items():
        yield way, lambda way=way, make=make: {"way": way, "target": None, **measured(make(0))}
    for bits in TARGETS:
        for way in FITTED:
            yield f"{way}, {bits:g} bits", lambda way=way, bits=bits: _at(way, bits, probe)
    for count in IMAGES:
        yield f"{count} synthetic images", lambda count=count: {"images": count, **synthetic(count)}


def _at(way: str, bits: float, probe: Flat) -> dict[str, Any]:
    make, limits = FITTED[way]
    parameter = fitted(make, limits, bits, probe)
    row = {"way": way, "target": bits, "parameter": parameter}
    if parameter is None:
        return row
    row |= measured(make(parameter))
    if way == "PCA of chunks":
        row["network_bytes"] = [_chunks().num_bytes]
    return row


def _rows() -> dict[str, dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["case"]: row for row in map(json.loads, lines)}


# --- tables ---

HEADER = """# Which way of writing a change loses least at equal bytes?

Made by `rates.py tables` from rates.jsonl; seed {seed}, {machine}.

Changes: what {clients} clients sent in {rounds} rounds of FedAvg with `unet-8` (702,753 weights), Fashion-MNIST of 8x8, 6,000 images,
Dirichlet 0.1, batch 64, 2.5 local epochs a round, AdamW with a constant
learning rate, sent in fp32: what a way loses does not come back into the training. One run.
Bits per weight are those of whole packets, head and all side information with them; "fed" those of packets with error feedback. Fitted ways were
set to the target on the first client's change of round 3, and come to within {off:.0%} of it later.

* error: |decoded - change|^2 / |change|^2 of one packet, and cosine of the two; means over all clients of a round, nothing owed.
* owed: |residual|^2 / |change|^2 after a round, error feedback from round 3 on; means over the first {few} clients.
* sum: |sum sent - sum meant| / |sum meant| over rounds 3 to {rounds}.
* network: bytes that a client must have before, times they were sent in rounds 3 to {rounds}; "a round" is that in bits per weight and round, which
  the bits beside it do not hold. `learned` learns from rounds 1 and 2 as int8 decodes to them (frozen), or anew every {renew} rounds from what its own packets
  decode to (renewed). PCA: one square matrix for chunks of {chunk} numbers, {chunk}^2 numbers of 8 bits, frozen, with the coder of `learned`. Low rank:
  exact singular vectors, int4, ranks by energy for bytes in each packet; PowerSGD, with power iterations and one rank for all, was not measured beside it.
"""


def tables() -> None:
    """Writes rates.md."""
    rows = list(_rows().values())
    machines = sorted({row["machine"] for row in rows})
    ways = [row for row in rows if "error_10" in row]
    off = max(
        abs(row[key] / row["target"] - 1) for row in ways if row["target"] for key in ("bits_20", "fed_bits")
    )
    text = HEADER.format(
        off=off,
        seed=SEED,
        machine="; ".join(machines),
        clients=CLIENTS,
        rounds=ROUNDS,
        few=FEW,
        renew=RENEW,
        chunk=comparators.CHUNK,
    )
    for bits in (None, *TARGETS):
        chosen = [row for row in ways if row["target"] == bits or _near(row, bits)]
        text += (
            f"\n## {f'{bits:g} bits per weight' if bits else 'As they are'}\n\n"
            + "\n".join(_rates(chosen))
            + "\n"
        )
        if bits:
            text += f"\n{_winners(chosen)}\n"
    text += "\n## Error by layer, round 10\n\n" + "\n".join(_layers({r["case"]: r for r in ways})) + "\n"
    text += "\n## Comparators against the codecs of the package\n\n" + "\n".join(_verdicts(ways)) + "\n"
    text += "\n## Networks counted\n\n" + "\n".join(_counted(ways)) + "\n"
    text += "\n## Synthetic inputs\n\n" + "\n".join(_synthetic([r for r in rows if "images" in r])) + "\n"
    (HERE / "rates.md").write_text(text)


def _near(row: Mapping[str, Any], bits: float | None) -> bool:
    """Whether a way that cannot be fitted comes to about so many bits."""
    return bits is not None and row["target"] is None and abs(row["bits_20"] / bits - 1) < 0.1


def _rates(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| way | bits | error, round 10 | cosine | error, round 20 | cosine | bits, fed | owed after 5 | 10 | 20 | sum | network | a round |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: row["error_20"]):
        keys = ("bits_20", "error_10", "cosine_10", "error_20", "cosine_20", "fed_bits")
        cells = [f"{row[key]:.3g}" if row[key] < 0.1 else f"{row[key]:.3f}" for key in keys]
        cells += [f"{row[f'residual_{r}']:.3g}" for r in OWED] + [f"{row['sum_error']:.3f}"]
        sent = row["network_bytes"]
        cells += (
            [f"{len(sent)} x {np.mean(sent) / 1e3:.0f} kB", f"{_network_bits(row):.3f}"] if sent else ["", ""]
        )
        yield f"| {row['way']} | {' | '.join(cells)} |"


def _network_bits(row: Mapping[str, Any]) -> float:
    return 8 * sum(row["network_bytes"]) / layout().size / (ROUNDS - WARMUP)


def _winners(rows: Sequence[Mapping[str, Any]]) -> str:
    once = min(rows, key=lambda row: row["error_20"])
    fed = min(rows, key=lambda row: row["residual_20"])
    return (
        f"Least error of one packet in round 20: {once['way']}, {once['error_20']:.3f}. "
        f"Least owed after round 20: {fed['way']}, {fed['residual_20']:.3g}."
    )


def _layers(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    cases = [case for case in ("int2", "sparse 1 %", "learned, renewed, 0.5 bits") if case in rows]
    yield f"| tensors | weights | {' | '.join(cases)} |"
    yield "|---|---|" + "---|" * len(cases)
    for name, places in groups().items():
        cells = [f"{rows[case]['by_layer_10'][name]:.3f}" for case in cases]
        yield f"| {name} | {len(places)} | {' | '.join(cells)} |"


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for mine in ("PCA of chunks", "low rank"):
        for other in ("learned, frozen", "learned, renewed", "sparse, signs", "sparse, 2 bits"):
            pairs = [
                (a, b)
                for a in rows
                for b in rows
                if (a["way"], b["way"]) == (mine, other) and a["target"] == b["target"]
            ]
            lists = [
                ", ".join(f"{a['target']:g}" for a, b in pairs if a[key] < b[key]) or "no rate"
                for key in ("error_10", "error_20", "residual_20")
            ]
            yield (
                f"* {mine} against {other}, of {len(pairs)} rates: less error of one packet in round 10 at {lists[0]}; in round 20 at {lists[1]}; "
                f"less owed after round 20 at {lists[2]}."
            )


def _counted(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"Bits of a packet and of the network's share of a round, spread over rounds {WARMUP + 1} to {ROUNDS}: more rounds for a network make it less. Beside each "
        "what low rank, which needs none, comes to with as many bits, between its rates in logarithms."
    )
    yield "\n| way | bits in all | error, round 20 | of low rank | owed after 20 | of low rank |"
    yield "|---|---|---|---|---|---|"
    low = sorted((row for row in rows if row["way"] == "low rank"), key=lambda row: row["fed_bits"])
    for row in rows:
        total = row["fed_bits"] + _network_bits(row)
        if not row["network_bytes"] or not low[0]["fed_bits"] <= total <= low[-1]["fed_bits"]:
            continue
        cells = []
        for key in ("error_20", "residual_20"):
            known = [np.log([one[name] for one in low]) for name in ("fed_bits", key)]
            cells += [f"{row[key]:.3g}", f"{np.exp(np.interp(np.log(total), *known)):.3g}"]
        yield f"| {row['case']} | {total:.3f} | {' | '.join(cells)} |"


def _synthetic(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"A first test: the first client's change of round 10, {STEPS} steps of Adam on images and their weights, from noise. Cosine with the "
        "change, of the others with packets of as many bytes (sparse: signs, one chunk; learned: frozen, its network not counted)."
    )
    yield "\n| images | bytes | bits per weight | after a third of the steps | two thirds | all | in bytes | sparse | low rank | learned | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        rivals = [
            f"{row[k]:.3f}" if k in row else "-"
            for k in ("cosine_sparse", "cosine_low rank", "cosine_learned")
        ]
        cells = [
            f"{8 * row['bytes'] / layout().size:.4f}",
            *(f"{one:.3f}" for one in (*row["cosines"], row["cosine"])),
            *rivals,
            f"{row['seconds']:.0f}",
        ]
        yield f"| {row['images']} | {row['bytes']} | {' | '.join(cells)} |"
    worse = [str(row["images"]) for row in rows if row["cosine"] < row["cosine_sparse"]]
    yield f"\nIn bytes, below sparse at equal bytes with {', '.join(worse) or 'no number of'} images."
    if rows and len(worse) == len(rows):
        yield "Not promising, and taken no further."
    else:
        below = [str(row["images"]) for row in rows if row["cosine"] < row.get("cosine_low rank", 0)]
        yield f"Below low rank at equal bytes with {', '.join(below) or 'no number of'} images."


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        SOURCE = Path(sys.argv[2])
    if sys.argv[1:2] == ["changes"]:
        changes(SOURCE)
    elif sys.argv[1:2] == ["table"]:
        table()
        tables()
    elif sys.argv[1:2] == ["tables"]:
        tables()
    else:
        sys.exit(__doc__)
