"""Pieces of JSON that several of OpenAI's endpoints share."""

from __future__ import annotations

import secrets
from json.encoder import encode_basestring_ascii
from typing import Any

import mlx_ferrum
from mlx_ferrum.tokenizer import Tokenizer

from ..loop import Likely
from ..reply import Answer

quoted = encode_basestring_ascii  # a string as JSON, without an encoder
FINGERPRINT = f"mlx_ferrum-{mlx_ferrum.__version__}"


def new_id(start: str) -> str:
    """An id that nobody can guess."""
    return f"{start}{secrets.token_hex(16)}"


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens of a request; those of a prompt count once, whatever n is."""
    prompt, generated = sum(answer.prompts), answer.generated
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": answer.cached},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning},
    }


def chat_logprobs(tokenizer: Tokenizer, tokens: list[tuple[int, Likely]]) -> dict[str, Any]:
    """Log-probabilities as chat completions have them."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        spelled = tokenizer.piece(token)[0]
        text = spelled.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(spelled)}

    content = [
        {**entry(token, own), "top_logprobs": [entry(*pair) for pair in top]}
        for token, (own, top) in tokens
    ]
    return {"content": content, "refusal": None}


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for what is impossible."""
    return max(logprob, -9999.0)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; bytes that are no whole characters are written as OpenAI does it."""
    spelled = tokenizer.piece(token)[0]
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
