"""Per-client scores: the label mix of the pool, nulls, and their aggregates."""

from __future__ import annotations

import numpy as np
import pytest
from metric_stand_ins import frechet_distance, pixel_encoder

from osmotic.metrics.federated import ClientImages, aggregate, matching, score_clients


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


def test_one_pool_gives_all_clients_one_fd_all_and_own_scores_only_from_fifty_images():
    encoder, pool, reference = pixel_encoder(), images(120, 0), images(200, 1)
    clients = [
        ClientImages("client-000", 0, images(49, 2), None),
        ClientImages("client-001", 1, images(50, 3), None),
    ]
    few, enough = score_clients(pool, None, encoder, encoder.features(reference), clients, stage="before")
    assert few["fd_all"] == enough["fd_all"]
    assert few["kid_all"] == enough["kid_all"]
    assert (few["fd_own"], few["kid_own"]) == (None, None)
    # Without labels the whole pool is compared.
    assert enough["fd_own"] == frechet_distance(encoder.features(clients[1].images), encoder.features(pool))
    assert list(enough) == [
        "client_id", "name", "num_examples", "stage", "fd_all", "fd_own", "kid_all", "kid_own",
    ]  # fmt: skip
    assert (enough["client_id"], enough["name"], enough["num_examples"]) == (1, "client-001", 50)
    assert enough["stage"] == "before"


def test_own_scores_compare_only_pool_images_of_the_client_s_classes():
    encoder, pool = pixel_encoder(), images(200, 0)
    pool_labels = np.repeat([0, 1], 100)
    own = images(60, 1)
    client = ClientImages("client-000", 0, own, np.zeros(60, dtype=np.int64))
    other = ClientImages("client-001", 1, images(60, 2), np.ones(60, dtype=np.int64))
    entry = score_clients(pool, pool_labels, encoder, encoder.features(images(90, 3)), [client, other])[0]
    assert entry["fd_own"] == frechet_distance(encoder.features(own), encoder.features(pool[:100]))
    # Half the union is class 0, half class 1, as in the pool: all of it counts.
    assert entry["fd_all"] == frechet_distance(encoder.features(images(90, 3)), encoder.features(pool))


def test_a_client_scored_alone_keeps_the_label_mix_of_all_for_fd_all():
    encoder, pool, reference = pixel_encoder(), images(100, 0), images(90, 3)
    client = ClientImages("client-000", 0, images(60, 1), np.zeros(60, dtype=np.int64))
    args = (pool, np.repeat([0, 1], 50), encoder, encoder.features(reference), [client])
    (entry,) = score_clients(*args, union_labels=np.array([0, 1]))
    assert entry["fd_all"] == frechet_distance(encoder.features(reference), encoder.features(pool))
    (alone,) = score_clients(*args)
    assert alone["fd_all"] == frechet_distance(encoder.features(reference), encoder.features(pool[:50]))


def test_a_client_s_held_out_images_come_before_its_training_images():
    encoder, pool = pixel_encoder(), images(100, 0)
    test = images(55, 1)
    client = ClientImages("client-000", 0, images(80, 2), None, own_test=test)
    (entry,) = score_clients(pool, None, encoder, encoder.features(pool), [client])
    assert entry["fd_own"] == frechet_distance(encoder.features(test), encoder.features(pool))
    assert entry["num_examples"] == 80


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


def test_no_clients_measure_nothing():
    assert aggregate([])["mean"] == {"fd_all": None, "fd_own": None, "kid_all": None, "kid_own": None}
