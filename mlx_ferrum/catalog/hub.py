"""Hugging Face Hub repositories: `owner/repo[:choice]` to a GGUF file in the hub's own cache."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_COMPANION = re.compile(r"mmproj|imatrix|^ggml-vocab|^(mtp|eagle3?|dflash|dspark)-", re.IGNORECASE)
_PREFERRED = "Q4_K_M"  # of a repository with many files: small, and close to the original
_SOURCES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "README.md"]
_NOT_SOURCES = ["consolidated*", "*/*.safetensors", "*/*.json"]
_SECONDS = 5  # that the hub has to answer


def download(name: str) -> Path:
    """Download a model unless it is in the hub's cache; return the path of its (first) file.

    name: `owner/repo`, `owner/repo:file`, or `owner/repo:tag`, where a tag is part of one file's
    name, such as Q8_0. Without either, or with `latest`, it is the only model or the Q4_K_M one.
    All parts of a split model are downloaded. When the hub cannot be reached, the model is looked
    for in the cache at once. `ValueError` when there is no such repository or file, or the choice
    is open; `ConnectionError` when the hub cannot be reached and the cache does not have the model.
    """
    _import_bars()
    from huggingface_hub import HfApi, hf_hub_download  # 0.3 s, and only names with hf: need it

    repo, _, choice = name.partition(":")
    if not REPOSITORY.fullmatch(repo):
        raise ValueError(
            f"hf:{name}: expected hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo:FILE"
        )
    with _offline(unreachable()):
        file = choice
        if not choice.lower().endswith(".gguf"):
            try:
                file = choose(repo, _ask(name, HfApi().list_repo_files, repo), choice)
            except ConnectionError as error:
                file = _choose_cached(repo, choice, error)
        paths = [_ask(f"{repo}:{part}", hf_hub_download, repo, part) for part in parts(file)]
    return Path(paths[0])


def snapshot(repo: str) -> Path:
    """The folder with a repository's safetensors model and tokenizer, downloaded unless it is in the hub's cache.

    Raises ValueError if there is no such repository, ConnectionError if the hub cannot be reached and the cache does
    not have the model.
    """
    _import_bars()
    from huggingface_hub import snapshot_download

    call = partial(snapshot_download, allow_patterns=_SOURCES, ignore_patterns=_NOT_SOURCES)
    reason = unreachable()
    with _offline(reason):
        return Path(
            _ask(repo, call if reason is None else partial(call, local_files_only=True), repo)
        )


def _import_bars() -> None:
    """Import the bars of the hub's package without their warning in a notebook that has no ipywidgets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        import_module("tqdm.auto")


def choose(repo: str, files: Iterable[str], tag: str = "") -> str:
    """The model of a repository whose name has the tag; without one the only model, or its Q4_K_M file.

    tag: in upper or lower case; "latest" is none. `ValueError` lists the choices.
    """
    found = models(files)
    if not found:
        raise ValueError(f"hf:{repo}: no GGUF model in this repository")
    if tag and tag.lower() != "latest":
        fitting = _tagged(found, tag)
    else:
        fitting = found if len(found) == 1 else _tagged(found, _PREFERRED)
        tag = ""
    if len(fitting) == 1:
        return fitting[0]
    if tag:
        what = f"{len(fitting)} models are tagged {tag}" if fitting else f"no model is tagged {tag}"
    else:
        what = "several models"
    raise ValueError(
        f"hf:{repo}: {what}, choose one as hf:{repo}:FILE from {', '.join(fitting or found)}"
    )


def models(files: Iterable[str]) -> list[str]:
    """The GGUF models among `files`, sorted; split ones by their first file.

    Left out are files that only go with a model: projectors, importance matrices, vocabularies,
    heads for speculative decoding; and hidden files.
    """
    first: dict[str, str] = {}
    for file in sorted(files):
        name = PurePosixPath(file).name
        if name.lower().endswith(".gguf") and name[0] != "." and not _COMPANION.search(name):
            first.setdefault(_PART.sub("", file), file)
    return list(first.values())


def parts(file: str) -> list[str]:
    """All files of the model that `file` is a part of; three for `x-00002-of-00003.gguf`."""
    match = _PART.search(file)
    if match is None:
        return [file]
    before, after = file[: match.start(1)], file[match.end(1) :]
    return [f"{before}{part:05d}{after}" for part in range(1, int(match[2]) + 1)]


def unreachable() -> str | None:
    """Why the hub cannot be reached, by a single request; None if it can."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except (OSError, _client_error()) as error:
        return str(error) or type(error).__name__
    return None


@contextmanager
def _offline(reason: str | None) -> Iterator[None]:
    """Let the hub's client refuse all requests at once if there is a reason: it would try each one six times."""
    from huggingface_hub import errors, get_session

    def refuse(*_: object) -> None:
        raise errors.OfflineModeIsEnabled(reason)

    session = get_session()
    hooks = session.event_hooks
    if reason is not None:
        session.event_hooks = {**hooks, "request": [refuse]}
    try:
        yield
    finally:
        session.event_hooks = hooks


def _tagged(files: Iterable[str], tag: str) -> list[str]:
    """The files that have `tag` in their path as a word of its own: Q4_K is no part of Q4_K_M."""
    pattern = re.compile(rf"(?<![a-z0-9_]){re.escape(tag)}(?![a-z0-9_])", re.IGNORECASE)
    return [file for file in files if pattern.search(file)]


def _choose_cached(repo: str, tag: str, unlisted: ConnectionError) -> str:
    """`choose` among the files that are in the hub's cache. unlisted: why the others are not known."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        raise unlisted from None
    try:
        return choose(
            repo, (path.relative_to(folder).as_posix() for path in folder.rglob("*")), tag
        )
    except ValueError as error:
        raise ConnectionError(f"{unlisted}; in the cache: {error}") from None


def _not_cached(name: str, reason: object) -> ConnectionError:
    return ConnectionError(f"hf:{name}: not in the cache, and the hub cannot be reached: {reason}")


def _ask(name: str, call: Callable[..., Any], *args: str) -> Any:
    """Return `call(*args)`, a call to the hub, with its errors in our words."""
    from huggingface_hub import errors

    try:
        return call(*args)
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"hf:{name}: no such repository, or it needs `hf auth login`") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(f"hf:{name}: no such file in the repository") from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(name, error.__cause__ or error) from error
    except (ConnectionError, _client_error()) as error:
        raise _not_cached(name, error) from error


def _client_error() -> type[Exception]:
    """What the hub's HTTP client raises; which client that is differs between versions of the hub."""
    from huggingface_hub import errors

    error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    return error
