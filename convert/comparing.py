"""Comparison of models: the base and the others read a text chunk by chunk, side by side.

Memory: the files are mapped; on top, a chunk's activations and the logits of perplexity.ROWS positions of two models.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

import mlx_ferrum
from mlx_ferrum import gguf, ops
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.models.encoder import language_model
from mlx_ferrum.tokenizer import Tokenizer

from . import chunks, divergence, perplexity, source, tensor_errors
from .comparison import Comparison, Divergence, Model, Other, TensorErrors, Text
from .saved_logits import Identity, SavedLogits

Name = str | Path
UNUSED = 5  # a token type: its text means nothing
DIGEST = 16  # hexadecimal digits
NAME = 100  # letters of a name in saved logits


def compare(
    base: Name,
    others: Name | Sequence[Name],
    text: str | Path | None = None,
    *,
    count: int | None = None,
    size: int | None = None,
    logits: str | Path | None = None,
    tensors: bool = True,
) -> Comparison:
    """Compare other models with `base`, which has the same vocabulary: their tensors, and what they predict on a text.

    base, others: GGUF files, folders, hf:owner/repo, or catalog names
    text: a Path names a file, a str is the text; None compares only tensors
    count, size: how many chunks are read (default: all), and tokens in each (default: 512, or the shortest context);
        the second half of a chunk is scored, as llama-perplexity does
    logits: a file that keeps the base's logits, for this text and these chunks; made if it is missing, continued if
        it is not complete
    tensors: whether tensors are compared
    Raises ValueError for a count below 1, vocabularies that differ, a text without one chunk, a file without tensors,
    logits that are not finite, or saved logits of something else; NotImplementedError for a text that an encoder
    should read; OSError for files that cannot be had.
    """
    names = [others] if isinstance(others, (str, Path)) else list(others)
    if count is not None and count < 1:
        raise ValueError(f"count is {count}, expected 1 or more")
    if text is None and logits is not None:
        raise ValueError("logits need a text")
    files = [open_model(name) for name in (base, *names)]
    reading = None
    if text is not None:
        reading = Reading.of([base, *names], files, text, count=count, size=size)
        reading.run(None if logits is None else Path(logits))
    errors = [tensor_errors.measure(files[0], f) if tensors else None for f in files[1:]]
    return result([base, *names], files, reading, errors)


def open_model(name: Name) -> gguf.GGUF:
    """The file of a model. Raises ValueError if it has no tensors."""
    file = source.read(name)
    if not file.tensors:
        raise ValueError(f"{file.path}: has no tensors to compare")
    return file


def result(
    names: Sequence[Name],
    files: Sequence[gguf.GGUF],
    reading: Reading | None,
    errors: Sequence[TensorErrors | None],
) -> Comparison:
    """What is known so far; names and files: the base first; errors: of each other model."""
    models = [_described(name, file) for name, file in zip(names, files, strict=True)]
    found: Sequence[Divergence | None] = [None] * len(errors)
    text = None
    if reading is not None:
        found = reading.divergences()
        text = Text(reading.name, reading.done, reading.size, len(reading.pieces))
    others = [Other(*o) for o in zip(models[1:], found, errors, strict=True)]
    return Comparison(models[0], others, text)


def _described(name: Name, file: gguf.GGUF) -> Model:
    infos = file.tensors.values()
    weights = sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos)
    return Model(str(name), sum(info.nbytes for info in infos), weights)


@dataclass
class Reading:
    """The models while they read the text; `add` gives them its next chunk.

    names, models: the base first
    pieces: the chunks to read, of `size` tokens; digest: of all chunks that the text has
    key: of the base's file
    done: chunks read so far
    """

    names: list[str]
    models: list[LanguageModel]
    name: str
    pieces: list[list[int]]
    size: int
    digest: str
    key: str
    done: int = 0
    file: SavedLogits | None = None
    scores: list[list[divergence.Scores]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        names: Sequence[Name],
        files: Sequence[gguf.GGUF],
        text: str | Path,
        *,
        count: int | None = None,
        size: int | None = None,
    ) -> Reading:
        """Load the models and cut the text by the base's tokenizer. Raises errors as `compare` does."""
        for name, file in zip(names[1:], files[1:], strict=True):
            check_vocabularies(names[0], files[0], name, file)
        loaded = [mlx_ferrum.load(file.path) for file in files]
        models = [
            language_model(model, name) for (model, _), name in zip(loaded, names, strict=True)
        ]
        tokenizer: Tokenizer = loaded[0][1]
        size = chunks.size(size, min(model.args.context_length for model in models))
        if isinstance(text, Path):
            name, where, content = text.name, str(text), chunks.text(text)
        else:
            name, where, content = "text", "the text (a Path would name a file)", text
        pieces = chunks.cut(content, tokenizer, size, name=where)
        return cls(
            [str(n) for n in names],
            models,
            name,
            pieces[:count],
            size,
            _digest(np.array(pieces, np.int64).tobytes()),
            _file_key(models[0], files[0]),
            scores=[[] for _ in models[1:]],
        )

    @property
    def first(self) -> int:
        """The first position of a chunk that is scored."""
        return self.size // 2

    def run(self, logits: Path | None = None) -> None:
        """Read all chunks, with a bar; logits: the file that keeps those of the base."""
        with contextlib.ExitStack() as stack:
            if logits is not None:
                self.file = stack.enter_context(self._saved(logits))
                self.file.check_space(len(self.pieces))
            for piece in stack.enter_context(chunks.progress(self.pieces, self.name)):
                self.add(piece)

    def _saved(self, path: Path) -> SavedLogits:
        vocabulary = self.models[0].args.vocab_size
        identity: Identity = {
            "model": self.key,
            "chunk size": self.size,
            "text": self.digest,
            "backend": ops.backend_name(),
            "vocabulary": vocabulary,
        }
        names = {"model": Path(self.names[0]).name[:NAME], "text": self.name[:NAME]}
        positions = self.size - 1 - self.first
        return SavedLogits(path, identity, names, positions=positions, vocabulary=vocabulary)

    def add(self, tokens: Sequence[int]) -> None:
        """Read the next chunk with all models. Raises ValueError for logits that are not finite."""
        found: list[list[divergence.Scores]] = [[] for _ in self.models[1:]]
        others = [self._logits(i, tokens) for i in range(1, len(self.models))]
        for base in self._base(tokens):
            for i, other in enumerate(others):
                logits, wanted = next(other)
                with self._named(i + 1):
                    found[i].append(divergence.compare(base, logits, wanted))
        for model in self.models[1:]:
            _check_file(model)
        for scores, new in zip(self.scores, found, strict=True):
            scores.extend(new)
        self.done += 1

    def _logits(self, i: int, tokens: Sequence[int]) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
        return perplexity.logits(self.models[i], tokens, self.first)

    def _base(self, tokens: Sequence[int]) -> Iterator[divergence.Rows]:
        """The base's predictions: by the model, or by the file, where they are put first if it lacks them."""
        if self.file is None:
            yield from self._computed(tokens)
            return
        if self.done == self.file.count:
            self.file.append(self._computed(tokens))
        yield from self.file.rows(self.done, perplexity.ROWS)

    def _computed(self, tokens: Sequence[int]) -> Iterator[divergence.Rows]:
        for logits, wanted in self._logits(0, tokens):
            with self._named(0):
                rows = divergence.rows(logits, wanted)
            yield rows
        _check_file(self.models[0])  # before a record of saved logits counts as whole

    @contextlib.contextmanager
    def _named(self, i: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.names[i]}: chunk {self.done + 1}: {error}") from error

    def divergences(self) -> list[Divergence]:
        """Of each other model, on the chunks read so far. Raises ValueError if there is none."""
        if not self.done:
            raise ValueError("no chunk has been read")
        names = [f.name for f in fields(Divergence)]
        return [
            Divergence(*(np.concatenate([getattr(s, name) for s in scores]) for name in names))
            for scores in self.scores
        ]


