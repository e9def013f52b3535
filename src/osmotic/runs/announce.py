"""What a run says before its first round: where, on what, with what, for how long; and what would be quicker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from osmotic.report.formatting import count, plural
from osmotic.runs.estimate import Estimate, about, seconds, told


@dataclass(frozen=True)
class Start:
    """A run as it begins, or goes on.

    Args:
        where: where its clients are, in words.
        device: as torch names it.
        network, parameters: its real name, never "auto", and its weights.
        image_size, channels: of the images, in pixels; 1 is grey, 3 colour.
        num_images: training images of all clients.
        num_classes: that the network is told; 0 where it is told none.
        num_clients, rounds: of the run.
        samples, every: images drawn for a score, 0 where nothing is scored, and the rounds between two scores; 0 scores only
            after the last round.
        parameters_whole: weights of the whole network, where `parameters` are those of an adapter of it; else None.
        estimate: times a few steps when it is called, some seconds, and gives the time to go; None where clients are elsewhere.
        quicker: times what would be quicker, and gives it as `--set` text with its seconds; None where nothing is.
    """

    where: str
    device: str
    network: str
    parameters: int
    image_size: int
    channels: int
    num_images: int
    num_classes: int
    num_clients: int
    rounds: int
    samples: int
    every: int
    estimate: Callable[[], Estimate | None]
    quicker: Callable[[Estimate], tuple[str, float] | None]
    parameters_whole: int | None = None


LONG = 1800.0  # seconds on a CPU beyond which there is a warning


def lines(start: Start) -> list[str]:
    """The facts, in two lines."""
    colour = {1: "grey", 3: "colour"}[start.channels]
    classes = plural(start.num_classes, "class", "classes") if start.num_classes else "no classes"
    scored = f"every {plural(start.every, 'round')}" if start.every else "after the last round"
    scored = "every round" if start.every == 1 else scored
    told = f"{count(start.samples)} samples scored {scored}" if start.samples else "nothing is scored here"
    weights = f"{count(start.parameters)} weights"
    if start.parameters_whole is not None:
        weights = f"{count(start.parameters_whole)} weights, under an adapter of {count(start.parameters)}"
    return [
        f"osmotic: {start.where}",
        f"osmotic: {plural(start.num_clients, 'client')} on {start.device}, {plural(start.num_images, 'image')} of "
        f"{start.image_size}x{start.image_size}, {colour}, {classes}; network {start.network} with "
        f"{weights}; {plural(start.rounds, 'round')}, {told}",
    ]


def time_lines(start: Start, estimate: Estimate) -> list[str]:
    """The estimate, and above `LONG` on a CPU what would be quicker."""
    training, scoring = seconds(*estimate.todo())
    found = [f"osmotic: {told(training, scoring)}"]
    if start.device == "cpu" and training + scoring > LONG:
        better = start.quicker(estimate)
        if better is not None:
            keys, span = better
            found.append(f"osmotic: warning: this is long on a CPU; {keys} would take about {about(span)}")
    return found
