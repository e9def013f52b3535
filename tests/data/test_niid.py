"""l-skew and q-skew: FedDiffuse's splits of Fashion-MNIST, number by number, and what a draw must keep.

The numbers are of seed 2023 and beta 0.5 (arXiv:2406.12575): the class table for five clients is the one its authors
plot, the sizes for two and ten are of the same code. Labels: `README.md` beside this file.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.config.schema import DataConfig
from osmotic.data import niid
from osmotic.data.dataset import Split
from osmotic.data.partition import class_counts, partition
from osmotic.errors import ConfigError

LABELS = np.load(Path(__file__).parent / "fashion_mnist_labels.npz")["labels"].astype(np.int64)
SIZE, BETA, SEED = 60_000, 0.5, 2023

L_SIZES = {
    2: [33395, 26605],
    5: [13446, 7913, 12357, 13838, 12446],
    10: [6220, 3827, 7301, 6017, 8622, 6793, 8063, 4269, 4637, 4251],
}
Q_SIZES = {
    2: [58504, 1496],
    5: [529, 13, 46087, 11898, 1473],
    10: [48, 8668, 1566, 6056, 3105, 4648, 5149, 117, 1186, 29457],
}
L_CLASSES = [
    [4888, 1316, 378, 936, 146, 1177, 96, 2944, 1565, 0],
    [1, 259, 225, 244, 2378, 72, 44, 919, 728, 3043],
    [243, 121, 2622, 4584, 1010, 2481, 3, 1293, 0, 0],
    [2, 3979, 1959, 149, 0, 2265, 5484, 0, 0, 0],
    [866, 325, 816, 87, 2466, 5, 373, 844, 3707, 2957],
]


def split_of(labels: np.ndarray | None, size: int = 0) -> Split:
    size = size if labels is None else len(labels)
    return Split(images=np.zeros((size, 2, 2, 1), np.uint8), labels=labels)


def lists(parts: list[np.ndarray]) -> list[list[int]]:
    return [part.tolist() for part in parts]


@pytest.mark.parametrize("clients", [2, 5, 10])
def test_the_published_sizes_come_out(clients: int) -> None:
    assert [len(part) for part in niid.l_skew(LABELS, clients, BETA, SEED)] == L_SIZES[clients]
    assert [len(part) for part in niid.q_skew(SIZE, clients, BETA, SEED)] == Q_SIZES[clients]


def test_the_published_class_table_comes_out() -> None:
    assert class_counts(niid.l_skew(LABELS, 5, BETA, SEED), LABELS, 10).tolist() == L_CLASSES


def test_quantity_skew_keeps_the_classes_even() -> None:
    largest = niid.q_skew(SIZE, 5, BETA, SEED)[2]
    shares = np.bincount(LABELS[largest], minlength=10) / len(largest)
    # 46,087 drawn of 60,000 without return: a standard deviation of 0.0007; five of them
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.0035)


def test_the_partitions_are_these_splits_in_the_order_of_the_file() -> None:
    split = split_of(LABELS)
    keys = {"clients": 5, "partition_seed": SEED}
    by_label = partition(DataConfig(partition="l-skew", **keys), split)
    by_number = partition(DataConfig(partition="q-skew", **keys), split)
    assert lists(by_label) == lists(niid.l_skew(LABELS, 5, BETA, SEED))
    assert lists(by_number) == lists(niid.q_skew(SIZE, 5, BETA, SEED))
    beta = partition(DataConfig(partition="q-skew", dirichlet_alpha=3.0, **keys), split)
    assert lists(beta) == lists(niid.q_skew(SIZE, 5, 3.0, SEED))


@pytest.mark.parametrize("clients", [2, 5, 7, 10])
def test_iid_is_the_papers_too_a_permutation_cut_evenly(clients: int) -> None:
    parts = partition(
        DataConfig(partition="iid", clients=clients, partition_seed=SEED), split_of(None, 60_001)
    )
    order = np.random.RandomState(SEED).permutation(60_001)
    assert lists(parts) == [sorted(part.tolist()) for part in np.array_split(order, clients)]


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(["l-skew", "q-skew"]), clients=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_parts_are_sorted_disjoint_complete_large_enough_and_repeatable(
    name: str, clients: int, seed: int
) -> None:
    split = split_of(np.arange(1000) % 10)
    cfg = DataConfig(partition=name, clients=clients, partition_seed=seed)
    parts = partition(cfg, split)
    assert len(parts) == clients and min(map(len, parts)) >= 10
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(1000))
    assert lists(partition(cfg, split)) == lists(parts)


@pytest.mark.parametrize("name", ["l-skew", "q-skew"])
def test_another_seed_gives_another_split(name: str) -> None:
    split = split_of(np.arange(1000) % 10)
    one, two = (partition(DataConfig(partition=name, clients=3, partition_seed=s), split) for s in (0, 1))
    assert lists(one) != lists(two)


@pytest.mark.parametrize("name", ["l-skew", "q-skew"])
def test_the_global_generator_is_neither_read_nor_moved(name: str) -> None:
    cfg, split = DataConfig(partition=name, clients=3), split_of(np.arange(1000) % 10)
    np.random.seed(1)
    one = partition(cfg, split)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    assert lists(partition(cfg, split)) == lists(one)


def test_a_client_with_its_even_part_gets_no_more() -> None:
    # one class of 10 images after another: a client may pass its 250 by what one class gives it, at most 10
    parts = niid.l_skew(np.repeat(np.arange(100), 10), 4, BETA, SEED)
    assert max(map(len, parts)) < 250 + 10


def test_exactly_ten_images_each_are_enough() -> None:
    assert [len(part) for part in niid.q_skew(10, 1, BETA, SEED)] == [10]
    assert [len(part) for part in niid.l_skew(np.zeros(10, np.int64), 1, BETA, SEED)] == [10]


@pytest.mark.parametrize(
    ("cfg", "split", "message"),
    [
        ({"partition": "l-skew"}, split_of(None, 400), "data.partition = 'l-skew': needs labels"),
        *[
            ({"partition": name, "clients": 10}, split_of(np.arange(99) % 10), "data.clients = 10: must be at most 9, ")
            for name in ("l-skew", "q-skew")
        ],
        *[
            (
                # whole classes, 10 for 20 clients, or shares that are 0 or not a number
                {"partition": name, "clients": 20, "dirichlet_alpha": alpha},
                split_of(np.arange(400) % 10),
                f"data.clients = 20: {name} with data.dirichlet_alpha = {alpha} leaves .* draws of 400 images: fewer",
            )
            for name in ("l-skew", "q-skew")
            for alpha in (0.001, 1e-300)
        ],
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_told_in_one_line(cfg: dict, split: Split, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ConfigError, match=message) as caught:
        warnings.simplefilter("error")
        partition(DataConfig(**cfg), split)
    assert "\n" not in str(caught.value)
    assert caught.value.key in ("data.clients", "data.partition")


def test_quantity_skew_needs_no_labels() -> None:
    assert len(partition(DataConfig(partition="q-skew", clients=4), split_of(None, 1000))) == 4
