"""Label skew and quantity skew as NIID-Bench draws them, so that FedDiffuse's splits come out image by image.

Sources: arXiv:2102.02079, by the code of its authors; arXiv:2406.12575 uses both with beta = 0.5 and seed
2023. Every call of the generator is one of theirs in their order: another order is another split. Departs
from them: the generator is its own and not numpy's global one, redrawing ends, and a client's images are
sorted, not shuffled.
"""

from __future__ import annotations

import numpy as np

from osmotic.errors import ConfigError

LEAST = 10  # images of the smallest client, else the draw is made anew

# Theirs go on for ever. These take 1 to 4 seconds for 60,000 images and up to 100 clients: an l-skew draw
# shuffles them all, a q-skew one draws a number per client. With 100 clients and beta 0.5 one q-skew draw in
# 30,000 will do.
L_DRAWS = 1_000
Q_DRAWS = 100_000


def l_skew(labels: np.ndarray, clients: int, beta: float, seed: int) -> list[np.ndarray]:
    """Each class is cut by shares q ~ Dirichlet(beta); who holds an even part already gets no more.

    Args:
        labels: in the order of the file, int [N].
        clients: 1 or more.
        beta: concentration of the shares, > 0; small means more skewed.
        seed: of numpy's legacy generator, in [0, 2^32 - 1].
    Returns: positions of each client's images: sorted int64, disjoint, all N of them, 10 or more each.
    Raises: ConfigError naming `data.clients` if N is below 10 per client, or no draw gives each of them 10.
    """
    check_room(len(labels), clients)
    # The legacy generator, not default_rng: it is the one whose draws their code, and so the published
    # splits, come from.
    rng = np.random.RandomState(seed)
    for _ in range(L_DRAWS):
        owner = _deal_classes(rng, labels, clients, beta)
        sizes = np.bincount(owner, minlength=clients)
        if sizes.min() >= LEAST:
            return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])
    raise _hopeless("l-skew", len(labels), clients, beta, L_DRAWS)


def q_skew(size: int, clients: int, beta: float, seed: int) -> list[np.ndarray]:
    """Images at random, in numbers by shares q ~ Dirichlet(beta): labels stay as they are over all.

    Args:
        size: number of images, N.
        clients, beta, seed: as `l_skew`.
    Returns: as `l_skew`.
    Raises: as `l_skew`.
    """
    check_room(size, clients)
    rng = np.random.RandomState(seed)
    # One order for all draws, as theirs: only the shares are drawn again.
    order = rng.permutation(size)
    for _ in range(Q_DRAWS):
        shares = rng.dirichlet(np.repeat(beta, clients))
        shares = shares / shares.sum()  # sums to 1 but for rounding; theirs does it, and it can move a cut
        # false for NaN too, which numpy draws where beta is too small for a float
        if shares.min() * size >= LEAST:
            return [np.sort(part) for part in np.split(order, _cuts(shares, size))]
    raise _hopeless("q-skew", size, clients, beta, Q_DRAWS)


def empty_handed(labels: np.ndarray, clients: int, beta: float, seed: int) -> int:
    """How many clients one draw of l-skew leaves without an image; takes milliseconds for 10,000 clients.

    Args: as `l_skew`.
    """
    owner = _deal_classes(np.random.RandomState(seed), labels, clients, beta)
    return clients - len(np.unique(owner))


def _deal_classes(rng: np.random.RandomState, labels: np.ndarray, clients: int, beta: float) -> np.ndarray:
    """One draw of l-skew: whose each image is, int64 [N]; empty if nobody could take a class."""
    owner = np.empty(len(labels), np.int64)
    sizes = np.zeros(clients, np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rng.shuffle(of_class)
        # The balancing step of arXiv:2102.02079's code: who holds N / clients images or more takes no share
        # of this class.
        shares = rng.dirichlet(np.repeat(beta, clients)) * (sizes < len(labels) / clients)
        total = shares.sum()
        if not total > 0:  # beta so small that the shares of all who have room are 0, or NaN
            return np.empty(0, np.int64)
        # side="right": an image on a cut goes to the piece that begins there, as np.split has it.
        takers = np.searchsorted(_cuts(shares / total, len(of_class)), np.arange(len(of_class)), side="right")
        owner[of_class] = takers
        sizes += np.bincount(takers, minlength=clients)
    return owner


def _cuts(shares: np.ndarray, size: int) -> np.ndarray:
    """Where each client's piece of `size` images ends, rounded down; the last takes what is left."""
    return (np.cumsum(shares) * size).astype(np.int64)[:-1]


def check_room(size: int, clients: int) -> None:
    """Raises ConfigError naming `data.clients` if `size` images are not enough for 10 each."""
    if LEAST * clients > size:
        rule = f"must be at most {size // LEAST}, so that each has {LEAST} of the {size} training images"
        raise ConfigError("data.clients", clients, rule)


def _hopeless(name: str, size: int, clients: int, beta: float, draws: int) -> ConfigError:
    return ConfigError(
        "data.clients",
        clients,
        f"{name} with data.dirichlet_alpha = {beta:g} leaves a client with fewer than {LEAST} images "
        f"in each of {draws} draws of {size} images: fewer clients or a larger alpha",
    )
