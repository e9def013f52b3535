"""The pieces of the learning rule by name. A new one is one file and two lines here, its import and its row; or `osmotic.register`."""

from __future__ import annotations

from osmotic.config.schema import Config
from osmotic.pieces.adagrad import Adagrad
from osmotic.pieces.adam import Adam
from osmotic.pieces.base import Piece
from osmotic.pieces.chain import Chain
from osmotic.pieces.correction import Correction
from osmotic.pieces.momentum import Momentum
from osmotic.pieces.nesterov import Nesterov
from osmotic.pieces.personalise import Personalise
from osmotic.pieces.prox import Prox
from osmotic.pieces.scaffold import Scaffold
from osmotic.pieces.yogi import Yogi

PIECES: dict[str, type[Piece]] = {
    "prox": Prox,
    "scaffold": Scaffold,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "yogi": Yogi,
    "adagrad": Adagrad,
    "correction": Correction,
    "personalise": Personalise,
}

__all__ = ["PIECES", "Chain", "Piece", "make"]


def make(config: Config) -> Chain:
    """The chain of a run, its options already checked by runs/rules.py: [local], then [server], then [after]."""
    return Chain(
        {
            name: PIECES[name](**section.options.get(name, {}))
            for section in (config.local, config.server, config.after)
            for name in section.pieces
        }
    )
