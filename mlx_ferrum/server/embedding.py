"""Embeddings by a model that makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request

from mlx_ferrum.embed import embed
from mlx_ferrum.models.encoder import Encoder
from mlx_ferrum.tokenizer import Tokenizer

from .errors import RequestError
from .fields import Fields
from .http import model_name, use
from .loop import Work
from .models import Models
from .service import Service

PART = 32  # texts that are embedded between two steps
TEXTS = 2048


def texts(fields: Fields) -> list[str]:
    """The field `input`: one text or several. Raises RequestError for token ids: they are another tokenizer's."""
    found = fields.texts("input")
    if not found or len(found) > TEXTS or not all(found):
        raise fields.error("input", found, f"1 to {TEXTS} texts, none of them empty")
    return found


async def choose_encoder(request: Request, fields: Fields) -> Service:
    """The model for embeddings that the field `model` names, once it is loaded. Raises RequestError."""
    models: Models = request.app.state.models
    return await use(request, await models.find_encoder(model_name(request, fields)))


async def embeddings(
    service: Service, given: Sequence[str], truncates: bool
) -> tuple[np.ndarray, int]:
    """(n, d) float32, and how many tokens the texts have.

    Raises RequestError for a text that is too long, unless `truncates`.
    """
    encoder = service.encoder
    net, tokenizer = encoder.model, encoder.tokenizer
    lengths = await service.prepare(_lengths, tokenizer, given)
    most = net.pooling.max_length
    if max(lengths) > most and not truncates:
        at = lengths.index(max(lengths))
        raise RequestError(
            f"text {at} has {lengths[at]} tokens, expected at most {most}",
            param="input",
            code="context_length_exceeded",
        )
    vectors = await service.work(_vectors(net, tokenizer, given))
    return vectors, sum(min(length, most) for length in lengths)


def _lengths(tokenizer: Tokenizer, given: Sequence[str]) -> list[int]:
    return [len(tokenizer.encode(text, parse_special=True)) for text in given]


def _vectors(net: Encoder, tokenizer: Tokenizer, given: Sequence[str]) -> Work[np.ndarray]:
    found = []
    for start in range(0, len(given), PART):
        found.append(embed(net, tokenizer, given[start : start + PART]))
        yield
    return np.concatenate(found)
