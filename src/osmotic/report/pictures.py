"""Image grids that a person can read, and PNG files that are whole or not there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PAPER = 255  # grey level of gaps and margins
INK = 40  # grey level of row labels


def grid(
    images: np.ndarray,
    columns: int,
    scale: int = 4,
    gap: int = 2,
    row_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """The images row by row on white, each pixel drawn as a `scale` x `scale` square.

    Height is rows * (H * scale + gap) + gap, width likewise; row labels add a margin on the left. A last row that is
    not full is left white.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3, N >= 1.
        columns: images per row, >= 1.
        scale: side of a drawn pixel, >= 1.
        gap: white pixels around every image, >= 0.
        row_labels: one text per row, drawn in the left margin.
    Returns: uint8 [height, width, C], C that of the images.
    Raises: ValueError if the shape, dtype, columns, scale, gap or the number of labels do not fit.
    """
    import numpy as np

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise ValueError(
            f"images must be uint8 [N, H, W, 1 or 3] with N >= 1, got {images.dtype} {images.shape}"
        )
    if columns < 1 or scale < 1 or gap < 0:
        raise ValueError(f"columns and scale must be >= 1 and gap >= 0, got {columns}, {scale}, {gap}")
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must hold one text for each of {rows} rows, got {len(row_labels)}")
    step_y, step_x = height * scale + gap, width * scale + gap
    page = np.full((rows * step_y + gap, columns * step_x + gap, channels), PAPER, np.uint8)
    # Repeated, not resampled: a smoothed 8 x 8 digit would look better than the model drew it.
    for i, image in enumerate(
        images.repeat(scale, axis=1).repeat(scale, axis=2)
    ):  # [H * scale, W * scale, C]
        y, x = gap + i // columns * step_y, gap + i % columns * step_x
        page[y : y + height * scale, x : x + width * scale] = image
    if row_labels is None:
        return page
    return np.concatenate([_margin(row_labels, step_y, page.shape[0], channels), page], axis=1)


def _margin(labels: Sequence[str], step: int, height: int, channels: int) -> np.ndarray:
    """The labels right-aligned in a white column, one every `step` pixels; uint8 [height, as wide as needed, C]."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    size = max(9, min(18, round(step * 0.42)))
    font = ImageFont.load_default(size)
    shown = [text if len(text) <= 24 else text[:23] + "…" for text in labels]
    pad = max(4, size // 2)
    width = 2 * pad + round(max((font.getlength(text) for text in shown), default=0))
    # Grey, and repeated over the channels below, so that grids of grey and of colour images have one margin.
    margin = Image.new("L", (width, height), PAPER)
    draw = ImageDraw.Draw(margin)
    for row, text in enumerate(shown):
        draw.text((width - pad, row * step + step // 2), text, fill=INK, font=font, anchor="rm")
    return np.repeat(np.asarray(margin)[:, :, None], channels, axis=2)


def png_bytes(array: np.ndarray) -> bytes:
    """A PNG file of a uint8 array [H, W], [H, W, 1] or [H, W, 3], without metadata; the same array gives the same bytes."""
    from PIL import Image

    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    buffer = io.BytesIO()
    # Not `optimize`: it takes ten times as long, for a tenth of the bytes, and personal models have a grid each.
    Image.fromarray(flat).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: Path | str, array: np.ndarray) -> None:
    """Writes `array`, uint8 [H, W] or [H, W, 1 or 3], as PNG, atomically; missing folders are made.

    Raises: OSError as the file system gives it.
    """
    from osmotic.storage.atomic import write_bytes

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png_bytes(array))
