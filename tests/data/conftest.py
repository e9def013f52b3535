"""What the tests of the sources share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.data.dataset import Dataset, Shape


@pytest.fixture
def load() -> Callable[..., Dataset]:
    """The data set of a source; on the way, `describe` must tell its shape."""

    def load_and_describe(source: str, **keys: Any) -> Dataset:
        cfg = DataConfig(source=source, **keys)
        data = sources.load(cfg)
        count, side, _, channels = data.train.images.shape
        assert sources.describe(cfg) == Shape(side, channels, len(data.class_names), count)
        return data

    return load_and_describe
