"""What an image becomes, by pixels worked out by hand; and that nothing becomes of images that are alike."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osmotic.config.schema import DataConfig
from osmotic.data import census, convert, image, sources
from osmotic.data.dataset import Dataset
from osmotic.data.image import Facts, Picture
from osmotic.errors import ConfigError


def converted(path: Path, **keys: Any) -> tuple[np.ndarray, list[str]]:
    """The first training image of a folder, [side, side, C], and what was said; a plan must tell the same."""
    cfg = DataConfig(source=f"folder:{path}", **keys)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sources.load(cfg)
    told = [str(w.message) for w in caught if issubclass(w.category, sources.Converted)]
    described = sources.describe(cfg)
    assert list(described.notes) == told == list(found.notes)
    side, channels = found.train.images.shape[1], found.train.images.shape[3]
    assert (described.image_size, described.channels) == (side, channels)
    return found.train.images[0], told


def folder(path: Path, *pictures: Image.Image | bytes, suffix: str = "png", **options: Any) -> Path:
    """Two files of each picture, so that one is left for training."""
    path.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures * 2):
        target = path / f"{i}.{suffix}"
        target.write_bytes(picture) if isinstance(picture, bytes) else picture.save(target, **options)
    return path


def to(**changes: Any) -> convert.Conversion:
    keys = {"side": 2, "channels": 1, "dtype": np.dtype(np.uint8), "fit": "crop"}
    return convert.Conversion(**{**keys, "background": (255, 255, 255), "value_range": None, **changes})


def palette(index: int) -> Image.Image:
    """An image of one colour of a palette whose entry i is (i, i + 1, i + 2)."""
    picture = Image.new("P", (4, 4), index)
    picture.putpalette([i + c for i in range(200) for c in range(3)])
    return picture


# --- square ---


def test_the_middle_is_kept_and_of_an_odd_remainder_less_is_cut_at_the_left_or_top() -> None:
    row = np.arange(5, dtype=np.uint8).repeat(2).reshape(5, 2).T[..., None]  # [2, 5, 1], columns 0 to 4
    # 3 columns too many: one is cut at the left, two at the right.
    assert to()("x", Picture(row))[..., 0].tolist() == [[1, 2], [1, 2]]
    assert to()("x", Picture(row.transpose(1, 0, 2)))[..., 0].tolist() == [[1, 1], [2, 2]]


def test_padding_keeps_every_pixel_on_the_background() -> None:
    row = np.array([[[1], [2], [3]]], np.uint8)  # [1, 3, 1]
    grey = to(side=3, fit="pad", background=(10, 10, 10))("x", Picture(row))
    assert grey[..., 0].tolist() == [[10, 10, 10], [1, 2, 3], [10, 10, 10]]
    coloured = to(side=3, fit="pad", channels=3, background=(9, 8, 7))("x", Picture(row.repeat(3, axis=2)))
    assert coloured[0].tolist() == [[9, 8, 7]] * 3 and coloured[1].tolist() == [[1] * 3, [2] * 3, [3] * 3]


def test_a_photograph_on_its_side_is_turned_before_it_is_cut(tmp_path: Path) -> None:
    # Upright it is 8 wide and 24 high, black above and white below; the camera stored it lying, with tag 6.
    upright = Image.fromarray(np.repeat([0, 255], 12)[:, None].repeat(8, axis=1).astype(np.uint8))
    tag = Image.Exif()
    tag[0x0112] = 6
    folder(tmp_path, upright.rotate(90, expand=True), suffix="jpg", exif=tag, quality=100)
    one, told = converted(tmp_path)
    assert one.shape == (8, 8, 1)
    assert one[:3].max() < 20 and one[5:].min() > 235  # not left and right
    assert told == [
        "2 images of 8x24: cut to the square in the middle, resized to 8x8 (data.fit, data.image_size)",
        "2 of 2 images with orientation: turned upright, as the camera's tag says",
    ]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_headers_tell_the_upright_size_in_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    tag = Image.Exif()
    tag[0x0112] = 8
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (6, 3), "red").save(path, exif=tag)
    facts, shape = image.header("a", path), image.decode("a", path).pixels.shape
    assert (facts.height, facts.width) == shape[:2] == (6, 3)


# --- sizes ---


def test_where_sizes_differ_the_side_is_the_largest_multiple_of_8_within_the_median(tmp_path: Path) -> None:
    def side(*sizes: tuple[int, int]) -> int:
        found = census.Census().add(("x", Facts(w, h, 1, "uint8")) for w, h in sizes)
        return census.choose(DataConfig(), found)[0].side

    assert side((30, 30), (30, 30)) == 30  # alike: as they are
    assert side((500, 500)) == 500
    assert side((160, 120)) == 32
    assert side((20, 90), (26, 26), (40, 31)) == 24  # shorter sides 20, 26, 31: the median is 26
    assert side((9, 12), (15, 15)) == 8
    assert side((3, 5)) == 8  # no network halves less

    folder(tmp_path, Image.new("L", (12, 16), 9), Image.new("L", (17, 40), 9))
    one, told = converted(tmp_path)
    assert one.shape == (8, 8, 1) and (one == 9).all()
    assert told[0].startswith(
        "4 images of 2 sizes, 12x16 to 17x40: cut to the square in the middle, resized to 8x8"
    )
    one, told = converted(tmp_path, image_size=16, fit="pad")
    assert told == [
        "4 images of 2 sizes, 12x16 to 17x40: padded to squares with white, resized to 16x16 (data.fit, data.image_size)"
    ]


def test_what_followed_from_the_images_is_settled_and_settles_to_the_same_again(tmp_path: Path) -> None:
    folder(tmp_path, Image.new("L", (12, 16), 9), Image.new("L", (17, 40), 9))
    first = sources.load(DataConfig(source=f"folder:{tmp_path}"))
    assert first.settled == {"image_size": 8}
    again = sources.load(DataConfig(source=f"folder:{tmp_path}", **first.settled))
    assert again.settled == {} and (again.train.images == first.train.images).all()


def test_images_that_are_alike_stay_as_they_are_without_a_word(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    folder(tmp_path, Image.fromarray(pixels))
    one, told = converted(tmp_path)
    assert (one == pixels).all() and told == []
    assert sources.load(DataConfig(source=f"folder:{tmp_path}")).settled == {}


# --- transparency and colour ---


def test_transparency_shows_the_background_in_its_share(tmp_path: Path) -> None:
    # red 100 at alpha 255, 51, 0 and 60 of 255: shares 1, 0.2, 0 and 0.235
    rgba = np.array([[[100, 0, 0, a]] * 4 for a in (255, 51, 0, 60)], np.uint8)
    folder(tmp_path, Image.fromarray(rgba))
    one, told = converted(tmp_path)
    # on white: 100 * 0.2 + 255 * 0.8 = 224; 0 * 0.2 + 255 * 0.8 = 204; 23.53 + 195 = 218.53 is rounded
    assert one[:, 0].tolist() == [[100, 0, 0], [224, 204, 204], [255, 255, 255], [219, 195, 195]]
    assert told == ["2 of 2 images with transparency: laid on white (data.background)"]
    one, _ = converted(tmp_path, background="#0a0000")
    assert one[:3, 0].tolist() == [[100, 0, 0], [28, 0, 0], [10, 0, 0]]  # 100 * 0.2 + 10 * 0.8 = 28


@pytest.mark.parametrize(
    "picture, expected",
    [
        (Image.fromarray(np.full((4, 4, 2), (90, 51), np.uint8), "LA"), [222]),  # 90 * 0.2 + 255 * 0.8
        (Image.new("L", (4, 4), 7), [255]),  # the one grey level that is said to be transparent
        (Image.new("I;16", (4, 4), 7), [1.0]),
        (Image.new("RGB", (4, 4), (7, 8, 9)), [255] * 3),
        (palette(7), [255] * 3),
    ],
    ids=["LA", "L", "I;16", "RGB", "P"],
)
def test_every_kind_of_transparency_is_seen(
    tmp_path: Path, picture: Image.Image, expected: list[float]
) -> None:
    key: Any = {"LA": {}, "RGB": {"transparency": (7, 8, 9)}}.get(picture.mode, {"transparency": 7})
    one, told = converted(folder(tmp_path, picture, **key))
    assert one[0, 0].tolist() == expected and "transparency" in told[-1]


def test_other_colours_become_rgb_and_it_is_said(tmp_path: Path) -> None:
    one, told = converted(folder(tmp_path / "c", Image.new("CMYK", (4, 4), (0, 255, 0, 0)), suffix="tif"))
    assert one[0, 0].tolist() == [255, 0, 255]  # all magenta: no green
    assert told == ["2 of 2 images with CMYK: made RGB"]
    one, told = converted(folder(tmp_path / "p", palette(7)))
    assert one[0, 0].tolist() == [7, 8, 9] and told == ["2 of 2 images with palette: made RGB"]


def png16_rgb() -> bytes:
    """A 2x2 PNG with 16 bits per colour channel, bytes 0 to 11 in either row; PIL can read but not write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_of_16_bit_colour_the_upper_bytes_are_kept(tmp_path: Path) -> None:
    one, told = converted(folder(tmp_path, png16_rgb()))
    assert one[0].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert told == ["2 of 2 images with 16-bit colour: the upper 8 bits of each channel are kept"]


