"""`/api/tags`, `/api/show`, `/api/version` and `/api/embed`."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import mlx_ferrum

from ..embedding import embeddings, texts
from ..fields import Fields
from ..http import read, respond
from ..service import Service


async def tags(request: Request) -> Response:
    """Which models there are."""
    service: Service = request.app.state.service
    model = service.loaded.model
    since = datetime.fromtimestamp(service.created, timezone.utc).isoformat()
    found = {
        "name": service.name,
        "model": service.name,
        "modified_at": since,
        "size": model.nbytes,
        "digest": model.fingerprint,
        "details": _details(service),
    }
    return respond({"models": [found]})


def _details(service: Service) -> dict[str, Any]:
    model = service.loaded.model
    family = model.args.architecture
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": f"{model.parameter_count / 1e9:.1f}B",
        "quantization_level": model.types,
    }


async def show(request: Request) -> Response:
    """What a model is and can do."""
    service: Service = request.app.state.service
    fields = await read(request)
    name = fields.text("model", fields.text("name", service.name))
    fields.finish(["verbose"])
    service.check_name(name.removesuffix(":latest"))
    args = service.loaded.model.args
    info = {
        "general.architecture": args.architecture,
        f"{args.architecture}.context_length": args.context_length,
    }
    return respond(
        {"details": _details(service), "model_info": info, "capabilities": ["completion"]}
    )


async def version(_: Request) -> Response:
    """The version of this package."""
    return respond({"version": mlx_ferrum.__version__})


async def embed(request: Request) -> Response:
    """Embeddings of texts."""
    service: Service = request.app.state.service
    since = time.perf_counter_ns()
    fields: Fields = await read(request)
    model = fields.text("model", "").removesuffix(":latest")
    given, truncates = texts(fields), fields.flag("truncate", True)
    fields.finish(["keep_alive", "options"])
    vectors, tokens = await embeddings(service, model, given, truncates)
    return respond(
        {
            "model": model,
            "embeddings": vectors.tolist(),
            "total_duration": time.perf_counter_ns() - since,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
    )
