"""Data from Python: each kind comes out as its npz twin does, and what is wrong is told under the key "data"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.data.dataset import Dataset, Shape
from osmotic.data.own import from_python, open_python
from osmotic.errors import ConfigError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 4, 4), np.uint8)  # [N, H, W]
COLOUR = RNG.integers(0, 256, (20, 4, 4, 3), np.uint8)  # [N, H, W, C]
LABELS = np.arange(20) % 2
FIRST = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)  # [N, C, H, W]


def same(a: Dataset, b: Dataset) -> bool:
    pairs = [(a.train, b.train), (a.test, b.test)]
    return a.class_names == b.class_names and all(
        np.array_equal(x.images, y.images)
        and x.images.dtype == y.images.dtype
        and (x.labels is y.labels is None or np.array_equal(x.labels, y.labels))
        and sorted(x.columns) == sorted(y.columns)
        and all(np.array_equal(x.columns[n], y.columns[n]) for n in x.columns)
        for x, y in pairs
    )


@pytest.fixture
def twin(tmp_path: Path) -> Callable[..., Dataset]:
    """The data set of an npz file of these arrays, which the existing way loads."""

    def load(config: DataConfig | None = None, **arrays: Any) -> Dataset:
        np.savez(tmp_path / "own.npz", **arrays)
        keys = config or DataConfig()
        return sources.load(
            DataConfig(
                source=f"npz:{tmp_path / 'own.npz'}",
                image_size=keys.image_size,
                channels=keys.channels,
                max_images=keys.max_images,
            )
        )

    return load


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A torch data set of these items; counts how often each was asked for."""

    def __init__(self, items: list[Any], classes: Any = None) -> None:
        self.items, self.asked = items, [0] * len(items)
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked[index] += 1
        return self.items[index]


ARRAYS: dict[str, Any] = {
    "train_images": COLOUR,
    "train_labels": LABELS,
    "train_site": np.arange(20) // 5,
    "test_images": COLOUR[:6],
    "test_labels": LABELS[:6],
    "class_names": np.array(["cat", "dog"]),
}


def test_a_dict_of_arrays_is_the_npz_file_of_them(twin: Any, tmp_path: Path):
    expected = twin(**ARRAYS)
    found = from_python(ARRAYS)
    assert same(found, expected) and found.name == "own" and found.class_names == ("cat", "dog")
    lists = ARRAYS | {"class_names": ["cat", "dog"], "train_labels": LABELS.tolist()}
    assert same(from_python(lists), expected)
    tensors = ARRAYS | {"train_images": FIRST, "train_labels": torch.from_numpy(LABELS)}
    assert same(from_python(tensors), expected)
    with np.load(tmp_path / "own.npz") as opened:
        assert same(from_python(opened), expected)


def test_arrays_alone_give_a_fifth_of_each_class_for_testing(twin: Any):
    expected = twin(train_images=GREY, train_labels=LABELS)
    found = from_python((GREY, LABELS), name="mine")
    assert same(found, expected) and found.name == "mine"
    # 20 images, 10 a class: 4 for testing, 2 a class
    assert len(found.train) == 16 and np.bincount(found.test.labels).tolist() == [2, 2]
    assert found.train.images.shape == (16, 4, 4, 1) and found.train.labels.dtype == np.int64


@pytest.mark.parametrize("data", [GREY, (GREY, None), torch.from_numpy(GREY), list(GREY)], ids=lambda d: type(d).__name__)  # fmt: skip
def test_images_alone_are_unlabelled(data: Any, twin: Any):
    found = from_python(data)
    assert same(found, twin(train_images=GREY))
    assert found.train.labels is None and found.class_names == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_any_width_become_float32(dtype: Any, twin: Any):
    images = (COLOUR / 255).astype(dtype)
    found = from_python((images, LABELS))
    assert found.train.images.dtype == np.float32
    assert same(found, twin(train_images=images.astype(np.float32), train_labels=LABELS))


