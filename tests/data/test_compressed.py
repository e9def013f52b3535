"""How small images can be sent: constant ones are almost nothing, noise is all of its bytes, a sample stands for many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from osmotic.data import compressed
from osmotic.data.compressed import FORMS, SAMPLE_BYTES, Compressed, compress


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def every(images: np.ndarray) -> list[np.ndarray]:
    return [np.arange(len(images))]


@pytest.mark.parametrize("channels", [1, 3])
def test_constant_images_are_almost_nothing(channels: int) -> None:
    images = np.full((500, 8, 8, channels), 77, np.uint8)
    found = compress(images, every(images))
    assert found.sampled is None
    assert 0 < found.bytes < 0.01 * images.nbytes


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_all_of_its_bytes(channels: int) -> None:
    # Eight bits of a uniform draw hold eight bits: nothing without loss is shorter; headers are a little on top.
    images = noise(300, 8, 8, channels)
    assert images.nbytes <= compress(images, every(images)).bytes < 1.05 * images.nbytes


@pytest.mark.parametrize("form", FORMS)
def test_a_form_holds_the_pixels_without_loss(form: str) -> None:
    import bz2
    import io
    import lzma

    from PIL import Image

    images = noise(6, 4, 4, 3)
    packed = FORMS[form](images)
    if form == "webp":
        # 6 images lie 3 across and 2 down: the fifth one begins in row 4, column 4.
        sheet = np.asarray(Image.open(io.BytesIO(packed)).convert("RGB"))
        assert sheet.shape == (8, 12, 3)
        np.testing.assert_array_equal(sheet[4:, 4:8], images[4])
    else:
        assert {"xz": lzma, "bz2": bz2}[form].decompress(packed) == images.tobytes()


def test_the_smallest_form_counts() -> None:
    images = (noise(200, 8, 8, 3) // 64).cumsum(axis=2).astype(np.uint8)
    found = compress(images, every(images))
    sizes = {form: len(write(images)) for form, write in FORMS.items()}
    assert found.bytes == min(sizes.values()) == sizes[found.form]


def test_without_webp_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    monkeypatch.setattr(features, "check", lambda name: False)
    assert compress(noise(50, 4, 4, 3), [np.arange(50)]).form in ("xz", "bz2")


def test_the_same_images_have_the_same_size_and_only_those_held_count() -> None:
    images = noise(100, 6, 6, 1)
    images[50:] = 0  # given to no client
    first = compress(images, [np.array([3, 1, 2]), np.arange(4, 50)])
    assert first == compress(images, [np.array([1, 2, 3]), np.arange(4, 50)])
    assert first.bytes >= 49 * 36
    assert compress(images, [np.arange(0)]) == Compressed(0, 0, "")


def test_float_images_are_those_of_eight_bits() -> None:
    images = noise(40, 8, 8, 1)
    assert compress(images / np.float32(255), every(images)) == compress(images, every(images))


def test_many_mapped_images_are_told_from_an_even_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 64 bytes an image and 6,400 in the sample: 100 of 1,000 images, every tenth. These are noise, the others black.
    monkeypatch.setattr(compressed, "SAMPLE_BYTES", 6400)
    np.save(tmp_path / "images.npy", np.zeros((1000, 8, 8, 1), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r+")
    images[::10] = noise(100, 8, 8, 1)
    found = compress(images, every(images))
    assert found.sampled == 100
    assert 64_000 <= found.bytes < 1.1 * 64_000


def test_one_image_larger_than_the_sample_is_still_measured() -> None:
    side = 2 * int(SAMPLE_BYTES**0.5)
    images = np.broadcast_to(np.uint8(9), (3, side, side, 1))
    assert compress(images, every(images)).sampled == 1