def test_grey_beside_colour_becomes_colour_or_what_the_key_says(tmp_path: Path) -> None:
    folder(tmp_path, Image.new("L", (4, 4), 50), Image.new("RGB", (4, 4), (50, 50, 50)))
    one, told = converted(tmp_path)
    assert one.shape == (4, 4, 3) and (one == 50).all()
    assert told == ["2 grey images, 2 in colour: all are made colour (data.channels = 1 makes them grey)"]
    one, told = converted(tmp_path, channels=1)
    assert one.shape == (4, 4, 1) and told == []


# --- depth and range ---


def test_8_bits_beside_16_become_floats_of_the_same_meaning(tmp_path: Path) -> None:
    # 51 of 255 and 13107 of 65535 are both a fifth
    folder(tmp_path, Image.new("L", (4, 4), 51), Image.new("I;16", (4, 4), 13107))
    one, told = converted(tmp_path)
    found = sources.load(DataConfig(source=f"folder:{tmp_path}"))
    assert one.dtype == np.float32
    assert found.train.images == pytest.approx(0.2) and found.test.images == pytest.approx(0.2)
    assert told == ["images of several depths (2 of 16 bits, 2 of 8 bits): all become 32-bit floats"]


def test_colour_beside_16_bit_grey_becomes_colour_in_floats(tmp_path: Path) -> None:
    folder(tmp_path, Image.new("RGB", (4, 4), (51, 51, 51)), Image.new("I;16", (4, 4), 13107))
    one, told = converted(tmp_path)  # a plan says the same
    assert one.shape == (4, 4, 3) and one == pytest.approx(0.2) and len(told) == 2


