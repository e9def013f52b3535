"""Ways to write a change that are no codec of the package, as codecs with real packets: PCA of chunks, low rank per matrix; synthetic inputs.

Sources: arXiv 1905.13727 (PowerSGD), arXiv 2502.03092 (E-3SFC).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from osmotic.codecs import entropy, scales
from osmotic.codecs.base import HEAD
from osmotic.codecs.buffer import BufferCodec, Row
from osmotic.codecs.learned import Learned
from osmotic.codecs.subspaces import CLASSES, SPREAD, Cube, completed, cubes
from osmotic.diffusion.process import Process, StepDraw
from osmotic.flat import Flat, FlatLayout

CHUNK = 256  # numbers of a chunk: the square of it is a tenth of unet-8, the most that the learned network may have
FINE = 127  # levels of a direction's entry on either side of zero


# --- PCA of flat chunks ---


class Chunks:
    """Directions of chunks of CHUNK numbers of the buffer, one square matrix for all, and spreads; stands where `Subspaces` does.

    Directions are rounded to 8 bits, spreads to quarters of log2 of the variance; what fills no chunk stays as it is.

    Args:
        changes: to learn from, float32 [changes, size].
    """

    version = 1

    def __init__(self, changes: np.ndarray) -> None:
        self.orders: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # the codec keeps its order here
        self.whole = changes.shape[1] // CHUNK * CHUNK
        scaled = changes / np.sqrt(np.mean(np.square(changes), axis=1, keepdims=True))
        chunks = scaled[:, : self.whole].reshape(len(changes), -1, CHUNK)  # [changes, chunks, CHUNK]
        power = np.mean(np.square(chunks), axis=(0, 2))  # [chunks]
        alike = (chunks / np.sqrt(power[:, None] + 1e-30)).reshape(-1, CHUNK)
        # One size of chunk for all: tensors of large changes must not be the only ones that count.
        found = np.linalg.eigh(alike.T @ alike)[1][:, ::-1]
        rounded = np.round(found * (FINE / np.abs(found).max(axis=0))).astype(np.int8)
        self.directions = completed(rounded).astype(np.float32)
        along = np.mean(np.square(alike @ self.directions), axis=0)  # [CHUNK]
        spreads = [
            np.clip(np.round(SPREAD * np.log2(x + 1e-30)), -127, 127).astype(np.int8) for x in (power, along)
        ]
        self._spreads = [one.astype(np.int32) for one in spreads]
        self.num_bytes = len(entropy.compress(b"".join(x.tobytes() for x in (rounded, *spreads))))

    def turned(self, buffer: np.ndarray, layout: FlatLayout, back: bool = False) -> np.ndarray:
        """Coefficients of a change in a buffer [size]; `back` is the inverse. float32 [size]."""
        made = np.array(buffer, np.float32)
        chunks = made[: self.whole].reshape(-1, CHUNK)
        chunks[...] = chunks @ (self.directions.T if back else self.directions)
        return made

    def classes(self, layout: FlatLayout) -> np.ndarray:
        """Class of expected variance of every coefficient, uint8 [size]."""
        made = np.full(layout.size, CLASSES // 2, np.uint8)
        total = self._spreads[0][:, None] + self._spreads[1]
        found = np.clip(total // (SPREAD // 2) + CLASSES // 2, 0, CLASSES - 1)
        made[: self.whole] = found.reshape(-1)
        return made


@dataclass(kw_only=True, eq=False)
class ChunkPca(Learned):
    """The coder of `learned` behind directions of flat chunks: frozen, as good a coder as its rival's."""

    name = "chunk-pca"

    def use(self, chunks: Chunks) -> None:
        """Its directions from here on."""
        self._chunks = chunks

    def _nets(self, row: Row) -> list[Chunks]:  # type: ignore[override]
        return [self._chunks]


# --- low rank per matrix ---


