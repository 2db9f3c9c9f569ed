"""Which models there are, and their names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from .about import About
from .errors import RequestError
from .service import Loaded, LoadedEncoder

SHOWN = 3  # names in an error
SECONDS = 2.0  # between two looks at what there is


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded.

    load: gives it; runs in a thread of its own
    name, aliases: the names that requests may call it by; in aliases * stands for any characters
    nbytes: of memory that it counts for
    version: of its files; another one is another model
    created: seconds since 1970
    about: None if that is known only once it is loaded
    """

    name: str
    load: Callable[[], Loaded | LoadedEncoder] = field(compare=False)
    aliases: tuple[str, ...] = field(default=(), compare=False)
    nbytes: int = 0
    version: Hashable = None
    created: int = field(default_factory=lambda: int(time.time()), compare=False)
    is_encoder: bool = field(default=False, compare=False)
    about: About | None = field(default=None, compare=False)


class Entries:
    """The models that there are, as they were last listed.

    listing: gives all of them; asked again after SECONDS, in a thread, unless `is_fixed`
    default, encoder: names of what serves requests that name no model, for texts and for embeddings
    """

    def __init__(
        self,
        listing: Callable[[], Sequence[Entry]],
        *,
        default: str | None = None,
        encoder: str | None = None,
        is_fixed: bool = True,
    ) -> None:
        self._listing, self.default, self.encoder = listing, default, encoder
        self.is_fixed = is_fixed
        self.all = listing()
        self._listed = time.monotonic()
        self._update: asyncio.Task[None] | None = None

    @property
    def first(self) -> list[Entry]:
        """What is loaded at the start. Raises RequestError if it is not there."""
        return [self.named(name) for name in (self.default, self.encoder) if name is not None]

    async def update(self) -> bool:
        """List them again if that was long ago; whether that was so."""
        if self.is_fixed or time.monotonic() - self._listed < SECONDS:
            return False
        if self._update is None:
            self._update = asyncio.ensure_future(self._list())
        await asyncio.shield(self._update)
        return True

    async def _list(self) -> None:
        try:
            self.all = await asyncio.to_thread(self._listing)
        finally:
            self._listed, self._update = time.monotonic(), None

    def find(self, name: str) -> Entry:
        """The model of this name; the default one for "". Raises RequestError with status 404."""
        return self.named(name or self.default or "")

    def find_encoder(self, name: str) -> Entry:
        """The model for embeddings of this name; the default one also for "" and the name of the model for texts.

        Raises RequestError with status 404.
        """
        entry = self.named(name) if name else None
        if entry is not None and entry.is_encoder:
            return entry
        if self.encoder is None or (entry is not None and entry.name != self.default):
            shown = f"{name[:80]!r} makes no embeddings" if name else "no embedding model is loaded"
            text = f"{shown} (--embedding-model)"
            raise RequestError(text, param="model", code="model_not_found", status=404)
        return self.named(self.encoder)

    def named(self, name: str) -> Entry:
        """The model of this name or alias. Raises RequestError with status 404."""
        for entry in self.all:
            if entry.name == name:
                return entry
        for entry in self.all:
            if name and any(fnmatchcase(name, alias) for alias in entry.aliases):
                return entry
        names = [repr(entry.name) for entry in self.all]
        more = f" or one of {len(names) - SHOWN} others" if len(names) > SHOWN else ""
        shown = f"{', '.join(names[:SHOWN])}{more}" if names else "a file in the folder"
        asked = f"there is no model {name[:80]!r}" if name else "no model is named"
        text = f"{asked}, expected {shown}"
        raise RequestError(text, status=404, param="model", code="model_not_found")
