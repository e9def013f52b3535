"""Images of any size, depth and channels made alike: value range, background, square, channels, side, in this order."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from osmotic.config.schema import DataConfig
from osmotic.data.image import Picture
from osmotic.errors import ConfigError

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in PIL's convert("L")
COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}


@dataclass(frozen=True)
class Conversion:
    """What every image of a run goes through.

    Args:
        side: of the result, in pixels.
        channels: of the result, 1 or 3.
        dtype: of the result: uint8, or float32 in [0, 1].
        fit: "crop" (the middle), "pad" or "refuse": how an image that is not square becomes so.
        background: what shows through transparency and beside padded images, RGB in 0..255.
        value_range: the file's values that become black and white, what lies outside is cut; None: all of its type.
    """

    side: int
    channels: int
    dtype: np.dtype
    fit: str
    background: tuple[int, int, int]
    value_range: tuple[float, float] | None

    def __call__(self, where: str, picture: Picture) -> np.ndarray:
        """The image as it is trained on, [side, side, channels] of `dtype`.

        Args:
            where: what an error names.
        Raises: ConfigError naming `where` for float32 values outside [0, 1], or a shape that `fit` refuses.
        """
        image = self._scaled(where, picture)
        if picture.alpha is not None:
            image = flatten(image, picture.alpha, self._paper(image))
        height, width, _ = image.shape
        if height != width:
            if self.fit == "refuse":
                raise not_square(where, width, height)
            image = crop(image) if self.fit == "crop" else pad(image, self._paper(image))
        # Channels before size: the luma of a resized image is not the resized luma once bytes are rounded.
        image = to_channels(image, self.channels)
        return image if image.shape[0] == self.side else resize(image, self.side)

    def _paper(self, like: np.ndarray) -> np.ndarray:
        """The background in the channels and range of an image, [1, 1, C]."""
        paper = to_channels(np.array(self.background, np.uint8)[None, None], like.shape[2])
        return paper if like.dtype == np.uint8 else paper / np.float32(255)

    def _scaled(self, where: str, picture: Picture) -> np.ndarray:
        pixels, window = picture.pixels, picture.window
        if self.value_range is not None:
            inverted = window is not None and window[0] > window[1]
            window = self.value_range[::-1] if inverted else self.value_range
        if window is None:
            if pixels.dtype == self.dtype == np.uint8:
                return pixels
            if pixels.dtype != np.float32:
                return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
            if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN too
                raise ConfigError(
                    where, None, "float32 images must lie in [0, 1] (data.value_range scales others)"
                )
            return pixels
        black, white = np.float32(window[0]), np.float32(window[1])
        with np.errstate(all="ignore"):  # what is no number is told below
            scaled = ((pixels.astype(np.float32) - black) / (white - black)).clip(0, 1)
        if not np.isfinite(scaled).all():
            raise ConfigError(where, None, "values must be numbers, and there must be a value that is white")
        return scaled


def check_keys(cfg: DataConfig) -> None:
    """Refuses channels, a background or a value range that there cannot be; imports nothing.

    Raises: ConfigError naming the key.
    """
    if cfg.channels not in (0, 1, 3):
        raise ConfigError("data.channels", cfg.channels, "must be 0 (native), 1 (grey) or 3 (colour)")
    colour(cfg.background)
    ends = cfg.value_range
    if not isinstance(ends, str) and (len(ends) != 2 or ends[0] >= ends[1]):
        raise ConfigError(
            "data.value_range", list(ends), 'must be [low, high] with low < high, "full" or "auto"'
        )


def colour(text: str) -> tuple[int, int, int]:
    """RGB in 0..255 of "white", "grey", "black" or "#rrggbb". Raises: ConfigError naming `data.background`."""
    if text in COLOURS:
        return COLOURS[text]
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ConfigError("data.background", text, f"must be {', '.join(COLOURS)} or #rrggbb")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def not_square(where: str, width: int, height: int) -> ConfigError:
    """The error for an image that is not square where `data.fit` is "refuse"."""
    return ConfigError(
        where, f"{width}x{height}", "images must be square (data.fit = crop or pad makes them so)"
    )


def flatten(image: np.ndarray, alpha: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """image * alpha / 255 + paper * (1 - alpha / 255): what is seen of a transparent image that lies on paper.

    Args:
        image: uint8, or float32 in [0, 1], [H, W, C].
        alpha: uint8 [H, W, 1], 255 is opaque.
        paper: [1, 1, C], dtype and range of `image`.
    """
    out = np.empty_like(image)
    for top in range(0, len(image), 256):  # in bands: as floats a large photograph would take a gigabyte
        band = slice(top, top + 256)
        share = alpha[band] / np.float32(255)
        seen = image[band] * share + paper * (1 - share)
        out[band] = np.rint(seen) if image.dtype == np.uint8 else seen
    return out


def crop(image: np.ndarray) -> np.ndarray:
    """The square in the middle of [H, W, C]; of an odd remainder the larger part is cut at the bottom or right."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def pad(image: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """[H, W, C] in the middle of the smallest square that holds it, the rest in the colour `paper` [1, 1, C]."""
    height, width, channels = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.empty((side, side, channels), image.dtype)
    square[:] = paper
    square[top : top + height, left : left + width] = image
    return square


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The image in grey or in colour: grey is the BT.601 luma, RGB from grey repeats it.

    Args:
        image: [H, W, C] with C of 1 or 3.
        channels: 1 or 3.
    Returns: [H, W, channels], dtype of `image`.
    """
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    luma = image @ LUMA
    # Rounded, where a plain cast would cut off: grey 11 has a luma of 10.999999 by these floats.
    luma = np.rint(luma) if image.dtype == np.uint8 else luma
    return luma.astype(image.dtype)[..., None]


def resize(image: np.ndarray, image_size: int) -> np.ndarray:
    """The image at another size, by PIL's bicubic filter (antialiased when it shrinks).

    Args:
        image: uint8, or float32 in [0, 1], [H, W, C].
        image_size: pixels, >= 1.
    Returns: [image_size, image_size, C], dtype and range of `image`.
    """
    from PIL import Image

    # Channel by channel: PIL has no float images of three channels, and grey and colour are then resized
    # alike.

    def bicubic(plane: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(plane).resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(resized)

    planes = [bicubic(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    resized = np.stack(planes, axis=2)
    return resized if image.dtype == np.uint8 else resized.clip(0, 1)  # bicubic overshoots at edges
