"""What leaves a site, and what comes to it: told before anything runs, for the very configuration that a site is asked to join.

Tasks, sizes and lengths are the plan's (`runs/plan.py`). Words are the declarations of the exchange, of the pieces, of
`protocol/disclosure.py` and `federation/own_models.py`. A test holds packets of real runs against what is told here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from osmotic import codecs, models
from osmotic.codecs import EXACT
from osmotic.config.schema import Config
from osmotic.data.dataset import Dataset
from osmotic.engines import WHERE
from osmotic.federation import feature_sums, own_models
from osmotic.methods import Method
from osmotic.pieces import Chain, Piece
from osmotic.protocol.disclosure import FROM_SITE, METRICS, TO_SITE
from osmotic.protocol.gate import Gate
from osmotic.protocol.messages import MERGE, Client, Task
from osmotic.runs import plan as planning

# What nothing in the package does against a curious server; said of every configuration.
MISSING = (
    "no differential privacy: no piece of the package adds noise or bounds what one image changes",
    "no secure aggregation: the server sees every site's answer by itself before it averages",
    "the finished model can hold training images, and whoever gets it gets them (arXiv 2301.13188)",
    "when an answer comes, and how long it took, tells how fast a site is and hints at how many images it has",
)
# A row of the class embedding is trained by the images of its class alone.
CLASSES = (
    "the change of the class embedding, a row for every class, is large where a site holds images of the class and next to "
    "nothing where it holds none: which classes a site holds can be read off"
)
IN_A_SIMULATION = (
    "scores are computed where all images are: the reference is what all clients train on, and so is the encoder's training set",
    "the classes that a client is asked to draw for its scores follow the class counts of all clients together",
    "the run folder holds every client's class counts (partition.json), and the clients' private states (clients/)",
)


@dataclass
class Exchanged:
    """One kind of exchange of a site with the server: what goes each way, and how often. Bytes are without the headers."""

    phase: str
    action: str
    when: str
    to_site: dict[str, Any]
    from_site: dict[str, Any]
    rounds: tuple[int, int] | None = None  # the first and the last
    asked: int = 0  # tasks of this kind over the run, all clients together
    passes: float | None = (
        None  # over the site's images in one of them, at most; null where nothing is trained
    )

    def add(self, number: int, bytes_down: int, bytes_up: int, passes: float | None) -> None:
        """One more exchange of this kind in round `number`."""
        self.asked += 1
        if passes is not None:
            self.passes = max(passes, self.passes or 0.0)
        for side, length in ((self.to_site, bytes_down), (self.from_site, bytes_up)):
            low, high = side["bytes"] or (length, length)
            side["bytes"] = [min(low, length), max(high, length)]
        first = self.rounds[0] if self.rounds else number
        self.rounds = first, number
        self.when = f"{self.phase} {first}" if first == number else f"{self.phase} {first} to {number}"


def leaves(config: Config, dataset: Dataset | None = None) -> dict[str, Any]:
    """What server and site send each other under this configuration, what stays, and what can be learnt from it.

    Args:
        dataset: images of the caller's own; None describes `data.source`.
    Returns: `exchanges` (kind by kind, with tensors, weights and least and most bytes), `headers`, `stays`, `reveals`,
        `missing`, `notes` (what the figures suppose), and the names that `osmotic plan` gives too.
    Raises: ConfigError as `plan.assemble`.
    """
    config, shape, cast = planning.assemble(config, dataset)
    method, chain, layout, part_names, clients, _ = cast
    kinds: dict[tuple[Any, ...], Exchanged] = {}
    for phase, task, cost in planning.replay(config, *cast) if not method.pools_data else ():
        kind = (
            phase.name,
            task.send,
            task.returns,
            *map(frozenset, (_groups(task.extras), _groups(task.expects))),
        )
        if kind not in kinds:
            kinds[kind] = Exchanged(phase.name, task.action, "", *_sides(task, cost, config))
        passes = config.training.local_epochs if task.local_epochs is None else task.local_epochs
        trains = task.action == "train"
        kinds[kind].add(phase.server_round, cost.bytes_down, cost.bytes_up, passes if trains else None)
    image = (shape.image_size, shape.image_size, shape.channels)
    exchanges = [*kinds.values(), *_own_models(config, method, chain, layout, part_names, clients, image)]
    used = codecs.of(config.codec, "down"), codecs.of(config.codec, "up")
    for side, codec in [pair for e in exchanges for pair in zip((e.to_site, e.from_site), used, strict=True)]:
        # The plan knows an upper bound alone where lengths depend on the data.
        if (codec.bounded and side["codec"].startswith(codec.name)) or "codec" in side["tensors"]:
            side["bytes"] = [0, side["bytes"][1]]
    own = [e for e in exchanges if e.action != "train"]
    # What clients train in a round may be asked of nobody: then nothing is computed for the server but what pieces ask for.
    weights = any(e.from_site["parts"] for e in exchanges) or not method.server_trains
    reveals = {f"method {config.method.name}": method.reveals} if weights else {}
    reveals |= {f"codec {codec.name}": codec.reveals for codec in used if codec.reveals}
    labelled = {
        part for part, names in part_names.items() if any(n.startswith("class_embedding") for n in names)
    }
    if any(labelled & set(e.from_site["parts"]) for e in exchanges):
        reveals["labels"] = CLASSES
    reveals |= {f"piece {name}": piece.reveals for name, piece in chain.pieces.items() if piece.left}
    if config.score.encoder != "classifier":
        reveals["feature sums, across sites whose policy allows them"] = feature_sums.REVEALS
    return {
        "preset": config.preset,
        "method": config.method.name,
        "pieces": list(chain.pieces),
        "codec_up": config.codec.up,
        "codec_down": config.codec.down,
        "rounds": config.training.rounds,
        "num_clients": len(clients),
        "parameters": models.count(layout),
        "engine": WHERE[config.engine.name],
        "exchanges": [vars(e) for e in exchanges],
        "pieces_send": {name: piece.left for name, piece in chain.pieces.items() if piece.left},
        "headers": {"to_site": TO_SITE, "from_site": FROM_SITE, "metrics": METRICS},
        "stays": stays(config, method, chain),
        "reveals": reveals | ({"own models": own_models.REVEALS} if own else {}),
        "missing": list(MISSING),
        "notes": [planning.equal_shares(name) for name, piece in chain.pieces.items() if piece.by_size]
        + planning.not_looked_at(config),
        "in_a_simulation": list(IN_A_SIMULATION),
    }


def _sides(task: Task, cost: planning.Cost, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes to the site and what comes back: parts of the network, weights, further tensors by owner, codec."""
    # What a site has not heard of before is sent whole, and exactly.
    first = "drawn at the site" if config.codec.first_contact == "seed" else "fp32"
    always = codecs.of(config.codec, "down").absolute and config.codec.first_contact == "weights"
    coded = config.codec.down if always else f"{config.codec.down}, first {first}"
    down = {"parts": list(task.send), "weights": cost.parameters_down, "codec": coded}
    up = {"parts": list(task.returns), "weights": cost.parameters_up, "codec": config.codec.up}
    return (
        {**down, "tensors": _owners({n: t.shape for n, t in task.extras.items()}), "bytes": None},
        {**up, "tensors": _owners({n: s.shape for n, s in task.expects.items()}), "bytes": None},
    )


