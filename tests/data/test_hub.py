"""Hugging Face data sets on disk: columns by their types, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.errors import ConfigError

Load = Callable[..., Any]  # the fixture of conftest.py


def hub_rows(count: int, **columns: list[Any]) -> Any:
    import datasets

    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [Image.fromarray(np.full((4, 4), 10 * i, np.uint8)) for i in range(count)]
    rows = datasets.Dataset.from_dict(
        {"picture": images, "kind": [i % 2 for i in range(count)]}, features=features
    )
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def test_saved_data_set_is_read_by_feature_types(load: Load, tmp_path: Path) -> None:
    import datasets

    train = hub_rows(6, site=["x", "y", None, "x", "y", "x"], age=[1, 2, 3, 4, 5, 6])
    test = hub_rows(2, site=["x", "y"], age=[7, 8])
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    data = load(f"hf:{tmp_path / 'both'}")
    assert data.class_names == ("cat", "dog") and data.train.labels.tolist() == [0, 1] * 3
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert data.train.columns["site"].tolist() == ["x", "y", "", "x", "y", "x"]
    assert data.train.columns["age"].tolist() == [1, 2, 3, 4, 5, 6] and len(data.test) == 2

    train.save_to_disk(tmp_path / "one")
    assert len(load(f"hf:{tmp_path / 'one'}").train) == 4  # 6 less a fifth, rounded up


def test_a_plain_local_folder_needs_no_script(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    hub_rows(10).to_parquet(tmp_path / "rows" / "train.parquet")
    data = load(f"hf:{tmp_path / 'rows'}")
    assert len(data.train) == 8 and data.class_names == ("cat", "dog")


def test_data_sets_that_do_not_fit_are_told(tmp_path: Path) -> None:
    import datasets

    with pytest.raises(ConfigError, match="gone: no such folder"):
        sources.load(DataConfig(source=f"hf:{tmp_path / 'gone'}"))
    hub_rows(4).remove_columns("picture").save_to_disk(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"must have one image column, has only kind"):
        sources.load(DataConfig(source=f"hf:{tmp_path / 'a'}"))
    datasets.DatasetDict(dev=hub_rows(2), other=hub_rows(2)).save_to_disk(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"has no train split, only dev, other"):
        sources.load(DataConfig(source=f"hf:{tmp_path / 'b'}"))
    (tmp_path / "c").mkdir()
    with pytest.raises(ConfigError, match=r"hf:.*c: cannot be loaded") as caught:
        sources.load(DataConfig(source=f"hf:{tmp_path / 'c'}"))
    assert "\n" not in str(caught.value)
