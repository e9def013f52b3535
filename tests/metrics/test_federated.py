"""Per-client scores: the label mix of the pool, nulls, and their aggregates."""

from __future__ import annotations

import numpy as np
import pytest
from metric_stand_ins import frechet_distance, pixel_encoder

from osmotic.metrics.federated import ClientImages, OwnYardstick, RealImages, aggregate, matching


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 2, 2, 1), dtype=np.uint8)


def test_the_largest_part_of_the_pool_in_the_wanted_mix():
    # Pool 4 of class 0, 6 of class 1. Wanted 1 : 3, so t = min(4 / 0.25, 6 / 0.75) = 8: 2 and 6, the first of each.
    pool = np.array([0, 1] * 4 + [1, 1])
    assert matching(pool, np.array([0, 1, 1, 1])).tolist() == [0, 1, 2, 3, 5, 7, 8, 9]


def test_one_class_takes_only_that_class_and_the_pool_s_own_mix_takes_it_all():
    pool = np.array([0, 1, 1, 2])
    assert matching(pool, np.array([1, 1, 1])).tolist() == [1, 2]
    assert matching(pool, np.array([2, 1, 1, 0])).tolist() == [0, 1, 2, 3]


def test_a_class_the_pool_has_none_of_is_left_out_of_the_mix():
    assert matching(np.array([0, 0, 1]), np.array([0, 5])).tolist() == [0, 1]
    assert matching(np.array([0, 0, 1]), np.array([5])).tolist() == []


def yardstick(
    own: np.ndarray,
    labels: np.ndarray | None,
    pool_labels: np.ndarray | None,
    samples: int,
    others: np.ndarray | None = None,
    others_labels: np.ndarray | None = None,
) -> OwnYardstick:
    """Of client 1, which trains on 80 images and is compared with `own`; features are the first four pixels."""
    rest = np.empty((0, 4), np.float32) if others is None else features(others)
    # The others' images first: where the client's own lie must not matter.
    client = ClientImages("client-001", 1, 80, labels, len(rest) + np.arange(len(own)))
    known = None if others_labels is None else np.concatenate([others_labels, np.zeros(len(own), np.int64)])
    real = RealImages(np.concatenate([rest, features(own)]), known)
    return OwnYardstick(client, real, pool_labels, samples)


def features(images: np.ndarray) -> np.ndarray:
    return pixel_encoder().features(images)


def test_an_entry_has_the_scores_of_all_and_own_scores_only_from_fifty_images() -> None:
    pool = images(120, 0)
    few, enough = (
        yardstick(images(count, 2), None, None, 120).score(features(pool), 1.5, 0.25, "before")
        for count in (49, 50)
    )
    assert list(enough) == [
        "client_id", "name", "num_examples", "stage", "fd_all", "fd_own", "kid_all", "kid_own",
        "fd_own_floor", "own_images", "own_samples",
    ]  # fmt: skip
    assert (few["fd_own"], few["kid_own"], few["own_images"], few["own_samples"]) == (None, None, 49, 120)
    assert (enough["fd_all"], enough["kid_all"], enough["stage"]) == (1.5, 0.25, "before")
    assert (enough["client_id"], enough["name"], enough["num_examples"]) == (1, "client-001", 80)
    # Without labels the whole pool is compared.
    assert enough["fd_own"] == frechet_distance(features(images(50, 2)), features(pool))
    assert (enough["own_images"], enough["own_samples"]) == (50, 120)


def test_fewer_than_fifty_generated_images_of_the_client_s_classes_are_no_score_either() -> None:
    pool_labels = np.repeat([0, 1], [160, 40])
    entry = yardstick(images(80, 1), np.ones(80, np.int64), pool_labels, 200).score(
        features(images(200, 0)), 1.0, 0.0, "after"
    )
    assert (entry["fd_own"], entry["own_samples"], entry["own_images"]) == (None, 40, 80)


