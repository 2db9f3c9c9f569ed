"""One file per GGUF architecture, named after it, found by that name."""

import importlib
import pkgutil
from types import ModuleType

_SHARED = set("base encoder expert_layers experts feed_forward hybrid metadata weights".split())


def architectures() -> list[str]:
    """The architectures that can be loaded."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def find(architecture: str) -> ModuleType:
    """The module of an architecture. Raises NotImplementedError, with the known ones, for any other name."""
    known = architectures()
    if architecture not in known:
        raise NotImplementedError(
            f"architecture {architecture!r} is not supported; known: {', '.join(known)}"
        )
    return importlib.import_module(f".{architecture}", __package__)
