"""How fast are replies summed exactly, and does the server's memory stay flat however many clients answer?

Speed. Float32 updates shaped like the `unet-32` network (143 MB) are folded by the accumulator on all cores: `add`
alone, then `check` and `add` as where no gate stands before them. In the same run, in turn with it: the same fixed-point sum
written plainly, one whole tensor at a time, unchunked and on one thread. Rates are bytes of update per second; the
gain is the median of the ratios of neighbours. `reply` is the server's whole way of a reply: checksum, decoding, gate,
sum.

Memory. For each number of clients a fresh process runs the real `Server` over an engine that trains nothing: it yields
an encoded reply per task, read from a file as from a socket, so that every reply is new memory. The model has names
and shapes of `unet-32` (143 MB; `--every N` takes one of N of its tensors). Reported is the peak resident memory above
that after imports, over whole rounds with their checkpoints, also in model sizes. The recipe's moving averages are off:
the bound, 4 model sizes plus 200 MB, is without them. One more process, with them on, says what they add.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import machine
import numpy as np

from osmotic import codecs, models
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.server import Server
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.gate import Expectation
from osmotic.protocol.messages import ADDRESS, Answer, Client, Packet, Phase, Sent, Spec, changes
from osmotic.runs import resolve
from osmotic.storage.folder import RunDir

EXAMPLES, MAX_ABS = 90, 8.0
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Measures speed and memory, or one memory case as a child process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=2, help="of the memory measurement")
    parser.add_argument(
        "--every", type=int, default=1, help="memory: one of so many tensors of unet-32; 1 is all"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--child", nargs=2, metavar=("REPLY", "AVERAGES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.clients, args.rounds, args.every, args.repeats = [2, 8], 1, 40, 2
    if args.child:
        reply, averages = args.child
        print(json.dumps(serve(Path(reply), args.clients[0], args.rounds, args.every, averages == "True")))
        return
    fold = speed(layout_of(40 if args.quick else 1), args.repeats)
    use = memory(args.clients, args.rounds, args.every)
    machine.emit({"benchmark": "aggregate", "speed": fold, "memory": use}, readable(fold, use))


@dataclass(frozen=True)
class Thinned(Blueprint):
    """A blueprint that knows only one of `every` tensors of its network."""

    every: int = 1

    @cached_property
    def layout(self) -> Shapes:
        """Parameter name -> shape."""
        layout = models.layout(self.spec)
        return {name: layout[name] for name in sorted(layout)[:: self.every]}

    @cached_property
    def part_names(self) -> dict[str, list[str]]:
        """Part of the network -> its parameter names, sorted."""
        return {
            part: [n for n in names if n in self.layout] for part, names in self.spec.part_names().items()
        }


def blueprint(every: int, *sets: str) -> Thinned:
    """Of `unet-32`, for 32x32 colour images of ten classes."""
    whole = Blueprint.of(resolve.load(sets=["model.network=unet-32", *sets]), 32, 3, 10)
    return Thinned(whole.config, whole.spec, whole.process, whole.space, 32, 3, every)


def layout_of(every: int) -> FlatLayout:
    """Names and shapes of one of `every` tensors of `unet-32`, and where they lie."""
    return blueprint(every).flat


def update(layout: FlatLayout) -> Flat:
    """A reply: changes of the size that a round of training makes, float32."""
    drawn = np.random.default_rng(0).standard_normal(layout.size, np.float32)
    return Flat(layout.named("model/"), drawn * np.float32(0.01))


# --- speed ---


class Plain:
    """The same sum without chunks or threads: whole tensors through numpy."""

    def __init__(self, scale_bits: int) -> None:
        self.scale, self.sums = 2.0**scale_bits, dict[str, np.ndarray]()

    def add(self, tensors: Mapping[str, np.ndarray], weight: int) -> None:
        """Adds one reply."""
        for name, tensor in tensors.items():
            scaled = np.rint(tensor.astype(np.float64) * (weight * self.scale)).astype(np.int64)
            self.sums[name] = self.sums[name] + scaled if name in self.sums else scaled


def speed(layout: FlatLayout, repeats: int) -> dict[str, Any]:
    """GB/s of float32 updates, each side warmed up once."""
    reply, fp32 = update(layout), codecs.make("fp32")
    blob, size = fp32.encode(reply, {}), reply.buffer.nbytes
    specs = {n: Spec(shape, wire="codec", counts=True) for n, shape in reply.layout.items()}
    expected = Expectation(specs, {}, EXAMPLES, MAX_ABS, 1, EXAMPLES, reply.layout)
    exact, checked, whole = (Accumulator(10**6, MAX_ABS) for _ in range(3))
    plain = Plain(exact.scale_bits)

    def check_and_add() -> None:
        checked.check(reply, EXAMPLES)
        checked.add(reply, EXAMPLES)

    def whole_reply() -> None:
        tensors = fp32.read(blob, {}, expected.wanted_coded, expected.layout)
        weight = expected.check(tensors, EXAMPLES)
        whole.check_weight(changes(tensors), weight)
        whole.add(changes(tensors), weight)

    works = [
        lambda: machine.seconds(lambda: exact.add(reply, EXAMPLES)),
        lambda: machine.seconds(lambda: plain.add(reply, EXAMPLES)),
        lambda: machine.seconds(check_and_add),
        lambda: machine.seconds(whole_reply),
    ]
    added, naive, both, full = (times[1:] for times in machine.alternate(works, repeats + 1))
    if any(not np.array_equal(exact.sums[n], plain.sums[n]) for n in reply):
        raise SystemExit("the accumulator and the plain sum differ")

    def rate(times: list[float]) -> float:
        return round(size / float(np.median(times)) / 1e9, 3)

    return {
        "update_bytes": size,
        "tensors": len(reply),
        "add_gb_per_s": rate(added),
        "target_gb_per_s": 2.6,
        "check_and_add_gb_per_s": rate(both),
        "unchunked_gb_per_s": rate(naive),
        "gain_over_unchunked": round(machine.median_ratio(naive, added), 2),
        "gain_range": machine.spread(naive, added),
        "reply_gb_per_s": rate(full),
        "repeats": repeats,
    }


# --- memory ---


class Replay:
    """An engine without training: every task is answered by the bytes of one file."""

    def __init__(self, clients: int, reply: Path) -> None:
        self.names = [Client(i, f"client-{i:05d}", EXAMPLES) for i in range(clients)]
        self.reply = reply

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """All clients."""
        return self.names

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """One answer per task, one at a time."""
        for sent in tasks:
            address = {key: sent.packet.header[key] for key in ADDRESS}
            metrics = {"loss": 0.1, "images": EXAMPLES, "steps": 1}
            header = {**address, "num_examples": EXAMPLES, "metrics": metrics}
            yield Answer(sent, Packet(header, (self.reply.read_bytes(),)))

    def close(self) -> None:
        """Nothing is held."""


class Silent:
    """Scorer and observer that do nothing."""

    def score_global(self, weights: Mapping[str, np.ndarray], server_round: int) -> dict[str, Any]:
        """No score."""
        return {}

    def wanted(self, client: Client) -> Mapping[str, Any]:
        """No images are wanted."""
        return {}

    def sums_wanted(self) -> None:
        """Nobody is asked: nothing is measured."""
        return None

    def score_personal(
        self, pools: Mapping[str, np.ndarray], stage: str, server_round: int
    ) -> dict[str, Any]:
        """No score."""
        return {}

    def with_after(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        """No score."""
        return {}

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """Not of interest."""

    def answered(self, client: str) -> None:
        """Not of interest."""

    def worked(self, work: str, amount: float) -> None:
        """Not of interest."""

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """Not of interest."""
        if line["num_counted"] == 0 or line["num_failed"]:
            raise SystemExit("a reply was refused")


class NoTrainer:
    """FedAvg neither trains nor samples on the server."""

    def fit(
        self,
        weights: dict[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        seed: int,
    ) -> dict[str, np.ndarray]:
        """Never called."""
        raise AssertionError("the server was asked to train")

    def sample(
        self, weights: dict[str, np.ndarray], labels: np.ndarray | None, samples: int, seed: int
    ) -> np.ndarray:
        """Never called."""
        raise AssertionError("the server was asked to sample")


def serve(reply: Path, clients: int, rounds: int, every: int, averages: bool) -> dict[str, Any]:
    """Runs the server here, in a process of its own, and returns its memory in bytes and its time."""
    sets = [f"training.rounds={rounds}", "score.every=0"]
    run = blueprint(every, *sets, *([] if averages else ["recipe.ema_half_lives=[]"]))
    import safetensors.numpy  # noqa: F401 - loaded at the first checkpoint, and no part of the figure

    base = Peak()
    with tempfile.TemporaryDirectory() as folder:
        silent = Silent()
        server = Server(
            run,
            Replay(clients, reply),
            RunDir.new(Path(folder) / "run"),
            initial=Flat(run.flat, np.full(run.flat.size, 0.01, np.float32)),
            contract="none",
            flops_per_image=1,
            scorer=silent,
            trainer=NoTrainer(),
            observer=silent,
        )
        taken = machine.seconds(server.run)
    return {"clients": clients, "peak_bytes": base.above(), "seconds": round(taken, 2)}


class Peak:
    """Peak resident memory of this process above that at the time it was made (Linux).

    Read from /proc and not by getrusage, whose figure starts from that of the process which launched this one.
    """

    def __init__(self) -> None:
        self.base = self._read("VmRSS")

    @staticmethod
    def _read(key: str) -> int:
        return 1024 * int((machine.proc("/proc/self/status", key) or "0 kB").split()[0])

    def above(self) -> int:
        """Bytes."""
        return self._read("VmHWM") - self.base


def memory(counts: list[int], rounds: int, every: int) -> dict[str, Any]:
    """One child process per number of clients, and one more with the moving averages on."""
    layout = layout_of(every)
    size = 4 * layout.size
    with tempfile.TemporaryDirectory() as folder:
        reply = Path(folder) / "reply"
        reply.write_bytes(codecs.make("fp32").encode(update(layout), {}))

        def child(clients: int, averages: bool) -> dict[str, Any]:
            command = [sys.executable, __file__, "--clients", str(clients), "--rounds", str(rounds)]
            command += ["--every", str(every), "--child", str(reply), str(averages)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found: dict[str, Any] = json.loads(done.stdout)
            return found | {"model_sizes": round(found["peak_bytes"] / size, 2)}

        rows = [child(clients, False) for clients in counts]
        averaged = child(counts[0], True)
    bound = 4 * size + 200 * 10**6
    peaks = [row["peak_bytes"] for row in rows]
    return {
        "model_bytes": size,
        "rounds": rounds,
        "rows": rows,
        "bound_bytes": bound,
        "within_bound": max(peaks) <= bound,
        "growth_bytes": peaks[-1] - peaks[0],
        "with_averages": averaged,
    }


def readable(fold: Mapping[str, Any], use: Mapping[str, Any]) -> str:
    """One line for people."""
    rows = ", ".join(f"{row['clients']}: {row['peak_bytes'] / 1e6:.0f} MB" for row in use["rows"])
    return (
        f"sum {fold['add_gb_per_s']:.2f} GB/s (target 2.6), {fold['gain_over_unchunked']:.1f} times the unchunked "
        f"{fold['unchunked_gb_per_s']:.2f}; with checks {fold['check_and_add_gb_per_s']:.2f}, whole reply "
        f"{fold['reply_gb_per_s']:.2f}; server of a {use['model_bytes'] / 1e6:.0f} MB model, peak by clients: {rows} "
        f"(bound {use['bound_bytes'] / 1e6:.0f} MB, {'kept' if use['within_bound'] else 'BROKEN'}); "
        f"with averages {use['with_averages']['peak_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
