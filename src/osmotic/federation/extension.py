"""With which configurations a run may go on: its own, other free keys, or more rounds.

An extended run has the bits of one begun with the larger count. So what followed the last round (`merge`, `personalise`)
does not count, and the run goes on from the newest checkpoint before it; and where something looked ahead to the last
round while the rounds went on, as a cosine learning rate does, it cannot be extended.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from itertools import takewhile
from typing import Any

from osmotic.config.schema import Config, refuse_changes, to_dict
from osmotic.errors import ConfigError
from osmotic.methods.base import Method
from osmotic.pieces.chain import Chain

KEY = "training.rounds"


def check(before: Mapping[str, Any], config: Config, method: Method, chain: Chain) -> None:
    """Raises ConfigError unless a run of the configuration `before`, a table of `to_dict`, may go on as `config` says."""
    old, new = before["training"]["rounds"], config.training.rounds
    refuse_changes({**before, "training": {**before["training"], "rounds": new}}, to_dict(config))
    if new < old:
        raise ConfigError(KEY, new, f"this run has {old}, and they can only be made more")
    if new == old:
        return
    reasons = {f"method {config.method.name}": method.tied_to(old)}
    reasons |= {f"piece {name}": piece.tied_to(old) for name, piece in chain.pieces.items()}
    if config.training.lr_schedule != "constant":
        schedule = config.training.lr_schedule
        reasons["training.lr_schedule"] = f"{schedule} has spread the learning rate over {old} rounds"
    for owner, reason in reasons.items():
        if reason:
            raise ConfigError(KEY, new, f"cannot be raised from {old}: {owner}: {reason}; start a new run")


def shared_phases(before: Mapping[str, Any], config: Config, method: Method, chain: Chain) -> int:
    """How many phases of a run of the configuration `before` are those of `config` too."""
    old = chain.phases(method, before["training"]["rounds"])
    new = chain.phases(method, config.training.rounds)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))


def versions() -> dict[str, str]:
    """What the bits of a run depend on beside its configuration."""
    return {name: metadata.version(name) for name in ("osmotic", "torch", "diffusers", "numpy")}