def test_16_bit_images_keep_their_depth():
    # 257 / 65535 = 1 / 255
    assert from_python(np.full((5, 2, 2), 257, np.uint16)).train.images == pytest.approx(1 / 255)
    items = [np.full((2, 2), 257, np.uint16)] * 5
    assert from_python(items).train.images == pytest.approx(1 / 255)


PICTURES = [Image.fromarray(one) for one in COLOUR]
BYTES = [(FIRST[i], int(LABELS[i])) for i in range(20)]


@pytest.mark.parametrize(
    "data",
    [
        Items(BYTES),
        Items([(picture, np.int64(label)) for picture, label in zip(PICTURES, LABELS, strict=True)]),
        Items([[image, torch.tensor(label)] for image, label in BYTES]),
        Items([(np.asarray(picture), label) for picture, (_, label) in zip(PICTURES, BYTES, strict=True)]),
        torch.utils.data.TensorDataset(FIRST, torch.from_numpy(LABELS)),
        torch.utils.data.Subset(Items(BYTES), list(range(20))),
        BYTES,
    ],
    ids=["tensors", "pictures", "lists", "arrays", "TensorDataset", "Subset", "list"],
)
def test_a_torch_data_set_is_its_arrays(data: Any):
    assert same(from_python(data), from_python((COLOUR, LABELS)))


def test_a_torch_data_set_of_images_alone_is_unlabelled():
    expected = from_python(COLOUR)
    assert same(from_python(Items(list(FIRST))), expected)
    assert same(from_python(torch.utils.data.TensorDataset(FIRST)), expected)
    assert same(from_python(Items(PICTURES)), expected)
    grey = Items([torch.from_numpy(one) for one in GREY])
    assert same(from_python(grey), from_python(GREY))


def test_float_tensors_are_kept_as_float32():
    found = from_python(torch.utils.data.TensorDataset(FIRST / 255, torch.from_numpy(LABELS)))
    assert found.train.images.dtype == np.float32
    assert same(found, from_python((COLOUR.astype(np.float32) / np.float32(255), LABELS)))
    half = from_python(Items(list((FIRST / 255).bfloat16())))
    assert half.train.images.dtype == np.float32 and half.train.images.min() >= 0


def test_every_item_is_asked_for_once():
    data = Items(BYTES)
    from_python(data)
    assert data.asked == [1] * 20


def test_the_names_of_a_torchvision_data_set_are_taken_where_they_cover_the_labels():
    assert from_python(Items(BYTES, ["cat", "dog", "fox"])).class_names == ("cat", "dog", "fox")
    assert from_python(Items(BYTES, ["cat"])).class_names == ("0", "1")
    assert from_python(Items(BYTES, 7)).class_names == ("0", "1")


def test_what_changes_in_the_array_later_changes_nothing():
    images, buffer = COLOUR.copy(), np.zeros((2, 2), np.uint8)

    class Reused(Items):
        def __getitem__(self, index: int) -> Any:
            buffer[:] = index
            return buffer

    found = from_python(images)
    images[:] = 0
    assert same(found, from_python(COLOUR))
    reused = from_python(Reused([None] * 5))
    assert sorted([*reused.train.images[:, 0, 0, 0], *reused.test.images[:, 0, 0, 0]]) == [0, 1, 2, 3, 4]


def rows(count: int, **columns: list[Any]) -> Any:
    import datasets

    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
        | {name: datasets.Value("string") for name in columns}
    )
    return datasets.Dataset.from_dict(
        {"picture": PICTURES[:count], "kind": LABELS[:count].tolist(), **columns}, features=features
    )


def test_a_data_set_of_hugging_face_is_read_by_its_feature_types():
    import datasets

    found = from_python(rows(20, site=["a", "b"] * 10))
    expected = from_python({k: ARRAYS[k] for k in ("train_images", "train_labels", "class_names")})
    assert np.array_equal(found.train.images, expected.train.images)
    assert np.array_equal(found.test.labels, expected.test.labels)
    assert found.class_names == ("cat", "dog") and set(found.train.columns) == {"site"}
    both = from_python(datasets.DatasetDict(train=rows(20), test=rows(6)))
    assert same(both, from_python({k: a for k, a in ARRAYS.items() if k != "train_site"}))


