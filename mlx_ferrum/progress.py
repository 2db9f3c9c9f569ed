"""Progress bars: text on stderr where that is a terminal, a widget in a notebook, nothing elsewhere.

tqdm is imported when the first bar is made.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> tqdm[Any]:
    """A bar over `iterable`, or one that its `update` moves; use it in a `with` statement.

    show: False for a bar that is never drawn
    options: of tqdm, such as total, desc, unit, unit_scale and leave
    """
    return _kind()(iterable, disable=not (show and is_shown()), **options)


def is_shown() -> bool:
    """Whether there is a place for bars: a terminal or a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this program."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _kind() -> type[tqdm[Any]]:
    """Widgets need ipywidgets; without it a notebook gets the text of a terminal, and no warning."""
    if in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm_notebook

        widget: type[tqdm[Any]] = tqdm_notebook
        return widget
    from tqdm import tqdm

    return tqdm
