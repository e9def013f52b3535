"""Near-copies: what is planted is found, what is fresh is found at the rate that was promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from metric_stand_ins import pixel_encoder

from osmotic.data.dataset import Split
from osmotic.metrics import near_copies
from osmotic.metrics.near_copies import CopyFinder, NearCopies, Neighbours

ENCODER = pixel_encoder(width=64)


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split, Split]:
    """Real 8x8 digits in random order: 900 to train on, 400 held out, 497 fresh."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(3).permutation(len(found.target))
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None][order]
    labels = found.target.astype(np.int64)[order]
    parts = (slice(0, 900), slice(900, 1300), slice(1300, None))
    train, held_out, fresh = (Split(images[part], labels[part]) for part in parts)
    return train, held_out, fresh


def finder(train: Split, held_out: Split) -> CopyFinder:
    real = ENCODER.features(train.images)
    unseen = ENCODER.features(held_out.images) if len(held_out) else np.empty((0, 64), np.float32)
    return CopyFinder(train, real, held_out, unseen, ENCODER)


def look(train: Split, held_out: Split, images: np.ndarray) -> tuple[NearCopies | None, Neighbours]:
    return finder(train, held_out).look(images, ENCODER.features(images), None)


def slightly(images: np.ndarray, what: str) -> np.ndarray:
    """Copies of these images that no pixel may share."""
    noise = np.random.default_rng(0).normal(0, 8, images.shape)
    if what == "noise":
        return np.clip(images + noise, 0, 255).astype(np.uint8)
    return images if what == "exact" else (255 * (images / 255) ** 0.9).astype(np.uint8)


@pytest.mark.parametrize("what", ["exact", "noise", "darker"])
@pytest.mark.parametrize("planted", [25, 150])
def test_planted_copies_are_found_at_the_share_planted(
    digits: tuple[Split, Split, Split], what: str, planted: int
) -> None:
    train, held_out, fresh = digits
    copies = slightly(train.images[100 : 100 + planted], what)
    share, found = look(train, held_out, np.concatenate([fresh.images[: 300 - planted], copies]))
    assert share is not None and (share.images, share.held_out) == (300, 400)
    # What is fresh adds its own hundredth: none to nine of 300 or so.
    for view in (share.features, share.pixels):
        assert planted / 300 - 0.01 <= view <= planted / 300 + 0.03
    assert found.nearest["pixels"][-planted:].tolist() == list(range(100, 100 + planted))


