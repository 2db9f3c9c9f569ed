"""The tokenizer of a GGUF file as the files of a Hugging Face folder, which transformers and mlx_lm read.

Format of tokenizer.json: https://huggingface.co/docs/tokenizers. What it cannot express exactly: of overlapping special
tokens, the leftmost counts there, the longest here; equal scores of SentencePiece are merges in the order of ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_ferrum.tokenizer import kinds
from mlx_ferrum.tokenizer.bpe import MERGES
from mlx_ferrum.tokenizer.kinds import Kind
from mlx_ferrum.tokenizer.pretokenizers import by_name
from mlx_ferrum.tokenizer.splitting import Pattern, Step, TrailingSpace
from mlx_ferrum.tokenizer.unicode import HAN
from mlx_ferrum.tokenizer.vocabulary import TokenType, Vocabulary, read_flag, read_strings

from .general import SAMPLING

SPACE = "\u2581"
TEMPLATE = "tokenizer.chat_template"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
_HAN = "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN)
# Classes of pre-tokenizers that the library's expressions lack: only ASCII has cases there.
_CLASSES = {
    r"\p{Upper}": r"[\p{L}&&[^a-z]]",
    r"\p{Lower}": r"[\p{L}&&[^A-Z]]",
    r"\p{NotHan}": rf"[\p{{L}}&&[^{_HAN}]]",
    r"\p{Han}": f"[{_HAN}]",
}


def files(metadata: Mapping[str, Any], context: int) -> dict[str, Any]:
    """The files by name, as what becomes JSON.

    context: the longest text of the model, in tokens
    Raises ValueError for damaged metadata, NotImplementedError for a tokenizer that the format cannot express.
    """
    kind = kinds.from_metadata(metadata)
    return {
        "tokenizer.json": _tokenizer(metadata, kind),
        "tokenizer_config.json": _config(metadata, kind, context),
        "generation_config.json": _generation(metadata),
    }


def ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of config.json and generation_config.json that name tokens."""
    vocabulary = kinds.from_metadata(metadata).vocabulary
    special = vocabulary.special_ids
    first = special["eos_token_id"]
    ends = sorted(vocabulary.end_ids, key=lambda token: (token != first, token))
    found = {
        "bos_token_id": special["bos_token_id"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": special["padding_token_id"],
    }
    return {key: value for key, value in found.items() if value not in (None, [])}


def _tokenizer(metadata: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """tokenizer.json"""
    model = metadata["tokenizer.ggml.model"]
    if model == "llama":
        parts = _sentence_piece(metadata, kind.vocabulary)
    elif model == "gpt2":
        parts = _byte_level(metadata, kind.vocabulary)
    else:
        raise NotImplementedError(f"tokenizer.ggml.model: {model!r} cannot be written for mlx_lm")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(metadata, kind.vocabulary),
        **parts,
        "post_processor": _template(kind),
    }


def _byte_level(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    name = metadata.get("tokenizer.ggml.pre", "default")
    merges = (merge.split(" ", 1) for merge in read_strings(metadata, MERGES))
    return {
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(name),
        "decoder": {**BYTE_LEVEL, "use_regex": True},
        "model": _bpe(
            vocabulary, _known(merges, vocabulary.ids), ignore_merges=by_name(name).whole_words
        ),
    }


def pre_tokenizer(name: str) -> dict[str, Any]:
    """How a text is cut into words, by the name in `tokenizer.ggml.pre`.

    Raises NotImplementedError for cuts that no expression makes, and for words that are not spelled in bytes.
    """
    pre = by_name(name)
    if pre.raw:
        raise NotImplementedError(f"tokenizer.ggml.pre: {name!r} cannot be written for mlx_lm")
    splits = [_split(name, step) for step in pre.steps]
    return {"type": "Sequence", "pretokenizers": [*splits, {**BYTE_LEVEL, "use_regex": False}]}


def _split(name: str, step: Step) -> dict[str, Any]:
    """One step of a pre-tokenizer."""
    if isinstance(step, Pattern):
        expression = step.expression
        for known, members in _CLASSES.items():
            expression = expression.replace(known, members)
    elif isinstance(step, TrailingSpace):
        expression = r"[ \t\n\v\f\r]+\z"
    else:
        raise NotImplementedError(f"tokenizer.ggml.pre: {name!r} cannot be written for mlx_lm")
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


def _sentence_piece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    prefix = read_flag(metadata, "add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    begin = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    unknown = vocabulary.special_ids["unknown_token_id"]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary,
            _merges(vocabulary),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            byte_fallback=True,
            fuse_unk=True,
        ),
    }


def _bpe(vocabulary: Vocabulary, merges: list[list[str]], **options: Any) -> dict[str, Any]:
    usual = {"unk_token": None, "byte_fallback": False, "fuse_unk": False, "ignore_merges": False}
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **usual,
        **options,
        "vocab": _texts(vocabulary),
        "merges": merges,
    }


