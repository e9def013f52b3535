"""Figures as a person reads them, always the same way on every page, card and table."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

DASH = "—"  # stands for null: not measured, which is not zero


def count(value: float | None) -> str:
    """A whole number with thousands separators: 1,797; null is a dash."""
    return DASH if value is None else f"{int(value):,}"


def figure(value: float | None, digits: int = 4) -> str:
    """A measured number in `digits` significant digits, never in exponent form between 0.0001 and 1e6."""
    if value is None:
        return DASH
    value = float(value)
    # Training can diverge: that is a finding to be told, not an error of the report.
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size >= 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as `1.2 %`."""
    return DASH if share is None else f"{100 * share:.1f} %"


def size(value: float | None) -> str:
    """Bytes in decimal units: 999 B, 1.00 kB, 56.2 MB, 1.23 GB."""
    if value is None:
        return DASH
    number, unit = float(value), "B"
    # 999.5 and not 1000: rounded to three digits it would read 1000 of the smaller unit.
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(number) < 999.5 or unit == "PB":
            break
        number /= 1000
    if unit == "B":
        return f"{int(value)} B"
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as 4.2 s, 3 min 07 s or 2 h 05 min."""
    if seconds is None:
        return DASH
    # What would be rounded to 60.0 s is a minute; likewise below.
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number; to Python a truth value is one too, to a reader it is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def truth(value: Any) -> str:
    """yes, no or a dash."""
    return DASH if value is None else "yes" if value else "no"


def plural(number: float, one: str, many: str = "") -> str:
    """`3 clients`, `1 client`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def fd_name(encoder: str | None) -> str:
    """FID only on Inception-v3 features; on any other encoder the Fréchet distance is called FD."""
    return "FID" if (encoder or "").startswith("inception-v3") else "FD"