def test_the_format_of_a_hugging_face_data_set_does_not_matter():
    assert same(from_python(rows(20).with_format("torch")), from_python(rows(20)))
    changed = rows(20).with_transform(lambda batch: {"pixel_values": [None] * len(batch["kind"])})
    assert same(from_python(changed), from_python(rows(20)))


@pytest.mark.parametrize(
    "config", [DataConfig(image_size=6), DataConfig(channels=1), DataConfig(max_images=7)]
)
def test_the_keys_convert_as_they_do_for_files(config: DataConfig, twin: Any):
    expected = twin(config, **ARRAYS)
    assert same(from_python(ARRAYS, config=config), expected)
    items = from_python(Items(BYTES), config=config)
    assert same(items, from_python((COLOUR, LABELS), config=config))


def test_images_of_several_sizes_are_resized_on_request():
    mixed = [Image.fromarray(np.full((side, side), 9, np.uint8)) for side in (4, 8, 6, 4, 4)]
    assert from_python(mixed, config=DataConfig(image_size=4)).train.images.tolist() == np.full((4, 4, 4, 1), 9).tolist()  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\[\d\] = '\dx\d': all images must have the same size"):
        from_python(mixed, config=DataConfig(fit="refuse"))


@pytest.mark.parametrize("data", [ARRAYS, (GREY, LABELS), Items(BYTES)], ids=["dict", "pair", "items"])
def test_the_shape_is_known_before_the_images_are_made(data: Any):
    config = DataConfig(image_size=8, max_images=9)
    source, found = open_python(data), from_python(data, config=config)
    _, side, _, channels = found.train.images.shape
    assert sources.shape_of(config, source) == Shape(side, channels, 2, 9)


def with_pixel(value: float) -> np.ndarray:
    images = np.zeros((6, 4, 4), np.float32)
    images[5, 0, 0] = value
    return images


