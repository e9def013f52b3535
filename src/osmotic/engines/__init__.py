"""Engines: where clients run. Only an engine knows about threads, processes or networks."""

from __future__ import annotations

# name -> what a person is told of where an engine's clients are: a simulation must never read as a federation of sites.
WHERE: dict[str, str] = {
    "inprocess": "a simulation: all clients share one machine, and nothing crosses a network",
    "sites": "a federation: every client is a site of its own, and its images stay there",
    "flower": "a simulation: Flower runs all clients on one machine, and nothing crosses a network",
}
