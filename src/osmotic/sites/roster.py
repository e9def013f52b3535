"""The hub's end of a federation across machines: who is there, and a run's study made of what sites say of their images."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from osmotic.config.schema import Config, to_dict
from osmotic.data.dataset import Dataset, Split, checked_names
from osmotic.engines import flower
from osmotic.engines.envelope import NoPacket, packet_of, records
from osmotic.engines.flower import Flower
from osmotic.errors import ConfigError, RunStopped, plain, shown
from osmotic.federation import own_models
from osmotic.federation.blueprint import Blueprint
from osmotic.models import autoencoder_file, pretrained
from osmotic.protocol.gate import MAX_BESIDE
from osmotic.protocol.messages import Answer, Client, Packet, Sent
from osmotic.runs.settle import settle
from osmotic.runs.study import Holding, Study, choose_device, is_conditional
from osmotic.sites.desk import NO_AUTOENCODER, Spec

log = logging.getLogger("osmotic.hub")

DEADLINE = 3600.0  # seconds for a phase, and for sites to come, where the configuration sets none
SOURCE = "sites"  # in the place of a `data.source`
LOOK = 1.0  # seconds between two looks at who is online
ANSWERED = 300.0  # seconds that a site may take to read its images and say who it is
SETTLED = 20.0  # seconds for a site that is being asked, once there are as many as there are to be
MOST_CLASSES, MOST_LETTERS, MOST_SIDE, MOST_ENCODERS = 10_000, 100_000, 1024, 100


class AcrossSites(Flower):
    """Clients that are sites of their own, over the grid that Flower gives to the hub's process.

    Args:
        grid: of Flower's SuperLink.
        config: the run's.
        announce: is told of every site that comes, or declines, in a line.
    """

    def __init__(
        self, grid: Grid, config: Config, announce: Callable[[str], object] = lambda line: None
    ) -> None:
        # A task on its way lies at the SuperLink, not here.
        super().__init__(at_once=1_000_000, poll=0.5)
        self._grid, self._announce = grid, announce
        self._spec = Spec(to_dict(config))
        place = config.model.autoencoder
        self._autoencoder = autoencoder_file.describe(place).sha256 if place else ""
        self._pretrained = pretrained.sha256_of(config.model.pretrained) if config.model.pretrained else ""
        self._nodes: dict[str, int] = {}  # of sites that have said who they are
        self._said: dict[str, Mapping[str, Any]] = {}
        self._asked: dict[str, tuple[int, str, float]] = {}  # message -> node, its registered name, when
        self._declined: set[int] = set()
        self._second: dict[int, int] = {}  # nodes with the name of another one, for as long as that is online
        self._online: dict[int, str] = {}
        self._looked = 0.0
        self._roster: list[Client] = []

    def grid(self) -> Grid:
        """As given."""
        return self._grid

    def told(self) -> Mapping[str, str]:
        """The run goes with every task: a site's process lives for one task alone."""
        return {"spec": self._spec.text()}

    def nodes(self) -> Mapping[str, int]:
        """Sites of the roster that are online now."""
        self._look()
        names = {client.name for client in self._roster}
        return {name: node for name, node in self._nodes.items() if name in names and node in self._online}

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """The run's sites, whether online or not: who is away may be back before the deadline."""
        return list(self._roster)

    def close(self) -> None:
        """The grid is Flower's."""

    # --- before the run ---

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """As `Flower.exchange`; without a deadline after `DEADLINE`: a site that is gone must not hold up the rest for ever."""
        return super().exchange(tasks, deadline_seconds or DEADLINE)

    def gather(self, sites: int, names: Sequence[str], wait_seconds: float) -> dict[str, Mapping[str, Any]]:
        """What each site of a run says of itself, by name; waits for them, and for whoever is still being asked.

        Args:
            sites: how many there are to be.
            names: which, where the run has begun before; others are left out then.
        Raises: RunStopped if they have not all come in time, with those that have; ConfigError if more are here than
            there are to be: which of them took part would be a matter of who answers first.
        """
        end = time.monotonic() + wait_seconds
        if missing := self._missing(sites, names):
            self._announce(f"waits for {missing} sites, {wait_seconds:g} s at most")
        settled = None  # until when others may still say that they are here, too
        while True:
            missing, now = self._missing(sites, names), time.monotonic()
            if missing and now > end:
                here = ", ".join(sorted(self._said)) or "nobody"
                raise RunStopped(
                    f"{sites - missing} of {sites} sites are here after {wait_seconds:g} s: {here}"
                )
            if not missing:
                settled = settled or now + SETTLED
                if names or not self._asked or now > settled:
                    break
            time.sleep(0.1)
        if names:
            return {name: self._said[name] for name in names}
        if len(self._said) > sites:
            rule = f"but {len(self._said)} sites are here: {', '.join(sorted(self._said))}"
            raise ConfigError("data.clients", sites, rule)
        return dict(self._said)

    def _missing(self, sites: int, names: Sequence[str]) -> int:
        """How many sites are still to come."""
        self._look()
        return len(set(names) - self._said.keys()) if names else max(0, sites - len(self._said))

    def agree(
        self, config: Config, image: tuple[int, int], classes: Sequence[str], roster: Sequence[Client]
    ) -> None:
        """From here on tasks say what all have agreed on."""
        self._spec = Spec(to_dict(config), image, tuple(classes))
        self._roster = list(roster)

    def _look(self) -> None:
        """Who is online, and who newcomers are."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        self._online = {info.node_id: info.name for info in self._grid.get_nodes()}
        # Who went away may come back with other images, or another policy.
        self._declined &= self._online.keys()
        self._second = {node: first for node, first in self._second.items() if first in self._online}
        known = set(self._nodes.values()) | self._declined | self._second.keys()
        known |= {node for node, _, _ in self._asked.values()}
        for node, name in self._online.items():
            if node not in known:
                hello = Message(records(Packet({}), **self.told()), node, flower.HELLO, ttl=ANSWERED)
                for number in self._grid.push_messages([hello]):
                    if number:
                        self._asked[number] = (node, name, now)
        for number in list(self._asked):
            if (message := flower.pulled(self._grid, number, MAX_BESIDE)) is not None:
                node, name, _ = self._asked.pop(number)
                self._hear(node, name, message)
        self._asked = {number: asked for number, asked in self._asked.items() if now - asked[2] < ANSWERED}

    def _hear(self, node: int, registered: str, message: Message | NoPacket) -> None:
        if isinstance(message, Message) and message.has_error():
            return  # it is asked again
        try:
            if isinstance(message, NoPacket):
                raise message
            said = _checked(packet_of(message.content).header, registered)
        except (NoPacket, ValueError) as error:
            self._decline(node, registered, str(error))
            return
        if "declines" in said:
            # What it lacks, its own word says; of which autoencoder, only the hub knows.
            lacks = self._autoencoder and said["declines"] == NO_AUTOENCODER
            which = f": {self._autoencoder}" if lacks else ""
            self._decline(node, registered, f"{said['declines']}{which}")
            return
        name = said["name"]
        if said["pretrained"] not in ("", self._pretrained):
            told = f"has pretrained weights {said['pretrained']}, and the run {self._pretrained or 'none'}"
            self._decline(node, registered, told)
            return
        if said["autoencoder"] != self._autoencoder:
            told = (
                f"has autoencoder {said['autoencoder'] or 'none'}, and the run {self._autoencoder or 'none'}"
            )
            self._decline(node, registered, told)
            return
        if self._nodes.get(name, node) != node and self._nodes[name] in self._online:
            self._decline(node, registered, "has the name of another site that is here")
            self._declined.remove(node)
            self._second[node] = self._nodes[name]
            return
        if name in self._said and any(
            said[k] != self._said[name][k] for k in ("num_examples", "image", "classes")
        ):
            self._decline(node, registered, "has other images than before")
            return
        if name not in self._nodes:
            self._announce(f"site {name} is here: {said['num_examples']:,} images")
        self._nodes[name], self._said[name] = node, said

    def _decline(self, node: int, registered: str, reason: str) -> None:
        self._declined.add(node)
        self._announce(f"site {plain(registered or node)} does not take part: {plain(reason)}")


def _checked(said: Mapping[str, Any], registered: str) -> dict[str, Any]:
    """A site's word of itself, each entry of its type and within bounds. Raises: ValueError with the reason."""
    name, declines = said.get("name"), said.get("declines")
    if declines is not None:
        return {"name": registered, "declines": plain(declines)}
    # The name that its key is registered under is the hub's; the site's own word must not be another's name.
    if not isinstance(name, str) or (registered and name != registered):
        raise ValueError(f"says that it is {shown(name, 40)}, and its key is that of {shown(registered, 40)}")
    count, image, classes = said.get("num_examples"), said.get("image"), said.get("classes")
    if type(count) is not int or not 0 < count < 2**40:
        raise ValueError("says of no number of images")
    if (
        not isinstance(image, list)
        or [type(n) for n in image] != [int, int]
        or image[1] not in (1, 3)
        or not 0 < image[0] <= MOST_SIDE
    ):
        raise ValueError("says of no shape of its images")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes[:MOST_CLASSES]):
        raise ValueError("says of no classes")
    if len(classes) > MOST_CLASSES or sum(map(len, classes)) > MOST_LETTERS:
        raise ValueError(
            f"says of more than {MOST_CLASSES:,} classes, or {MOST_LETTERS:,} letters of their names"
        )
    checked_names("classes", classes)  # they go into files, pages and terminals
    Client(0, name, count)
    if (version := said.get("version")) != metadata.version("osmotic"):
        raise ValueError(f"has osmotic {shown(version, 20)}, and the hub {metadata.version('osmotic')}")
    held_out = said.get("held_out")
    if held_out is not None and (type(held_out) is not int or not 0 <= held_out < 2**40):
        raise ValueError("says of no number of images that it holds out")
    encoders = said.get("encoders")
    if not isinstance(encoders, list) or len(encoders) > MOST_ENCODERS or not all(map(_is_hash, encoders)):
        raise ValueError("says of no feature networks, or of too many")
    if (begun := said.get("pretrained", "")) != "" and not _is_hash(begun):
        raise ValueError("says of no pretrained weights")
    if (autoencoder := said.get("autoencoder", "")) != "" and not _is_hash(autoencoder):
        raise ValueError("says of no autoencoder")
    return {
        "name": name,
        "autoencoder": autoencoder,
        "pretrained": begun,
        "num_examples": count,
        "image": (image[0], image[1]),
        "classes": classes,
        "encoders": encoders,
        "kernel_distances": said.get("kernel_distances") is True,
        "held_out": held_out,
        "own_model": said.get("own_model") is True,
        "synthetic_images": said.get("synthetic_images") is True,
    }


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def say(line: str) -> None:
    """On stderr, which `osmotic hub run` shows."""
    print(f"osmotic: {line}", file=sys.stderr, flush=True)


