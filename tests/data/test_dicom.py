"""DICOM slices: hand-worked values of rescale, window and inversion; and that nothing but pixels is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.config.schema import DataConfig
from osmotic.data import dicom, sources
from osmotic.errors import ConfigError

pydicom = pytest.importorskip("pydicom")

STORED = np.array([[0, 1], [1023, 1024]], np.uint16).repeat(4, axis=0).repeat(4, axis=1)  # [8, 8]
CORNERS = ([0, 0, 4, 4], [0, 4, 0, 4])  # a pixel of each of the four levels


def slice_of(path: Path, pixels: np.ndarray = STORED, bits: int = 12, **elements: Any) -> None:
    """A file of these stored values, as a scanner would write it."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.PatientName, made.PatientID, made.StudyDate = "Doe^Jane", "4711", "20250101"
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    if made.SamplesPerPixel > 1:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(made, name, value)
    made.PixelData = pixels.tobytes()
    path.parent.mkdir(exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def first(folder: Path, **keys: Any) -> np.ndarray:
    """The first training image, [H, W, C]; a plan must tell its shape."""
    cfg = DataConfig(source=f"folder:{folder}", **keys)
    found = sources.load(cfg).train.images
    assert (
        sources.describe(cfg).image_size == found.shape[1]
        and sources.describe(cfg).channels == found.shape[3]
    )
    return found[0]


def folder(tmp_path: Path, **options: Any) -> Path:
    for i in range(2):
        slice_of(tmp_path / "scans" / f"{i}.dcm", **options)
    return tmp_path / "scans"


def test_without_a_window_all_that_the_bits_can_hold_is_the_range(tmp_path: Path) -> None:
    # 12 bits: 4095 is white
    assert first(folder(tmp_path))[CORNERS][:, 0] == pytest.approx([0, 1 / 4095, 1023 / 4095, 1024 / 4095])


def test_slope_and_intercept_come_before_the_window(tmp_path: Path) -> None:
    # v -> 2 v - 1024: -1024, -1022, 1022, 1024. Window 0.5, 2049: from 0.5 - 0.5 - 1024 to 0.5 - 0.5 + 1024.
    keys = {
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        "WindowCenter": [0.5, 40],
        "WindowWidth": [2049, 80],
    }
    assert first(folder(tmp_path, **keys))[CORNERS][:, 0] == pytest.approx([0, 2 / 2048, 2046 / 2048, 1])


def test_the_key_takes_units_of_the_scanner_and_goes_before_the_window(tmp_path: Path) -> None:
    made = folder(tmp_path, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=80)
    # values -1024, -1023, -1, 0: of [-1023, 0] they are below, 0, 1022 / 1023 and 1
    found = first(made, value_range=(-1023.0, 0.0))[CORNERS][:, 0]
    assert found == pytest.approx([0, 0, 1022 / 1023, 1])


def told(folder: Path, **keys: Any) -> tuple[str, ...]:
    """The notes of a run on the folder; a plan must tell the same."""
    cfg = DataConfig(source=f"folder:{folder}", **keys)
    found = sources.load(cfg).notes
    assert sources.describe(cfg).notes == found
    return found


def test_what_the_files_take_as_black_and_white_is_told(tmp_path: Path) -> None:
    made = folder(tmp_path, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    rule = "2 DICOM slices: -160 is black and 239 white, as the files say (data.value_range)"
    assert told(made) == (rule,)
    assert told(made, value_range=(-1000.0, 1000.0)) == ()
    (tmp_path / "light").mkdir()
    light = folder(tmp_path / "light", PhotometricInterpretation="MONOCHROME1")
    assert told(light) == ("2 DICOM slices: 4095 is black and 0 white, as the files say (data.value_range)",)


def test_slices_whose_windows_differ_are_told_of(tmp_path: Path) -> None:
    made = folder(tmp_path, WindowCenter=40, WindowWidth=400)
    slice_of(made / "2.dcm", WindowCenter=500, WindowWidth=1000)
    (note,) = told(made)
    assert note.startswith(
        "3 DICOM slices with 2 ranges from black to white (-160 to 239 in 2): equal values"
    )


def test_signed_values_are_read(tmp_path: Path) -> None:
    levels = np.array([[-2048, 0], [1, 2047]], np.int16).repeat(4, axis=0).repeat(4, axis=1)
    found = first(folder(tmp_path, pixels=levels))[CORNERS][:, 0]
    assert found == pytest.approx([0, 2048 / 4095, 2049 / 4095, 1])


@pytest.mark.parametrize("keys", [{}, {"value_range": (0.0, 4095.0)}])
def test_where_small_values_are_white_they_come_out_white(tmp_path: Path, keys: dict[str, Any]) -> None:
    found = first(folder(tmp_path, PhotometricInterpretation="MONOCHROME1"), **keys)[CORNERS][:, 0]
    assert found == pytest.approx([1, 4094 / 4095, 3072 / 4095, 3071 / 4095])


def test_colour_slices_are_bytes(tmp_path: Path) -> None:
    colours = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert (first(folder(tmp_path, pixels=colours, bits=8)) == colours).all()


def test_names_dates_and_numbers_of_patients_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    dcmread = pydicom.dcmread

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = dcmread(*args, **kwargs)
        asked.append({e.keyword for e in found})
        return found

    monkeypatch.setattr(pydicom, "dcmread", watched)
    first(folder(tmp_path))
    seen = set().union(*asked)
    assert {"Rows", "PixelData"} <= seen <= {*dicom.TAGS, "PixelData"}
    assert not {e for e in seen if e.startswith(("Patient", "Study"))}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"NumberOfFrames": 3}, "= '3 frames': a file must hold one image"),
        ({"Rows": 60_000, "Columns": 60_000}, "= '60000x60000': must have at most 120,000,000 pixels"),
        (
            {"PhotometricInterpretation": "PALETTE COLOR"},
            "'PALETTE COLOR, 1 x 16 bits': must be grey, or RGB or YBR",
        ),
        ({"Rows": 9}, "pixels cannot be decoded"),
        ({"RescaleSlope": 0}, "values must be numbers, and there must be a value that is white"),
    ],
)
def test_slices_that_cannot_be_are_told(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    made = folder(tmp_path, **options)
    with pytest.raises(ConfigError, match=rf"\.dcm.*{message}"):
        sources.load(DataConfig(source=f"folder:{made}"))


def test_what_is_no_dicom_file_is_told(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.dcm").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"\d.dcm: broken image, is no DICOM file"):
        sources.describe(DataConfig(source=f"folder:{tmp_path}"))


def test_without_pydicom_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"\d.dcm: DICOM files need pydicom: pip install osmotic\[dicom\]"):
        sources.describe(DataConfig(source=f"folder:{made}"))
