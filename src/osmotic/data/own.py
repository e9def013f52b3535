"""What a Python user has in hand, as a source: arrays, a torch data set, or one of Hugging Face's `datasets`.

    from_python({"train_images": images, "train_labels": labels})
    from_python((images, labels), config=DataConfig(image_size=32))
    from_python(torchvision.datasets.MNIST("mnist", transform=ToTensor()))
    from_python(datasets.load_dataset("mnist"))

From there on they are as any other source: the rules and the errors of `npz:` and `hf:`, under the key
"data", the same conversions, and the same fifth of the images for testing where no test split is given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from osmotic.config.keys import nearest
from osmotic.config.schema import DataConfig
from osmotic.data import image, sources
from osmotic.data.dataset import Dataset, Source, StoredSplit, checked_labels, checked_names
from osmotic.data.hub import open_splits
from osmotic.data.image import Facts, Picture
from osmotic.data.npz import open_arrays
from osmotic.errors import ConfigError

KINDS = (
    "must be an array of images, (images, labels), a dict of arrays (train_images, train_labels, ...), "
    "a torch Dataset with a length, or a datasets.Dataset or DatasetDict"
)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
DTYPES = "must be uint8, uint16, or float32 in [0, 1]"


def from_python(data: Any, name: str = "own", config: DataConfig | None = None) -> Dataset:
    """The data set in memory, its images copied; what changes in `data` later changes nothing here.

    Args:
        data: one of
            - images, [N, H, W] or [N, H, W, C]: uint8, uint16, or floats in [0, 1]; a torch tensor is
              [N, H, W] or [N, C, H, W]; or (images, labels) with whole numbers [N] from 0, or None;
            - a dict or an opened .npz file with the arrays of `npz:` (see `npz.py`): train_images,
              train_labels, test_images, test_labels, class_names, and columns as train_COLUMN [N];
            - a torch Dataset, or a list: each item an image or (image, label); an image is a tensor
              [C, H, W], an array [H, W] or [H, W, C], or a PIL image;
            - a datasets.Dataset or DatasetDict with one image column.
        name: of the data set, as reports and scores tell it.
        config: `image_size`, `channels` and `max_images` are read; by default all is kept as it is.
    Returns: images [N, H, W, C], uint8, or float32 in [0, 1] where floats or 16 bits came; labels int64 [N]
        or None. A fifth of the images, stratified by label, is the test split where `data` has none.
    Raises: ConfigError under the key "data" naming the array or item and the rule: not square, not 1 or 3
        channels, a wrong dtype, NaN or a value outside [0, 1], a label that is no class, lengths that do not
        match.
    """
    return sources.finish(config or DataConfig(), open_python(data, name))


def open_python(data: Any, name: str = "own") -> Source:
    """The source that `data` makes, for `sources.shape_of` and `finish`; labels are checked, images not yet.

    Args:
        data, name: as `from_python`.
    Raises: ConfigError as `from_python`, but for what only the pixels can tell.
    """
    # datasets first: a DatasetDict is a dict too, and a datasets.Dataset has items and a length as torch's
    # have.
    if _is_a(data, "datasets", "Dataset", "DatasetDict"):
        source = _splits(data, name)
    elif isinstance(data, Mapping):
        source = _mapping(data, name)
    elif isinstance(data, tuple):
        source = _pair(data, name)
    elif isinstance(data, np.ndarray) or _is_a(data, "torch", "Tensor"):
        source = open_arrays(_InMemory({"train_images": data}, {"train_images": "data"}), name)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes):
        source = _items(data, name)
    else:
        raise ConfigError("data", type(data).__name__, KINDS)
    if source.test is None and source.train.size < 2:
        shown = f"{source.train.size} image" + "s" * (source.train.size != 1)
        raise ConfigError("data", shown, "must hold 2 images or more, one is kept for testing")
    return source


def _is_a(data: Any, module: str, *classes: str) -> bool:
    """Whether `data` is of one of these classes; a module that nobody imported has no instances."""
    loaded = sys.modules.get(module)
    return any(isinstance(data, getattr(loaded, c)) for c in classes if hasattr(loaded, c))


def _splits(data: Any, name: str) -> Source:
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if not splits:
        raise ConfigError("data", "no split", KINDS)
    # A user's format or transform would turn rows into tensors; the file's own bytes are what is wanted.
    return open_splits(
        "data", "data", {split: rows.with_format(None) for split, rows in splits.items()}, name
    )


def _mapping(data: Mapping[Any, Any], name: str) -> Source:
    for key in map(str, data):
        # Stricter than `npz:`: an archive may come from elsewhere, but an argument nobody reads is a mistake.
        if key != "class_names" and not key.startswith(("train_", "test_")):
            hint = f"train_{key}" if f"train_{key}" in ARRAYS else nearest(key, ARRAYS)
            raise ConfigError(f"data[{key}]", None, "unknown array", hint)
        if key.startswith("test_") and not {"test_images", "test_jpeg"} & set(data):
            raise ConfigError("data[test_images]", None, f"missing array, though there is {key}")
    return open_arrays(_InMemory(data, {}), name)


def _pair(data: tuple[Any, ...], name: str) -> Source:
    if len(data) != 2:
        raise ConfigError("data", f"tuple of {len(data)}", "must be (images, labels)")
    arrays = {"train_images": data[0], "train_labels": data[1]}
    given = {key: array for key, array in arrays.items() if array is not None}
    return open_arrays(_InMemory(given, {"train_images": "data[0]", "train_labels": "data[1]"}), name)


class _InMemory:
    """Arrays by name as `npz.open_arrays` wants them; each is converted when it is first asked for.

    Args:
        arrays: arrays, tensors or lists.
        shown: what errors call an array, where it is not data[NAME].
    """

    def __init__(self, arrays: Mapping[Any, Any], shown: Mapping[str, str]) -> None:
        self.arrays, self.shown = arrays, shown
        self.keys = [str(key) for key in arrays]
        self._converted: dict[str, np.ndarray] = {}

    def where(self, array: str) -> str:
        return self.shown.get(array, f"data[{array}]")

    def header(self, array: str) -> tuple[tuple[int, ...], np.dtype]:
        found = self.load(array)
        return found.shape, found.dtype

    def load(self, array: str) -> np.ndarray:
        if array not in self._converted:
            where = self.where(array)
            try:
                value = self.arrays[array]
            except (ValueError, OSError, KeyError) as error:  # an .npz file that is closed, torn or pickled
                raise ConfigError(where, None, f"broken array ({error})") from None
            self._converted[array] = (
                _pixels(where, value, 4) if array.endswith("_images") else _array(where, value)
            )
        return self._converted[array]

    def chunks(self, array: str) -> Iterator[np.ndarray]:
        yield self.load(array)


def _array(where: str, value: Any) -> np.ndarray:
    """An array, tensor or list as an array of numbers or texts."""
    if _is_a(value, "torch", "Tensor"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
    try:
        found = np.asarray(value)
    except Exception as error:  # a ragged list raises ValueError, an array of another library what it likes
        raise ConfigError(where, type(value).__name__, f"cannot be made an array ({error})") from None
    if found.dtype.hasobject:
        raise ConfigError(where, str(found.dtype), "must hold numbers, or texts of one array, not objects")
    return found


def _pixels(where: str, value: Any, axes: int) -> np.ndarray:
    """Images with their channels last and floats as float32; `axes` is 4 for [N, H, W, C], 3 for [H, W, C].

    Of numpy the channels are taken to be last, of torch first, as either's own libraries have them. Guessing
    from the numbers would now and then be wrong without a word, so where they look the other way round it is
    an error.
    """
    found = _array(where, value)
    if found.dtype.kind == "f":
        found = found.astype(np.float32, copy=False)
    if found.ndim != axes:
        return found  # grey without an axis of channels, or wrong, which the rules of the source will tell
    torch_like = _is_a(value, "torch", "Tensor")
    first, last = found.shape[axes - 3], found.shape[-1]
    right, wrong = (first, last) if torch_like else (last, first)
    if right not in (1, 3) and wrong in (1, 3):
        orders = ("[N, C, H, W]", "[N, H, W, C]") if axes == 4 else ("[C, H, W]", "[H, W, C]")
        expected, found_order = orders if torch_like else orders[::-1]
        owner = "a torch tensor" if torch_like else "an array"
        rule = f"{owner} of images must be {expected}: this looks like {found_order}, move its channels"
        raise ConfigError(where, list(found.shape), rule)
    return np.moveaxis(found, axes - 3, -1) if torch_like else found


def _items(data: Any, name: str) -> Source:
    """Every item is asked for once and kept: a transform that draws at random gives another each time."""
    images, labels = [], []
    for i in range(len(data)):
        item = data[i]
        # A TensorDataset of images alone gives tuples of one.
        parts = item if isinstance(item, tuple | list) else (item,)
        if len(parts) not in (1, 2):
            raise ConfigError(f"data[{i}]", f"{len(parts)} values", "must be an image or (image, label)")
        images.append(_image(f"data[{i}]", parts[0]))
        labels.append(parts[1] if len(parts) == 2 else None)
    checked = _labels(labels)
    names = () if checked is None else _names(data, checked)

    def facts(positions: np.ndarray) -> Iterator[tuple[str, Facts]]:
        return ((f"data[{i}]", images[i].facts) for i in positions)

    def read(positions: np.ndarray) -> Iterator[tuple[str, Picture]]:
        return ((f"data[{i}]", images[i]) for i in positions)

    return Source(name, names, StoredSplit(len(images), checked, {}, facts, read), None)


def _image(where: str, value: Any) -> Picture:
    """One item's image, uint8, uint16 or float32."""
    if _is_a(value, "PIL.Image", "Image"):
        return image.from_pil(where, value)
    found = _pixels(where, value, 3)
    found = found[..., None] if found.ndim == 2 else found
    if found.ndim != 3:
        raise ConfigError(
            where, list(found.shape), "an image must be [H, W] or [H, W, C], as a tensor [C, H, W]"
        )
    if found.dtype not in (np.uint8, np.uint16, np.float32):
        raise ConfigError(where, str(found.dtype), DTYPES)
    return Picture(found.copy())  # a data set may hand out the same buffer again


def _labels(labels: Sequence[Any]) -> np.ndarray | None:
    """int64 [N], or None where no item has a label."""
    missing = [i for i, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        return None
    if missing:
        raise ConfigError(f"data[{missing[0]}]", None, "has no label: all items must have one, or none")
    # One by one first: a list of tensors is slow to convert, and those on a device are refused.
    found = _array("data[labels]", [_array(f"data[{i}]", label) for i, label in enumerate(labels)])
    return checked_labels("data[labels]", found, len(labels), None)


def _names(data: Any, labels: np.ndarray) -> tuple[str, ...]:
    """The names a torchvision data set keeps in `classes`, if they cover the labels; else their numbers."""
    count = int(labels.max()) + 1
    names = getattr(data, "classes", None)
    # Another `classes` is somebody's own affair, and a target transform may have made other labels than it
    # names.
    numbers = tuple(map(str, range(count)))
    if not (
        isinstance(names, list | tuple) and len(names) >= count and all(isinstance(n, str) for n in names)
    ):
        return numbers
    try:
        return checked_names("data.classes", names)
    except ConfigError:  # two of ImageNet's thousand are called "crane"
        return numbers
