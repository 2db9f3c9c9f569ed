"""Make tokens.json, the golden file of test_tokenizer.py, from llama.cpp's tokenizers.

Run by hand where xllamacpp (its version ends in llama.cpp's build number) and gguf are installed:

    PYTHONPATH=tests python tests/golden/make_tokens.py --smollm2 FILE.gguf --gemma3 FILE.gguf

Writes, beside itself, tokens.json:
    source      the version of xllamacpp
    texts       texts for the real vocabularies; a lone surrogate U+DC80..U+DCFF stands for a byte
    real        for each model: `plain`, ids of each text; `parsed`, those with special tokens parsed, by the text's
                place where they differ; `around`, what is added to the empty text; `end_ids`
    short       texts for all other kinds of tokenizers
    variants    for each: `names` in vocabularies.variants() that agree, `ids` of each short text with special tokens
                added and parsed, `end_ids`
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nasty_texts
import vocabularies
import xllamacpp
from llama_vocabulary import LlamaVocabulary, write

from mlx_ferrum import gguf

TARGET = Path(__file__).parent / "tokens.json"


def real(path: Path, texts: list[str]) -> dict[str, Any]:
    """Ids of a real model."""
    vocabulary = LlamaVocabulary(path)
    plain = [vocabulary.encode(text, add_special=False) for text in texts]
    parsed = [vocabulary.encode(text, add_special=False, parse_special=True) for text in texts]
    return {
        "plain": plain,
        "parsed": {i: ids for i, ids in enumerate(parsed) if ids != plain[i]},
        "around": vocabulary.encode("", add_special=True),
        "end_ids": vocabulary.end_ids(),
    }


def variant(metadata: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    """Ids of a made vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write(path, metadata)
        vocabulary = LlamaVocabulary(path)
        ids = [vocabulary.encode(text, add_special=True, parse_special=True) for text in texts]
        ends = vocabulary.end_ids()
        vocabulary.close()
    return {"ids": ids, "end_ids": ends}


def main() -> None:
    """Write the file, one line a list of texts or ids."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--gemma3", type=Path, required=True)
    args = parser.parse_args()
    metadata = [gguf.read(path).metadata for path in (args.smollm2, args.gemma3)]
    texts, short = nasty_texts.texts(), nasty_texts.short_texts()
    groups: dict[str, list[str]] = {}
    for name, made in vocabularies.variants(*metadata).items():
        groups.setdefault(json.dumps(variant(made, short)), []).append(name)
    golden = {
        "source": f"xllamacpp {xllamacpp.__version__}",
        "texts": texts,
        "real": {"smollm2": real(args.smollm2, texts), "gemma3": real(args.gemma3, texts)},
        "short": short,
        "variants": [{"names": names, **json.loads(ids)} for ids, names in groups.items()],
    }
    TARGET.write_text(json.dumps(golden, separators=(",", ":")).replace("]],", "]],\n") + "\n")


if __name__ == "__main__":
    main()
