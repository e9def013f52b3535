"""JSON that every reader takes, and one line about a file that is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from osmotic.errors import ConfigError
from osmotic.storage import strict_json
from osmotic.storage.folder import RunDir
from osmotic.storage.strict_json import dumps, read_table

INF, NAN = float("inf"), float("nan")


def test_what_is_no_finite_number_is_null_at_any_depth() -> None:
    value = {"a": INF, "b": [1.5, NAN, {"c": (-INF, 2)}], "d": "NaN", "e": None, "f": True}
    found = json.loads(dumps(value), parse_constant=lambda word: pytest.fail(word))
    assert found == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None, "f": True}


def test_a_log_holds_no_infinity(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append("metrics", [{"loss": INF, "client_loss": {"client-000": NAN}}])
    assert run.log("metrics").read_text() == '{"loss": null, "client_loss": {"client-000": null}}\n'


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"7", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_holds_no_table_is_named_in_one_line(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "partition.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_table(path)
    assert caught.value.key == str(path) and str(caught.value).isprintable()


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_table(path)


# Who writes JSON that holds no figure of a run: packets, hashes, folders of models, quotes in code.
OTHERS = {
    "sites/desk.py",  # a configuration, whose numbers are finite
    "engines/envelope.py",  # a packet's header, as it is
    "runs/workplace.py",  # between processes of one run
    *("codecs/base.py", "codecs/described.py", "engines/shared.py", "flat.py", "protocol/messages.py", "federation/downlink.py", "federation/uplink.py", "storage/store.py"),
    *("models/class_conditional_pipeline.py", "models/pipeline.py", "metrics/classifier.py", "metrics/encoder_file.py", "report/narrative.py"),
    "report/groups.py",  # a key of a table in memory
}  # fmt: skip


def test_nobody_else_writes_figures_as_json() -> None:
    source = Path(strict_json.__file__).parents[1]
    calls = {
        str(p.relative_to(source))
        for p in source.rglob("*.py")
        if re.search(r"(?<!strict_)json(lib)?\.dumps?\(", p.read_text())
    }
    assert calls - {"storage/strict_json.py"} <= OTHERS
