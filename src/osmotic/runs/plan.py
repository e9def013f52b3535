"""What a run will cost, before anything runs: weights and bytes per site, link time, memory.

The server's own choices (who takes part, which parts, which packets) are replayed with empty weights and the codecs'
size formulas. No image is read, no network built, torch is not imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from osmotic import codecs, methods, models, pieces
from osmotic.codecs import EXACT, described
from osmotic.config.schema import Config
from osmotic.data import sources
from osmotic.data.compressed import Compressed
from osmotic.data.dataset import Dataset, Shape
from osmotic.data.partition import check_clients, held_out, refuse_label_partition
from osmotic.errors import ConfigError
from osmotic.federation.downlink import DownLink, Stream
from osmotic.federation.unfit import refuse_unfit
from osmotic.flat import Flat, FlatLayout
from osmotic.methods import Method
from osmotic.models import pretrained
from osmotic.pieces import Chain, Piece
from osmotic.protocol.gate import Expectation, Gate
from osmotic.protocol.messages import SCORING, TRAIN, Client, Phase, Spec, Task
from osmotic.protocol.participation import choose, weights_sent
from osmotic.protocol.view import View
from osmotic.runs import traffic
from osmotic.runs.settle import settle
from osmotic.tensors import Tensors


class Sized(bytes):
    """A packet of which only the length is known."""

    length = 0

    # The run's code asks packets for nothing but their length, so it serves a plan as it is.
    def __len__(self) -> int:
        return self.length


def sized(length: int) -> Sized:
    """A packet of `length` bytes that holds none of them."""
    packet = Sized()
    packet.length = length
    return packet


class Sizes:
    """Lengths of packets, each worked out once: plans of thousands of clients ask for the same few again and again."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def part(self, codec: codecs.Codec, layout: FlatLayout, part: str) -> int:
        """Bytes of the packet of a part of the network."""
        return self.once(
            (codec.name, codec.bounded, part), lambda: codec.packet_bytes(layout.of_parts([part]).wanted)
        )

    def once(self, asked: Hashable, work: Callable[[], int]) -> int:
        """The figure asked for, worked out the first time."""
        if asked not in self._known:
            self._known[asked] = work()
        return self._known[asked]


class SizedDownLink(DownLink):
    """The down-link with packets that are only lengths; who is sent what is decided by the same code."""

    sizes: Sizes

    def _fp32_blob(self, part: str, weights: Flat) -> bytes:
        return sized(self.sizes.part(EXACT, self.layout, part))

    def _replica_blob(self, part: str, stream: Stream) -> bytes:
        return sized(self.sizes.part(EXACT, self.layout, part))

    def _advanced(
        self, part: str, server_round: int, weights: Flat, changed: Mapping[str, int] | None
    ) -> Stream:
        if part not in self._next:
            old, chain, origin = self.streams[part], list(self.streams[part].chain), None
            if old.round is not None:
                # Kept and trimmed as in a run: it decides whether a client is sent changes or all.
                codec, origin = self.codec.in_round(server_round), old.origin
                length = self.sizes.part(codec, self.layout, part)
                chain.append((old.round, server_round, sized(length), self.version if codec.trained else 0))
                self.trim(chain, self.sizes.part(EXACT, self.layout, part))
            elif changed is not None and part not in changed:
                origin = server_round
            self._next[part] = Stream(server_round, None, {}, chain, origin)
        return self._next[part]


@dataclass
class Cost:
    """Weights, one per value whatever the codec, and bytes of one site or of all."""

    parameters_up: int = 0
    parameters_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, down: int, up: int, bytes_down: int, bytes_up: int) -> None:
        """Adds one exchange: weights down and up, then bytes."""
        self.parameters_down += down
        self.parameters_up += up
        self.bytes_down += bytes_down
        self.bytes_up += bytes_up