def test_12_bits_in_files_of_16_are_spread_by_the_key_and_warned_of_without_it(tmp_path: Path) -> None:
    levels = np.array([[0, 1023], [2048, 4095]], np.uint16).repeat(4, axis=0).repeat(4, axis=1)
    folder(tmp_path, Image.fromarray(levels))
    cfg = DataConfig(source=f"folder:{tmp_path}")
    rule = r"images use 6.2 % of the value range, 0 to 4095 of 65535: data.value_range = \[0, 4095\] or auto would"
    with pytest.warns(UserWarning, match=rule):
        assert sources.load(cfg).train.images.max() == pytest.approx(4095 / 65535)
    one, _ = converted(tmp_path, value_range=(0.0, 4095.0))
    assert one[[0, 0, 4, 4], [0, 4, 0, 4], 0] == pytest.approx([0, 1023 / 4095, 2048 / 4095, 1])
    one, _ = converted(tmp_path, value_range=(1023.0, 2048.0))  # what lies outside is cut
    assert one[[0, 0, 4, 4], [0, 4, 0, 4], 0].tolist() == [0, 0, 1, 1]


def test_12_bits_in_files_of_16_are_warned_of_beside_files_of_8(tmp_path: Path) -> None:
    dark = np.array([[0, 1023], [2048, 4095]], np.uint16).repeat(4, axis=0).repeat(4, axis=1)
    folder(tmp_path, Image.fromarray(dark), Image.fromarray((dark // 16).astype(np.uint8)))
    with pytest.warns(
        UserWarning, match="images of 16 bits use 6.2 % of the value range, 0 to 4095 of 65535: "
    ):
        sources.load(DataConfig(source=f"folder:{tmp_path}"))


def test_8_and_16_bits_that_both_use_their_range_are_not_warned_of(tmp_path: Path) -> None:
    full = np.array([[0, 85], [170, 255]], np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    folder(tmp_path, Image.fromarray(full), Image.fromarray(full.astype(np.uint16) * 257))
    with pytest.warns(sources.Converted):
        assert sources.load(DataConfig(source=f"folder:{tmp_path}")).caution == ""


def test_auto_takes_the_ends_of_the_training_images_and_keeps_them(tmp_path: Path) -> None:
    levels = np.array([[100, 100], [100, 140]], np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    folder(tmp_path, Image.fromarray(levels))
    found = sources.load(DataConfig(source=f"folder:{tmp_path}", value_range="auto"))
    assert found.settled == {"value_range": (100.0, 140.0)}
    assert sorted(set(found.train.images.ravel().tolist())) == [0, 1]


def test_images_that_use_their_range_are_not_warned_of() -> None:
    assert census.sliver(np.array([[[[0], [70]]]], np.uint8).repeat(500, axis=1), 255) == ""  # 27 %
    dark = np.zeros((1, 100, 100, 1), np.uint8)
    dark[0, 0, :9] = 255  # 9 of 10,000 pixels: less than one in a thousand
    assert "images use 0.0 %" in str(census.sliver(dark, 255))
    dark[0, 0, :11] = 255
    assert census.sliver(dark, 255) == ""


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"value_range": (5.0, 5.0)},
            r"data.value_range = \[5.0, 5.0\]: must be \[low, high\] with low < high",
        ),
        ({"value_range": (1.0,)}, r"data.value_range = \[1.0\]: must be \[low, high\]"),
        ({"background": "beige"}, "data.background = 'beige': must be white, grey, black or #rrggbb"),
        ({"background": "#12345"}, "data.background = '#12345'"),
    ],
)
def test_keys_that_cannot_be_are_refused_before_anything_is_read(keys: dict[str, Any], message: str) -> None:
    for look in (sources.load, sources.describe):
        with pytest.raises(ConfigError, match=message):
            look(DataConfig(source="folder:/nowhere", **keys))


def test_a_range_for_files_of_several_depths_or_of_one_value_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "a", Image.new("L", (4, 4), 51), Image.new("I;16", (4, 4), 13107))
    for look in (sources.load, sources.describe):
        with pytest.raises(
            ConfigError, match=r"data.value_range = 'auto': needs images of one depth, there are uint"
        ):
            look(DataConfig(source=f"folder:{tmp_path / 'a'}", value_range="auto"))
    folder(tmp_path / "b", Image.new("L", (4, 4), 51))
    with pytest.raises(ConfigError, match=r"data.value_range = 'auto': all values are alike, 51"):
        sources.load(DataConfig(source=f"folder:{tmp_path / 'b'}", value_range="auto"))


