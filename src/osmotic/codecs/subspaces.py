"""The network of the codec `learned`: in which directions the changes of each weight lie, and how much of them.

A local change of a matrix [out, in] is a sum of outer products, of what comes back from behind it with what enters it: few
directions of either carry most of it, and they move slowly from round to round. So the best linear autoencoder of changes is one
orthogonal matrix for each axis [out, taps, in] of each weight: the eigenvectors of the second moments (Karhunen-Loeve, by
Kronecker factors). It is square: its leading directions are learned and travel, the others complete them, so that no part of a change can
never be sent. Beside them stands the spread: how large the coefficients along each direction are expected to be.

Weights (one row of bytes, compressed): ranks uint8 [tensors, 3], learned directions per axis | spread int8, for each index of each
axis, log2 of the expected variance in steps of 1/4 | the directions, whole numbers of -7..7 each.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from xxhash import xxh3_64

from osmotic.codecs import entropy as zstd
from osmotic.codecs.base import BadPacket
from osmotic.flat import FlatLayout, channels_last
from osmotic.tensors import Tensors

FINE = 7  # levels of a direction's entry on either side of zero
SPREAD = 4  # steps of spread per factor 2 of the variance
CLASSES = 40  # of expected variance, each a factor of sqrt(2) wide
LEAST = 1024  # numbers in a tensor that gets directions of its own
MAX_AXIS = 255  # learned directions of one axis, as 8 bits say them


@dataclass(frozen=True)
class Cube:
    """A tensor as [out, taps, in]: where it lies in the buffer, channels-last; vectors are [1, 1, n]."""

    name: str
    start: int
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Numbers in it."""
        out, taps, into = self.shape
        return out * taps * into

    @property
    def turns(self) -> bool:
        """Whether directions are learned for it."""
        return self.size >= LEAST and min(self.shape[0], self.shape[2]) > 1

    def of(self, buffer: np.ndarray) -> np.ndarray:
        """Its share of a buffer [size], as [out, taps, in]; a view."""
        return buffer[self.start : self.start + self.size].reshape(self.shape)


def cubes(layout: FlatLayout) -> list[Cube]:
    """The tensors of a layout that are not empty, in its order; worked out once."""
    known: list[Cube] | None = layout.__dict__.get("_cubes")
    if known is None:
        known = layout.__dict__["_cubes"] = _cubes(layout)
    return known