def plan(
    config: Config, link_mbit: float = 100.0, dataset: Dataset | None = None, time: bool = False
) -> dict[str, Any]:
    """The figures of `osmotic plan`, under the summary's names where it has them.

    Args:
        link_mbit: speed of a site's line in Mbit/s, for the time on the link.
        dataset: images of the caller's own; None describes `data.source`.
        time: also read the images, time a few steps of the network here, and say how long the run takes on this machine;
            and how large the images are when they are compressed.
    Returns: totals, `sites` by name, `exact` (bytes equal the run's ledger if no client fails) and `notes` that say
        what is only an upper bound.
    Raises: ConfigError as `assemble`.
    """
    config, shape, cast = assemble(config, dataset)
    method, chain, layout, _, clients, _ = cast
    sites = rehearse(config, *cast)
    count, parameters = len(clients), models.count(layout)
    # Of an adapter the layout knows its factors alone.
    network_size = parameters
    if config.adapter.rank:
        network_size = models.count(models.layout(network(config, dataset)[0].whole))
    total = {key: sum(getattr(s, key) for s in sites.values()) for key in vars(Cost())}
    # Only where everybody trains on everything are the images seen known without looking at them.
    full = config.training.fraction_train == 1.0 and config.data.holdout == 0.0
    full = full and config.data.partition not in ("pathological", "shards")  # these may leave images out
    whole = float(config.training.local_epochs).is_integer()
    busiest = max((s.bytes_up + s.bytes_down for s in sites.values()), default=0)
    used = [codecs.of(config.codec, "up"), codecs.of(config.codec, "down")]
    bounded = sorted({c.name for c in used if c.bounded})
    trained = sorted({c.name for c in used if c.trained and c.new_weights(1) is None})
    # Where only moved parts are sent, work on the server after the average moves parts that no client returned.
    after = [n for n, p in chain.pieces.items() if type(p).after is not Piece.after]
    trains = after if config.codec.changed_only else []
    by_size = [name for name, piece in chain.pieces.items() if piece.by_size]
    phases = chain.phases(method, config.training.rounds)
    trained_on = [p for p in phases if p.name == TRAIN and not method.server_trains]
    asked = sum(len(choose(config, phase, clients)) for phase in trained_on)
    time_figures, images = timed(config, dataset) if time else (dict.fromkeys(TIMED), None)
    return {
        "preset": config.preset,
        "method": config.method.name,
        "pieces": list(chain.pieces),
        "codec_up": config.codec.up,
        "codec_down": config.codec.down,
        "seed": config.seed,
        "rounds": config.training.rounds,
        "num_clients": count,
        "fraction_train": config.training.fraction_train,
        "local_epochs": config.training.local_epochs,
        "parameters": parameters,
        "parameters_whole": network_size,
        **total,
        "traffic": traffic.figures(total["bytes_up"] + total["bytes_down"], network_size, asked, images),
        "images_seen": int(shape.num_train * config.training.local_epochs * config.training.rounds)
        if full and whole and len(trained_on) == len(phases)
        else None,
        "sites": {name: vars(cost) for name, cost in sites.items()},
        "link_mbit": link_mbit,
        "link_seconds_busiest_site": busiest * 8 / (link_mbit * 1e6),
        "memory_bytes": memory(config, method, chain, parameters, count, *constants(config, network_size)),
        **time_figures,
        "estimated": bool(by_size),
        "exact": not bounded and not trained and not trains and not by_size,
        "notes": [
            f"codec {name}: the length of a packet depends on the data; bytes are an upper bound"
            for name in bounded
        ]
        + [f"codec {name}: its own weights travel too and are not counted here" for name in trained]
        + [
            f"piece {name} may train on the server: parts then move that are counted as unmoved"
            for name in trains
        ]
        + [equal_shares(name) for name in by_size]
        + (
            [
                "beside training, own models and the images drawn from them travel too; they are not counted here"
            ]
            if method.travels and (chain.personal or not method.global_model)
            else []
        )
        + not_looked_at(config)
        + list(shape.notes)
        + ["a client that fails or is refused changes its own figures"],
    }


