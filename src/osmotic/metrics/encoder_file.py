"""An encoder as one file, `score.encoder = "file:PATH"`: for those who must all look through the same network.

It is a classifier that was trained on other images than the run's, public ones say, by `osmotic encoder`. The file is data: the
network is built here, and its weights are held against their hash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from osmotic.data.dataset import Dataset, checked_names
from osmotic.errors import ConfigError
from osmotic.metrics import classifier
from osmotic.metrics.classifier import MAX_SIDE, RECIPE, Trained
from osmotic.metrics.features import THREADS, Encoder
from osmotic.metrics.weights import PREFIX
from osmotic.storage import atomic

MAX_BYTES = 64 * 2**20  # of such a file; a classifier of 1,000 classes has 1 MB
MAX_CLASSES = 10_000
_ENTRY = "osmotic"  # in the metadata of the safetensors file


def write(
    path: Path, dataset: Dataset, threads: int = THREADS, stepped: Callable[[], object] = lambda: None
) -> Encoder:
    """Trains the classifier of a data set, or takes it from the cache, and writes it into a file; returns what `read` gives.

    Raises: ConfigError for the path of a folder, ValueError without training images; OSError as the file system gives it.
    """
    from safetensors.torch import save

    # Before the training, which takes a while.
    if path.is_dir():
        raise ConfigError("--out", str(path), "is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = classifier.trained(dataset, cache=True, threads=threads, stepped=stepped)
    facts = {
        "recipe": RECIPE,
        "name": classifier.label(dataset),
        "channels": found.channels,
        "num_outputs": found.num_outputs,
        "side": found.side,
        "test_accuracy": found.test_accuracy,
        "sha256": found.sha256,
    }
    atomic.write_bytes(path, save(dict(found.weights), metadata={_ENTRY: json.dumps(facts)}))
    return read(path, threads=threads)


def read(path: Path, device: str = "cpu", threads: int = THREADS) -> Encoder:
    """The encoder in a file.

    Args:
        device, threads: as `encoder.get`.
    Raises: ConfigError for a file that is not there, damaged, or of another version.
    """
    shown = f"{PREFIX}{path}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError("score.encoder", shown, f"is larger than {MAX_BYTES:,} bytes: no encoder")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError("score.encoder", shown, f"cannot be read ({error.strerror})") from None
    try:
        name, found = _parsed(path, data)
        return classifier.elsewhere(found, name, threads, device)
    except Exception as error:  # whatever a torn, altered or foreign file can cause
        rule = f"holds no encoder of this version: osmotic encoder makes one ({type(error).__name__})"
        raise ConfigError("score.encoder", shown, rule) from None


def _parsed(path: Path, data: bytes) -> tuple[str, Trained]:
    from safetensors import safe_open
    from safetensors.torch import load

    with safe_open(str(path), framework="pt") as file:
        facts = json.loads((file.metadata() or {})[_ENTRY])
    numbers = [facts["channels"], facts["num_outputs"], facts["side"]]
    if (
        not isinstance(facts, Mapping)
        or facts["recipe"] != RECIPE
        or any(type(n) is not int for n in numbers)
    ):
        raise ValueError("recipe")
    channels, outputs, side = numbers
    if channels not in (1, 3) or not 2 <= outputs <= MAX_CLASSES or not 1 <= side <= MAX_SIDE:
        raise ValueError("shape")
    checked_names("name", [facts["name"]])
    accuracy = facts["test_accuracy"]
    if accuracy is not None and not 0 <= float(accuracy) <= 1:
        raise ValueError("accuracy")
    found = Trained(channels, outputs, side, accuracy, load(data))
    if found.sha256 != facts["sha256"]:
        raise ValueError("the weights do not match their hash")
    return str(facts["name"]), found
