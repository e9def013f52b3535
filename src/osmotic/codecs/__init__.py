"""The codecs by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from osmotic.codecs.base import BadPacket, Codec, Wanted
from osmotic.codecs.feedback import ErrorFeedback, Flushed
from osmotic.codecs.fp16 import Fp16
from osmotic.codecs.fp32 import Fp32
from osmotic.codecs.learned import Learned
from osmotic.codecs.sparse import Sparse
from osmotic.codecs.uniform import Int2, Int4, Int8

if TYPE_CHECKING:
    from osmotic.config.schema import CodecConfig
    from osmotic.flat import FlatLayout

CODECS: dict[str, Callable[..., Codec]] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "int8": Int8,
    "int4": Int4,
    "int2": Int2,
    "sparse": Sparse,
    "learned": Learned,
}
EXACT = Fp32()  # for full weights, which are always sent as they are

__all__ = ["CODECS", "EXACT", "BadPacket", "Codec", "ErrorFeedback", "Wanted", "make", "of"]


def of(
    config: CodecConfig,
    direction: Literal["up", "down"],
    error_feedback: bool = False,
    layout: FlatLayout | None = None,
) -> Codec:
    """A new codec of one direction, as the section [codec] of the configuration says.

    Args:
        layout: of the network, where there is one.
        error_feedback: the sender's end of the way up, where a residual is kept.
    Raises: KeyError as `make`.
    """
    # The way down needs no feedback, and so no flush: what it loses stays in the difference to the replica.
    flush = config.feedback_flush if direction == "up" else 0
    made = make(getattr(config, direction), error_feedback, config.options, config.feedback_decay, flush)
    if layout is not None:
        made.prepare(layout, direction)
    return made


def make(
    name: str,
    error_feedback: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    decay: float = 1.0,
    flush: int = 0,
) -> Codec:
    """A new codec of this name.

    Args:
        name: a key of CODECS.
        error_feedback: whether its residual is kept.
        options: codec name -> its options, already checked (`codec.NAME.KEY` of the configuration).
        decay: share of the residual that is kept from packet to packet, in (0, 1].
        flush: every so many rounds all is sent in int8; 0 never.
    Raises: KeyError for a name that is not registered.
    """
    codec = CODECS[name](**dict((options or {}).get(name, {})))
    if flush:
        codec = Flushed(codec, flush)
    return ErrorFeedback(codec, decay) if error_feedback else codec
