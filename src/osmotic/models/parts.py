"""Encoder, bottleneck and decoder of a U-Net, told from parameter names alone.

Source: arXiv:2406.12575, sec. 3 and Fig. 2. Departs from it: the class embedding, which the paper's split modes never
send, belongs to the decoder, so that every parameter has exactly one part.
"""

from __future__ import annotations

from collections.abc import Iterable

PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("conv_in", "time_embedding", "down_blocks"),
    "bottleneck": ("mid_block",),
    "decoder": ("up_blocks", "block_out", "conv_norm_out", "conv_out", "class_embedding"),
}


def part_of(name: str) -> str:
    """`"encoder"`, `"bottleneck"` or `"decoder"`: the part that a parameter such as `down_blocks.0.…` belongs to.

    A block's own projection of the time embedding belongs to that block.
    Raises: ValueError if no part has such a parameter.
    """
    module = name.partition(".")[0]
    for part, modules in PARTS.items():
        if module in modules:
            return part
    known = ", ".join(module for modules in PARTS.values() for module in modules)
    raise ValueError(f"parameter {name!r}: must begin with one of {known}")


def names(layout: Iterable[str], parts: Iterable[str]) -> list[str]:
    """The parameters of `layout` that belong to any of `parts`, sorted.

    Args:
        layout: parameter names, or a dict of them.
        parts: any of `"encoder"`, `"bottleneck"`, `"decoder"`.
    Raises: ValueError for an unknown part or a parameter without a part.
    """
    # A lone text would be read letter by letter.
    wanted = {parts} if isinstance(parts, str) else set(parts)
    for part in sorted(wanted - set(PARTS)):
        raise ValueError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    return sorted(name for name in layout if part_of(name) in wanted)