def across_sites(
    grid: Grid, config: Config, names: Sequence[str] = (), announce: Callable[[str], object] = say
) -> Study:
    """The study of a run across sites, once `data.clients` of them are there.

    Args:
        names: of its sites, where the run has begun before.
    Raises: RunStopped if they do not come; ConfigError where their images do not go together.
    """
    engine = AcrossSites(grid, config, announce)
    said = engine.gather(config.data.clients, names, config.engine.deadline_seconds or DEADLINE)
    shapes = {name: one["image"] for name, one in said.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {s}x{s}x{c}" for name, (s, c) in sorted(shapes.items()))
        raise ConfigError(
            "data.image_size", config.data.image_size, f"sites have images of several shapes: {told}"
        )
    side, channels = next(iter(shapes.values()))
    classes = _classes({name: one["classes"] for name, one in said.items()})
    total = sum(one["num_examples"] for one in said.values())
    # Its `source` was of a simulation: nobody is to read from the run's folder that these were its images.
    config = replace(config, data=replace(config.data, source=SOURCE, image_size=side, channels=channels))
    config = settle(config, total, len(classes))
    conditional = is_conditional(config, len(classes))
    blueprint = Blueprint.of(config, side, channels, len(classes) if conditional else 0)
    if config.model.pretrained:
        blueprint = blueprint.agreed()  # told to every site with its tasks
        config = blueprint.config
    roster = [Client(i, name, said[name]["num_examples"]) for i, name in enumerate(sorted(said))]
    engine.agree(config, (side, channels), classes, roster)
    nothing = np.zeros((0, side, side, channels), np.uint8)
    nobody = np.zeros(0, np.int64)
    empty = Split(nothing, np.zeros(0, np.int64) if classes else None)
    holdings = [Holding(client, nobody, nobody) for client in roster]
    tells = {name: tuple(one["encoders"]) for name, one in said.items()}
    dataset = Dataset("images at their sites", empty, empty, tuple(classes))
    compares = frozenset(name for name, one in said.items() if one["kernel_distances"])
    lacks = frozenset(name for name, one in said.items() if config.model.pretrained and not one["pretrained"])
    withheld = {
        action: frozenset(name for name, one in said.items() if not one[leave])
        for action, leave in ((own_models.GIVE, "own_model"), ("sample", "synthetic_images"))
    }
    if (keeping := withheld[own_models.GIVE]) and (
        blueprint.chain().personal or not blueprint.method().global_model
    ):
        announce(f"own models stay where they are at {len(keeping)} of {len(said)} sites: policy.own_model")
    holds_out = {name: one["held_out"] for name, one in said.items() if one["held_out"] is not None}
    device = choose_device(config.engine.device)
    return Study(blueprint, dataset, holdings, device, engine, tells, compares, lacks, withheld, holds_out)


def _classes(by_site: Mapping[str, Sequence[str]]) -> list[str]:
    """All classes that any site has, in the order of their names. Raises: ConfigError where some have labels and some none."""
    labelled = [name for name, classes in by_site.items() if classes]
    if labelled and len(labelled) < len(by_site):
        bare = sorted(by_site.keys() - set(labelled))
        raise ConfigError("data", None, f"some sites have labels and some have none: {', '.join(bare)}")
    found = list(by_site.values())
    # Where all say the same, their own order stands: that of the files that a data set was split into.
    if all(classes == found[0] for classes in found):
        return list(found[0])
    return sorted({name for classes in found for name in classes})
