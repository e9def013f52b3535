"""Encoder, bottleneck and decoder of a network, told from parameter names alone.

Source: arXiv:2406.12575, sec. 3 and Fig. 2. Departs from it: the class embedding, which the paper's split modes never
send, belongs to the decoder, so that every parameter has exactly one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PARTS = ("encoder", "bottleneck", "decoder")

# Part -> beginnings of the names of its parameters, whole components each: "down" covers "down.0.weight" and not
# "downsample.weight"; "" covers every name.
Prefixes = Mapping[str, tuple[str, ...]]

# Of every U-Net with diffusers' names. The time embedding is the encoder's, as in the counts of the paper's Table 2.
UNET: Prefixes = {
    "encoder": ("conv_in", "time_embedding", "down_blocks"),
    "bottleneck": ("mid_block",),
    "decoder": ("up_blocks", "block_out", "conv_norm_out", "conv_out", "class_embedding"),
}
# Of a network that cannot be taken apart: methods that share the decoder share all of it.
WHOLE: Prefixes = {"decoder": ("",)}


def part_of(name: str, prefixes: Prefixes = UNET) -> str:
    """`"encoder"`, `"bottleneck"` or `"decoder"`: the part that a parameter such as `down_blocks.0.…` belongs to.

    A block's own projection of the time embedding belongs to that block.
    Raises: ValueError if no part has such a parameter, or more than one.
    """
    found = [part for part, begins in prefixes.items() if any(_covers(begin, name) for begin in begins)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"parameter {name!r}: must belong to one part, not to {' and '.join(found)}")
    known = ", ".join(begin for begins in prefixes.values() for begin in begins)
    raise ValueError(f"parameter {name!r}: must begin with one of {known}")


def names(layout: Iterable[str], parts: Iterable[str], prefixes: Prefixes = UNET) -> list[str]:
    """The parameters of `layout` that belong to any of `parts`, sorted.

    Args:
        layout: parameter names, or a dict of them.
        parts: any of `PARTS`.
        prefixes: which names belong to which part; by default those of a U-Net.
    Raises: ValueError for an unknown part, or a parameter without a part or with two.
    """
    # A lone text would be read letter by letter.
    wanted = {parts} if isinstance(parts, str) else set(parts)
    for part in sorted(wanted - set(PARTS)):
        raise ValueError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    return sorted(name for name in layout if part_of(name, prefixes) in wanted)


def table(layout: Iterable[str], prefixes: Prefixes = UNET) -> dict[str, list[str]]:
    """Every part's parameters, sorted; a part that the network does not have is an empty list.

    Args and errors: as `names`.
    """
    held = list(layout)
    return {part: names(held, [part], prefixes) for part in PARTS}


def _covers(begin: str, name: str) -> bool:
    return not begin or name == begin or name.startswith(f"{begin}.")