def _groups(names: Iterable[str]) -> set[str]:
    """Owners of tensors called "OWNER/NAME"."""
    return {name.partition("/")[0] for name in names}


def _owners(shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, dict[str, int]]:
    """By owner, how many tensors there are, and how many values [...] in them."""
    found: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        told = found.setdefault(name.partition("/")[0], {"tensors": 0, "values": 0})
        told["tensors"] += 1
        told["values"] += models.count({name: tuple(n or 0 for n in shape)})
    return found


def _own_models(
    config: Config,
    method: Method,
    chain: Chain,
    layout: Mapping[str, tuple[int, ...]],
    part_names: Mapping[str, list[str]],
    clients: list[Client],
    image: tuple[int, int, int],
) -> list[Exchanged]:
    """Images drawn from clients' own models for the scores, and at the end these models: where clients have any."""
    if method.global_model and not chain.personal:
        return []
    phases = chain.phases(method, config.training.rounds)
    shape = (int(config.score.samples), *image)
    n = int(config.score.every)
    every = f"every {f'{n} rounds' if n > 1 else 'round'} and " if n else ""
    asked: list[tuple[str, str, Task]] = []
    if not method.global_model:
        task = own_models.sample_task(clients[0], (), {}, shape)
        asked.append(("score", f"{every}after the last round", task))
    if any(phase.name == MERGE for phase in phases):
        task = own_models.sample_task(clients[0], method.shared, {}, shape)
        asked.append((MERGE, "once after the rounds", task))
    elif phases[-1].name not in ("train", MERGE):
        asked.append(("score", f"after {phases[-1].name}", own_models.sample_task(clients[0], (), {}, shape)))
    asked.append(("models", "at the end", own_models.model_task(clients[0], layout)))
    gate = Gate(layout, part_names, config.training)
    up, down = codecs.of(config.codec, "up"), codecs.of(config.codec, "down")
    found = []
    for phase, when, task in asked:
        weights = sum(models.count({n: layout[n]}) for part in task.send for n in part_names[part])
        cost = planning.Cost(gate.expect(task).weights, weights)
        made = Exchanged(phase, task.action, when, *_sides(task, cost, config))
        tables = [{n: ("float32", layout[n]) for n in part_names[p]} for p in task.send]
        coded, full = (sum(codec.packet_bytes(t) for t in tables) for codec in (down, EXACT))
        # Part by part as a change, or whole where that is shorter, or where the site has missed too many.
        made.to_site["bytes"] = [full if down.absolute else min(coded, full), full]
        length = planning.reply_bytes(up, gate.expect(task))
        made.from_site["bytes"], made.from_site["codec"] = [length, length], EXACT.name
        found.append(made)
    return found


