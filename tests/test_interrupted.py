"""Ctrl-C, which in a notebook is an interrupted kernel: model, cache and conversation stay usable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE
from jupyter_client.manager import start_new_kernel
from moments import Moments
from test_cache import KINDS, SMALL

import mlx_ferrum
from mlx_ferrum import ops
from mlx_ferrum.chat import Conversation
from mlx_ferrum.generate import generate_step, stream_generate

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SECONDS = 120


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("interrupted")
    return mlx_ferrum.load(random_models.write_case(folder / "m.gguf", request.param, seed=5))


def responses(loaded: Any, prompt: list[int], count: int, **options: Any) -> list[np.ndarray]:
    """The log-probabilities of each step; 0 for tokens that are never chosen."""
    model, tokenizer = loaded
    steps = stream_generate(model, tokenizer, prompt, count, ignore_eos=True, **options)
    return [np.nan_to_num(np.array(r.logprobs), neginf=0) for r in steps]


def interrupt_layer(model: Any, layer: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the n-th run of a layer from now on; then it works as before."""
    kind, target, runs = type(model.body.layers[layer]), model.body.layers[layer], [0]
    call = kind.__call__

    def interrupted(self: Any, *args: Any) -> Any:
        if self is target:
            runs[0] += 1
            if runs[0] == after:
                raise KeyboardInterrupt
        return call(self, *args)

    monkeypatch.setattr(kind, "__call__", interrupted)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_ctrl_c_while_a_token_is_looked_at(fast_backend: Any, loaded: Any, at: int) -> None:
    """The cache holds the prompt and the tokens handed out, the last one only where the backend is lazy."""
    wanted, cache = responses(loaded, PROMPT, 12), loaded[0].make_cache()
    seen: list[int] = []
    model, tokenizer = loaded
    steps = stream_generate(model, tokenizer, PROMPT, 12, ignore_eos=True, cache=cache)
    with pytest.raises(KeyboardInterrupt):
        for response in steps:
            seen.append(response.token)
            if len(seen) == at:
                raise KeyboardInterrupt
    steps.close()
    assert cache.tokens == [*PROMPT, *(seen if ops.is_lazy() else seen[:-1])]
    held = len(PROMPT) + at - 1
    assert cache.rewind(held) == held
    rest = responses(loaded, [seen[-1]], 12 - at, cache=cache)
    for found, expected in zip(rest, wanted[at:], strict=True):
        assert np.abs(found - expected).max() < fast_backend.pieces
    for found, expected in zip(responses(loaded, PROMPT, 12), wanted, strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_ctrl_c_within_a_step(
    fast_backend: Any, loaded: Any, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the prompt, in the first step and in the next: the cache holds the tokens that all layers read."""
    wanted, cache = responses(loaded, PROMPT, 5), loaded[0].make_cache()
    interrupt_layer(loaded[0], 2, after, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        responses(loaded, PROMPT, 5, cache=cache)
    said = [int(np.where(logprobs < 0, logprobs, -np.inf).argmax()) for logprobs in wanted]
    held = 0 if after == 1 else len(PROMPT) + after - 2
    assert cache.tokens == [*PROMPT, *said][: cache.offset] and cache.offset == held
    found = responses(loaded, [*PROMPT, *said[:3]][held:], 2, cache=cache)
    for logprobs, expected in zip(found, wanted[3:], strict=True):
        assert np.abs(logprobs - expected).max() < fast_backend.pieces


@pytest.mark.parametrize("way", ["__call__", "hidden_states"])
def test_ctrl_c_within_a_call_of_the_model(
    reference: Any, loaded: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = loaded[0], mx.array([PROMPT])
    cache, run = model.make_cache(), getattr(model, way)
    wanted = np.array(model(ids))
    interrupt_layer(model, 1, 2, monkeypatch)
    run(ids[:, :3], cache=cache)
    with pytest.raises(KeyboardInterrupt):
        run(ids[:, 3:], cache=cache)
    assert cache.tokens == PROMPT[:3] and cache.offset == 3
    found = np.array(model(ids[:, 3:], cache=cache))
    assert np.abs(found - wanted[:, 3:]).max() < 1e-4


def test_ctrl_c_in_a_conversation(cpu: Any, smollm2: Any) -> None:
    """The reply so far stays, and the next one is that of a conversation that was never interrupted."""
    chat, other = (Conversation(*smollm2, max_tokens=20) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        for i, _ in enumerate(chat.reply("What is the capital of France?").pieces):
            if i == 3:
                raise KeyboardInterrupt
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    other.messages = list(chat.messages)
    replies = ["".join(c.reply("And of Italy?").pieces) for c in (chat, other)]
    assert replies[0] == replies[1] != ""


# -- a real kernel -----------------------------------------------------------------------------------

LOAD = """
import mlx_ferrum
model, tokenizer = mlx_ferrum.load({name!r})
before = mlx_ferrum.generate(model, tokenizer, "Hello", max_tokens=8)
"""
LONG = """
for r in mlx_ferrum.stream_generate(model, tokenizer, "Hello", 100_000, ignore_eos=True):
    print(".", end="", flush=True)
"""
AFTER = 'print(mlx_ferrum.generate(model, tokenizer, "Hello", max_tokens=8) == before, repr(model))'


def test_an_interrupted_kernel_goes_on(smollm2_path: Path) -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute_interactive(LOAD.format(name=str(smollm2_path)), timeout=SECONDS)
        interrupted: list[str] = []

        def interrupt(message: Any) -> None:
            if message["msg_type"] == "stream" and not interrupted:
                interrupted.append(message["content"]["text"])
                manager.interrupt_kernel()

        reply = client.execute_interactive(LONG, timeout=SECONDS, output_hook=interrupt)
        assert reply["content"]["ename"] == "KeyboardInterrupt" and interrupted[0][0] == "."
        said: list[str] = []
        client.execute_interactive(
            AFTER, timeout=SECONDS, output_hook=lambda m: said.append(m["content"].get("text", ""))
        )
        assert "".join(said).startswith("True llama(30 layers")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# -- at any moment ---------------------------------------------------------------------------------


def traced(at: int, run: Any) -> int:
    """Run with SIGINT at a line; the lines that ran. Raises KeyboardInterrupt where the signal does."""
    moments = Moments(at)
    sys.settrace(moments)
    try:
        run()
    finally:
        sys.settrace(None)
    return moments.count


@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_ctrl_c_at_any_moment(backend: Any, name: str, tmp_path: Path) -> None:
    """The cache holds just the tokens that went in, and goes on as one that was not interrupted.

    Over block ends and window ends: a prompt of 37 tokens in chunks of 30, and 29 tokens after it.
    """
    path = random_models.write(
        tmp_path / "m.gguf", seed=5, sizes=SMALL, **KINDS["full" if name == "llama" else "window"]
    )
    prompt, count = np.random.default_rng(1).integers(0, 250, 37).tolist(), 29
    with backend.in_use():
        model = mlx_ferrum.load(path)[0]

        def text(cache: Any, ids: list[int], most: int) -> list[int]:
            steps = generate_step(ids, model, max_tokens=most, cache=cache, prefill_step_size=30)
            return [token for token, _ in steps]

        made = text(model.make_cache(), prompt, count)
        whole = [*prompt, *made]
        lines = traced(-1, lambda: text(model.make_cache(), prompt, count))
        assert lines > 5000
        interrupted = 0
        for at in np.random.default_rng(2).integers(0, lines, 60).tolist():
            cache = model.make_cache()
            try:
                traced(at, lambda cache=cache: text(cache, prompt, count))
            except KeyboardInterrupt:
                interrupted += 1
            held = cache.tokens
            assert held == whole[: len(held)] and cache.offset == len(held), at
            assert all(s.position == len(held) for s in cache.sequences), at
            rest = whole[len(held) : len(prompt) + 20]
            if not rest:
                rest = whole[cache.rewind(len(prompt) + 10) : len(prompt) + 20]
            assert text(cache, rest, 5) == whole[len(prompt) + 20 :][:5], at
        assert interrupted > 50
