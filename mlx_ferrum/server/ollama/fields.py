"""Ollama's names of what OpenAI's clients send too."""

from __future__ import annotations

from typing import Any

from .. import sampling
from ..fields import Fields
from ..sampling import Sampling
from ..service import Service

RENAMED = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
}
EVERYTHING = 2**31 - 1
# of how the model is loaded, or of other engines
IGNORED = frozenset(
    """num_ctx num_batch num_gpu main_gpu use_mmap use_mlock num_thread num_keep numa low_vram vocab_only tfs_z
    penalize_newline""".split()
)


def read_sampling(fields: Fields, service: Service) -> Sampling:
    """Sampling from the field `options`. Raises RequestError."""
    given: Any = fields.get("options", {})
    fields.object("options")  # checked
    values = {RENAMED.get(name, name): value for name, value in given.items()}
    limit = values.get("max_tokens")
    if limit in (0, -1, -2) and limit is not False:  # as many as the context has room for
        del values["max_tokens"]
    if values.get("penalty_window") == -1:
        values["penalty_window"] = EVERYTHING
    options = Fields(values, "options")
    options.refuse("mirostat", [0])
    chosen = sampling.read(options, service.recommended, "max_tokens")
    options.finish([*IGNORED, "mirostat_tau", "mirostat_eta"])
    return chosen
