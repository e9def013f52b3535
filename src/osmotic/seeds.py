"""Where all randomness comes from: one seed sequence per purpose, round and client."""

from __future__ import annotations

import hashlib

import numpy as np

# Purposes are fixed numbers: a new one must never move the streams of the others.
WEIGHTS, SAMPLING, TRAINING, IMAGES, METHOD, HOLDOUT, PIECE, CODEC, WATCHED = 1, 2, 3, 4, 5, 6, 7, 8, 9


def word(name: str) -> int:
    """First 8 bytes of the SHA-256 of a client's name, as an integer in [0, 2**64)."""
    # Not Python's `hash`: of a text it differs from process to process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def sequence(run_seed: int, purpose: int, server_round: int = 0, client: str = "") -> np.random.SeedSequence:
    """SeedSequence([run_seed, purpose, server_round, word(client)]).

    Rounds before the first are negative, so modulo 2**32. Raises: ValueError for a negative run_seed.
    """
    return np.random.SeedSequence([run_seed, purpose, server_round % 2**32, word(client)])


def rng(run_seed: int, purpose: int, server_round: int = 0, client: str = "") -> np.random.Generator:
    """A numpy generator of its own for this purpose, round and client. Raises: ValueError as `sequence`."""
    return np.random.default_rng(sequence(run_seed, purpose, server_round, client))


def integer(run_seed: int, purpose: int, server_round: int = 0, client: str = "") -> int:
    """A seed for torch generators, in [0, 2**63). Raises: ValueError as `sequence`."""
    return int(sequence(run_seed, purpose, server_round, client).generate_state(1, np.uint64)[0] >> 1)


def piece_rng(run_seed: int, piece: str, server_round: int, client: str = "") -> np.random.Generator:
    """A piece's own stream, apart from those of training and of every other piece, so that adding one moves no other."""
    return rng(run_seed, PIECE, server_round, f"{piece}/{client}")