def test_float_images_outside_0_to_1_are_taken_with_a_range(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.array([-1000, 1000], np.float32).repeat(16).reshape(2, 4, 4))
    cfg = DataConfig(source=f"npz:{tmp_path / 'a.npz'}")
    with pytest.raises(
        ConfigError, match=r"float32 images must lie in \[0, 1\] \(data.value_range scales others\)"
    ):
        sources.load(cfg)
    data: Dataset = sources.load(DataConfig(source=cfg.source, value_range=(-1000.0, 1000.0)))
    both = [*data.train.images.ravel(), *data.test.images.ravel()]
    assert sorted(set(both)) == [0, 1]


# --- what a header refuses ---


def huge_png(side: int) -> bytes:
    """A PNG of side x side pixels, a few kilobytes, as a header and rows of zeros; the rows are not all there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [11_000, 13_000, 60_000])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, huge_png(side))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("was decoded"))
    for look in (sources.load, sources.describe):
        with pytest.raises(ConfigError, match=r"\.png.*: must have at most 120,000,000 pixels"):
            look(DataConfig(source=f"folder:{tmp_path}"))
    # What has changed since its header was read is not decoded either.
    with pytest.raises(ConfigError, match="must have at most 120,000,000 pixels"):
        image.decode("0.png", tmp_path / "0.png")