def stays(config: Config, method: Method, chain: Chain) -> list[str]:
    """What never leaves a site under this configuration, in words."""
    if method.pools_data:
        return []
    keeps = [
        name
        for name, piece in chain.pieces.items()
        if type(piece).client_end is not Piece.client_end and not piece.stateless
    ]
    replica = config.codec.changed_only or not codecs.of(config.codec, "down").absolute
    told = {
        "images and labels": True,
        "how many images there are of each class": not any(p.tells_classes for p in chain.pieces.values()),
        f"its own {', '.join(method.keep())}, but for the own model above": bool(method.keep()),
        "the average of its own model, but for the own model above": bool(
            config.recipe.ema_half_lives and not method.global_model
        ),
        "its fine-tuned model, but for the own model above": chain.personal,
        "moments of its optimiser": config.training.optimizer_state == "keep",
        "what the codec lost, until it is added to a later change": config.codec.error_feedback,
        "a copy of what it was sent": replica,
        f"private state of {', '.join(keeps)}": bool(keeps),
    }
    return [what for what, applies in told.items() if applies]


# Names that stand before a tensor's, for a person; others are those of pieces.
OWNERS = {"image": "images drawn from its own model", "own": "its own model", "codec": "weights of the codec"}


def text(figures: Mapping[str, Any]) -> str:
    """For a person, given what `leaves` gave."""
    from osmotic.report.formatting import count, plural

    lines = [
        f"{figures['preset']}: {plural(figures['num_clients'], 'client')}, {plural(figures['rounds'], 'round')}, "
        f"{count(figures['parameters'])} weights; {figures['engine']}",
        "",
        "A site and the server send each other",
    ]
    for row in figures["exchanges"]:
        lines += [
            f"  {row['when']}",
            f"    to the site   {side(row['to_site'])}",
            f"    from the site {side(row['from_site'])}",
        ]
    if not figures["exchanges"]:
        lines.append("  nothing: there is no site, one trainer holds all images, and no packet leaves it")
    lines += [f"  {name}: {left}" for name, left in figures["pieces_send"].items()]
    headers = figures["headers"]
    for title, table in (
        ("Figures beside every answer", headers["metrics"]),
        ("The rest of an answer's header", headers["from_site"]),
        ("The header of a task", headers["to_site"]),
    ):
        if not figures["exchanges"]:
            break  # no packet, no header
        lines += ["", title, *(f"  {name:15} {words}" for name, words in table.items())]
    for title, told in (
        ("What stays", figures["stays"] or ["nothing: one trainer holds all images"]),
        ("What a curious server can learn", [f"{of}: {words}" for of, words in figures["reveals"].items()]),
        ("What nothing here prevents", figures["missing"]),
        *([("What the figures suppose", figures["notes"])] if figures["notes"] else []),
        ("As long as this is a simulation", figures["in_a_simulation"]),
    ):
        lines += ["", title, *(f"  {line}" for line in told)]
    return "\n".join(lines)


def side(told: Mapping[str, Any]) -> str:
    """One direction of an exchange in one line: parts, weights, further tensors, bytes."""
    from osmotic.report.formatting import count, plural, size

    what = [" + ".join(told["parts"])] if told["parts"] else []
    for owner, tensors in told["tensors"].items():
        what.append(
            f"{OWNERS.get(owner, owner)} ({plural(tensors['tensors'], 'tensor')}, {count(tensors['values'])} values)"
        )
    if not what:
        return "figures alone" if told["bytes"] == [0, 0] else "nothing"
    low, high = map(size, told["bytes"])
    weights = f", {count(told['weights'])} weights" if told["weights"] else ""
    return (
        f"{', '.join(what)}{weights}, {low if low == high else f'{low} to {high}'} each time, {told['codec']}"
    )
