"""DICOM slices (`.dcm` files in a folder), through pydicom: only what the pixels need is read, nothing of the patient.

`pip install osmotic[dicom]`. Source of the steps: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (rescale), C.11.2 (window).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.data.image import MAX_PIXELS, Facts, Picture
from osmotic.errors import ConfigError

SUFFIX = ".dcm"
# All that is asked of a file, but for its pixels: names, dates and numbers of patients are not among it.
TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
]
GREY = ("MONOCHROME1", "MONOCHROME2")


def header(where: str, file: Path) -> Facts:
    """What the header of a slice says; the pixels are not read.

    Args:
        where: what an error names.
    Raises: ConfigError naming `where` for a file that is no DICOM image, has several frames or more than MAX_PIXELS, or
        where pydicom is missing.
    """
    return _facts(where, _read(where, file, pixels=False))


def decode(where: str, file: Path) -> Picture:
    """The slice: grey float32 [H, W, 1] in its own units (of CT: Hounsfield), with the window that is black and white.

    The window is the file's first, else all values that its bits can hold. MONOCHROME1, where small values are
    white, comes with its window the other way round. 8-bit RGB and YBR become RGB.

    Raises: ConfigError as `header`, and where the pixels cannot be decoded.
    """
    import pydicom.pixels

    found = _read(where, file, pixels=True)
    facts = _facts(where, found)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break the standard and can still be read
            stored = found.pixel_array
            if facts.channels == 3 and str(found.PhotometricInterpretation).startswith("YBR"):
                stored = pydicom.pixels.convert_color_space(stored, found.PhotometricInterpretation, "RGB")
    except Exception as error:  # pydicom and its plug-ins raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(where, None, f"pixels cannot be decoded ({reason})") from None
    if facts.channels == 3:
        return Picture(np.ascontiguousarray(stored, np.uint8))
    slope, intercept = _rescale(found)
    values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return Picture(values[..., None], window=_black_white(found))


def _read(where: str, file: Path, pixels: bool) -> Any:
    try:
        import pydicom
    except ImportError:
        raise ConfigError(where, None, "DICOM files need pydicom: pip install osmotic[dicom]") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = [*TAGS, "PixelData"] if pixels else TAGS
            return pydicom.dcmread(file, specific_tags=tags, stop_before_pixels=not pixels)
    except Exception as error:  # InvalidDicomError, OSError, and what broken elements cause
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ConfigError(
            where, None, f"broken image, is no DICOM file that can be read ({reason})"
        ) from None


def _facts(where: str, found: Any) -> Facts:
    try:
        height, width = int(found.Rows), int(found.Columns)
        frames, samples = int(found.get("NumberOfFrames") or 1), int(found.SamplesPerPixel)
        kind, bits = str(found.PhotometricInterpretation), int(found.BitsAllocated)
    except Exception as error:
        raise ConfigError(where, None, f"holds no image ({' '.join(str(error).split())[:100]})") from None
    if frames != 1:
        raise ConfigError(where, f"{frames} frames", "a file must hold one image")
    if width * height > MAX_PIXELS:
        raise ConfigError(where, f"{width}x{height}", f"must have at most {MAX_PIXELS:,} pixels")
    if samples == 1 and kind in GREY:
        return Facts(width, height, 1, "float32", ("DICOM",), window=_black_white(found))
    if samples == 3 and bits == 8 and (kind == "RGB" or kind.startswith("YBR")):
        return Facts(width, height, 3, "uint8", ("DICOM",))
    raise ConfigError(where, f"{kind}, {samples} x {bits} bits", "must be grey, or RGB or YBR of 8 bits")


def _rescale(found: Any) -> tuple[float, float]:
    """Slope and intercept from stored values to the scanner's units (C.11.1)."""
    return _number(found, "RescaleSlope", 1.0), _number(found, "RescaleIntercept", 0.0)


def _black_white(found: Any) -> tuple[float, float]:
    """Black and white in the scanner's units; of MONOCHROME1 small values are white."""
    low, high = _window(found, *_rescale(found))
    return (high, low) if found.PhotometricInterpretation == "MONOCHROME1" else (low, high)


def _window(found: Any, slope: float, intercept: float) -> tuple[float, float]:
    """The values that are black and white: those of the linear window (C.11.2.1.2), else all that the bits can hold."""
    centre, width = _number(found, "WindowCenter", np.nan), _number(found, "WindowWidth", np.nan)
    if width > 1:
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    bits, signed = int(found.get("BitsStored") or found.BitsAllocated), bool(found.get("PixelRepresentation"))
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = sorted((least * slope + intercept, most * slope + intercept))
    return low, high


def _number(found: Any, name: str, default: float) -> float:
    """A number of the header, the first where there are several; `default` where there is none that is finite."""
    value = found.get(name)
    value = value[0] if isinstance(value, list | tuple) or (hasattr(value, "__iter__") and value) else value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) else default
