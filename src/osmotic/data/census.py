"""What kinds of images a source holds, and what follows for all of them: size, channels, depth, and a line on each.

Headers are read of every image that a run would use, so that `osmotic plan` refuses what `osmotic run` refuses, but for
a broken body.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from osmotic.config.schema import DataConfig
from osmotic.data import convert
from osmotic.data.convert import Conversion
from osmotic.data.image import ALPHA, ORIENTED, OTHER, Facts, Picture
from osmotic.errors import ConfigError

LARGEST, STEP = (
    32,
    8,
)  # sides that `data.image_size = 0` takes where sizes differ: what a CPU trains in its time
SLIVER = 0.25  # of the value range; images that use less are told of
SAMPLED_VALUES = 2_000_000
DEPTHS = {"uint8": "8", "uint16": "16", "float32": "32"}


@dataclass
class Census:
    """Counts over the headers of a source.

    Args:
        sizes: (width, height) -> images; the first key is the first image's.
        where: of the first image of each (width, height), channels and dtype.
        windows: (black, white) that files name of themselves -> images.
        unbounded: the first image whose white nobody knows, or "".
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    windows: Counter[tuple[float, float]] = field(default_factory=Counter)
    where: dict[object, str] = field(default_factory=dict)
    unbounded: str = ""

    def add(self, found: Iterable[tuple[str, Facts]]) -> Census:
        """Counts these too.

        Raises: ConfigError naming an image of no pixels, or of other than 1 or 3 channels.
        """
        for where, facts in found:
            if min(facts.width, facts.height) < 1:
                raise ConfigError(where, f"{facts.width}x{facts.height}", "images must have pixels")
            if facts.channels not in (1, 3):
                raise ConfigError(where, f"{facts.channels} channels", "images must have 1 or 3 channels")
            size = facts.width, facts.height
            for counter, kind in (
                (self.sizes, size),
                (self.channels, facts.channels),
                (self.dtypes, facts.dtype),
            ):
                if kind not in counter:
                    self.where[kind] = where
                counter[kind] += 1  # type: ignore[index]
            self.remarks.update(facts.remarks)
            if facts.window:
                self.windows[facts.window] += 1
            if not facts.bounded:
                self.unbounded = self.unbounded or where
        return self

    @property
    def count(self) -> int:
        """Images counted."""
        return self.sizes.total()

    def table(self) -> dict[str, dict[str, int]]:
        """Images by size, channels, depth in bits and remark, the most frequent first."""
        return {
            "sizes": {f"{w}x{h}": n for (w, h), n in self.sizes.most_common()},
            "channels": {str(c): n for c, n in self.channels.most_common()},
            "depths": {DEPTHS[d]: n for d, n in self.dtypes.most_common()},
            "remarks": dict(self.remarks.most_common()),
        }

    @property
    def alike(self) -> bool:
        """Whether all are square and of one size."""
        return len(self.sizes) == 1 and all(w == h for w, h in self.sizes)

    def sizes_text(self) -> str:
        """ "60 images of 58 sizes, 120x90 to 4000x3000", or of one."""
        ordered = sorted(self.sizes, key=lambda s: (s[0] * s[1], s))
        shown = [f"{w}x{h}" for w, h in ordered]
        images = f"{self.count} image" + "s" * (self.count != 1)
        return (
            f"{images} of {shown[0]}"
            if len(shown) == 1
            else f"{images} of {len(shown)} sizes, {shown[0]} to {shown[-1]}"
        )


def choose(cfg: DataConfig, census: Census) -> tuple[Conversion, tuple[str, ...]]:
    """What all images go through, and what of it no key asked for, a line each.

    Where images are square and of one size, of one depth and of the same channels, they stay as they are.

    Args:
        cfg: `image_size`, `channels`, `fit`, `background` and `value_range`; "auto" must be settled, or is as "full".
    Raises: ConfigError naming an image that `data.fit = "refuse"` refuses, or whose white is not known.
    """
    if cfg.fit == "refuse":
        _refuse(cfg, census)
    if census.unbounded and cfg.value_range == "full":
        rule = "of 32-bit values it must be said which are black and white: data.value_range = [low, high]"
        raise ConfigError(census.unbounded, None, rule)
    if len(census.dtypes) > 1 and cfg.value_range != "full":
        shown = cfg.value_range if isinstance(cfg.value_range, str) else list(cfg.value_range)
        raise ConfigError(
            "data.value_range", shown, "needs images of one depth, there are " + ", ".join(census.dtypes)
        )
    ends = None if isinstance(cfg.value_range, str) else (cfg.value_range[0], cfg.value_range[1])
    conversion = Conversion(
        side=cfg.image_size or _side(census),
        channels=cfg.channels or max(census.channels),
        dtype=np.dtype(np.uint8 if set(census.dtypes) == {"uint8"} and ends is None else np.float32),
        fit=cfg.fit,
        background=convert.colour(cfg.background),
        value_range=ends,
    )
    return conversion, tuple(_notes(cfg, census, conversion))


