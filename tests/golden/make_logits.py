"""Make the golden files of test_logits.py and test_golden_text.py from an oracle that is not ours.

Run by hand where torch, transformers, gguf and xllamacpp (for token ids) are installed:

    PYTHONPATH=tests python tests/golden/make_logits.py --smollm2 FILE.gguf --gemma3 FILE.gguf

Writes, beside itself,
    random_logits.npz   for each of `random_models.CASES`: `NAME.tokens` (length,) and `NAME.logits` (length, vocab);
                        of those with experts also `NAME.router_logits` (layers with experts, length, experts)
    real_logits.npz     for each real model: `NAME.tokens` (length,), `NAME.positions` (n,), `NAME.ids` (n, 1024): the
                        512 most likely next tokens and 512 others, `NAME.log_probs` (n, 1025): theirs and, last, that
                        of all the other tokens together
    greedy.json         for each real model: a prompt, its tokens, the most likely continuation, and the smallest lead
                        (in logits) that a chosen token had over the second
    held_out.json       for tiny-hybrid: the tokens of held_out.txt, a chapter that it was not trained on, and what each
                        but the first costs, in nats
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import divergence
import numpy as np
import oracle
import random_models
import xllamacpp

HERE = Path(__file__).parent
SEED = 2026
LENGTH = 40
KEPT = 512
POSITIONS = 24
GREEDY_TOKENS = 32
TEXT = """\
def collatz(n: int) -> list[int]:
    \"\"\"Steps from n down to 1.\"\"\"
    return [n] if n == 1 else [n] + collatz(n // 2 if n % 2 == 0 else 3 * n + 1)

Der Müller aß 12½ Äpfel; 東京は大きい 🙂. In 1969, two astronauts walked on the Moon.
"""
PROMPTS = {
    "smollm2-135m": "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "gemma3-270m": "def fibonacci(n):\n",
    "tiny-moe": "In the beginning",
    "tiny-hybrid": "Thus saith the LORD",
}
CATALOG = HERE.parents[1] / "mlx_ferrum" / "catalog"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--smollm2", type=Path, required=True, help="SmolLM2-135M-Instruct Q4_1")
    parser.add_argument("--gemma3", type=Path, required=True, help="Gemma 3 270M Q4_K_M")
    args = parser.parse_args()
    np.savez_compressed(HERE / "random_logits.npz", **random_goldens())
    arrays: dict[str, Any] = {}
    texts = {}
    paths = {"smollm2-135m": args.smollm2, "gemma3-270m": args.gemma3}
    paths |= {name: CATALOG / f"{name}.gguf" for name in ("tiny-moe", "tiny-hybrid")}
    for name, path in paths.items():
        model = oracle.load(path)
        llama_cpp = _server(path)
        arrays |= real_goldens(name, model, _tokens(llama_cpp, TEXT))
        texts[name] = greedy_golden(model, llama_cpp, PROMPTS[name])
    np.savez_compressed(HERE / "real_logits.npz", **arrays)
    (HERE / "greedy.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    (HERE / "held_out.json").write_text(json.dumps(held_out_golden("tiny-hybrid")) + "\n")


def random_goldens() -> dict[str, Any]:
    """Tokens and logits of every random case."""
    arrays: dict[str, Any] = {}
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder:
        for name in random_models.CASES:
            path = random_models.write_case(Path(folder) / "model.gguf", name, SEED)
            tokens = rng.integers(0, random_models.Sizes.vocab, LENGTH)
            model = oracle.load(path)
            arrays[f"{name}.tokens"] = tokens.astype(np.int32)
            arrays[f"{name}.logits"] = oracle.logits(model, tokens.tolist())
            if random_models.has_experts(random_models.CASES[name]):
                arrays[f"{name}.router_logits"] = oracle.router_logits(model, tokens.tolist())
    return arrays


def real_goldens(name: str, model: Any, tokens: list[int]) -> dict[str, np.ndarray]:
    """Log-probabilities of the likely and some other tokens at evenly spread positions."""
    rng = np.random.default_rng(SEED)
    positions = np.linspace(0, len(tokens) - 1, POSITIONS).astype(np.int32)
    log_probs = divergence.log_softmax(oracle.logits(model, tokens)[positions])
    order = np.argsort(-log_probs, axis=-1)
    ids = np.stack(
        [np.append(row[:KEPT], rng.choice(row[KEPT:], KEPT, replace=False)) for row in order]
    )
    return {
        f"{name}.tokens": np.array(tokens, np.int32),
        f"{name}.positions": positions,
        f"{name}.ids": ids.astype(np.int32),
        f"{name}.log_probs": divergence.coarsen(log_probs, ids).astype(np.float32),
    }


def greedy_golden(model: Any, llama_cpp: xllamacpp.Server, prompt: str) -> dict[str, Any]:
    prompt_tokens = _tokens(llama_cpp, prompt)
    tokens, leads = oracle.greedy(model, prompt_tokens, GREEDY_TOKENS)
    text = _post(llama_cpp, "detokenize", {"tokens": tokens})["content"]
    return {
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "text": text,
        "smallest_lead": round(min(leads), 4),
    }


def held_out_golden(name: str) -> dict[str, Any]:
    """What a chapter costs a model of the package."""
    path = CATALOG / f"{name}.gguf"
    tokens = _tokens(_server(path), (HERE / "held_out.txt").read_text("ascii"))
    log_probs = divergence.log_softmax(oracle.logits(oracle.load(path), tokens[:-1]))
    nats = -np.take_along_axis(log_probs, np.array(tokens[1:])[:, None], -1)[:, 0]
    return {name: {"tokens": tokens, "nats": [round(float(n), 5) for n in nats]}}


def _server(path: Path) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    return xllamacpp.Server(params)


def _tokens(server: xllamacpp.Server, text: str) -> list[int]:
    request = {"content": text, "add_special": True, "parse_special": True}
    return _post(server, "tokenize", request)["tokens"]


def _post(server: xllamacpp.Server, endpoint: str, request: dict[str, Any]) -> dict[str, Any]:
    url = f"{server.listening_address}/{endpoint}"
    with urllib.request.urlopen(url, json.dumps(request).encode()) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main()
