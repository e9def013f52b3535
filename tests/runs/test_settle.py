"""What `auto` stands for."""

import pytest

from osmotic.config.schema import build
from osmotic.runs.settle import settle


@pytest.mark.parametrize(("num_classes", "partition"), [(10, "dirichlet"), (0, "iid")])
def test_images_without_labels_are_divided_evenly(num_classes, partition):
    assert settle(build({}), 1000, num_classes).data.partition == partition


@pytest.mark.parametrize(("num_train", "samples"), [(20, 50), (240, 240), (1437, 1000)])
def test_score_samples_follow_the_data(num_train, samples):
    assert settle(build({}), num_train, 10).score.samples == samples


@pytest.mark.parametrize("rounds", [1, 4, 5, 9, 20, 33, 1000])
def test_a_run_of_five_rounds_or_more_has_at_least_five_scores(rounds):
    every = settle(build({"training.rounds": rounds}), 1000, 10).score.every
    scored = {r for r in range(1, rounds + 1) if r % every == 0} | {rounds}
    assert len(scored) >= min(5, rounds)
    assert len(scored) <= 9


def test_what_was_written_stays():
    config = build({"data.partition": "q-skew", "score.samples": 7, "score.every": 0})
    assert settle(config, 1000, 0) == config


@pytest.mark.parametrize(
    ("clients", "samples"), [(10, 1000), (20, 1000), (40, 500), (200, 100), (10_000, 100)]
)
@pytest.mark.parametrize("method", ["local", "udec"])
def test_many_clients_with_models_of_their_own_draw_fewer_images_each(method, clients, samples):
    # 20,000 over 40 clients are 500 each; over 10,000 they would be 2, by which nothing is scored.
    assert (
        settle(build({"method.name": method, "data.clients": clients}), 60_000, 10).score.samples == samples
    )


@pytest.mark.parametrize(
    "keys", [{"method.name": "fedavg"}, {"method.name": "local", "data.partition": "by:site"}]
)
def test_one_model_is_scored_as_ever_and_so_are_clients_whose_number_a_column_says(keys):
    assert settle(build({"data.clients": 200, **keys}), 60_000, 10).score.samples == 1000


def test_few_training_images_bound_the_samples_of_many_clients_too():
    assert settle(build({"method.name": "local", "data.clients": 200}), 60, 10).score.samples == 60