@dataclass(frozen=True, kw_only=True)
class LowRank(BufferCodec):
    """Each matrix as P Q^T, factors of 4 bits; small tensors whole, of 8 bits. What holds most for its bytes is sent.

    Source: arXiv 1905.13727 (PowerSGD). Departs from it: P are the exact singular vectors, which power iterations only come near to;
    Q is made for P as it arrives; each packet has its own ranks, so that what is owed in any tensor is sent some time.

    Section, by Zstandard: rank of each tensor, 8 bits | bases of all steps, 16 bits each | codes of 4 bits | codes of 8 bits.
    """

    name = "low-rank"
    bounded = True

    bits: float = 1.0  # per weight, before Zstandard

    def write(self, values: np.ndarray, row: Row, rng: np.random.Generator | None) -> bytes:
        """As `BufferCodec.write`, float32 [row.size]."""
        lefts = {}
        offers: list[tuple[float, float, str]] = []  # energy per byte, bytes, tensor
        for cube in cubes(row.layout):
            matrix = _matrix(cube, values)
            if cube.turns:
                energies, vectors = np.linalg.eigh(matrix @ matrix.T)
                lefts[cube.name] = vectors[:, ::-1]
                cost = sum(matrix.shape) / 2 + 4
                offers += [(energy / cost, cost, cube.name) for energy in energies.tolist()]
            else:
                cost = matrix.size + 2
                offers.append((float(np.square(matrix).sum()) / cost, cost, cube.name))
        ranks, room = {cube.name: 0 for cube in cubes(row.layout)}, self.bits * row.size / 8
        for _, cost, name in sorted(offers, reverse=True):
            if cost <= room:
                room -= cost
                ranks[name] += 1
        bases, nibbles, octets = [np.zeros(0, np.uint16)], [np.zeros(0, np.uint8)], [b""]
        for cube in cubes(row.layout):
            rank, matrix = ranks[cube.name], _matrix(cube, values)
            if rank and cube.turns:
                left, left_bases = _nibbles_of(lefts[cube.name][:, :rank])
                # The best Q for P as the receiver has it.
                fitted = np.linalg.lstsq(_from_nibbles(left, left_bases), matrix, rcond=None)[0].T
                right, right_bases = _nibbles_of(fitted)
                nibbles += [left.ravel(), right.ravel()]
                bases += [left_bases, right_bases]
            elif rank:
                base = scales.bases(np.array([np.abs(matrix).max() / 127], np.float32))
                step = np.maximum(scales.widened(base), np.float32(1e-30))
                octets.append(np.round(matrix / step).astype(np.int8).tobytes())
                bases.append(base)
        low = np.concatenate(nibbles)
        low = np.append(low, np.zeros(len(low) % 2, np.uint8))
        packed = (low[::2] | low[1::2] << 4).tobytes()
        shown = bytes(ranks.values()) + np.concatenate(bases).astype("<u2").tobytes()
        return entropy.compress(shown + packed + b"".join(octets))

    def load(self, data: memoryview, row: Row) -> np.ndarray:
        """As `BufferCodec.load`, float32 [row.size]."""
        shapes = cubes(row.layout)
        plain = entropy.decompress_most(data, self.row_bytes(row)[1])
        ranks, at = dict(zip([c.name for c in shapes], plain[: len(shapes)], strict=True)), len(shapes)
        sent = [cube for cube in shapes if ranks[cube.name]]
        steps = sum(2 * ranks[c.name] if c.turns else 1 for c in sent)
        bases, at = np.frombuffer(plain, "<u2", steps, at), at + 2 * steps
        codes = sum(ranks[c.name] * sum(_sides(c)) for c in sent if c.turns)
        packed, at = np.frombuffer(plain, np.uint8, -(-codes // 2), at), at - (-codes // 2)
        low, octets = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1), plain[at:]
        values, steps, codes, at = np.zeros(row.size, np.float32), 0, 0, 0
        for cube in sent:
            if not cube.turns:
                whole = np.frombuffer(octets, np.int8, cube.size, at).astype(np.float32)
                cube.of(values)[...] = (whole * scales.widened(bases[steps : steps + 1])).reshape(cube.shape)
                steps, at = steps + 1, at + cube.size
                continue
            factors = []
            for side in _sides(cube):
                rank, numbers = ranks[cube.name], side * ranks[cube.name]
                own = low[codes : codes + numbers].reshape(side, rank)
                factors.append(_from_nibbles(own, bases[steps : steps + rank]))
                steps, codes = steps + rank, codes + numbers
            cube.of(values)[...] = (factors[0] @ factors[1].T).reshape(cube.shape)
        return values

    def row_bytes(self, row: Row) -> tuple[int, int]:
        """Least and most bytes, as `BufferCodec.row_bytes`."""
        return 1, 2 + len(row.layout) + int(self.bits * row.size / 8)


def _sides(cube: Cube) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix."""
    return cube.shape[0], cube.size // cube.shape[0]


def _matrix(cube: Cube, buffer: np.ndarray) -> np.ndarray:
    """A tensor of a buffer [size] as [out, taps * in]; a view."""
    return cube.of(buffer).reshape(_sides(cube))


def _nibbles_of(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of 4 bits, uint8 [n, k], and bases of their columns' steps, uint16 [k]: 16 levels, best for a normal distribution."""
    bases = scales.bases((0.3352 * columns.std(axis=0)).astype(np.float32))
    step = np.maximum(scales.widened(bases), np.float32(1e-30))
    return (np.clip(np.floor(columns / step), -8, 7) + 8).astype(np.uint8), bases


def _from_nibbles(codes: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """The inverse of `_nibbles_of`, float32 [n, k]."""
    return ((codes.astype(np.float32) - 7.5) * scales.widened(bases)).astype(np.float32)


# --- synthetic inputs ---


@dataclass(frozen=True)
class Synthetic:
    """What the test of synthetic inputs came to.

    Args:
        cosines: with the change, after each third of the steps.
        rounded: at the end, images and weights in bytes.
        num_bytes: of a packet of them.
    """

    cosines: list[float]
    rounded: float
    num_bytes: int


def synthetic_inputs(
    network: torch.nn.Module,
    process: Process,
    layout: FlatLayout,
    change: np.ndarray,
    labels: Sequence[int],
    steps: int,
    seed: int,
) -> Synthetic:
    """Images whose gradient of the training loss, at the network's weights, points along a change [size].

    Source: arXiv 2502.03092 (E-3SFC, whose decoder takes this one gradient), by Adam on 1 - |cosine|. Free of charge are the
    timesteps, spread evenly, and the noise, from a shared seed; each image has a class, 1 byte, and a weight, 1 byte, beside its pixels
    of 1 byte. Two scales of 2 bytes come with them; how long the change is, the weights say.

    Args:
        network: called as diffusers' UNet2DModel, at the weights that the client received.
        labels: class of each image.
        steps: of Adam.
    """
    generator = torch.Generator().manual_seed(seed)
    count, parameters = len(labels), dict(network.named_parameters())
    goals = [-torch.from_numpy(Flat(layout, change)[name].copy()) for name in parameters]
    norm, classes = float(np.linalg.norm(change)), torch.tensor(labels)
    level = (torch.arange(count) + 0.5) / count * len(process.alpha_bar)
    noise = torch.randn((count, 1, 8, 8), generator=generator)
    draw = StepDraw(level.long(), noise, torch.zeros(count, dtype=torch.bool))

    def cosine(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        losses = process.losses_of(network, process.ask(images, classes, draw))
        total = (weights * losses).sum()
        found = torch.autograd.grad(total, list(parameters.values()), create_graph=images.requires_grad)
        dot = sum((g * goal).sum() for g, goal in zip(found, goals, strict=True))
        return (dot / (norm * torch.sqrt(sum(g.square().sum() for g in found) + 1e-30))).abs()

    images = (0.5 * torch.randn((count, 1, 8, 8), generator=generator)).requires_grad_()
    weights = torch.ones(count, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [images], "lr": 0.05}, {"params": [weights], "lr": 0.02}])
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    cosines = []
    with sdpa_kernel(SDPBackend.MATH):  # the only one whose gradient has a gradient
        for _ in range(steps):
            optimizer.zero_grad()
            reached = cosine(images, weights)
            (1 - reached).backward(inputs=[images, weights])
            optimizer.step()
            decay.step()
            cosines.append(float(reached.detach()))
        rounded = float(cosine(_in_bytes(images.detach()), _in_bytes(weights.detach())))
    return Synthetic(cosines[steps // 3 - 1 :: steps // 3], rounded, HEAD.size + 2 * 2 + count * (64 + 2))


def _in_bytes(values: torch.Tensor) -> torch.Tensor:
    """Rounded to 255 levels, [...]."""
    step = values.abs().max() / 127
    return torch.round(values / step) * step