def _side(census: Census) -> int:
    """The side of images that are all square and alike; else the largest multiple of 8, up to 32, within the median."""
    if census.alike:
        return next(iter(census.sizes))[0]
    shorter = sorted((min(size), images) for size, images in census.sizes.items())
    reached = np.cumsum([images for _, images in shorter])
    median = shorter[int(np.searchsorted(reached, census.count / 2))][0]
    return max(STEP, min(LARGEST, median // STEP * STEP))


def _refuse(cfg: DataConfig, census: Census) -> None:
    (first, *others) = census.sizes
    for width, height in census.sizes:
        if width != height:
            raise convert.not_square(census.where[width, height], width, height)
    if others and not cfg.image_size:
        told, side = census.where[others[0]], others[0][0]
        rule = "all images must have the same size (data.image_size resizes); "
        rule += f"the size of {census.where[first]} is {first[0]}x{first[0]}"
        raise ConfigError(told, f"{side}x{side}", rule)


def _notes(cfg: DataConfig, census: Census, to: Conversion) -> Iterable[str]:
    square = all(w == h for w, h in census.sizes)
    if not square or (len(census.sizes) > 1 and not cfg.image_size):
        how = {"crop": "cut to the square in the middle", "pad": f"padded to squares with {cfg.background}"}
        cut = "" if square else f"{how[cfg.fit]}, "
        keys = "data.image_size" if square else "data.fit, data.image_size"
        yield f"{census.sizes_text()}: {cut}resized to {to.side}x{to.side} ({keys})"
    if len(census.channels) > 1 and not cfg.channels:
        grey, colour = census.channels[1], census.channels[3]
        yield f"{grey} grey images, {colour} in colour: all are made colour (data.channels = 1 makes them grey)"
    if len(census.dtypes) > 1:
        kinds = ", ".join(f"{n} of {DEPTHS[d]} bits" for d, n in sorted(census.dtypes.items()))
        yield f"images of several depths ({kinds}): all become 32-bit floats"
    if census.windows and cfg.value_range == "full":
        yield _window_note(census.windows)
    for remark, images in sorted(census.remarks.items()):
        done = {
            ALPHA: f"laid on {cfg.background} (data.background)",
            ORIENTED: "turned upright, as the camera's tag says",
            "16-bit colour": "the upper 8 bits of each channel are kept",
        }
        if remark in done or remark in OTHER.values():
            yield f"{images} of {census.count} images with {remark}: {done.get(remark, 'made RGB')}"


def _window_note(windows: Counter[tuple[float, float]]) -> str:
    ((low, high), most), kinds = windows.most_common(1)[0], len(windows)
    slices = f"{windows.total()} DICOM slice" + "s" * (windows.total() != 1)
    if kinds == 1:
        return f"{slices}: {low:g} is black and {high:g} white, as the files say (data.value_range)"
    often = f"{low:g} to {high:g} in {most}"
    return f"{slices} with {kinds} ranges from black to white ({often}): equal values become unlike greys (data.value_range sets one range for all)"


def ends_of(pictures: Iterable[tuple[str, Picture]]) -> tuple[float, float]:
    """The values below and above which lies one in a thousand: what `data.value_range = "auto"` stands for.

    Args:
        pictures: some images; of a large one every n-th value is looked at.
    Raises: ConfigError if all values are alike.
    """
    found, told = [], ""
    for where, picture in pictures:
        told, values = where, picture.pixels.ravel()
        found.append(values[:: max(1, len(values) // 10_000)].astype(np.float64))
    low, high = np.quantile(np.concatenate(found), (0.001, 0.999), method="nearest")
    if not low < high:
        raise ConfigError("data.value_range", "auto", f"all values are alike, {low:g} ({told} and others)")
    return float(low), float(high)


def ends_used(images: np.ndarray) -> tuple[float, float]:
    """The shares of black-to-white, in [0, 1], below and above which lies one value in a thousand.

    Args:
        images: uint8, or float32 in [0, 1], [N, H, W, C]; of many every n-th is looked at.
    """
    step = max(1, images.size // SAMPLED_VALUES)
    white = 255.0 if images.dtype == np.uint8 else 1.0
    low, high = np.quantile(images[::step] / np.float32(white), (0.001, 0.999))
    return float(low), float(high)


def sliver(images: np.ndarray, full: float, depth: str = "") -> str:
    """A line where converted images use less than a quarter of their range, naming the key that helps; else "".

    Args:
        images: uint8, or float32 in [0, 1], [N, H, W, C].
        full: the file's value that has become white.
        depth: bits of these images where others have more or fewer; "" where all are alike.
    """
    low, high = ends_used(images)
    if high - low >= SLIVER:
        return ""
    which = f"images of {depth} bits" if depth else "images"
    found = f"{which} use {100 * (high - low):.1f} % of the value range, {low * full:.4g} to {high * full:.4g} of {full:g}"
    if low == high:
        return found  # one value: nothing to spread
    if depth:
        return f"{found}: beside the others they are nearly of one shade (data.value_range needs files of one depth)"
    # 10, 12 and 14 bits are what cameras and scanners put into files of 16.
    bits = next((b for b in (8, 10, 12, 14) if high * full < 2**b < full), None)
    helps = f"[0, {2**bits - 1}] or auto" if bits and low * full < 2**bits / 16 else "auto"
    return f"{found}: data.value_range = {helps} would spread them"


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the positions 0..count-1, evenly, the first among them; int64."""
    return np.arange(count)[:: max(1, -(-count // most))]


def full_of(dtypes: Sequence[str]) -> float:
    """The value that is white by its type alone."""
    return {"uint8": 255.0, "uint16": 65535.0}.get(dtypes[0], 1.0) if len(set(dtypes)) == 1 else 1.0
