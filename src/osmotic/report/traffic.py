"""A run's traffic in words: the same sentence in the terminal, on the page and on the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from osmotic.report import formatting

# Headers of a few per cent at most: what differs by so little from fp32 FedAvg is as much as it.
ALIKE = 0.02


def words(traffic: Mapping[str, Any] | None, bound: str = "") -> str:
    """`5.20 MB: 540 times less than fp32 FedAvg; less than the pictures themselves, 0.61 of the training images ...`.

    Args:
        traffic: the table of a summary or plan; None of an earlier version.
        bound: stands before the bytes, as `at most `.
    Returns: empty where nothing travelled, or nothing is known.
    """
    if not traffic or not traffic.get("bytes"):
        return ""
    told, images = against_fedavg(traffic), against_images(traffic)
    size = f"{bound}{formatting.size(traffic['bytes'])}"
    if not told:  # without rounds there is no FedAvg to compare with
        return f"{size}; {images}" if images else ""
    told = f"{size}{': ' if traffic['factor'] > 1 + ALIKE else ', '}{told}"
    return f"{told}; {images}" if images else told


def against_fedavg(traffic: Mapping[str, Any]) -> str:
    """`540 times less than fp32 FedAvg`, `as much as fp32 FedAvg` or `2.00 times as much as fp32 FedAvg`; empty where no client was
    asked in any round."""
    factor = traffic.get("factor")
    if factor is None:
        return ""
    if abs(factor - 1) <= ALIKE:
        return "as much as fp32 FedAvg"
    return (
        f"{times(factor)} times less than fp32 FedAvg"
        if factor > 1
        else f"{times(1 / factor)} times as much as fp32 FedAvg"
    )


def against_images(traffic: Mapping[str, Any]) -> str:
    """`1,680 times the compressed training images (170 MB)`, or in plain words that it is less; empty where not measured."""
    share = traffic.get("to_images")
    if share is None:
        return ""
    about = "about " if traffic.get("images_sampled") else ""
    images = f"the compressed training images ({about}{formatting.size(traffic['images_bytes'])})"
    if share < 1:
        return f"less than the pictures themselves, {formatting.figure(share, 2)} of {images}"
    return f"{times(share)} times {images}"


def times(value: float) -> str:
    """A ratio of 1 or more: 1.07, 9.94, 54, 1,680."""
    return formatting.count(round(value)) if value >= 9.995 else f"{value:.2f}"
