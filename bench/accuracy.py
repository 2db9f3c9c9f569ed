"""How far logits lie from float32 transformers': the cpu backend's, and llama.cpp's where xllamacpp is installed.

KL in nats over the golden texts of tests/golden/real_logits.npz: for each position the 1,024 tokens that the file
holds, and the rest together. llama.cpp gives its most likely tokens only; those that both have are compared.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mlx_ferrum
from mlx_ferrum import catalog

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from divergence import log_softmax

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "real_logits.npz"
EVERY = 4  # of the positions, for llama.cpp, which reads the text anew for each
MOST = 2000  # tokens that llama.cpp is asked for


class Golden(NamedTuple):
    """What transformers gives: token ids and their log-probabilities, both (positions, n)."""

    ids: np.ndarray
    log_probs: np.ndarray


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """KL of two lists of log-probabilities (n,) of the same tokens, all others counted as one."""
    rest = [max(1 - np.exp(p).sum(), 1e-12) for p in (expected, found)]
    return float(
        (np.exp(expected) * (expected - found)).sum() + rest[0] * np.log(rest[0] / rest[1])
    )


def ours(path: Path, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Log-probabilities (positions, vocab)."""
    model, _ = mlx_ferrum.load(path)
    hidden = np.asarray(model.body(model.make_cache().batch(tokens[None])))
    return log_softmax(np.asarray(model.head(hidden[positions])))


def theirs(path: Path, tokens: np.ndarray, positions: np.ndarray) -> list[dict[int, float]]:
    """llama.cpp's most likely tokens and their log-probabilities at each position."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 512, False
    server: Any = xllamacpp.Server(params)
    request = {"n_predict": 1, "n_probs": MOST, "temperature": 1.0, "cache_prompt": False}
    found = []
    for position in positions:
        asked = {**request, "prompt": tokens[: position + 1].tolist()}
        (choice,) = server.handle_completions(asked)["choices"]
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        found.append({entry["id"]: entry["logprob"] for entry in top})
    return found


def our_kl(path: Path, tokens: np.ndarray, positions: np.ndarray, golden: Golden) -> list[float]:
    """KL at each position."""
    found = np.take_along_axis(ours(path, tokens, positions), golden.ids, axis=-1)
    return [divergence(*pair) for pair in zip(golden.log_probs, found, strict=True)]


def their_kl(path: Path, tokens: np.ndarray, positions: np.ndarray, golden: Golden) -> list[float]:
    """KL at each fourth position."""
    found = []
    tops = theirs(path, tokens, positions[::EVERY])
    for top, ids, wanted in zip(tops, golden.ids[::EVERY], golden.log_probs[::EVERY], strict=True):
        both = [i for i, token in enumerate(ids.tolist()) if token in top]
        known = np.array([top[token] for token in ids[both].tolist()])
        found.append(divergence(wanted[both], known))
    return found


def main() -> None:
    """Print a line for each model and program."""
    goldens = np.load(GOLDEN)
    programs = {"mlx_ferrum": our_kl}
    if importlib.util.find_spec("xllamacpp"):
        programs["llama.cpp"] = their_kl
    for name in ("smollm2-135m", "gemma3-270m"):
        tokens, positions, ids, log_probs = (
            goldens[f"{name}.{part}"] for part in ("tokens", "positions", "ids", "log_probs")
        )
        golden = Golden(ids, log_probs[:, :-1])  # the last is all others
        for program, measure in programs.items():
            kl = measure(catalog.resolve(name), tokens, positions, golden)
            print(
                f"{name}, {program}: KL at most {max(kl):.1e}, on average {np.mean(kl):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
