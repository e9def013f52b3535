"""Text from outside: always one printable line of bounded length, whatever it holds."""

from __future__ import annotations

import pickle
from pathlib import Path

from osmotic.errors import ConfigError, plain, shown
from osmotic.pieces.base import PieceError
from osmotic.storage.atomic import write_text

HOSTILE = "a\x1b[31mb\u202ec\ud800d\x00\n\t\u2028e\x85"


def test_what_does_not_print_is_escaped_and_white_space_is_a_space() -> None:
    assert plain(HOSTILE) == r"a\x1b[31mb\u202ec\ud800d\x00   e "
    assert plain("Größe, 大きさ") == "Größe, 大きさ"


def test_a_text_is_cut_after_it_was_escaped() -> None:
    assert len(plain("\x1b" * 10_000)) == 200
    assert plain("x" * 300, 10) == "x" * 10 and len(plain("x" * 300, None)) == 300


def test_a_value_is_shown_whatever_it_is() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(10**5000) == "a value that cannot be written (int)"
    assert shown([10**5000]) == "a value that cannot be written (list)"
    assert shown(Odd()) == "a value that cannot be written (Odd)"
    assert shown("\u202e") == r"'\u202e'" and len(shown("x" * 10_000)) == 200


def test_a_configuration_error_prints_nothing_of_a_value_path_or_rule_raw() -> None:
    told = str(ConfigError(f"{HOSTILE}.toml", HOSTILE, f"not {HOSTILE}", HOSTILE))
    assert told.isprintable() and "\\x1b[31m" in told
    assert len(str(ConfigError("x" * 5000, "y" * 5_000_000, "rule"))) < 500
    assert "cannot be written" in str(ConfigError("seed", 10**5000, "must be smaller"))


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a\ud800ü")
    assert (tmp_path / "a.txt").read_bytes() == b"a\\ud800" + "ü".encode()


def test_an_error_goes_from_one_process_to_another() -> None:
    for error in (ConfigError("seed", 1, "must be 2", "sead"), PieceError("prox", "is wrong")):
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
