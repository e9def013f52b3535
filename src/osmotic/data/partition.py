"""Which client holds which training images: partitioners of flwr-datasets and of NIID-Bench, on labels alone.

Partitioners: https://flower.ai/docs/datasets. Dirichlet is arXiv:1905.12022, shards are arXiv:1602.05629,
l-skew and q-skew are arXiv:2102.02079.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic import seeds
from osmotic.config.keys import nearest
from osmotic.config.schema import DataConfig
from osmotic.data import dealt, niid, strata
from osmotic.data.dataset import Split
from osmotic.errors import ConfigError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

BY_LABEL = ("dirichlet", "shards", "pathological", "l-skew")
NAMES = ("iid", *BY_LABEL, "q-skew", "linear", "exponential")
DIRICHLET_CALLS = 10  # of 11 draws each
HOPELESS = 25  # clients without images in one draw, from which on no draw is made to serve them


def validate_name(name: str) -> None:
    """Refuses a partition that there is none of; imports nothing.

    Args:
        name: a name of NAMES, `by:` and a column, or `auto`.
    Raises: ConfigError naming `data.partition`.
    """
    if name in ("auto", *NAMES) or (name.startswith("by:") and len(name) > 3):
        return
    rule = f"must be one of {', '.join(NAMES)} or by:COLUMN"
    raise ConfigError("data.partition", name, rule, nearest(name, (*NAMES, "by:label")))


def settled(cfg: DataConfig, labelled: bool) -> DataConfig:
    """The keys with a name in place of `auto`: dirichlet where there are labels, else iid."""
    return replace(cfg, partition="dirichlet" if labelled else "iid") if cfg.partition == "auto" else cfg


def check_clients(cfg: DataConfig, size: int) -> None:
    """Refuses more clients than `size` training images can serve; reads no image.

    Raises: ConfigError naming `data.clients`.
    """
    if cfg.partition.startswith("by:"):
        return
    if cfg.partition in ("l-skew", "q-skew"):
        niid.check_room(size, cfg.clients)
    elif cfg.clients > size:
        raise ConfigError("data.clients", cfg.clients, f"must be at most the {size} training images")


def refuse_label_partition(name: str) -> None:
    """Refuses a partition by labels: for images that have none.

    Raises: ConfigError naming `data.partition`.
    """
    if name in BY_LABEL or name in ("by:label", "by:labels"):
        raise ConfigError("data.partition", name, "needs labels, and the images have none: use iid or q-skew")


def partition(cfg: DataConfig, split: Split, remember: bool = False) -> list[np.ndarray]:
    """Positions of each client's images in `split`: sorted int64, disjoint, one image or more each.

    The images are put into a random order first, so that clients of one label do not follow the order of the
    file; `l-skew` and `q-skew` are drawn in that order, as their authors do. `by:COLUMN` makes one client per
    distinct value, in sorted order, and does not look at `data.clients`. Every image is given to a client,
    but for two cases, both with a warning: `pathological` leaves out the classes that no client holds, and
    `shards` a remainder smaller than the number of shards, where the images cannot be cut into that many
    shards of one size and a shorter last one.

    Args:
        cfg: `partition`, its own keys, `clients` and `partition_seed` are read.
        split: labels int64 [N] and columns [N]; the images are not looked at.
        remember: whether what flwr-datasets has dealt is looked for, and left, in the cache folder.
    Returns: one array of positions a client, in the order client-000, client-001, ..., client-999, client-1000, ...
    Raises: ConfigError naming `data.partition` (unknown, or needs labels or a column that are not there),
        `data.clients` (more than images, or a client would have none, with `l-skew` and `q-skew` fewer than
        10), `data.classes_per_client` or `data.shards_per_client`.
    """
    validate_name(cfg.partition)
    cfg = settled(cfg, split.labels is not None)
    keys = _keys(cfg, split)
    check_clients(cfg, len(keys))
    _check_counts(cfg, keys)
    match cfg.partition:
        case "l-skew":
            return niid.l_skew(keys, cfg.clients, cfg.dirichlet_alpha, cfg.partition_seed)
        case "q-skew":
            return niid.q_skew(len(keys), cfg.clients, cfg.dirichlet_alpha, cfg.partition_seed)
    # Legacy generator and order are part of the format: another would deal other images for the same
    # `partition_seed`.
    order = np.random.RandomState(cfg.partition_seed).permutation(len(keys))
    with _quiet():
        # `iid` is dealt sooner than read.
        remember = remember and cfg.partition != "iid"
        found = dealt.remembered(cfg, keys[order], _run) if remember else _run(cfg, keys[order])
        parts = [np.sort(order[part]) for part in found]
    if min(map(len, parts)) < 1:
        raise ConfigError("data.clients", cfg.clients, f"{cfg.partition} leaves a client without images")
    _warn_of_unused_images(cfg, keys, parts)
    return parts


def divide(cfg: DataConfig, split: Split) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each client its training positions and its own held-out ones, both sorted; the second may be empty.

    Args:
        cfg: as `partition`, and `holdout`, in [0, 0.9].
        split: labels int64 [N] and columns [N].
    Returns: (int64 [n], int64 [k]) a client.
    Raises: ConfigError as `partition`.
    """
    parts = partition(cfg, split, remember=True)
    if cfg.holdout == 0:
        return [(part, part[:0]) for part in parts]
    # A stream for each client, of the split's seed and not of the run's: runs of several seeds share their
    # test images.
    return [
        hold_out(
            part,
            cfg.holdout,
            split.labels,
            seeds.integer(cfg.partition_seed, seeds.HOLDOUT, 0, f"client-{i:03d}"),
        )
        for i, part in enumerate(parts)
    ]


