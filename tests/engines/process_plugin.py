"""A plugin as a user writes it, for tests of worker processes: a tiny network, and a piece that lets mishaps happen on clients."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_network

import osmotic
from osmotic.storage.store import Store

osmotic.register_network(
    "tiny-of-a-file",
    lambda spec: tiny_network.Tiny(spec.channels, spec.num_classes),
    multiple=2,
    parts={
        "encoder": ("conv_in", "time_embedding", "down_blocks"),
        "bottleneck": ("mid_block",),
        "decoder": ("up_blocks", "conv_out", "class_embedding"),
    },
)

if os.environ.get("OSMOTIC_TEST_THREAD"):  # a library that starts one when it is imported
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


@osmotic.register("mishap")
@dataclass(frozen=True, kw_only=True)
class Mishap(osmotic.Piece):
    """Does `what` on one client in one round, after its training has begun; nothing to the weights."""

    section = "local"
    title = "mishaps"
    what: str = osmotic.key("", "kill, wait, slow, disk, raise, warn or meet")
    client: str = osmotic.key("client-001", "to whom")
    number: int = osmotic.key(2, "server round")
    at: str = osmotic.key("", "file that `meet` waits for, and client-002 makes")

    def client_begin(self, step: Any, state: Any) -> Any:
        if self.what == "meet" and step.client.name == "client-002":
            Path(self.at).touch()
        if (step.client.name, step.server_round) != (self.client, self.number):
            return None
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "wait":
            time.sleep(60)
        elif self.what == "disk":
            Store.save = _full  # type: ignore[method-assign]
        elif self.what == "raise":
            raise LookupError("a word of this site's own")
        elif self.what == "warn":
            warnings.warn("the light is low", UserWarning, stacklevel=2)
        while self.what == "meet" and not Path(self.at).exists():
            time.sleep(0.01)
        return None

    def after_backward(self, step: Any, work: Any) -> None:
        if self.what == "slow" and (step.client.name, step.server_round) == (self.client, self.number):
            time.sleep(2.3)  # longer than the deadline of the test, and there are more steps


def _full(*_: Any) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state")
