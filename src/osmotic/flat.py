"""All weights of a network as one float32 buffer: where each parameter lies in it, and arrays by name that are views of it.

Loading, checking, summing and sending a network are then one call on the buffer instead of one per parameter. Parameters
stand part after part and within a part by name, those whose size is odd last, so that a part is a slice; those with four axes lie in channels-last
order, [O, H, W, I] for a convolution [O, I, H, W], as training keeps them. The order follows from names, shapes and parts
alone, and its hash is in the contract: packets need not repeat it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

Shape = tuple[int, ...]
ALIGNED = 16  # float32 in a cache line
CHUNK = 64 * 1024  # elements: 512 KiB of float64


def channels_last(array: Any) -> Any:
    """An array [O, I, H, W] of numpy or torch as [O, H, W, I], the order in memory; others as they are. A view."""
    return array if array.ndim != 4 else array.swapaxes(1, 3).swapaxes(1, 2)


def chunks(size: int) -> Iterator[slice]:
    """Slices that cover `size` elements, each small enough for temporaries in float64 to stay in the second-level cache."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


@dataclass(frozen=True, eq=False)
class FlatLayout(Mapping[str, Shape]):
    """Name -> shape of every parameter, in the order of the buffer.

    Args:
        shapes: parameter name -> shape.
        part_names: part of the network -> its parameter names; the parts in the order in which they lie.
        prefix: written before every name, "model/" in packets.
    """

    shapes: Mapping[str, Shape]
    part_names: Mapping[str, list[str]]
    prefix: str = ""
    _root: FlatLayout | None = field(default=None, repr=False)
    _made: dict[tuple[tuple[str, ...], str], FlatLayout] = field(default_factory=dict, repr=False)

    @classmethod
    def whole(cls, shapes: Mapping[str, Shape]) -> FlatLayout:
        """Of a network that is not taken apart."""
        return cls(shapes, {"": sorted(shapes)})

    @cached_property
    def _order(self) -> dict[str, Shape]:
        def odd(name: str) -> bool:
            return math.prod(self.shapes[name]) % ALIGNED != 0

        # Odd ones last: behind a bias of one number all others would lie across cache lines, which costs matrix products
        # time, and even bits where a library takes another way for them.
        names = [n for part in self.part_names.values() for n in sorted(part, key=lambda n: (odd(n), n))]
        return {self.prefix + name: tuple(self.shapes[name]) for name in names}

    def __getitem__(self, name: str) -> Shape:
        return self._order[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: object) -> bool:
        return name in self._order

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FlatLayout):
            return self is other or self.sha256 == other.sha256
        return dict(self) == other

    def __hash__(self) -> int:
        return hash(self.sha256)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies, in elements."""
        found, start = {}, 0
        for name, shape in self._order.items():
            found[name] = slice(start, start + math.prod(shape))
            start = found[name].stop
        return found

    @cached_property
    def part_slices(self) -> dict[str, slice]:
        """Where each part lies, in elements; a part without parameters is an empty slice."""
        found, start = {}, 0
        for part, names in self.part_names.items():
            found[part] = slice(start, start + sum(math.prod(self.shapes[name]) for name in names))
            start = found[part].stop
        return found

    @cached_property
    def size(self) -> int:
        """Number of weights."""
        return sum(map(math.prod, self._order.values()))

    @cached_property
    def sha256(self) -> str:
        """Of names, shapes, parts and offsets, in order."""
        rows = [[n, list(s), self.slices[n].start] for n, s in self._order.items()]
        parts = [[part, piece.start, piece.stop] for part, piece in self.part_slices.items()]
        return hashlib.sha256(json.dumps(["channels-last", rows, parts]).encode()).hexdigest()

    @cached_property
    def wanted(self) -> dict[str, tuple[str, Shape]]:
        """Name -> (dtype, shape), as a codec takes it."""
        return {name: ("float32", shape) for name, shape in self._order.items()}

    def of_parts(self, parts: Iterable[str]) -> FlatLayout:
        """The layout of some parts by themselves, in the order of this one; one object however often it is asked for."""
        wanted = set(parts)
        return self._derived(tuple(part for part in self.part_names if part in wanted), self.prefix)

    def named(self, prefix: str) -> FlatLayout:
        """The same layout with another prefix before its names; one object however often it is asked for."""
        return self._derived(tuple(self.part_names), prefix)

    def _derived(self, parts: tuple[str, ...], prefix: str) -> FlatLayout:
        root = self._root or self
        if parts == tuple(root.part_names) and prefix == root.prefix:
            return root
        found = root._made.get((parts, prefix))
        if found is None:
            names = {part: root.part_names[part] for part in parts}
            # In one step: two threads that ask at once must get the same object.
            found = root._made.setdefault((parts, prefix), FlatLayout(root.shapes, names, prefix, root))
        return found

    def view(self, buffer: Any, name: str, shifted: int = 0) -> Any:
        """A parameter in a buffer [..., size] of numpy or torch, as its shape [...] after the axes in front; a view.

        Args:
            shifted: where in the whole the buffer begins, in elements.
        """
        shape, place = self._order[name], self.slices[name]
        piece, front = buffer[..., place.start - shifted : place.stop - shifted], tuple(buffer.shape[:-1])
        if len(shape) != 4:
            return piece.reshape(front + shape)
        leaving, entering, height, width = shape
        return piece.reshape(*front, leaving, height, width, entering).swapaxes(-3, -1).swapaxes(-2, -1)


class Flat(Mapping[str, np.ndarray]):
    """Name -> array [...], views of `buffer`. Made to be read; who writes does so through the views or the buffer.

    Args:
        layout: where what lies.
        buffer: [layout.size], float32, or float64 for running averages.
    Raises: ValueError for a buffer of another size.
    """

    __slots__ = ("buffer", "layout")

    def __init__(self, layout: FlatLayout, buffer: np.ndarray) -> None:
        if buffer.shape != (layout.size,):
            raise ValueError(f"buffer must have shape ({layout.size},), got {buffer.shape}")
        self.layout, self.buffer = layout, buffer

    @classmethod
    def of(cls, layout: FlatLayout, tensors: Mapping[str, np.ndarray], dtype: Any = np.float32) -> Flat:
        """Copies of arrays by name [...] in one buffer. Raises: KeyError for a name that is missing."""
        made = cls(layout, np.empty(layout.size, dtype))
        made.put(tensors)
        return made

    @classmethod
    def over(cls, layout: FlatLayout, tensors: Mapping[str, np.ndarray]) -> Flat:
        """Arrays by name [...] in one buffer: as they are where they lie in one already, else copies. Raises: KeyError as `of`."""
        lies = isinstance(tensors, Flat) and tensors.layout == layout
        return tensors if lies else cls.of(layout, tensors)  # type: ignore[return-value]

    def put(self, tensors: Mapping[str, np.ndarray], part: str | None = None) -> None:
        """Copies arrays [...] over those of this buffer: all, or those of one part. Raises: KeyError for one that is missing."""
        mine = self if part is None else self.part(part)
        if isinstance(tensors, Flat) and tensors.layout == mine.layout:
            np.copyto(mine.buffer, tensors.buffer)
            return
        for name in mine.layout:
            np.copyto(mine[name], tensors[name])

    def copy(self) -> Flat:
        """The same values in a buffer of their own."""
        return Flat(self.layout, self.buffer.copy())

    def with_(self, tensors: Mapping[str, np.ndarray]) -> Flat:
        """A copy with these arrays [...] in the place of its own; names that it has not are left out."""
        made = self.copy()
        for name, tensor in tensors.items():
            if name in made.layout:
                np.copyto(made[name], tensor)
        return made

    def part(self, part: str) -> Flat:
        """One part: a view, not a copy."""
        return Flat(self.layout.of_parts([part]), self.buffer[self.layout.part_slices[part]])

    def parts(self, parts: Iterable[str]) -> Flat:
        """Some parts: a view where they lie side by side, else a copy."""
        chosen = self.layout.of_parts(parts)
        if chosen is self.layout:
            return self
        pieces = [self.layout.part_slices[part] for part in chosen.part_names]
        if all(before.stop == after.start for before, after in pairwise(pieces)):
            span = slice(pieces[0].start, pieces[-1].stop) if pieces else slice(0, 0)
            return Flat(chosen, self.buffer[span])
        return Flat(chosen, np.concatenate([self.buffer[piece] for piece in pieces]))

    def named(self, prefix: str) -> Flat:
        """The same buffer under other names."""
        return Flat(self.layout.named(prefix), self.buffer)

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        np.copyto(self[name], values)

    def __getitem__(self, name: str) -> np.ndarray:
        found: np.ndarray = self.layout.view(self.buffer, name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)

    def __contains__(self, name: object) -> bool:
        return name in self.layout