def hold_out(
    indices: np.ndarray, share: float, labels: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) positions of one client, sorted int64; together they are `indices`.

    `share` of the images, rounded to the nearest count, is held out, each class in proportion as far as the
    counts allow; one training image stays always.

    Args:
        indices: the client's positions, int64 [n], n >= 1.
        share: in [0, 1).
        labels: of the whole split, int64 [N], or None.
        seed: of the draw.
    """
    count = held_out(len(indices), share)
    own = None if labels is None else labels[indices]
    test = strata.draw(own, len(indices), count, np.random.default_rng(seed))
    kept = np.ones(len(indices), bool)
    kept[test] = False
    return np.sort(indices[kept]), np.sort(indices[test])


def held_out(images: int, share: float) -> int:
    """How many of so many images of a client are held out; one training image stays always."""
    # floor(x + 0.5), as round() takes halves to the even side: 0.5 of 1 and of 3 images would go different ways.
    return max(0, min(math.floor(share * images + 0.5), images - 1))


def class_counts(parts: list[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class on each client.

    Args:
        parts: positions of each client's images, int64 [n] each.
        labels: of the whole split, int64 [N] in 0..num_classes-1.
        num_classes: >= 1.
    Returns: int64 [clients, classes].
    """
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts]).astype(np.int64)


def _keys(cfg: DataConfig, split: Split) -> np.ndarray:
    """What the partitioner groups by: a code per image, int64 [N], in the sorted order of the values."""
    by_column = cfg.partition.startswith("by:")
    column = cfg.partition.removeprefix("by:") if by_column else "label"
    if cfg.partition not in BY_LABEL and not by_column:
        return np.zeros(len(split), np.int64)
    # A column that is called "label" itself goes before the labels.
    if column in ("label", "labels") and column not in split.columns:
        if split.labels is None:
            refuse_label_partition(cfg.partition)
        assert split.labels is not None
        values = split.labels
    elif column in split.columns:
        values = split.columns[column]
    else:
        names = [*split.columns, *(["label"] if split.labels is not None else [])]
        close = nearest(column, names)
        rule = f"no such column; there are {', '.join(names)}" if names else "the images have no columns"
        raise ConfigError("data.partition", cfg.partition, rule, f"by:{close}" if close else None)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _check_counts(cfg: DataConfig, keys: np.ndarray) -> None:
    """Refuses more classes or shards a client than there are, by `keys` int64 [N]."""
    # The partitioners would say so too, in their own words and without the key.
    size, classes = len(keys), int(keys.max()) + 1
    if cfg.partition == "pathological" and cfg.classes_per_client > classes:
        raise ConfigError(
            "data.classes_per_client", cfg.classes_per_client, f"must be at most the {classes} classes"
        )
    if cfg.partition == "shards" and cfg.clients * cfg.shards_per_client > size:
        raise ConfigError(
            "data.shards_per_client",
            cfg.shards_per_client,
            f"times data.clients = {cfg.clients} must be at most the {size} training images",
        )


