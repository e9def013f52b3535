"""One image from its file bytes to values: what the header says, what the pixels are. `convert.py` makes them alike."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from osmotic.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

# 12,000 x 9,000, the largest of common cameras, has 108 million; in colour it is 324 MB once decoded.
MAX_PIXELS = 120_000_000
GREY, COLOUR = ("1", "L", "LA", "La"), ("RGB", "RGBA", "RGBa", "RGBX")
OTHER = {
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "HSV": "HSV",
}  # PIL makes them RGB
ALPHA = "transparency"
ORIENTED = "orientation"


@dataclass(frozen=True)
class Facts:
    """What a header says of its image, without the pixels.

    Args:
        width, height: pixels, upright.
        channels: 1 or 3, once decoded.
        dtype: of the values: uint8, uint16 or float32.
        remarks: what decoding it will involve, such as "transparency" or "CMYK".
        bounded: whether it is known which value is white.
        window: the values that the file says are black and white, as in Picture; None where it says none.
    """

    width: int
    height: int
    channels: int
    dtype: str
    remarks: tuple[str, ...] = ()
    bounded: bool = True
    window: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image in the values of its file.

    Args:
        pixels: [H, W, C], C 1 or 3: uint8, uint16 or float32.
        alpha: uint8 [H, W, 1], 255 is opaque; None where there is none.
        window: the values that are black and white, black the larger one where small values are light; None: 0 and the largest of an integer type, 0 and 1 of float32.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    window: tuple[float, float] | None = None

    @property
    def facts(self) -> Facts:
        """What its header would have said."""
        height, width, channels = self.pixels.shape
        remarks = () if self.alpha is None else (ALPHA,)
        bounded = self.window is None or not np.isnan(self.window[0])
        return Facts(width, height, channels, self.pixels.dtype.name, remarks, bounded)


def header(where: str, file: Path | bytes) -> Facts:
    """What the header of an image file says; the pixels are not decoded.

    Args:
        where: what an error names.
        file: a path, or the bytes of a file.
    Raises: ConfigError naming `where` for what is no image, has several frames, more than MAX_PIXELS, or a mode
        that cannot be made grey or RGB.
    """
    with _opened(where, file) as image:
        facts = _facts(where, image)
        # Of a TIFF PIL tells the upright size itself. A PNG's orientation may stand behind its pixels: only what stands
        # before them is asked for.
        known = image.format not in ("TIFF", "PNG") or (image.format == "PNG" and "exif" in image.info)
        turned = image.getexif().get(0x0112, 1) if known else 1
    if turned == 1:
        return facts
    width, height = (facts.height, facts.width) if turned in (5, 6, 7, 8) else (facts.width, facts.height)
    return Facts(width, height, facts.channels, facts.dtype, (*facts.remarks, ORIENTED), facts.bounded)


def decode(where: str, file: Path | bytes) -> Picture:
    """The image in a file or in its bytes; the camera's orientation tag is obeyed.

    Palette, CMYK, YCbCr and HSV images become RGB, 1-bit images grey; of 16-bit colour the upper 8 bits are kept.

    Args:
        where: what an error names.
        file: a path, or the bytes of a file.
    Raises: ConfigError as `header`, and if it cannot be decoded.
    """
    from PIL import ImageOps

    with _opened(where, file) as image:
        _facts(where, image)  # refuses by the header, before a bomb is unpacked
        image.load()
        return from_pil(where, ImageOps.exif_transpose(image))


def from_pil(where: str, image: Image) -> Picture:
    """A PIL image as values; its orientation tag is not looked at.

    Args:
        where: what an error names.
    Raises: ConfigError naming `where` for a mode that cannot be made grey or RGB.
    """
    facts = _facts(where, image)
    if facts.dtype == "uint16":
        grey = np.asarray(image).astype(np.uint16)[..., None]
        # Of 16-bit grey PIL knows transparency only as one value that is not seen.
        hidden = image.info.get("transparency")
        return Picture(grey, None if hidden is None else ((grey != hidden) * 255).astype(np.uint8))
    if facts.dtype == "float32":
        return Picture(np.asarray(image).astype(np.float32)[..., None], window=(np.nan, np.nan))
    if ALPHA not in facts.remarks:
        wanted = "L" if facts.channels == 1 else "RGB"
        pixels = np.asarray(image if image.mode == wanted else image.convert(wanted))
        return Picture(pixels[..., None] if facts.channels == 1 else pixels)
    pixels = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    return Picture(pixels[..., : facts.channels], pixels[..., 3:])


@contextlib.contextmanager
def _opened(where: str, file: Path | bytes) -> Iterator[Image]:
    """The image of a file, not yet decoded. Whatever goes wrong in the body is told as a broken image."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # PIL's own limit is another, and what it says of broken metadata names no file.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                yield image
    except ConfigError:
        raise
    except Image.DecompressionBombError:
        raise ConfigError(where, None, f"must have at most {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise anything from OSError to struct.error on broken files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "not an image" if reason.startswith("cannot identify image file") else reason
        raise ConfigError(where, None, f"broken image, cannot be decoded ({reason})") from None


def _facts(where: str, image: Image) -> Facts:
    """What PIL says of an image, its orientation apart."""
    (width, height), mode = image.size, image.mode
    if width * height > MAX_PIXELS:
        raise ConfigError(where, f"{width}x{height}", f"must have at most {MAX_PIXELS:,} pixels")
    # MPO: a photo and its preview.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ConfigError(where, f"{frames} frames", "a file must hold one image")
    see_through = (ALPHA,) if "transparency" in image.info else ()
    if mode.startswith("I;16"):
        return Facts(width, height, 1, "uint16", see_through)
    if mode in ("I", "F"):
        return Facts(width, height, 1, "float32", ("32 bits",), bounded=False)
    if mode not in (*GREY, *COLOUR, *OTHER):
        raise ConfigError(where, mode, "images must be grey, RGB, CMYK, or have a palette")
    remarks = [OTHER[mode]] if mode in OTHER else []
    if see_through or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        remarks.append(ALPHA)
    # PIL opens 16-bit colour as 8-bit and says nothing: only the file's own mode tells.
    tile = getattr(image, "tile", None)
    if tile and "16" in str(tile[0][3]):
        remarks.append("16-bit colour")
    return Facts(width, height, 1 if mode in GREY else 3, "uint8", tuple(remarks))
