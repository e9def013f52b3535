"""The apps that Flower loads, `osmotic.flower:client` and `osmotic.flower:server`: thin coats over client and run.

A node with a `site` in its own configuration is one, and takes all from its folder (`sites/desk.py`). A simulated client finds all that it owns through the path that comes with its task: the processes of a simulation are
one user's, on one machine.
"""

from __future__ import annotations

import shlex
import sys
import threading
from functools import lru_cache

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from osmotic.engines.envelope import beside, packet_of, records
from osmotic.errors import ConfigError, RunStopped, plain
from osmotic.protocol.messages import Packet

client = ClientApp()
server = ServerApp()

# Of an app's run configuration, all of them texts: what `osmotic run` and `osmotic resume` take.
OPTIONS = ("preset", "data", "config", "set", "out", "resume")


@server.main()
def main(grid: Grid, context: Context) -> None:
    """A run on the grid that Flower gives, from the app's run configuration; docs/deploy.md shows one.

    Raises: what `osmotic.run` does, which Flower tells in its log, and calls the run failed.
    """
    import osmotic
    from osmotic.engines.flower import lent
    from osmotic.runs.resolve import parse_set
    from osmotic.sites.roster import across_sites

    sites = bool(context.run_config.get("sites", False))
    given = {name: str(context.run_config.get(name, "") or "") for name in OPTIONS}
    try:
        try:
            words = shlex.split(given["set"])
        except ValueError as error:
            raise ConfigError("set", given["set"], f"cannot be read: {error}") from None
        keys = dict(parse_set(word) for word in words)
        keys["engine.name"] = "sites" if sites else "flower"
        with lent(grid, across_sites if sites else None):
            if given["resume"]:
                osmotic.load(given["resume"]).resume(keys=keys, quiet=False)
                return
            osmotic.run(
                given["config"] or None,
                preset=given["preset"] or None,
                data=given["data"] or None,
                out=given["out"] or None,
                keys=keys,
                quiet=False,
            )
    except (ConfigError, RunStopped, OSError) as error:
        # Flower writes a traceback to its log; this line is what `osmotic hub run` shows.
        print(f"osmotic: error: {plain(error, None)}", file=sys.stderr, flush=True)
        raise


@client.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Which client this node is; of a site, who, and how many images of what kind it has."""
    if (folder := context.node_config.get("site")) is not None:
        from osmotic.sites import desk

        return Message(records(desk.hello(str(folder), beside(message.content, "spec"))), reply_to=message)
    return Message(records(Packet({"partition": context.node_config["partition-id"]})), reply_to=message)


@client.train()
def work(message: Message, context: Context) -> Message:
    """The answer to one task, of whatever kind."""
    # What a node's operator wrote decides, and nothing that the server says: a site opens no path that it is sent.
    if (folder := context.node_config.get("site")) is not None:
        from osmotic.sites import desk

        answer = desk.serve(str(folder), beside(message.content, "spec"), packet_of(message.content))
        return Message(records(answer), reply_to=message)
    place = int(context.node_config["partition-id"])
    return Message(_desk(beside(message.content, "setup")).serve(place, message), reply_to=message)


class Desk:
    """A process of a simulation: one network, and whatever client is asked of it.

    Args:
        setup: path of what `workplace.Shown` shows.
    """

    def __init__(self, setup: str) -> None:
        import torch

        from osmotic import plugins
        from osmotic.runs import workplace

        plugins.load_installed()
        place = workplace.at(setup)
        torch.set_num_threads(place.threads)
        self.names, self._site_of = place.names, place.site_of
        self._steps = 0.0
        self._worker = place.make_worker(threading.Event(), self._worked)

    def serve(self, place: int, message: Message) -> RecordDict:
        """Records of the answer of the client at this place of the run's list."""
        from osmotic.federation.client import StoreFailed

        self._steps = 0.0
        try:
            answer = self._worker.serve(self._site_of(self.names[place]), packet_of(message.content))
        except StoreFailed as error:  # the run's own disk
            return records(Packet({}), disk=error.strerror or str(error))
        return records(answer, steps=str(self._steps))

    def _worked(self, work: str, amount: float) -> None:
        if work == "train":
            self._steps += amount


@lru_cache(maxsize=1)
def _desk(setup: str) -> Desk:
    """The desk of this process, made with its first task."""
    return Desk(setup)
