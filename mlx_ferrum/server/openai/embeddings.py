"""`/v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ..embedding import choose_encoder, embeddings, texts
from ..http import read, respond


async def create(request: Request) -> Response:
    """Embeddings of texts."""
    fields = await read(request)
    service = await choose_encoder(request, fields)
    form = fields.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise fields.error("encoding_format", form, "'float' or 'base64'")
    given = texts(fields)
    size = fields.whole("dimensions", None, 1, 2**31)
    fields.finish(["user"])
    vectors, tokens = await embeddings(service, given, truncates=False)
    if size not in (None, vectors.shape[1]):
        raise fields.error("dimensions", size, f"the model's {vectors.shape[1]}")
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, form)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return respond({"object": "list", "data": data, "model": service.name, "usage": usage})


def _encoded(vector: np.ndarray, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
