"""What figures of studies share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG, and closes it."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)
