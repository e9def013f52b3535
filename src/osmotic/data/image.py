"""One image from its file bytes to the array that is trained on: decode, channels, size.

Every conversion is one the user asked for (`data.image_size`, `data.channels`); what would need another is
refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from osmotic.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in PIL's convert("L")


def decode(where: str, file: Path | bytes) -> np.ndarray:
    """The image [H, W, C] in a file or in its bytes: uint8, or float32 in [0, 1] for 16-bit grey.

    Palette images become RGB, 1-bit images grey; the camera's orientation tag is obeyed.

    Args:
        where: what an error names.
        file: a path, or the bytes of a file.
    Raises: ConfigError naming `where` if it cannot be decoded, or if it has an alpha channel, several frames,
        16 bits per colour channel, or is neither grey nor RGB.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            raw_mode = str(opened.tile[0][3]) if opened.tile else ""  # before load(), which empties it
            frames = (
                1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            )  # MPO: a photo and its preview
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Exception as error:  # decoders raise anything from OSError to struct.error on broken files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "not an image" if reason.startswith("cannot identify image file") else reason
        raise ConfigError(where, None, f"broken image, cannot be decoded ({reason})") from None
    if frames > 1:
        raise ConfigError(where, f"{frames} frames", "a file must hold one image")
    return from_pil(where, image, raw_mode)


def from_pil(where: str, image: Image, raw_mode: str = "") -> np.ndarray:
    """The image [H, W, C] of a decoded picture: uint8, or float32 in [0, 1] for 16-bit grey.

    Args:
        where: what an error names.
        image: as it is; its orientation tag is not looked at.
        raw_mode: the mode of the file, which alone tells 16-bit RGB from 8-bit.
    Raises: ConfigError naming `where` if it has an alpha channel, 16 bits per colour channel, or is neither
        grey nor RGB.
    """
    mode = image.mode
    # Alpha has no one meaning without a background: dropping it shows colours that nobody was to see.
    if "A" in mode or "a" in mode or "transparency" in image.info:
        raise ConfigError(where, mode, "images must have no alpha channel")
    if mode.startswith("I;16"):
        return (np.asarray(image).astype(np.float32) / np.float32(65535))[..., None]
    if mode == "1":
        image = image.convert("L")
    elif mode == "P":
        image = image.convert("RGB")
    # PIL opens 16-bit RGB as 8-bit and says nothing: only the file's own mode tells.
    elif mode == "RGB" and "16" in raw_mode:
        raise ConfigError(where, "16-bit RGB", "colour images must have 8 bits per channel")
    elif mode not in ("L", "RGB"):
        raise ConfigError(where, mode, "images must be 8-bit grey, 16-bit grey or 8-bit RGB")
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


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


def fitted_shape(where: str, shape: tuple[int, int, int], image_size: int, channels: int) -> tuple[int, int]:
    """(side, channels) of an image [H, W, C] once resized and converted.

    Args:
        where: what an error names.
        shape: (H, W, C).
        image_size, channels: as the keys `data.image_size` and `data.channels`; 0 keeps the image's own.
    Raises: ConfigError naming `where` if it is not square, or neither grey nor RGB.
    """
    height, width, depth = shape
    if height != width or height < 1:
        raise ConfigError(where, f"{width}x{height}", "images must be square")
    if depth not in (1, 3):
        raise ConfigError(where, f"{depth} channels", "images must have 1 or 3 channels")
    return image_size or height, channels or depth


def stack(
    images: Iterable[tuple[str, np.ndarray]],
    count: int,
    image_size: int,
    channels: int,
    like: np.ndarray | None = None,
) -> np.ndarray:
    """`count` named images [H, W, C] as one array [count, side, side, channels], converted one by one.

    Args:
        images: what an error names, and the image, `count` times.
        image_size, channels: as `fitted_shape`.
        like: images of the training split, [N, H, W, C], which those of the test split must resemble.
    Raises: ConfigError naming the first image that is not square, or that differs from the first one in
        size (unless `image_size` is set), channels (unless `channels` is set) or depth.
    """
    # The array is made when the first image is known and filled in place: a list of all would need twice the
    # memory.
    out: np.ndarray | None = None
    first = "the training split"
    if like is not None:
        out = np.empty((count, *like.shape[1:]), like.dtype)
    for i, (where, image) in enumerate(images):
        side, depth = fitted_shape(where, image.shape, image_size, channels)
        if out is None:
            out, first = np.empty((count, side, side, depth), image.dtype), where
        if (side, side, depth) != out.shape[1:] or image.dtype != out.dtype:
            raise mixed(where, (side, depth, image.dtype), first, (out.shape[1], out.shape[3], out.dtype))
        # Channels before size: the luma of a resized image is not the resized luma once bytes are rounded.
        image = to_channels(image, depth)
        out[i] = image if image.shape[0] == side else resize(image, side)
    assert out is not None, "sources refuse to be empty"
    return out


def mixed(
    where: str, found: tuple[int, int, np.dtype], first: str, expected: tuple[int, int, np.dtype]
) -> ConfigError:
    """The error for an image whose (side, channels, dtype) is not that of the first one.

    Args:
        where: what it names.
        found, expected: (side, channels, dtype) of the image and of the first one.
        first: where the first one lies.
    """
    if found[1] != expected[1]:
        kind, rule = "channels", "have the same channels (data.channels = 1 or 3 converts)"
        shown, first_shown = f"{found[1]} channels", f"{expected[1]}"
    elif found[0] != expected[0]:
        kind, rule = "size", "have the same size (data.image_size resizes)"
        shown, first_shown = f"{found[0]}x{found[0]}", f"{expected[0]}x{expected[0]}"
    else:
        kind, rule = "depth", "have the same depth"
        shown, first_shown = (f"{8 if d == np.uint8 else 16} bits" for d in (found[2], expected[2]))
    return ConfigError(where, shown, f"all images must {rule}; the {kind} of {first} is {first_shown}")
