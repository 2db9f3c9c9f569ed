"""Hugging Face Hub repositories: `owner/repo[:file]` to a GGUF file in the hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_PREFERRED = "q4_k_m"  # of a repository with many files: small, and close to the original


def download(name: str) -> Path:
    """Download a model unless it is in the hub's cache; return the path of its (first) file.

    name: `owner/repo`, whose Q4_K_M file is taken when it has several, or `owner/repo:file`. All
    parts of a split model are downloaded. `ValueError` when there is no such repository or file, or
    the choice is open; `ConnectionError` when the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download  # 0.3 s, and only names with hf: need it

    repo, _, file = name.partition(":")
    if not _REPO.fullmatch(repo):
        raise ValueError(f"hf:{name}: expected hf:owner/repo or hf:owner/repo:file.gguf")
    if not file:
        file = choose(repo, _ask(name, HfApi().list_repo_files, repo))
    paths = [_ask(name, hf_hub_download, repo, part) for part in parts(file)]
    return Path(paths[0])


def choose(repo: str, files: Iterable[str]) -> str:
    """The only model among the files of a repository, or its only Q4_K_M one.

    `ValueError` lists the choices.
    """
    found = models(files)
    preferred = [file for file in found if _PREFERRED in file.lower()]
    for candidates in (found, preferred):
        if len(candidates) == 1:
            return candidates[0]
    if not found:
        raise ValueError(f"hf:{repo}: no GGUF file in this repository")
    raise ValueError(
        f"hf:{repo}: several models, name one: {', '.join(f'hf:{repo}:{file}' for file in found)}"
    )


def models(files: Iterable[str]) -> list[str]:
    """The GGUF models among `files`, sorted; split ones by their first file, no projectors."""
    first: dict[str, str] = {}
    for file in sorted(files):
        if file.endswith(".gguf") and not PurePosixPath(file).name.startswith("mmproj"):
            first.setdefault(_PART.sub("", file), file)
    return list(first.values())


def parts(file: str) -> list[str]:
    """All files of the model that `file` is a part of; three for `x-00002-of-00003.gguf`."""
    match = _PART.search(file)
    if match is None:
        return [file]
    count = int(match[2])
    return [
        f"{file[: match.start()]}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)
    ]


def _ask(name: str, call: Callable[..., Any], *args: str) -> Any:
    """Return `call(*args)`, a call to the hub, with its errors in our words."""
    from huggingface_hub import errors

    # The hub's own error derives from that of its HTTP client, which differs between versions.
    client_error: type[BaseException] = errors.HfHubHTTPError.__bases__[0]
    try:
        return call(*args)
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"hf:{name}: no such repository, or it needs `hf auth login`") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(f"hf:{name}: no such file in the repository") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(f"hf:{name}: not in the cache, hub not reached") from error
    except (ConnectionError, client_error) as error:
        raise ConnectionError(
            f"hf:{name}: hub not reached ({error}); a file in its cache opens offline as "
            "hf:owner/repo:file"
        ) from error