def test_fresh_images_are_found_at_the_expected_share(digits: tuple[Split, Split, Split]) -> None:
    train, held_out, fresh = digits
    # Many halves of what is not trained on: each time one is the yardstick and the other is looked at.
    images, found = np.concatenate([held_out.images, fresh.images]), []
    whole = CopyFinder(
        train, ENCODER.features(train.images), Split(images, None), ENCODER.features(images), ENCODER
    )
    closeness = whole.look(images, ENCODER.features(images), None)[1].closeness
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(len(images))
        some = Split(images[order[:448]], None)
        for values in closeness.values():
            yardstick = np.sort(values[order[:448]])[4 * (len(some) + 1) // 449 - 1]
            found.append(np.mean(values[order[448:]] <= yardstick))
    assert np.mean(found) == pytest.approx(4 / 449, rel=0.15)
    share, _ = look(train, held_out, fresh.images)
    assert share is not None and share.expected == 4 / 401
    # 497 fresh images at 1 %: about 5, and the yardstick is a draw of its own: 0 to 15.
    assert max(share.features, share.pixels) < 0.03


def test_the_held_out_images_themselves_are_found_at_the_rate_of_the_yardstick(
    digits: tuple[Split, Split, Split],
) -> None:
    train, held_out, _ = digits
    share, _ = look(train, held_out, held_out.images)
    assert share is not None
    assert share.features == share.pixels == 4 / 400


@pytest.mark.parametrize(("count", "expected"), [(99, None), (100, 1 / 101), (199, 2 / 200)])
def test_a_percentile_needs_a_hundred_held_out_images(
    digits: tuple[Split, Split, Split], count: int, expected: float | None
) -> None:
    train, held_out, fresh = digits
    share, found = look(train, Split(held_out.images[:count], None), fresh.images[:20])
    assert (share and share.expected) == expected
    assert len(found.nearest["features"]) == 20, "neighbours there are all the same"


def test_no_held_out_images_give_no_share(digits: tuple[Split, Split, Split]) -> None:
    train, held_out, fresh = digits
    assert look(train, Split(held_out.images[:0], None), fresh.images[:20])[0] is None


def test_closeness_by_hand() -> None:
    # Training images at 0, 3 and 4 in the first pixel. An image at 1: distances 1, 2, 3; closeness 1 / 2. At 3: 0.
    train = Split(np.zeros((3, 8, 8, 1), np.uint8), None)
    train.images[:, 0, 0, 0] = [0, 3, 4]
    made = np.zeros((2, 8, 8, 1), np.uint8)
    made[:, 0, 0, 0] = [1, 3]
    found = look(train, Split(made[:0], None), made)[1]
    for view in ("features", "pixels"):
        assert found.nearest[view].tolist() == [0, 1]
        assert found.closeness[view] == pytest.approx([0.5, 0.0])


def test_only_the_fifty_nearest_count() -> None:
    # Fifty at distance 200, one at 100, the rest far away: mean of 50 is (49 * 200 + 100) / 50 = 198.
    train = Split(np.full((400, 8, 8, 1), 250, np.uint8), None)
    train.images[:51] = 0
    train.images[:50, 0, 0, 0], train.images[50, 0, 0, 0] = 200, 100
    made = np.zeros((1, 8, 8, 1), np.uint8)
    found = look(train, Split(made[:0], None), made)[1]
    assert found.closeness["pixels"] == pytest.approx([100 / 198], rel=1e-5)  # float32 distances
    assert found.nearest["pixels"].tolist() == [50]


def test_images_that_the_data_hold_twice_do_not_hide_copies(digits: tuple[Split, Split, Split]) -> None:
    # A tenth of the held-out images are training images: the yardstick is then nothing but rounding.
    train, held_out, fresh = digits
    leaking = Split(np.concatenate([held_out.images[:180], train.images[:20]]), None)
    share, _ = look(train, leaking, np.concatenate([fresh.images[:100], train.images[200:300]]))
    assert share is not None and share.features == share.pixels == 0.5


def test_few_training_images_are_enough_to_find_copies_of_them(digits: tuple[Split, Split, Split]) -> None:
    train, held_out, fresh = digits
    few = Split(train.images[:20], train.labels[:20])
    share, _ = look(few, held_out, np.repeat(slightly(few.images, "noise"), 10, axis=0))
    assert share is not None and share.features == share.pixels == 1.0
    share, _ = look(few, held_out, fresh.images)
    assert share is not None and max(share.features, share.pixels) < 0.03


def test_training_images_are_read_in_pieces_and_may_lie_on_disk(
    digits: tuple[Split, Split, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out, fresh = digits
    whole = look(train, held_out, fresh.images)
    np.save(tmp_path / "images.npy", train.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    read: list[int] = []

    class Watched(np.memmap):
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            found = super().__getitem__(key)
            read.append(len(found) if found.ndim == 4 else 0)
            return np.asarray(found)

    monkeypatch.setattr(near_copies, "_ROWS", 70)
    on_disk = CopyFinder(
        Split(mapped.view(Watched), train.labels),
        ENCODER.features(train.images),
        held_out,
        ENCODER.features(held_out.images),
        ENCODER,
    )
    pieces = on_disk.look(fresh.images, ENCODER.features(fresh.images), None)
    assert pieces[0] == whole[0]
    for view in ("features", "pixels"):
        assert np.array_equal(pieces[1].nearest[view], whole[1].nearest[view])
    assert read and max(n for n in read if n not in (len(held_out), len(fresh))) <= 70


def test_mirrored_copies_are_found_where_training_mirrors(digits: tuple[Split, Split, Split]) -> None:
    train, held_out, fresh = digits
    mirrored = np.concatenate([fresh.images[:150], train.images[:100, :, ::-1], train.images[100:150]])
    made, real = ENCODER.features(mirrored), ENCODER.features(train.images)
    unseen = ENCODER.features(held_out.images)
    shares = {}
    for turned in (False, True):
        found = CopyFinder(train, real, held_out, unseen, ENCODER, mirrored=turned)
        shares[turned], neighbours = found.look(mirrored, made, None)
    assert shares[False] is not None and shares[True] is not None
    for view in ("features", "pixels"):
        assert getattr(shares[False], view) == pytest.approx(50 / 300, abs=0.02)
        assert getattr(shares[True], view) == pytest.approx(150 / 300, abs=0.02)
        assert neighbours.nearest[view][150:].tolist() == list(range(150))


def test_large_images_are_compared_as_means_over_blocks() -> None:
    # 64x64 to 32x32: a checkerboard of 0 and 200 is the same as plain 100.
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)[None, :, :, None]
    assert near_copies._vectors(board).numpy() == pytest.approx(np.full((1, 1024), 100 / 255))


def test_at_most_a_thousand_generated_images_are_looked_at_drawn_by_class(
    digits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_copies, "MAX_GENERATED", 40)
    train, held_out, fresh = digits
    labels = np.repeat(np.arange(4), [200, 100, 60, 40])
    share, found = finder(train, held_out).look(
        fresh.images[:400], ENCODER.features(fresh.images[:400]), labels
    )
    assert share is not None and share.images == 40
    assert np.bincount(labels[found.generated]).tolist() == [20, 10, 6, 4]