def _texts(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids by text, without the padding at the end of the table of embeddings, which no original tokenizer has."""
    count = len(vocabulary.tokens)
    while count and vocabulary.tokens[count - 1] == f"[PAD{count - 1}]":
        if vocabulary.types[count - 1] != TokenType.UNUSED:
            break
        count -= 1
    return {text: token for text, token in vocabulary.ids.items() if token < count}


def _known(merges: Iterable[list[str]], ids: Mapping[str, int]) -> list[list[str]]:
    """Merges of two tokens into a third; the library refuses other merges, which never apply."""
    return [
        merge
        for merge in merges
        if len(merge) == 2 and merge[0] in ids and merge[1] in ids and merge[0] + merge[1] in ids
    ]


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Every way to make a token of two, those of the highest score first."""
    ids, tokens = vocabulary.ids, vocabulary.tokens
    scores = np.zeros(len(tokens)) if vocabulary.scores is None else vocabulary.scores
    return [
        [token[:i], token[i:]]
        for token in (tokens[t] for t in np.argsort(-scores, kind="stable").tolist())
        for i in range(1, len(token))
        if token[:i] in ids and token[i:] in ids
    ]


def _added(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The tokens that are found in text before anything else. Types are the file's: a reader changes some."""
    types = metadata.get("tokenizer.ggml.token_type", vocabulary.types)
    return [
        {
            "id": token,
            "content": vocabulary.tokens[token],
            "single_word": False,
            "lstrip": token in vocabulary.lstrip,
            "rstrip": token in vocabulary.rstrip,
            "normalized": False,
            "special": int(types[token]) in SPECIAL,
        }
        for token in sorted(vocabulary.special_texts(parse_special=True))
    ]


def _template(kind: Kind) -> dict[str, Any] | None:
    """What is put around a text."""
    tokens = kind.vocabulary.tokens
    if not kind.before and not kind.after:
        return None

    def around(sequences: str) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": tokens[t], "type_id": 0}} for t in ids]
            for ids in (kind.before, kind.after)
        )
        texts = [{"Sequence": {"id": name, "type_id": n}} for n, name in enumerate(sequences)]
        return [*before, *texts, *after]

    special = {
        tokens[t]: {"id": tokens[t], "ids": [t], "tokens": [tokens[t]]}
        for t in (*kind.before, *kind.after)
    }
    processor = {"single": around("A"), "pair": around("AB"), "special_tokens": special}
    return {"type": "TemplateProcessing", **processor}


def _config(metadata: Mapping[str, Any], kind: Kind, context: int) -> dict[str, Any]:
    """tokenizer_config.json"""
    vocabulary = kind.vocabulary
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{name}_token": vocabulary.tokens[token]
        for name, key in names.items()
        if (token := vocabulary.special_ids[f"{key}_token_id"]) is not None
    }
    found = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "add_bos_token": bool(kind.before),
        "add_eos_token": bool(kind.after),
        **special,
    }
    prefix = metadata.get("tokenizer.ggml.add_space_prefix")
    if prefix is not None:
        found["add_prefix_space"] = bool(prefix)
    templates = _chat_templates(metadata)
    return found if templates is None else {**found, "chat_template": templates}


def _chat_templates(metadata: Mapping[str, Any]) -> str | Sequence[dict[str, str]] | None:
    """The one template, or all by their names."""
    others = [key for key in metadata if key.startswith(f"{TEMPLATE}.")]
    default = metadata.get(TEMPLATE)
    if not others:
        return default
    named = {"default": default} if default is not None else {}
    named |= {key.removeprefix(f"{TEMPLATE}."): metadata[key] for key in others}
    return [{"name": name, "template": template} for name, template in named.items()]


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json"""
    sampling = {
        name: metadata[f"general.sampling.{key}"]
        for key, name in SAMPLING.items()
        if f"general.sampling.{key}" in metadata
    }
    return {**ids(metadata), **({"do_sample": True} if sampling else {}), **sampling}