def equal_shares(piece: str) -> str:
    """What is told of a piece whose traffic no plan knows."""
    return f"piece {piece}: what it sends hangs on who holds how many images; figures are for equal shares"


def not_looked_at(config: Config) -> list[str]:
    """What is told of pretrained weights that are not at hand."""
    place = config.model.pretrained
    if not place or not pretrained.on_hub(place):
        return []
    return [f"model.pretrained {place} is on a hub: whether it is of this network, a run finds out"]


Cast = tuple[
    Method, Chain, Mapping[str, tuple[int, ...]], Mapping[str, list[str]], list[Client], models.NetworkSpec
]  # exchange, pieces, parameter -> shape, part -> parameters, clients, network with the images' own form


def assemble(config: Config, dataset: Dataset | None = None) -> tuple[Config, Shape, Cast]:
    """Who takes part in a run, and with what, as far as it is known without reading images; and the settled configuration.

    Raises: ConfigError as `osmotic run` would, but for pretrained weights on a hub: nothing is downloaded.
    """
    spec, shape = network(config, dataset)
    refuse_unfit(config, spec)
    if (place := config.model.pretrained) and not pretrained.on_hub(place):
        pretrained.read(place, models.layout(spec.whole), config.model.pretrained_sha256)
    config = settle(config, shape.num_train, shape.num_classes)
    method, chain = methods.make(config.method.name, dict(config.method.options)), pieces.make(config)
    count = 1 if method.pools_data else num_clients(config, dataset)
    names = ["central"] if method.pools_data else [f"client-{i:03d}" for i in range(count)]
    # By name, as engines list them: client-1000 comes before client-101, and who takes part is drawn by place.
    # Even shares, as who has which images is not known: packets are as long for any.
    share = max(1, shape.num_train // count)
    share -= held_out(share, config.data.holdout)
    clients = [Client(i, name, share) for i, name in enumerate(names)]
    clients.sort(key=lambda client: client.name)
    # What clients draw are images, whatever the network works in.
    pictured = dataclasses.replace(spec.whole, image_size=shape.image_size, channels=shape.channels)
    return config, shape, (method, chain, models.layout(spec), spec.part_names(), clients, pictured)


# Null where nothing was timed: the network's speed cannot be known without running it.
TIMED = ("device", "seconds_training", "seconds_scoring", "quicker")


def timed(config: Config, dataset: Dataset | None) -> tuple[dict[str, Any], Compressed | None]:
    """Seconds of the whole run on this machine, by timing a few steps; and for a long one on a CPU what would be quicker.

    And, as the images are read anyway, their size when compressed; None where nothing travels.
    """
    from osmotic.data.compressed import compress
    from osmotic.runs import announce, quicker, study, timing
    from osmotic.runs.estimate import seconds

    made = study.prepare(config, dataset)
    study.make_deterministic(made)
    work, pace = timing.workload(made), timing.measure(made)
    training, scoring = seconds(work, pace)
    long = made.device.type == "cpu" and training + scoring > announce.LONG
    better = quicker.quicker(made, work, pace, announce.LONG) if long else None
    found = None if better is None else {"keys": better[0], "seconds": better[1]}
    travels = made.blueprint.method().travels
    images = compress(made.dataset.train.images, [h.train for h in made.holdings]) if travels else None
    return dict(zip(TIMED, (str(made.device), training, scoring, found), strict=True)), images


def network(config: Config, dataset: Dataset | None = None) -> tuple[models.NetworkSpec, Shape]:
    """The network and the shape of the data, as far as they are known without reading images.

    Raises: ConfigError for a size the network cannot take, more clients than images, or labels that are
        needed and not there.
    """
    shape = sources.describe(config.data) if dataset is None else _shape(dataset)
    num_classes = classes(config, shape.num_classes)
    if shape.num_classes == 0:
        refuse_label_partition(config.data.partition)
    check_clients(config.data, shape.num_train)
    if config.model.autoencoder or config.model.network == "autoencoder" or config.adapter.rank:
        from osmotic.federation.blueprint import network_of  # torch, without which other plans are quicker

        return network_of(config, shape.image_size, shape.channels, num_classes), shape
    resolved = models.resolve(
        config.model.network, shape.image_size, shape.channels, num_classes, config.recipe.dropout
    )
    return resolved, shape


def _shape(dataset: Dataset) -> Shape:
    count, side, _, channels = dataset.train.images.shape
    return Shape(side, channels, len(dataset.class_names), count, dataset.notes)


def classes(config: Config, num_classes: int) -> int:
    """Classes the network is conditioned on.

    Raises: ConfigError if it should be told the class and there are none.
    """
    if config.model.conditional is True and num_classes == 0:
        raise ConfigError("model.conditional", True, f"needs labels, and {config.data.source} has none")
    return num_classes if config.model.conditional in ("auto", True) else 0


def num_clients(config: Config, dataset: Dataset | None = None) -> int:
    """As configured; with `by:COLUMN`, as many as the column has values.

    Raises: ConfigError for a column that is not there.
    """
    if not config.data.partition.startswith("by:"):
        return config.data.clients
    from osmotic.data.partition import partition

    # The one figure of a plan for which data must be read: nobody else knows the values.
    return len(partition(config.data, (dataset or sources.load(config.data)).train))


def rehearse(
    config: Config,
    method: Method,
    chain: Chain,
    layout: Mapping[str, tuple[int, ...]],
    part_names: Mapping[str, list[str]],
    clients: list[Client],
    spec: models.NetworkSpec,
) -> dict[str, Cost]:
    """Cost of every site over all phases that count in the totals."""
    sites = {c.name: Cost() for c in clients}
    for phase, task, cost in replay(config, method, chain, layout, part_names, clients, spec):
        if phase.totals and method.travels:
            sites[task.client.name].add(
                cost.parameters_down, cost.parameters_up, cost.bytes_down, cost.bytes_up
            )
    return sites


def replay(
    config: Config,
    method: Method,
    chain: Chain,
    layout: Mapping[str, tuple[int, ...]],
    part_names: Mapping[str, list[str]],
    clients: list[Client],
    spec: models.NetworkSpec,
) -> Iterator[tuple[Phase, Task, Cost]]:
    """Every task of a run, phase by phase, from the server's own decisions: with the parts really sent, and what it costs.

    Args:
        layout: parameter name -> shape; the weights are zeros [...] without memory.
    """
    sizes, gate = Sizes(), Gate(layout, part_names, config.training)
    flat = FlatLayout(layout, part_names)
    up, down = codecs.of(config.codec, "up", layout=flat), codecs.of(config.codec, "down", layout=flat)
    # No seed: codecs are asked for lengths only, and draw nothing. Hashes are no part of what is counted.
    drawn = dict.fromkeys(part_names, "") if config.codec.first_contact == "seed" else None
    link = SizedDownLink(down, flat, config.codec.changed_only, drawn=drawn)
    link.sizes = sizes
    weights = {n: np.broadcast_to(np.float32(0), s) for n, s in layout.items()}  # no memory behind them
    nothing = Flat(flat, np.broadcast_to(np.float32(0), flat.size))
    counted: dict[str, int] = {}
    new_weights, told = Tensors(), dict[str, int]()
    changed: dict[str, int] = {}
    image = spec.image_size, spec.image_size, spec.channels
    view = View(
        config, layout, part_names, tuple(clients), counted, changed, weights, image, spec.num_classes
    )
    # Pieces make their first state as big as the network; its values do not matter here.
    pieces = {n: np.broadcast_to(t.dtype.type(0), t.shape) for n, t in chain.server_start(view).items()}
    conveyed: dict[tuple[Any, ...], tuple[int, int, int, Expectation]] = {}
    for phase in chain.phases(method, config.training.rounds):
        tasks = method.tasks(view, phase, choose(config, phase, clients))
        asked = [chain.extend(view, pieces, phase, task) for task in tasks]
        sent: dict[str, tuple[str, ...]] = {}
        # Of a codec that is itself trained: whoever has not its newest weights is sent them.
        learned: dict[str, int] = {}
        if more := up.new_weights(phase.server_round) if phase.name not in SCORING else {}:
            link.version = phase.server_round
            new_weights = {
                f"codec/{n}": np.broadcast_to(np.dtype(d).type(0), s) for n, (d, s) in more.items()
            }
        for whole in asked:
            unmoved = {} if phase.published else link.unmoved(whole.client.name, whole.send, changed)
            task = replace(whole, send=tuple(p for p in whole.send if p not in unmoved))
            sent[task.client.name] = task.send
            has = told.get(task.client.name, 0)
            if task.action == "train" and has != link.version:
                task = replace(task, extras={**task.extras, **new_weights})
                learned[task.client.name] = link.version
            readable = {0, has} | ({link.version} if task.action == "train" else set())
            _, blobs = link.message(
                task.client.name,
                task.send,
                phase.server_round,
                nothing,
                None if phase.published else changed,
                readable,
            )
            # Of a task's costs all but the down-link's packets follow from what kind of task it is.
            kind = (task.send, task.returns, tuple(task.extras), tuple(task.expects))
            if kind not in conveyed:
                extras = {n: (t.dtype.name, t.shape) for n, t in task.extras.items()}
                expected = gate.expect(task)
                conveyed[kind] = (
                    weights_sent(task, layout, part_names),
                    expected.weights,
                    described.packet_bytes(extras) if extras else 0,
                    expected,
                )
            sent_weights, back_weights, extra_bytes, expected = conveyed[kind]
            down_bytes = sum(len(b) for b in blobs) + extra_bytes
            codec = up.in_round(phase.server_round)
            back = sizes.once(
                ("answer", kind, codec.name, codec.bounded), partial(reply_bytes, codec, expected)
            )
            yield phase, task, Cost(back_weights, sent_weights, back, down_bytes)
        # A plan is of a run in which nobody fails: whoever was asked has answered and counts.
        link.commit({} if phase.published else sent, phase.server_round)
        told |= learned
        if phase.name == TRAIN:  # what comes back in a piece's own phase is for the piece, and moves nothing
            changed |= {part: phase.server_round for t in asked for part in t.returns}
        counted |= {t.client.name: phase.server_round for t in asked}


def reply_bytes(codec: codecs.Codec, expected: Expectation) -> int:
    """Bytes of an answer's blobs; nothing is sent where nothing is expected.

    An open axis counts as 1: its length is known only when the answer comes.
    """

    def shapes(specs: Mapping[str, Spec]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {n: (s.dtype, tuple(k or 1 for k in s.shape)) for n, s in specs.items()}

    coded = codec.packet_bytes(_in_order(expected)) if expected.coded else 0
    return coded + (described.packet_bytes(shapes(expected.exact)) if expected.exact else 0)


def _in_order(expected: Expectation) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """The coded tensors as they stand in the packet; chunks of a codec may run across them."""
    if expected.layout is not None:
        return expected.layout.wanted
    return {n: (s.dtype, tuple(k or 1 for k in s.shape)) for n, s in sorted(expected.coded.items())}


def constants(config: Config, whole: int) -> tuple[int, int]:
    """Weights that everybody holds and nobody trains: of the network under an adapter, and of a latent model's autoencoder.

    Args:
        whole: weights of the network.
    """
    if not config.model.autoencoder:
        return whole if config.adapter.rank else 0, 0
    from osmotic.models import autoencoder_file

    found = autoencoder_file.describe(config.model.autoencoder)
    return whole if config.adapter.rank else 0, found.parameters


def memory(
    config: Config,
    method: Method,
    chain: Chain,
    parameters: int,
    clients: int,
    adapted: int = 0,
    autoencoder: int = 0,
) -> dict[str, int]:
    """Bytes of weights held at the peak, activations apart: on the server, and on a client.

    Server: weights, their old copy, accumulator (8 bytes per weight), one reply with its packet, averages (8 each, and
    8 more while a checkpoint of them is written beside the next round), a replica where the down-link sends changes, and the
    models of all clients where a piece holds them.
    Client: weights, gradients, two moments, what it received, packets.
    Both: the network under an adapter as it was read, and on a client once more in the network that trains; the autoencoder.

    Args:
        parameters: weights that are trained.
        adapted: weights of the network under an adapter.
        autoencoder: weights of a latent model's autoencoder.
    """
    model = 4 * parameters
    replica = 0 if codecs.of(config.codec, "down").absolute else 2 * model
    averages = 2 * 2 * model * len(config.recipe.ema_half_lives)
    # Then the client keeps what it was sent, so that the next packet can build on it.
    kept = replica > 0 or config.codec.changed_only
    # Without a global model a client averages its own: sums of 8 bytes, and the average itself.
    own_average = 3 * bool(config.recipe.ema_half_lives and not method.global_model)
    state = sum((bool(method.keep()), config.codec.error_feedback, kept, own_average)) * model
    # A change that pieces work on is held whole; without them it is applied tensor by tensor.
    bent = sum(p.server_copies for p in chain.pieces.values()) + (2 if chain.pieces else 0)
    bent += clients * sum(p.holds_models for p in chain.pieces.values())
    own = sum(p.client_copies for p in chain.pieces.values())
    return {
        "server": (6 + bent) * model + averages + replica + 4 * (adapted + autoencoder),
        "client": (7 + own) * model + state + 4 * (2 * adapted + autoencoder),
    }


def text(figures: Mapping[str, Any]) -> str:
    """The plan for a person, given what `plan` gave."""
    from osmotic.report.formatting import count, duration, size
    from osmotic.report.traffic import words

    up, down = size(figures["bytes_up"]), size(figures["bytes_down"])
    # With shares that are not equal it may be more as well as less.
    about = "" if figures["exact"] else "about " if figures["estimated"] else "at most "
    told = words(figures["traffic"], about)
    most = max(figures["sites"].items(), key=lambda s: s[1]["bytes_up"] + s[1]["bytes_down"])
    method = "" if figures["preset"].endswith(figures["method"]) else f" (method {figures['method']})"
    parameters = f"{count(figures['parameters'])} parameters"
    if figures["parameters_whole"] != figures["parameters"]:
        parameters = f"{count(figures['parameters_whole'])} parameters under an adapter of {count(figures['parameters'])}"
    lines = [
        f"{figures['preset']}{method}: {figures['num_clients']} clients, {figures['rounds']} rounds, "
        f"{parameters}, codec {figures['codec_up']} up, {figures['codec_down']} down",
        f"  all sites    up {about}{up} ({count(figures['parameters_up'])} weights), "
        f"down {about}{down} ({count(figures['parameters_down'])} weights)",
        f"  together     {about}{size(figures['bytes_up'] + figures['bytes_down'])} "
        f"({count(figures['parameters_up'] + figures['parameters_down'])} weights)",
        *([f"  traffic      {told}"] if told else []),
        f"  busiest site {most[0]}: up {size(most[1]['bytes_up'])}, down {size(most[1]['bytes_down'])}, "
        f"{duration(figures['link_seconds_busiest_site'])} on a line of {figures['link_mbit']:g} Mbit/s",
        f"  memory       server {size(figures['memory_bytes']['server'])}, client {size(figures['memory_bytes']['client'])}, "
        "without activations and images",
        *_time(figures),
        *(f"  note: {note}" for note in figures["notes"]),
    ]
    return "\n".join(lines)


def _time(figures: Mapping[str, Any]) -> list[str]:
    """What was timed, if anything was."""
    if figures["device"] is None:
        return []
    from osmotic.runs.estimate import about, told

    training, scoring, better = (figures[name] for name in TIMED[1:])
    lines = [f"  time         {told(training, scoring)} on {figures['device']}, as timed here"]
    if better is not None:
        lines.append(f"  quicker      {better['keys']} would take about {about(better['seconds'])}")
    return lines
