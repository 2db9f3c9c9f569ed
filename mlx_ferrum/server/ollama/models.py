"""`/api/tags`, `/api/ps`, `/api/show`, `/api/version` and `/api/embed`."""

from __future__ import annotations

import hashlib
import time
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import mlx_ferrum

from ..about import About
from ..embedding import choose_encoder, embeddings, texts
from ..entries import Entry
from ..http import read, respond
from ..models import Models


async def tags(request: Request) -> Response:
    """Which models there are."""
    models: Models = request.app.state.models
    return respond({"models": [_listed(models, entry) for entry in await models.entries()]})


async def running(request: Request) -> Response:
    """Which of them are loaded."""
    models: Models = request.app.state.models
    found = [entry for entry in await models.entries() if models.service(entry.name) is not None]
    return respond(
        {"models": [{**_listed(models, entry), "size_vram": entry.nbytes} for entry in found]}
    )


def _listed(models: Models, entry: Entry) -> dict[str, Any]:
    about = models.about(entry)
    digest = hashlib.sha256(f"{entry.name} {entry.version}".encode("utf-8", "replace"))
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": datetime.fromtimestamp(entry.created, timezone.utc).isoformat(),
        "size": 0 if about is None else about.nbytes,
        "digest": digest.hexdigest(),
        "details": _details(about),
        "loaded": models.service(entry.name) is not None,
    }


def _details(about: About | None) -> dict[str, Any]:
    """Empty as long as nothing is known."""
    if about is None:
        return {}
    return {
        "parent_model": "",
        "format": "gguf",
        "family": about.architecture,
        "families": [about.architecture],
        "parameter_size": f"{about.parameter_count / 1e9:.1f}B",
        "quantization_level": about.types,
    }


async def show(request: Request) -> Response:
    """What a model is and can do. It is not loaded for that."""
    models: Models = request.app.state.models
    fields = await read(request)
    name = fields.text("model", fields.text("name", ""))
    fields.finish(["verbose"])
    entry = await models.find(name.removesuffix(":latest"))
    about = models.about(entry)
    info = {}
    if about is not None:
        info = {
            "general.architecture": about.architecture,
            f"{about.architecture}.context_length": about.context_length,
        }
    can = ["embedding" if entry.is_encoder else "completion"]
    return respond({"details": _details(about), "model_info": info, "capabilities": can})


async def version(_: Request) -> Response:
    """The version of this package."""
    return respond({"version": mlx_ferrum.__version__})


async def embed(request: Request) -> Response:
    """Embeddings of texts."""
    since = time.perf_counter_ns()
    fields = await read(request)
    service = await choose_encoder(request, fields)
    given, truncates = texts(fields), fields.flag("truncate", True)
    fields.finish(["keep_alive", "options"])
    vectors, tokens = await embeddings(service, given, truncates)
    return respond(
        {
            "model": fields.text("model", service.name),
            "embeddings": vectors.tolist(),
            "total_duration": time.perf_counter_ns() - since,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
    )
