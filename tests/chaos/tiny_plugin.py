"""The tests' tiny network, for `osmotic run --plugin`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_network

tiny_network.register()
