"""What every picture needs: matplotlib, which is an extra, and a file that appears whole or not at all."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_installed() -> None:
    """Raises RuntimeError, which says what to install, if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("drawing needs matplotlib: pip install 'mlx_ferrum[plot]'")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG through a temporary file beside `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".drawing-") as folder:
        temporary = Path(folder) / "new.png"
        figure.savefig(temporary)
        temporary.replace(path)