def test_own_scores_compare_only_pool_images_of_the_client_s_classes() -> None:
    pool, own = images(200, 0), images(60, 1)
    measured = yardstick(own, np.zeros(60, np.int64), np.repeat([0, 1], 100), 200)
    entry = measured.score(features(pool), None, None, "after")
    assert entry["fd_own"] == frechet_distance(features(own), features(pool[:100]))
    assert entry["own_samples"] == 100


def test_the_floor_of_own_scores_is_of_others_images_at_the_same_count_and_class_mix() -> None:
    # The client has class 0 alone, so 100 are compared: others' images of class 0, 100 of them, whatever else is there.
    own, others = images(60, 1), images(150, 4)
    pool_labels, mine = np.repeat([0, 1], 100), np.zeros(60, np.int64)
    exactly = yardstick(own, mine, pool_labels, 200, others, np.repeat([1, 0], [50, 100]))
    made = features(images(200, 0))
    floor = exactly.score(made, None, None, "after")["fd_own_floor"]
    assert floor == frechet_distance(features(own), features(others[50:]))
    too_few = yardstick(own, mine, pool_labels, 200, others, np.repeat([1, 0], [51, 99]))
    assert too_few.score(made, None, None, "after")["fd_own_floor"] is None


def test_a_client_without_own_scores_has_no_floor() -> None:
    measured = yardstick(images(49, 1), None, None, 100, images(300, 2))
    assert measured.score(features(images(100, 0)), 1.0, 0.0, "after")["fd_own_floor"] is None


def test_aggregates_leave_out_what_was_not_measured():
    # fd_own: 2 with 10 images, 5 with 30: mean 3.5, weighted (20 + 150) / 40 = 4.25, worst 5.
    entries = [
        {"num_examples": 10, "fd_all": 1.0, "fd_own": 2.0, "kid_all": 0.5, "kid_own": None},
        {"num_examples": 30, "fd_all": 1.0, "fd_own": 5.0, "kid_all": 0.5, "kid_own": None},
        {"num_examples": 60, "fd_all": 1.0, "fd_own": None, "kid_all": 0.5, "kid_own": None},
    ]
    out = aggregate(entries)
    assert [out[kind]["fd_own"] for kind in ("mean", "weighted", "worst")] == [
        pytest.approx(3.5),
        pytest.approx(4.25),
        5.0,
    ]
    assert out["mean"]["kid_own"] is None
    assert out["worst"]["kid_own"] is None
    assert out["weighted"]["fd_all"] == pytest.approx(1.0)


def test_aggregates_say_how_many_clients_stand_behind_own_scores():
    entries = [
        {"num_examples": 10, "fd_all": 1.0, "fd_own": own, "kid_all": 0.5, "kid_own": None}
        for own in (2.0, None, None)
    ]
    for figures in aggregate(entries).values():
        assert (figures["clients_own"], figures["clients"]) == (1, 3)


def test_no_clients_measure_nothing():
    scores = {"fd_all": None, "fd_own": None, "kid_all": None, "kid_own": None}
    assert aggregate([])["mean"] == scores | {"clients": 0, "clients_own": 0}


def test_clients_with_too_few_images_cost_no_look_at_those_of_others() -> None:
    # Ten thousand clients of eight images: what is done and kept for each must not hang on how many there are of all.
    class Unread:
        def __getitem__(self, key: object) -> np.ndarray:
            raise AssertionError("the images of all were read")

    real = RealImages(Unread(), None)  # type: ignore[arg-type]
    client = ClientImages("client-9999", 9999, 8, np.zeros(8, np.int64), np.arange(8))
    entry = OwnYardstick(client, real, np.repeat([0, 1], 100), 200).score(
        np.zeros((200, 4)), 1.0, 0.5, "after"
    )
    assert (entry["fd_own"], entry["own_images"], entry["own_samples"]) == (None, 8, 100)
