"""The codecs by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from osmotic.codecs.base import BadPacket, Codec, Wanted
from osmotic.codecs.feedback import ErrorFeedback
from osmotic.codecs.fp16 import Fp16
from osmotic.codecs.fp32 import Fp32
from osmotic.codecs.int8 import Int8

CODECS: dict[str, Callable[..., Codec]] = {"fp32": Fp32, "fp16": Fp16, "int8": Int8}
EXACT = Fp32()  # for what is always sent as it is: first contact, and the extras of pieces

__all__ = ["CODECS", "EXACT", "BadPacket", "Codec", "ErrorFeedback", "Wanted", "make"]


def make(
    name: str, error_feedback: bool = False, options: Mapping[str, Mapping[str, Any]] | None = None
) -> Codec:
    """A new codec of this name, with its residual kept if `error_feedback`.

    Args:
        name: a key of CODECS.
        options: codec name -> its options, already checked (`codec.NAME.KEY` of the configuration).
    Raises: KeyError for a name that is not registered.
    """
    codec = CODECS[name](**dict((options or {}).get(name, {})))
    return ErrorFeedback(codec) if error_feedback else codec
