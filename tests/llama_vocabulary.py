"""llama.cpp's tokenizers, for golden files and live comparisons; needs xllamacpp and gguf.

The xllamacpp wheel is one library that exports llama.h's functions, so they are called with ctypes: its Python
interface takes text only, loads whole models and does not say which tokens end generation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp

_PIECE = 1 << 10


class _ModelParams(ctypes.Structure):
    """llama_model_params; only vocab_only is set here. The rest is larger than any version needs."""

    _fields_ = [
        ("before", ctypes.c_uint8 * 72),
        ("vocab_only", ctypes.c_bool),
        ("after", ctypes.c_uint8 * 439),
    ]


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@_LOG
def _silent(level: int, text: bytes, data: int) -> None:
    """llama.cpp's log goes nowhere."""


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(xllamacpp.xllamacpp.__file__))
    pointer, integer, boolean = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_log_set": (None, [_LOG, pointer]),
        "llama_model_default_params": (_ModelParams, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _ModelParams]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (integer, [pointer]),
        "llama_vocab_is_eog": (boolean, [pointer, integer]),
        "llama_tokenize": (
            integer,
            [pointer, ctypes.c_char_p, integer, ctypes.POINTER(integer), integer, boolean, boolean],
        ),
        "llama_token_to_piece": (
            integer,
            [pointer, integer, ctypes.c_char_p, integer, integer, boolean],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_silent, None)
    library.llama_backend_init()
    return library


class LlamaVocabulary:
    """The tokenizer of a GGUF file, as llama.cpp has it."""

    def __init__(self, path: Path) -> None:
        self._library = _library()
        params = self._library.llama_model_default_params()
        params.vocab_only = True
        self._model = self._library.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"{path}: llama.cpp cannot load it")
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self.size = self._library.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        self._library.llama_model_free(self._model)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids; surrogates of surrogateescape are bytes."""
        data = text.encode("utf-8", "surrogateescape")
        room = 4 * len(data) + 16
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(
            self._vocab, data, len(data), ids, room, add_special, parse_special
        )
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Bytes of a token, special ones too."""
        room = ctypes.create_string_buffer(_PIECE)
        count = self._library.llama_token_to_piece(self._vocab, token, room, _PIECE, 0, True)
        return room.raw[:count]

    def end_ids(self) -> list[int]:
        """Ids of all tokens that end generation."""
        return [i for i in range(self.size) if self._library.llama_vocab_is_eog(self._vocab, i)]


def write(path: Path, metadata: Mapping[str, Any]) -> None:
    """A GGUF file without tensors that llama.cpp can read a vocabulary from."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = dict.fromkeys(("block_count", "context_length", "embedding_length"), 32)
    sizes |= {"feed_forward_length": 32, "attention.head_count": 1}
    for name, size in sizes.items():
        writer.add_uint32(f"llama.{name}", size)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else list(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
