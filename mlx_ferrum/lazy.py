"""Imports that wait until they are needed: packages answer `--help` at once, and without MLX.

It is imported before Ctrl-C is handled, so it imports next to nothing itself.
"""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    import mlx.core as mx
else:

    class _MLX:
        """Stands for `mlx.core`, which is imported when the first name of it is read."""

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("mlx.core"), name)

    mx = _MLX()

__all__ = ["attributes", "explain", "missing", "mx", "names_of", "remedy"]


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are imported when they are first read.

    modules: the submodule of each name
    Reading a name raises ImportError, which says what to install, if MLX cannot be imported. `dir`, and so completion
    in a notebook, knows the names before that.
    """
    namespace = vars(sys.modules[package])
    namespace["__dir__"] = lambda: sorted({*namespace, *modules})

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return _read(package, modules[name], name)

    return get


def names_of(package: str, module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that has the public names of one submodule, imported when the first is read.

    Reading a name raises ImportError, which says what to install, if MLX cannot be imported.
    """

    def get(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return _read(package, module, name)

    return get


def _read(package: str, module: str, name: str) -> Any:
    """The value of a name of a submodule, kept in the package, so that it is read only once."""
    try:
        value = getattr(import_module(f".{module}", package), name)
    except ImportError as error:
        if missing() is None:
            raise
        raise explain(error) from None
    vars(sys.modules[package])[name] = value
    return value


def explain(error: ImportError) -> ImportError:
    """An error that says what to install if MLX, or its backend for Linux, is missing; otherwise `error`."""
    reason = missing()
    return (
        error if reason is None else ImportError(f"MLX cannot be imported ({reason}): {remedy()}")
    )


def missing() -> str | None:
    """Why MLX cannot be imported; None if it can."""
    try:
        import_module("mlx.core")
    except ImportError as error:
        return str(error)
    return None


def remedy() -> str:
    """The command that installs MLX with a backend on this system."""
    if sys.platform == "darwin":
        return "pip install --force-reinstall mlx"
    return "pip install 'mlx_ferrum[cpu]', or 'mlx_ferrum[cuda]' for an NVIDIA GPU"
