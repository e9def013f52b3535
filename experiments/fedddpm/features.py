"""Feature skew: MNIST dealt evenly to ten sites, of which each sees its images in its own way.

python experiments/fedddpm/features.py FOLDER     # FOLDER/contrast.npz, rotation.npz, blur.npz, for `by:site`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

MNIST = Path("../shared/data/mnist.npz")
SITES, IMAGES, TEST = 10, 6000, 2000

# (image, site 0 to 9) -> image; site 0 is farthest from plain, or turned to one side.
KINDS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    # Grey values shrink towards black, to 28 % at site 0.
    "contrast": lambda image, site: image.point(lambda value: value * (0.2 + 0.8 * (site + 1) / SITES)),
    # From -45 to 45 degrees.
    "rotation": lambda image, site: image.rotate(-45 + 90 * site / (SITES - 1), Image.Resampling.BILINEAR),
    # Gaussian, of up to 3 pixels.
    "blur": lambda image, site: image.filter(ImageFilter.GaussianBlur(3 * (SITES - 1 - site) / (SITES - 1))),
}


def made(kind: str, folder: Path) -> Path:
    """The file of one kind; made once, the same for every seed, as who holds which images is part of it."""
    path = folder / f"{kind}.npz"
    if path.exists():
        return path
    with np.load(MNIST) as archive:
        found = {name: archive[name] for name in archive.files}
    rng, arrays = np.random.default_rng(0), {"class_names": found["class_names"]}
    for part, count in (("train", IMAGES), ("test", TEST)):
        rows = rng.permutation(len(found[f"{part}_images"]))[:count]
        sites = np.arange(count) % SITES
        images = [
            np.asarray(KINDS[kind](Image.fromarray(image), int(site)))
            for image, site in zip(found[f"{part}_images"][rows], sites, strict=True)
        ]
        arrays |= {f"{part}_images": np.stack(images), f"{part}_labels": found[f"{part}_labels"][rows]}
        arrays[f"{part}_site"] = sites
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


if __name__ == "__main__":
    for kind in KINDS:
        print(made(kind, Path(sys.argv[1])))
