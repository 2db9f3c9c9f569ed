"""Tokens per second of prompt and of generation: `make bench`, or `python bench/decode.py --help`."""

from __future__ import annotations

import argparse

import mlx.core as mx
import timing

import mlx_ferrum
from mlx_ferrum import catalog, ops
from mlx_ferrum.models.base import LanguageModel


def prompt(model: LanguageModel, length: int) -> None:
    """Read `length` tokens and compute the logits of the last."""
    tokens = mx.arange(length)[None] % model.body.embed_tokens.weight.rows
    mx.eval(model.head(model.body(tokens, model.make_cache())[:, -1:]))


def generation(model: LanguageModel, length: int) -> None:
    """Generate `length` tokens, each the likeliest after the one before."""
    cache, token = model.make_cache(), mx.array([[1]])
    for _ in range(length):
        token = mx.argmax(model(token, cache=cache)[:, -1], axis=-1, keepdims=True)
        mx.eval(token)


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=catalog.names(), help="default: the catalog")
    parser.add_argument("--prompt", type=int, default=64, metavar="N", help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="generated tokens")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="counted runs")
    args = parser.parse_args()
    print(f"{timing.hardware()}, backend {ops.backend_name()}")
    print("tokens per second: median (slowest to fastest run)")
    for name in args.models:
        model, _ = mlx_ferrum.load(name)
        read = timing.measure(lambda m=model: prompt(m, args.prompt), args.runs)
        written = timing.measure(lambda m=model: generation(m, args.tokens), args.runs)
        rates = f"prompt of {args.prompt}: {read.per_second(args.prompt)}"
        print(f"{name:16} {rates}   generation: {written.per_second(args.tokens)}", flush=True)


if __name__ == "__main__":
    main()