SIX = np.zeros(6, np.int64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # what it is
        (None, "data = 'NoneType': must be an array of images"),
        ("digits", "data = 'str': must be an array of images"),
        (iter([1]), "must be an array of images"),
        ((GREY, LABELS, LABELS), r"data = 'tuple of 3': must be \(images, labels\)"),
        (GREY[:1], "data = '1 image': must hold 2 images or more"),
        (Items([]), "data = '0 images': must hold 2 images or more"),
        (GREY[:0], "N >= 1"),
        # shapes
        (GREY[0], r"data = \[4, 4\]: must be \[N, H, W\] or \[N, H, W, C\] with N >= 1"),
        (GREY[:, :3], "data = '4x3': images must be square"),
        (np.zeros((6, 4, 4, 4), np.uint8), "data = '4 channels': images must have 1 or 3 channels"),
        (np.zeros((6, 0, 0), np.float32), "data = '0x0': images must have pixels"),
        (COLOUR.transpose(0, 3, 1, 2), r"data = \[20, 3, 4, 4\]: an array of images must be \[N, H, W, C\]"),
        (torch.from_numpy(COLOUR), r"data = \[20, 4, 4, 3\]: a torch tensor of images must be \[N, C, H, W\]"),
        (Items([np.zeros((1, 4, 4), np.uint8)] * 3), r"data\[0\] = .1, 4, 4.: an array of images must be \[H, W, C\]"),
        (Items([torch.zeros(4, 4, 3)] * 3), r"a torch tensor of images must be \[C, H, W\]"),
        (Items([torch.zeros(2, 1, 4, 4)] * 3), r"data\[0\] = \[2, 1, 4, 4\]: an image must be \[H, W\] or"),
        (Items([torch.zeros(1, 4, 5)] * 3), r"data\[\d\] = '5x4': images must be square"),
        ([[1, 2, 3]] * 4, r"data\[0\] = '3 values': must be an image or \(image, label\)"),
        # values
        (GREY.astype(int), "data = 'int64': must be uint8, uint16, or float32"),
        (GREY > 9, "data = 'bool': must be uint8, uint16, or float32"),
        (with_pixel(np.nan), r"data: float32 images must lie in \[0, 1\]"),
        (with_pixel(255), r"data: float32 images must lie in \[0, 1\]"),
        (with_pixel(-0.5).astype(np.float64), r"data: float32 images must lie in \[0, 1\]"),
        ((with_pixel(2), SIX), r"data\[0\]: float32 images must lie in \[0, 1\]"),
        (list(with_pixel(np.nan)), r"data\[5\]: float32 images must lie in \[0, 1\]"),
        (Items(list(torch.from_numpy(with_pixel(1.5)))), r"data\[5\]: float32 images must lie in \[0, 1\]"),
        (Items([torch.zeros(1, 4, 4, dtype=torch.int64)] * 3), r"data\[0\] = 'int64': must be uint8, uint16"),
        ([Image.new("LAB", (4, 4))] * 3, r"data\[0\] = 'LAB': images must be grey, RGB, CMYK"),
        (np.array([None] * 4), "data = 'object': must hold numbers"),
        # labels and lengths
        ((GREY, LABELS[:5]), r"data\[1\] = 5: there must be one label for each of the 20 images"),
        ((GREY, LABELS - 1), r"data\[1\] = -1: labels must be 0 to 65535 \(image 0\)"),
        ((GREY, LABELS / 2), r"data\[1\] = 'float64 \[20\]': labels must be whole numbers"),
        ((GREY, [[0], [0, 1]]), r"data\[1\] = 'list': cannot be made an array"),
        (Items([(GREY[0], 1), (GREY[1],)]), r"data\[1\]: has no label"),
        (Items([(GREY[0], 0.5)] * 4), r"data\[labels\] = 'float64 \[4\]': labels must be whole numbers"),
        (Items([(GREY[0], torch.eye(3)[0])] * 4), r"data\[labels\] = 'float32 \[4, 3\]': labels must be whole"),
        # names of arrays
        ({"images": GREY}, r"data\[images\]: unknown array \(nearest valid key: train_images\)"),
        ({"train_labels": LABELS}, r"data\[train_images\]: missing array"),
        ({"train_images": GREY, "test_image": GREY}, r"data\[test_images\]: missing array, though there is test_image"),
        ({"train_images": GREY, "train_site": LABELS[:4]}, r"data\[train_site\] = \(4,\): a column must have one row"),
        ({"train_images": GREY, "test_images": GREY, "test_labels": LABELS}, r"data\[train_labels\]: missing array"),
        (ARRAYS | {"class_names": ["cat"]}, r"data\[train_labels\] = 1: labels must be 0 to 0 \(image 1\)"),
        (ARRAYS | {"class_names": [1, 2]}, r"data\[class_names\] = 'int64 \[2\]': must be a list of texts"),
    ],
)  # fmt: skip
def test_bad_data_is_told_in_one_line(data: Any, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        from_python(data, config=DataConfig(fit="refuse"))
    assert caught.value.key.startswith("data") and "\n" not in str(caught.value)


def test_bad_data_sets_of_hugging_face_are_told():
    import datasets

    for data, message in [
        (rows(6).remove_columns("picture"), "data: must have one image column, has only kind"),
        (datasets.DatasetDict(dev=rows(2), other=rows(2)), "data: has no train split, only dev, other"),
        (datasets.DatasetDict(train=rows(6), test=rows(0)), "data: the test split is empty"),
        (datasets.DatasetDict(), "data = 'no split': must be"),
        (rows(1), "data = '1 image': must hold 2 images"),
    ]:
        with pytest.raises(ConfigError, match=message):
            from_python(data)


def test_pickled_arrays_in_an_opened_file_are_never_loaded(tmp_path: Path):
    np.savez(tmp_path / "a.npz", train_images=GREY, train_site=np.array([None] * 20))
    with (
        np.load(tmp_path / "a.npz") as opened,
        pytest.raises(
            ConfigError, match=r"data\[train_site\]: broken array \(Object arrays cannot be loaded"
        ),
    ):
        from_python(opened)


def test_channels_that_there_are_none_of_are_refused():
    with pytest.raises(ConfigError, match=r"data.channels = 2: must be 0 \(native\)"):
        from_python(GREY, config=DataConfig(channels=2))