def check_vocabularies(base_name: Name, base: gguf.GGUF, name: Name, other: gguf.GGUF) -> None:
    """Raises ValueError, which says how they differ, unless both files have the same tokens.

    The text of tokens that are unused in both may differ: converters make it up.
    """
    tokens, others = (_tokens(n, f) for n, f in ((base_name, base), (name, other)))
    if len(tokens) != len(others):
        raise ValueError(
            f"vocabularies differ: {base_name} has {len(tokens)} tokens, {name} has {len(others)}"
        )
    for i, ((a, kind), (b, other_kind)) in enumerate(zip(tokens, others, strict=True)):
        if a != b and not kind == other_kind == UNUSED:
            raise ValueError(
                f"vocabularies differ: token {i} is {a!r} in {base_name}, {b!r} in {name}"
            )


def _tokens(name: Name, file: gguf.GGUF) -> list[tuple[str, int]]:
    """The text and type of each token."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        raise ValueError(f"{name}: has no tokenizer")
    kinds = file.metadata.get("tokenizer.ggml.token_type", [0] * len(tokens))
    return [(str(token), int(kind)) for token, kind in zip(tokens, kinds, strict=False)]


def _check_file(model: LanguageModel) -> None:
    if model.check_file is not None:
        model.check_file()


def _file_key(model: LanguageModel, file: gguf.GGUF) -> str:
    """Of the metadata, and of names, types, shapes and some bytes of the tensors."""
    values = [file.raw(key) for key in file.metadata if key not in source.SPLIT]
    return _digest(model.fingerprint.encode(), *values)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:DIGEST]