def _cubes(layout: FlatLayout) -> list[Cube]:
    found = []
    for name, shape in layout.items():
        size, start = int(np.prod(shape)), layout.slices[name].start
        if len(shape) == 4:
            whole = (shape[0], shape[2] * shape[3], shape[1])
        elif len(shape) >= 2:
            whole = (shape[0], 1, size // max(1, shape[0]))
        else:
            whole = (1, 1, size)
        if size:
            found.append(Cube(name.removeprefix(layout.prefix), start, whole))
    return found


def names(layout: FlatLayout) -> list[str]:
    """The tensors of a layout that are not empty, without its prefix."""
    return [cube.name for cube in cubes(layout)]


class Subspaces:
    """Directions and spreads of all tensors of a network.

    Args:
        layout: of the whole network.
        data: its weights, uint8 [bytes]; None is a network that has learned nothing: no directions, all spreads alike.
    Raises: BadPacket for weights that are none of this network.
    """

    def __init__(self, layout: FlatLayout, data: np.ndarray | None = None) -> None:
        self.cubes = {c.name: c for c in cubes(layout)}
        self.version = 0 if data is None else xxh3_64(data.tobytes()).intdigest() & 0xFFFFFFFF
        self.orders: dict[
            tuple[str, ...], tuple[np.ndarray, np.ndarray]
        ] = {}  # kept for whoever sorts by class
        self._axes: dict[str, list[np.ndarray]] = {}
        self._spread: dict[str, list[np.ndarray]] = {
            n: [np.zeros(k, np.int32) for k in c.shape] for n, c in self.cubes.items()
        }
        if data is not None:
            self._read(memoryview(data.tobytes()))

    def _read(self, data: memoryview) -> None:
        count, spans = len(self.cubes), sum(sum(c.shape) for c in self.cubes.values())
        directions = sum(sum(k * min(k, MAX_AXIS) for k in c.shape) for c in self.cubes.values())
        plain = zstd.decompress_most(data, 3 * count + spans + directions)
        if len(plain) < 3 * count + spans:
            raise BadPacket("weights of the codec are too short")
        ranks = np.frombuffer(plain, np.uint8, 3 * count).reshape(count, 3)
        spread = np.frombuffer(plain, np.int8, spans, 3 * count).astype(np.int32)
        entries, at, seen = np.frombuffer(plain, np.int8, offset=3 * count + spans), 0, 0
        for (name, cube), row in zip(self.cubes.items(), ranks.tolist(), strict=True):
            for axis, (length, rank) in enumerate(zip(cube.shape, row, strict=True)):
                self._spread[name][axis] = spread[seen : seen + length]
                seen += length
                if rank > length or (rank and not cube.turns) or at + rank * length > len(entries):
                    raise BadPacket("weights of the codec are of another network")
                found = entries[at : at + rank * length].reshape(rank, length).T
                at += rank * length
                if cube.turns:
                    self._axes.setdefault(name, []).append(completed(found).astype(np.float32))
        if at != len(entries):
            raise BadPacket("weights of the codec are too long")

    def turned(self, buffer: np.ndarray, layout: FlatLayout, back: bool = False) -> np.ndarray:
        """Coefficients of a change in a buffer [layout.size], in the same places; `back` is the inverse. float32 [layout.size]."""
        made = np.empty(layout.size, np.float32)
        for cube in cubes(layout):
            values, axes = cube.of(buffer), self._axes.get(cube.name)
            if axes:
                out, taps, into = (q.T if back else q for q in axes)
                values = (out.T @ values.reshape(cube.shape[0], -1)).reshape(-1, cube.shape[2]) @ into
                values = values.reshape(cube.shape)
                if cube.shape[1] > 1:
                    values = np.matmul(taps.T, values)
            cube.of(made)[...] = values
        return made

    def classes(self, layout: FlatLayout) -> np.ndarray:
        """Class of expected variance of every coefficient, uint8 [layout.size]; whole numbers all the way, so that both ends agree."""
        made = np.empty(layout.size, np.uint8)
        for cube in cubes(layout):
            out, taps, into = self._spread[cube.name]
            total = out[:, None, None] + taps[:, None] + into
            cube.of(made)[...] = np.clip(total // (SPREAD // 2) + CLASSES // 2, 0, CLASSES - 1)
        return made

    def _shares(self, cube: Cube, moments: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Variance along each direction of each axis as a share of the mean, float64 [n] each, and that mean."""
        mean = float(np.trace(moments[f"{cube.name}/2"])) / cube.size if f"{cube.name}/2" in moments else 0.0
        shares = []
        for axis, length in enumerate(cube.shape):
            moment, axes = moments.get(f"{cube.name}/{axis}"), self._axes.get(cube.name)
            if moment is None or mean <= 0 or moment.shape != (length, length):
                shares.append(np.ones(length))
                continue
            q = axes[axis].astype(np.float64) if axes else np.eye(length)
            along = np.einsum("ij,ij->j", q, moment @ q) / (cube.size // length)
            shares.append(np.maximum(along / mean, 1e-6))
        return shares, mean


@lru_cache(maxsize=4)
def _ready(layout: FlatLayout, data: bytes) -> Subspaces:
    return Subspaces(layout, np.frombuffer(data, np.uint8) if data else None)


def subspaces(layout: FlatLayout, data: np.ndarray | None) -> Subspaces:
    """As `Subspaces`; what was worked out of the same weights before is not worked out again."""
    return _ready(layout, b"" if data is None else data.tobytes())


def completed(directions: np.ndarray) -> np.ndarray:
    """Columns [n, k] as the first of an orthogonal matrix [n, n], float64, by Householder reflections; of k = 0 the identity."""
    n, k = directions.shape
    rest, q = directions.astype(np.float64), np.eye(n)
    for j in range(k):
        v = rest[j:, j].copy()
        v[0] += np.copysign(np.linalg.norm(v), v[0])
        norm = v @ v
        if norm == 0:
            continue
        rest[j:, j:] -= np.outer(v, (2 / norm) * (v @ rest[j:, j:]))
        q[:, j:] -= np.outer(q[:, j:] @ v, (2 / norm) * v)
    return q


def moments(tensors: Mapping[str, np.ndarray], layout: FlatLayout) -> Tensors:
    """Second moments of a change along each axis of each tensor, "NAME/AXIS" -> float32 [n, n], of the change scaled to mean square 1.

    Vectors and small tensors have one number, their sum of squares, as "NAME/2" [1, 1].
    """
    found: Tensors = {}
    size = sum(t.size for t in tensors.values())
    power = sum(float(np.square(t, dtype=np.float64).sum()) for t in tensors.values()) / max(1, size)
    if power <= 0 or not np.isfinite(power):
        return {}
    for cube in cubes(layout):
        if cube.name not in tensors:
            continue  # a part that did not come back this time
        one = np.ascontiguousarray(channels_last(tensors[cube.name])).reshape(cube.shape)
        if not cube.turns:
            found[f"{cube.name}/2"] = np.array([[np.square(one).sum() / power]], np.float32)
            continue
        for axis, length in enumerate(cube.shape):
            flat = np.moveaxis(one, axis, 0).reshape(length, -1)
            found[f"{cube.name}/{axis}"] = ((flat @ flat.T) / power).astype(np.float32)
    return found


def trained(layout: FlatLayout, sums: Mapping[str, np.ndarray], share: float) -> np.ndarray:
    """Weights, uint8 [bytes], for changes with these moments: eigenvectors, those first that save most bits for their own size.

    Args:
        sums: "NAME/AXIS" -> [n, n], as `moments` gives them, summed.
        share: most numbers of the directions as a share of the network's.
    """
    shapes = cubes(layout)
    vectors: dict[tuple[str, int], np.ndarray] = {}
    values: dict[tuple[str, int], np.ndarray] = {}
    queue: list[tuple[float, int, int, int]] = []
    for number, cube in enumerate(shapes):
        for axis, length in enumerate(cube.shape):
            moment = sums.get(f"{cube.name}/{axis}")
            if not cube.turns or length == 1 or moment is None or not np.trace(moment) > 0:
                continue
            found, directions = np.linalg.eigh(moment.astype(np.float64))
            vectors[cube.name, axis] = directions[:, ::-1]
            values[cube.name, axis] = np.maximum(found[::-1], found[-1] * 1e-6)
            _offer(queue, cube, number, axis, values[cube.name, axis], 0)
    ranks = _chosen(shapes, values, queue, int(share * layout.size))
    pieces, codes = [], []
    for cube, row in zip(shapes, ranks, strict=True):
        for axis in range(3):
            if row[axis]:
                v = vectors[cube.name, axis][:, : row[axis]]
                pieces.append(np.round(v * (FINE / np.abs(v).max(axis=0))).T.astype(np.int8))
    entries = np.concatenate([p.ravel() for p in pieces]) if pieces else np.zeros(0, np.int8)
    # Spreads along the directions as they will be, rounded ones.
    spans = sum(sum(c.shape) for c in shapes)
    draft = ranks.astype(np.uint8).tobytes() + bytes(spans) + entries.tobytes()
    rounded = Subspaces(layout, np.frombuffer(zstd.compress(draft), np.uint8))
    for cube in shapes:
        shares, mean = rounded._shares(cube, sums)
        logs = [np.log2(one) for one in shares]
        logs[1] = logs[1] + np.log2(max(mean, 1e-12))
        codes += [np.clip(np.round(SPREAD * one), -127, 127).astype(np.int8) for one in logs]
    whole = ranks.astype(np.uint8).tobytes() + np.concatenate(codes).tobytes() + entries.tobytes()
    return np.frombuffer(zstd.compress(whole), np.uint8)


def most_bytes(layout: FlatLayout, share: float) -> int:
    """Most bytes of the weights that `trained` gives."""
    shapes = cubes(layout)
    return 1 + 3 * len(shapes) + sum(sum(c.shape) for c in shapes) + int(share * layout.size)


def _chosen(
    shapes: Sequence[Cube],
    values: Mapping[tuple[str, int], np.ndarray],
    queue: list[tuple[float, int, int, int]],
    room: int,
) -> np.ndarray:
    """Learned directions of each axis, int64 [tensors, 3], that save most together, `room` numbers at most."""
    ranks = np.zeros((len(shapes), 3), np.int64)
    heapq.heapify(queue)
    while queue:
        _, number, axis, rank = heapq.heappop(queue)
        cube = shapes[number]
        length, more = cube.shape[axis], rank - int(ranks[number, axis])
        if length * more <= room:
            ranks[number, axis] = rank
            room -= length * more
            if rank < min(length, MAX_AXIS):
                _offer(queue, cube, number, axis, values[cube.name, axis], rank)
    return ranks


def _offer(
    queue: list[tuple[float, int, int, int]],
    cube: Cube,
    number: int,
    axis: int,
    values: np.ndarray,
    rank: int,
) -> None:
    """The next directions of an axis: as many more than `rank` as save most bits for each number of theirs.

    With k of n directions known, log2 of the variances costs that of the k, and for the others that of their mean.
    """
    n = len(values)
    tail = np.maximum(np.cumsum(values[::-1])[::-1], 1e-300)  # energy from k on
    left = n - np.arange(n)
    logs = np.concatenate([[0.0], np.cumsum(np.log2(values))])
    cost = np.append(logs[:-1] + left * np.log2(tail / left), logs[-1])
    most = min(n, MAX_AXIS)
    each = (
        0.5 * cube.size / n * (cost[rank] - cost[rank + 1 : most + 1]) / (n * np.arange(1, most - rank + 1))
    )
    best = int(each.argmax())
    heapq.heappush(queue, (-float(each[best]), number, axis, rank + 1 + best))


def runs(classes: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(class, start, stop) of each class that occurs in classes [n] sorted."""
    ends = np.cumsum(np.bincount(classes, minlength=CLASSES))
    for kind in range(CLASSES):
        start = int(ends[kind - 1]) if kind else 0
        if start < ends[kind]:
            yield kind, start, int(ends[kind])