def _run(cfg: DataConfig, keys: np.ndarray) -> list[np.ndarray]:
    """The positions in `keys` that each partition holds."""
    if cfg.partition == "iid":
        return np.array_split(np.arange(len(keys)), cfg.clients)
    if cfg.partition == "dirichlet":
        _refuse_hopeless(cfg, keys)
        # A floor for the smallest client where there is room; where no draw reaches it, one image will do.
        floors = sorted({1, min(10, max(1, len(keys) // (200 * cfg.clients)))}, reverse=True)
        for least in floors:
            partitioner = _partitioner(cfg, len(keys), least)
            partitioner.dataset = _dataset(keys)
            for _ in range(DIRICHLET_CALLS):
                with contextlib.suppress(ValueError):  # none of its draws did: it goes on with new ones
                    return _parts(partitioner)
        raise ConfigError(
            "data.clients",
            cfg.clients,
            f"dirichlet with data.dirichlet_alpha = {cfg.dirichlet_alpha:g} leaves a client without images "
            f"in each of {11 * DIRICHLET_CALLS} draws of {len(keys)} images: fewer clients or a larger alpha",
        )
    partitioner = _partitioner(cfg, len(keys), 1)
    partitioner.dataset = _dataset(keys)
    try:
        return _parts(partitioner)
    except ValueError:
        if cfg.partition == "pathological":
            raise ConfigError(
                "data.classes_per_client",
                cfg.classes_per_client,
                f"{cfg.clients} clients need more parts of one class than it has images: "
                "fewer classes or clients",
            ) from None
        raise ConfigError(
            "data.clients",
            cfg.clients,
            f"{cfg.partition} leaves a client without images when it divides {len(keys)}: fewer clients",
        ) from None


def _refuse_hopeless(cfg: DataConfig, keys: np.ndarray) -> None:
    """Refuses at once what no draw could serve: of thousands of clients, 110 draws would take minutes to find out."""
    # l-skew deals by the same shares, with the same balance. Where one draw leaves so many without, the chance that
    # another leaves nobody is about exp(-HOPELESS).
    without = niid.empty_handed(keys, cfg.clients, cfg.dirichlet_alpha, cfg.partition_seed)
    if without > HOPELESS:
        raise ConfigError(
            "data.clients",
            cfg.clients,
            f"dirichlet with data.dirichlet_alpha = {cfg.dirichlet_alpha:g} leaves about {without:,} of them without any of "
            f"the {len(keys):,} images: fewer clients, a larger alpha, or data.partition = iid",
        )


def _partitioner(cfg: DataConfig, size: int, least: int) -> Partitioner:
    """flwr-datasets' own for this partition; `least` images a client or another draw, for dirichlet."""
    from flwr_datasets import partitioner as flwr

    clients, seed = cfg.clients, cfg.partition_seed
    match cfg.partition:
        case "linear":
            return flwr.LinearPartitioner(clients)
        case "exponential":
            return flwr.ExponentialPartitioner(clients)
        case "dirichlet":
            return flwr.DirichletPartitioner(
                clients, "key", cfg.dirichlet_alpha, min_partition_size=least, seed=seed
            )
        case "pathological":
            # the first class of each client in turn, so that all are held where there are clients enough
            mode = "first-deterministic"
            return flwr.PathologicalPartitioner(clients, "key", cfg.classes_per_client, mode, seed=seed)
        case "shards":
            return _shards(clients, cfg.shards_per_client, size, seed)
    return flwr.NaturalIdPartitioner("key")


def _shards(clients: int, shards_per_client: int, size: int, seed: int) -> Partitioner:
    """Exactly `shards_per_client` each, of all images if one shorter shard allows it, else of equal size."""
    from flwr_datasets.partitioner import ShardPartitioner

    # arXiv:1602.05629, sec. 3: sort by label, cut into shards of one size, deal each client so many. There
    # 60,000 images divide evenly; where they do not, one shorter last shard keeps all images in, if it leaves
    # the number as asked.
    wanted = clients * shards_per_client
    rounded_up = math.ceil(size / wanted)
    if math.ceil(size / rounded_up) == wanted:
        return ShardPartitioner(clients, "key", shard_size=rounded_up, keep_incomplete_shard=True, seed=seed)
    return ShardPartitioner(clients, "key", num_shards_per_partition=shards_per_client, seed=seed)


def _dataset(keys: np.ndarray, positions: np.ndarray | None = None) -> Any:
    """The labels as the partitioners want them, with each image's position, by default 0, 1, ..., to know it by afterwards."""
    import datasets

    class Labels(datasets.Dataset):
        """Answers in arrays, where Arrow tables made anew take half a second per 60,000 labels, and a millisecond per client."""

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            return found[:] if isinstance(key, str) else found

        def sort(self, *_: Any, **__: Any) -> Any:
            """By label, as only labels are sorted by; equal ones keep their order, as there."""
            order = np.argsort(keys, kind="stable")
            return _dataset(keys[order], where[order])

        def select(self, indices: Any, *_: Any, **__: Any) -> Any:
            """What `load_partition` gives, of which only the positions are read."""
            return where[np.asarray(indices, np.int64)]

    where = np.arange(len(keys)) if positions is None else positions
    return Labels.from_dict({"key": keys})


def _parts(partitioner: Partitioner) -> list[np.ndarray]:
    """Positions in the labels that were given, int64 [n] a client."""
    return [partitioner.load_partition(i) for i in range(partitioner.num_partitions)]


@contextlib.contextmanager
def _quiet() -> Any:
    """No progress bars and no warnings: what they would say is checked here and told as one line."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _warn_of_unused_images(cfg: DataConfig, keys: np.ndarray, parts: list[np.ndarray]) -> None:
    # Scores compare with what clients hold, so images that nobody holds change what a score means: never in
    # silence.
    held = np.concatenate(parts)
    unused = len(keys) - len(held)
    if unused:
        classes = int(keys.max()) + 1 - len(np.unique(keys[held]))
        of_classes = f", {classes} classes among them" if classes else ""
        warnings.warn(
            f"data.partition = {cfg.partition!r}: {unused} of {len(keys)} images are held by no client"
            + of_classes,
            stacklevel=3,
        )
