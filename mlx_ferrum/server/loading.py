"""From the command line to models: what there is, how it is loaded, and what it counts for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from mlx_ferrum import amounts, catalog, cli, gguf, load, memory, streamed
from mlx_ferrum.engine import Engine
from mlx_ferrum.models.encoder import Encoder, language_model
from mlx_ferrum.notice import tell, warn
from mlx_ferrum.sizes import pool_nbytes
from mlx_ferrum.state.paged import BLOCK

from .about import About, of_file
from .entries import Entries, Entry
from .errors import RequestError
from .folder import File, Folder, read_file
from .models import Models
from .service import Limits, Loaded, LoadedEncoder

WARM = 4  # texts at the same time that need nothing more to be made
SHARE = 0.7  # of the machine's memory


def models(args: argparse.Namespace, failed: Callable[[Entry, Exception, bool], None]) -> Models:
    """The models that --model, --models and --embedding-model name. failed: as of `Models`.

    Raises ValueError if --models is no folder, or if a model that is loaded at the start is larger than --model-memory.
    """
    folder = None if args.models is None else Folder(Path(args.models).expanduser())
    is_fixed = folder is None
    share = None if is_fixed else args.model_memory or int(SHARE * memory.total())
    listing = Listing(args, folder, share)
    entries = Entries(listing, default=listing.default, encoder=listing.encoder, is_fixed=is_fixed)
    try:
        return Models(
            entries,
            limits=_limits(args),
            memory=share,
            failed=failed,
        )
    except RequestError as error:
        raise ValueError(error.message) from None


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(
        running=args.parallel,
        queue=args.queue,
        seconds=args.timeout,
        body=args.max_body << 20,
        prompt=args.max_prompt,
    )


class Loader:
    """Loads models as the command line says. `load` methods run in the thread of the model's engine, one at a time.

    share: bytes that all models may take together; None: any number
    """

    def __init__(self, args: argparse.Namespace, share: int | None = None) -> None:
        self._args, self._share = args, share
        self._has_backend = False

    def entry(self, file: File) -> Entry:
        """What a file is for clients."""
        about = file.about
        pool = 0 if about is None else self._pool(about)
        nbytes, expert_memory = file.nbytes + pool, self._args.expert_memory
        if about is not None and about.experts:
            beside = nbytes - about.experts
            expert_memory = self._expert_memory(about, beside)
            if isinstance(expert_memory, int) and expert_memory:
                nbytes = beside + min(expert_memory, about.experts)
        return Entry(
            file.name,
            partial(self.load, file.path, expert_memory),
            nbytes=nbytes,
            version=file.versions,
            created=file.modified,
            is_encoder=about is not None and about.is_encoder,
            about=about,
        )

    def _expert_memory(self, about: About, beside: int) -> int | Literal["auto"] | None:
        """For the experts of a mixture, as of `mlx_ferrum.load`: what is asked for, or what is left of the share.

        beside: bytes that the model takes without its experts
        """
        asked: int | Literal["auto"] | None = self._args.expert_memory
        backend = self._args.backend or streamed.BACKENDS[0]
        if isinstance(asked, int) or self._share is None or backend not in streamed.BACKENDS:
            return asked
        room = self._share - beside
        return room if about.token_experts <= room < about.experts else asked

    def load(
        self, name: str | Path, expert_memory: int | Literal["auto"] | None
    ) -> Loaded | LoadedEncoder:
        """A model of any kind. Raises as `mlx_ferrum.load`."""
        if not self._has_backend:  # another model may be running later
            cli.use_backend(self._args)
            self._has_backend = True
        args, path = self._args, catalog.resolve(name)
        if isinstance(expert_memory, int) and expert_memory != args.expert_memory:
            tell(
                f"{name}: {amounts.size(expert_memory)} for its experts are left of --model-memory, the others are "
                "read from the file when they are chosen"
            )
        model, tokenizer = load(
            path,
            expert_memory=expert_memory,
            reserve=self._pool(of_file(gguf.read(path))),
            mlock=args.mlock,
        )
        if isinstance(model, Encoder):
            return LoadedEncoder(model, tokenizer)
        blocks = math.ceil(self._tokens(model.args.context_length) / BLOCK)
        engine = Engine(
            model,
            blocks=blocks,
            kv_bits=args.kv_bits,
            most=args.parallel,
            chunk_beside=args.chunk_beside,
        )
        engine.prepare(min(args.parallel, blocks, WARM))
        return Loaded(model, tokenizer, engine)

    def load_for_texts(self, name: str) -> Loaded:
        """As `load`. Raises NotImplementedError for an encoder."""
        found = self.load(name, self._args.expert_memory)
        if isinstance(found, LoadedEncoder):
            language_model(found.model, name)
        assert isinstance(found, Loaded)
        return found

    def load_encoder(self, name: str) -> LoadedEncoder:
        """As `load`. Raises NotImplementedError for a language model."""
        found = self.load(name, self._args.expert_memory)
        if isinstance(found, Loaded):
            raise NotImplementedError(
                f"{name}: a language model makes no embeddings, expected an encoder"
            )
        return found

    def _pool(self, about: About) -> int:
        """Bytes of keys and values when the pool is full."""
        if about.context_length is None:
            return 0
        return pool_nbytes(about.keeps, self._tokens(about.context_length), self._args.kv_bits)

    def _tokens(self, context: int) -> int:
        """Positions that the pool has room for."""
        args = self._args
        return args.pool or max(context, min(args.parallel * context, args.default_pool))


class Listing:
    """All models: those that options name, and those of the folder.

    default, encoder: names of the models of --model and --embedding-model
    """

    def __init__(
        self, args: argparse.Namespace, folder: Folder | None, share: int | None = None
    ) -> None:
        """share: as of `Loader`"""
        self._loader, self._folder = Loader(args, share), folder
        self._fixed: list[Entry] = []
        self._renamed: dict[Path, tuple[str, tuple[str, ...]]] = {}  # name and aliases
        self._left_out: set[str] = set()
        self.default = self._add(args.model, args.alias, is_encoder=False)
        self.encoder = self._add(args.embedding_model, [], is_encoder=True)

    def _add(self, option: str | None, names: Sequence[str], *, is_encoder: bool) -> str | None:
        """Note what an option names; returns the name for clients."""
        if option is None:
            return None
        name, aliases = (names[0], tuple(names[1:])) if names else (str(option), ())
        if self._folder is None:
            call = self._loader.load_encoder if is_encoder else self._loader.load_for_texts
            entry = Entry(name, partial(call, option), aliases, is_encoder=is_encoder)
            self._fixed.append(entry)
        elif (file := _found(option, self._folder.list())) is not None:
            name = names[0] if names else file.name
            self._renamed[file.path] = name, (*aliases, file.name)
        else:
            entry = self._loader.entry(read_file(catalog.resolve(option), name))
            self._fixed.append(replace(entry, aliases=aliases))
        return name

    def __call__(self) -> Sequence[Entry]:
        """The models that there are now, those of options first."""
        if self._folder is None:
            return self._fixed
        found = list(self._fixed)
        files = sorted(self._folder.list(), key=lambda file: file.path not in self._renamed)
        for file in files:
            entry = self._loader.entry(file)
            name, aliases = self._renamed.get(file.path, (file.name, ()))
            while any(name == other.name for other in found):  # an alias, or a model elsewhere
                name += ".gguf"
            found.append(replace(entry, name=name, aliases=aliases))
        self._tell(self._folder.left_out)
        return found

    def _tell(self, left_out: Mapping[str, str]) -> None:
        """One line for what is newly left out."""
        new = {path: why for path, why in left_out.items() if path not in self._left_out}
        self._left_out |= new.keys()
        if new:
            warn(f"left out of --models: {', '.join(f'{p!r} ({why})' for p, why in new.items())}")


def _found(option: str, files: Sequence[File]) -> File | None:
    """The file of the folder that an option names, by its name for clients or its path."""
    path = Path(option).expanduser()
    for file in files:
        if file.name == option or (path.is_file() and path.samefile(file.path)):
            return file
    return None
