"""Metrics of the user's own: a function by name, measured on the images that every score is taken of.

def brightness(images, reference):
    return images.mean() / 255 - reference.mean() / 255

register_metric("brightness", brightness)
measure(["brightness"], generated, real)  # {"brightness": -0.03}
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from osmotic.config.keys import nearest

# float in the end; Any, because libraries of metrics give tensors and arrays of one number.
Metric = Callable[[np.ndarray, np.ndarray], Any]

METRICS: dict[str, Metric] = {}


def register_metric(name: str, function: Metric) -> None:
    """Makes `function` a metric that `measure` knows by `name`; registered again, the newer one counts.

    Args:
        name: as it stands in summaries and charts: lower-case letters, digits and underscores.
        function: (images uint8 [N, H, W, C], reference uint8 [M, H, W, C]) -> one finite number. Both arrays
            are read-only; the same arrays must give the same number, or a resumed run cannot equal an
            unbroken one.
    Raises: ValueError if the name is not of this kind; TypeError if `function` cannot be called.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"a metric's name must be lower-case letters, digits and underscores, a letter first, got {name!r}"
        )
    if not callable(function):
        raise TypeError(
            f"metric {name!r} must be a function of (images, reference), got {type(function).__name__}"
        )
    # The newer one counts: a cell of a notebook is run again after every change to its function.
    METRICS[name] = function


def measure(names: Sequence[str], images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The value of each metric, in the order of `names`.

    Args:
        names: of metrics in METRICS.
        images: generated images, uint8 [N, H, W, C], N >= 1.
        reference: real images, uint8 [M, H, W, C], M >= 1, of the same height, width and channels.
    Raises: ValueError naming the metric if there is none of this name, or its result is not one finite
        number; ValueError if the arrays are other than said; what a metric raises itself, with a note that
        names the metric.
    """
    for name in names:
        if name not in METRICS:
            close = nearest(name, METRICS)
            hint = f" (nearest: {close})" if close else ""
            raise ValueError(f"no metric is called {name!r}: register_metric makes one{hint}")
    images, reference = _checked("images", images), _checked("reference", reference)
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images {images.shape} and reference {reference.shape} must agree in height, width, channels"
        )
    found = {}
    for name in names:
        try:
            value = METRICS[name](images, reference)
        except Exception as error:
            error.add_note(f"while the metric {name!r} was measured")
            raise
        found[name] = _number(name, value)
    return found


def _checked(which: str, images: np.ndarray) -> np.ndarray:
    """The same images [N, H, W, C], read-only: a metric that writes would spoil them for the next one."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        what = (
            f"{images.dtype} {list(images.shape)}"
            if isinstance(images, np.ndarray)
            else type(images).__name__
        )
        raise ValueError(f"{which} must be uint8 [N, H, W, C] with N >= 1, got {what}")
    view = images.view()
    view.flags.writeable = False
    return view


def _number(name: str, value: Any) -> float:
    """`value` as a float, if it is one finite number: of Python or numpy, or an array or tensor of one."""
    # Tensors and 0-d arrays are what most libraries of metrics give; more than one element has no .item().
    if not isinstance(value, numbers.Number) and getattr(value, "shape", None) == ():
        value = value.item()
    # bool is an int to Python, but a metric that answers True has not measured anything.
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"metric {name!r} must give one finite number, got {value!r}")
    return float(value)
