"""Partitions: who holds what, checked by hand-worked counts and by the identities every partition keeps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.config.schema import DataConfig
from osmotic.data import partition as p
from osmotic.data import strata
from osmotic.data.dataset import Split
from osmotic.errors import ConfigError


def split_of(labels: list[int] | np.ndarray | None, size: int = 0, **columns: list[str] | list[int]) -> Split:
    size = size if labels is None else len(labels)
    return Split(
        images=np.zeros((size, 2, 2, 1), np.uint8),
        labels=None if labels is None else np.asarray(labels, np.int64),
        columns={name: np.asarray(values) for name, values in columns.items()},
    )


def sizes(parts: list[np.ndarray]) -> list[int]:
    return [len(part) for part in parts]


LABELS = np.arange(400) % 10  # 40 images of each of 10 classes
BALANCED = split_of(LABELS)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["iid", "linear", "dirichlet", "shards"]),
    clients=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_are_sorted_disjoint_complete_and_repeatable(name: str, clients: int, seed: int) -> None:
    cfg = DataConfig(partition=name, clients=clients, partition_seed=seed)
    parts = p.partition(cfg, BALANCED)
    assert len(parts) == clients and min(sizes(parts)) >= 1
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    # 400 images in 2 to 16 shards of at most ceil(400 / shards) images: the last one takes what is left
    assert sorted(np.concatenate(parts)) == list(range(400))
    again = p.partition(cfg, BALANCED)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "pathological", "linear"])
def test_another_seed_gives_another_split(name: str) -> None:
    one, two = (p.partition(DataConfig(partition=name, partition_seed=s), BALANCED) for s in (0, 1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one, two, strict=True))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    cfg = DataConfig(clients=5)
    np.random.seed(1)
    one = p.partition(cfg, BALANCED)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    np.random.seed(2)
    assert [part.tolist() for part in p.partition(cfg, BALANCED)] == [part.tolist() for part in one]


def test_iid_clients_hold_equal_numbers_in_no_order_of_the_file() -> None:
    parts = p.partition(DataConfig(partition="iid", clients=3), split_of([0] * 5 + [1] * 5))
    assert sorted(sizes(parts)) == [3, 3, 4]  # 10 = 4 + 3 + 3
    assert any(np.diff(part).max() > 1 for part in parts)


def test_linear_sizes_grow_by_one_unit_per_client() -> None:
    # 1 + 2 + 3 + 4 = 10 units of 10 images
    assert sizes(p.partition(DataConfig(partition="linear", clients=4), split_of(None, 100))) == [
        10,
        20,
        30,
        40,
    ]


def test_exponential_sizes_grow_by_e_per_client() -> None:
    # e, e^2, e^3 = 2.718, 7.389, 20.086 of 30.193: 9.003, 24.473 and 66.524 of 100; cut, and the last takes the rest
    assert sizes(p.partition(DataConfig(partition="exponential", clients=3), split_of(None, 100))) == [
        9,
        24,
        67,
    ]


def test_two_shards_of_one_class_size_give_each_client_at_most_two_classes() -> None:
    # 400 images, 10 clients with 2 shards: shards of 20 images, two per class of 40
    parts = p.partition(DataConfig(partition="shards"), BALANCED)
    counts = p.class_counts(parts, LABELS, 10)
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert set(counts.ravel().tolist()) <= {0, 20, 40}


def test_shards_that_cannot_be_filled_leave_a_remainder_and_say_so() -> None:
    # 5 clients with 2 shards of 14 images: shards of 2 would be 7 only, so 10 shards of 1, 4 images unused
    with pytest.warns(UserWarning, match="4 of 14 images are held by no client"):
        parts = p.partition(DataConfig(partition="shards", clients=5), split_of([0, 1] * 7))
    assert sizes(parts) == [2] * 5


def test_pathological_clients_hold_exactly_their_number_of_classes() -> None:
    cfg = DataConfig(partition="pathological", clients=10, classes_per_client=3)
    parts = p.partition(cfg, BALANCED)
    counts = p.class_counts(parts, LABELS, 10)
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert counts.sum() == 400  # 10 clients cover all 10 classes


def test_pathological_says_which_images_no_client_holds() -> None:
    # 2 clients with 1 class of 40 each: 8 of 10 classes, 320 images, stay unused
    cfg = DataConfig(partition="pathological", clients=2, classes_per_client=1)
    with pytest.warns(UserWarning, match="320 of 400 images are held by no client, 8 classes among them"):
        assert sizes(p.partition(cfg, BALANCED)) == [40, 40]


def test_small_dirichlet_alpha_is_more_skewed_and_a_large_one_is_even() -> None:
    def largest_share(alpha: float) -> float:
        parts = p.partition(DataConfig(dirichlet_alpha=alpha, clients=5), BALANCED)
        counts = p.class_counts(parts, LABELS, 10)
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_share(1e6) == pytest.approx(1 / 5, abs=0.026)  # 8 of 40, at most one more by rounding
    assert largest_share(0.05) > 0.7 > largest_share(1.0)


@pytest.mark.parametrize(("alpha", "clients"), [(0.1, 10), (0.05, 10), (0.1, 50), (0.5, 100)])
def test_skewed_dirichlet_leaves_nobody_empty(alpha: float, clients: int) -> None:
    split = split_of(np.arange(1437) % 10)
    parts = p.partition(DataConfig(dirichlet_alpha=alpha, clients=clients), split)
    assert len(parts) == clients and min(sizes(parts)) >= 1 and sum(sizes(parts)) == 1437


def test_dirichlet_that_cannot_serve_every_client_is_an_error() -> None:
    split = split_of(np.arange(1437) % 10)
    with pytest.raises(
        ConfigError, match=r"data\.clients = 100: dirichlet with data\.dirichlet_alpha = 0\.05"
    ):
        p.partition(DataConfig(dirichlet_alpha=0.05, clients=100), split)


def test_by_column_makes_one_client_per_value_in_sorted_order() -> None:
    split = split_of([0, 1, 0, 1, 0], hospital=["b", "a", "c", "a", "b"])
    parts = p.partition(DataConfig(partition="by:hospital", clients=99), split)
    assert [part.tolist() for part in parts] == [[1, 3], [0, 4], [2]]


def test_by_column_takes_numbers_and_labels(capsys: pytest.CaptureFixture[str]) -> None:
    split = split_of([0, 1, 0, 1], site=[7, 7, 3, 3])
    assert [q.tolist() for q in p.partition(DataConfig(partition="by:site"), split)] == [[2, 3], [0, 1]]
    assert [q.tolist() for q in p.partition(DataConfig(partition="by:label"), split)] == [[0, 2], [1, 3]]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("cfg", "split", "message"),
    [
        ({"partition": "dirichlt"}, BALANCED, "data.partition = 'dirichlt': must be one of iid, .*nearest.*dirichlet"),
        ({"partition": "by:"}, BALANCED, "data.partition = 'by:': must be one of"),
        ({"partition": "by:sit"}, split_of([0, 1], site=[1, 2]), "no such column; there are site, label .*by:site"),
        ({"partition": "by:site"}, split_of(None, 4), "the images have no columns"),
        ({"clients": 401}, BALANCED, "data.clients = 401: must be at most the 400 training images"),
        ({"partition": "pathological", "classes_per_client": 11}, BALANCED, "data.classes_per_client = 11: .* 10 cla"),
        ({"partition": "pathological", "clients": 400}, BALANCED, "data.classes_per_client = 2: 400 clients need more"),
        ({"partition": "shards", "shards_per_client": 50}, BALANCED, "data.shards_per_client = 50: times data.clients"),
        ({"partition": "exponential", "clients": 20}, BALANCED, "data.clients = 20: exponential leaves a client"),
        ({"partition": "exponential", "clients": 900}, split_of(None, 1000), "data.clients = 900: exponential leaves"),
        ({"partition": "linear", "clients": 100}, BALANCED, "data.clients = 100: linear leaves a client without"),
        *[
            ({"partition": name, "clients": 2}, split_of(None, 9), f"data.partition = '{name}': needs labels")
            for name in ("dirichlet", "shards", "pathological", "by:label")
        ],
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_told_in_one_line(cfg: dict, split: Split, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        p.partition(DataConfig(**cfg), split)
    assert "\n" not in str(caught.value)


def test_the_name_is_checked_without_heavy_imports() -> None:
    code = (
        "import sys; from osmotic.data.partition import validate_name; validate_name('by:label')\n"
        "print([m for m in ('torch', 'datasets', 'flwr_datasets', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_hold_out_keeps_the_classes_shares() -> None:
    # 20 images of class 0 and 10 of class 1, a fifth of them: 4 and 2
    labels = np.array([0] * 20 + [1] * 10)
    train, test = p.hold_out(np.arange(30), 0.2, labels, seed=0)
    assert np.bincount(labels[test]).tolist() == [4, 2]
    assert sorted([*train, *test]) == list(range(30))


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_hold_out_divides_the_clients_images_and_leaves_one_to_train(
    labels: list[int], share: float, seed: int
) -> None:
    indices = np.arange(len(labels)) * 2  # a client's positions among others'
    spread = np.repeat(np.array(labels), 2)
    train, test = p.hold_out(indices, share, spread, seed)
    assert len(train) >= 1 and abs(len(test) - share * len(labels)) <= 1
    assert sorted([*train, *test]) == indices.tolist()
    assert [x.tolist() for x in p.hold_out(indices, share, spread, seed)] == [train.tolist(), test.tolist()]


def test_hold_out_of_nothing_is_empty_and_works_without_labels() -> None:
    train, test = p.hold_out(np.array([3, 5]), 0.0, None, seed=0)
    assert train.tolist() == [3, 5] and test.tolist() == [] and test.dtype == np.int64
    train, test = p.hold_out(np.arange(10), 0.3, None, seed=0)
    assert (len(train), len(test)) == (7, 3)
    train, test = p.hold_out(np.array([4]), 0.9, None, seed=0)
    assert train.tolist() == [4] and test.tolist() == []


def test_class_counts_by_hand() -> None:
    labels = np.array([0, 2, 2, 1])
    counts = p.class_counts([np.array([0, 1, 2]), np.array([3])], labels, 4)
    assert counts.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0]] and counts.dtype == np.int64


def test_strata_give_the_largest_remainders_first_and_spare_the_last_image() -> None:
    labels = np.array([0] * 7 + [1] * 4 + [2])
    # 4 of 12: quotas 7/3, 4/3, 1/3 = 2, 1, 0 and one over; all remainders are 1/3, but class 2 has a single image
    for seed in range(10):
        drawn = strata.draw(labels, 12, 4, np.random.default_rng(seed))
        assert np.bincount(labels[drawn], minlength=3).tolist() in ([3, 1, 0], [2, 2, 0])


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "pathological", "linear", "by:label"])
def test_parts_are_those_of_flwr_datasets_on_a_data_set_of_its_own_kind(name: str) -> None:
    import datasets
    from flwr_datasets import partitioner as flwr

    labels = np.random.default_rng(7).integers(0, 5, 301)
    cfg = DataConfig(partition=name, clients=9, partition_seed=3)
    order = np.random.RandomState(3).permutation(len(labels))
    # as flwr-datasets' own documentation uses it; 18 shards, so of 17 images, the last one shorter
    theirs = {
        "iid": flwr.IidPartitioner(9),
        "dirichlet": flwr.DirichletPartitioner(9, "key", 0.5, min_partition_size=1, seed=3),
        "shards": flwr.ShardPartitioner(9, "key", shard_size=17, keep_incomplete_shard=True, seed=3),
        "pathological": flwr.PathologicalPartitioner(9, "key", 2, "first-deterministic", seed=3),
        "linear": flwr.LinearPartitioner(9),
        "by:label": flwr.NaturalIdPartitioner("key"),
    }[name]
    theirs.dataset = datasets.Dataset.from_dict({"key": labels[order], "position": order})
    wanted = [sorted(theirs.load_partition(i)["position"]) for i in range(theirs.num_partitions)]
    parts = p.partition(cfg, Split(np.zeros((301, 2, 2, 1), np.uint8), labels.astype(np.int64)))
    assert [part.tolist() for part in parts] == wanted


def test_clients_are_not_given_a_table_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # A selection of `datasets` takes a millisecond: 10 s for 10,000 clients.
    import datasets

    calls: list[int] = []
    select = datasets.Dataset.select
    monkeypatch.setattr(datasets.Dataset, "select", lambda *a, **k: (calls.append(1), select(*a, **k))[1])
    split = Split(np.zeros((1200, 2, 2, 1), np.uint8), np.arange(1200) % 3)
    for name in ("iid", "shards", "pathological"):
        assert len(p.partition(DataConfig(partition=name, clients=300), split)) == 300
    assert not calls


def test_thousands_of_clients_that_no_draw_could_serve_are_refused_before_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 110 draws over 10,000 clients of 5 to 6 images took two minutes to say so.
    def drawn(*args: object) -> None:
        raise AssertionError("a draw was made")

    monkeypatch.setattr(p, "_partitioner", drawn)
    split = split_of(np.arange(56_000) % 10)
    with pytest.raises(ConfigError, match=r"leaves about [\d,]+ of them without any of the 56,000 images"):
        p.partition(DataConfig(partition="dirichlet", clients=10_000), split)
    # Where a draw may well serve everybody, draws are made: 400 images, 20 clients.
    with pytest.raises(AssertionError, match="a draw was made"):
        p.partition(DataConfig(partition="dirichlet", clients=20), BALANCED)
