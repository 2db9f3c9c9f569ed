"""Caches in files: what is read goes on as what was written, and a file that is not whole is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend
from test_cache import KINDS, SMALL, logits, random_ids

import mlx_ferrum
from mlx_ferrum import cache as caches
from mlx_ferrum import saved
from mlx_ferrum.generate import generate_step

PAIRS = [(CPU, CPU), (CPU, REFERENCE), (REFERENCE, CPU), (REFERENCE, REFERENCE)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("saved")
    return {
        name: mlx_ferrum.load(
            random_models.write(folder / f"{name}.gguf", seed=3, sizes=SMALL, **kind)
        )[0]
        for name, kind in KINDS.items()
    }


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("length", [1, 31, 32, 100])
@pytest.mark.parametrize("name", ["full", "window"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_a_saved_cache_goes_on(
    models: Any, pair: tuple[Backend, Backend], name: str, length: int, bits: int, tmp_path: Path
) -> None:
    """Written by one backend, read by another; the slack of a window is in the file too."""
    model, ids = models[name], random_ids(length + 6, seed=length)
    with pair[0].in_use():
        cache = model.make_cache(kv_bits=bits)
        logits(model, ids[:length], cache)
        saved.save(tmp_path / "c", cache)
        assert [path.name for path in tmp_path.iterdir()] == ["c"]
        wanted = logits(model, ids[length:], cache)
    with pair[1].in_use():
        loaded = saved.load(tmp_path / "c", model, kv_bits=bits)
        tokens = loaded.tokens
        assert tokens == loaded.tokens == ids[:length]
        found = logits(model, ids[length:], loaded)
        assert np.abs(found - wanted).max() < (CPU.logit if bits == 16 else 0.2)
        assert loaded.rewind(length // 2) == length // 2
        found = logits(model, ids[length // 2 :], loaded)
        assert np.abs(found[length - length // 2 :] - wanted).max() < (0.02 if bits == 16 else 0.2)


def test_an_empty_cache_can_be_saved(models: Any, tmp_path: Path) -> None:
    saved.save(tmp_path / "c", models["full"].make_cache())
    loaded = saved.load(tmp_path / "c", models["full"])
    tokens = loaded.tokens
    assert tokens == [] and loaded.offset == 0


@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
def test_a_cache_of_a_generation_or_an_interrupted_pass_can_be_saved(
    models: Any, backend: Backend, tmp_path: Path
) -> None:
    """Blocks may be reserved for a pass that never was; other texts' numbers are not in the file."""
    model, ids = models["window"], random_ids(30, seed=1)
    with backend.in_use():
        cache = model.make_cache()
        steps = generate_step(ids, model, cache=cache)
        made = [next(steps)[0] for _ in range(4)]
        cache.batch(np.array([random_ids(70, seed=2)]))
        saved.save(tmp_path / "c", cache)
        loaded = saved.load(tmp_path / "c", model)
        tokens = loaded.tokens
        assert tokens == [*ids, *made][: len(tokens)] and len(tokens) >= 33
        rest = [*made, 5][len(tokens) - 30 :]
        found, wanted = logits(model, rest, loaded), logits(model, [*ids, *made, 5])
        assert np.abs(found - wanted[-len(rest) :]).max() < backend.pieces
        loaded.rewind(20)
        saved.save(tmp_path / "c", loaded)
        arrays: Any = mx.load(str(tmp_path / "c"), format="safetensors")
        keys = np.array(arrays["0.keys"])
        assert np.abs(keys[-1, :, :20]).min(axis=-1).max() > 0
        assert not keys[-1, :, 20:].any()


def test_several_sequences_are_refused(models: Any, tmp_path: Path) -> None:
    cache = models["full"].make_cache()
    models["full"](mx.array([[1], [2]]), cache=cache)
    with pytest.raises(ValueError, match="holds 2 sequences, expected one"):
        saved.save(tmp_path / "c", cache)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file(
    models: Any, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = models["full"].make_cache()
    logits(models["full"], [1, 2, 3], cache)
    saved.save(tmp_path / "c", cache)
    logits(models["full"], [4], cache)
    write = mx.save_safetensors

    def fail(path: str, *args: Any) -> None:
        write(path, *args)
        raise error

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(type(error)):
        saved.save(tmp_path / "c", cache)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert saved.load(tmp_path / "c", models["full"]).tokens == [1, 2, 3]


# -- files that are not whole --------------------------------------------------------------------


@pytest.fixture
def file(models: Any, tmp_path: Path) -> Path:
    cache = models["window"].make_cache()
    logits(models["window"], random_ids(70, seed=1), cache)
    saved.save(tmp_path / "c", cache)
    return tmp_path / "c"


def test_truncated_files_are_refused(models: Any, file: Path) -> None:
    good = file.read_bytes()
    drawn = np.random.default_rng(9).integers(10, len(good) - 1, 30).tolist()
    for cut in [0, 1, 8, 9, *drawn, len(good) - 1]:
        file.write_bytes(good[:cut])
        with pytest.raises(ValueError, match="c: "):
            saved.load(file, models["window"])
    with pytest.raises(FileNotFoundError):
        saved.load(file.with_name("none"), models["window"])


def test_files_of_others_are_refused(models: Any, file: Path) -> None:
    with pytest.raises(ValueError, match="not a cache of this model: model is "):
        saved.load(file, models["full"])
    with pytest.raises(
        ValueError, match="not a cache of this model: kv_bits is '16', expected '8'"
    ):
        saved.load(file, models["window"], kv_bits=8)


def drop(name: str) -> Callable[[Any, Any], None]:
    return lambda arrays, _: arrays.pop(name)


def put(name: str, change: Callable[[mx.array], mx.array]) -> Callable[[Any, Any], None]:
    def tamper(arrays: Any, _: Any) -> None:
        arrays[name] = change(arrays[name])

    return tamper


def say(name: str, text: str | None) -> Callable[[Any, Any], None]:
    return lambda _, metadata: metadata.pop(name) if text is None else metadata.update({name: text})


def spoilt(value: float) -> Callable[[mx.array], mx.array]:
    def spoil(x: mx.array) -> mx.array:
        x[0, 0, 0, 0] = value
        return x

    return spoil


TAMPERED = {
    "no tokens": (drop("tokens"), "the list of tokens is missing"),
    "tokens of floats": (
        put("tokens", lambda x: x.astype(mx.float32)),
        "list of tokens is missing",
    ),
    "tokens in rows": (put("tokens", lambda x: x[None]), "list of tokens is missing"),
    "fewer tokens": (put("tokens", lambda x: x[:10]), "blocks from 1 on, expected from 0"),
    "more tokens": (put("tokens", lambda x: mx.concatenate([x, x])), "expected shape"),
    "a token below 0": (put("tokens", lambda x: x - 300), "token -.*, expected 0 to 299"),
    "a token too large": (put("tokens", lambda x: x + 300), "token .*, expected 0 to 299"),
    "no keys": (drop("1.keys"), "keys of layer 1: expected shape .*, found none"),
    "fewer heads": (put("0.values", lambda x: x[:, :0]), "values of layer 0: expected shape"),
    "fewer blocks": (put("2.keys", lambda x: x[1:]), "keys of layer 2: expected shape"),
    "flat": (put("2.keys", lambda x: x.reshape(-1)), "keys of layer 2: expected shape"),
    "integers": (put("0.keys", lambda x: x.astype(mx.int8)), "expected float16 or float32, found"),
    "NaN": (put("1.values", spoilt(np.nan)), "values of layer 1: expected finite numbers"),
    "infinite": (put("1.values", spoilt(np.inf)), "values of layer 1: expected finite numbers"),
    "format 1": (
        say("format", "mlx_ferrum cache 1"),
        "of an earlier version, .*make the file again",
    ),
    "format 2": (
        say("format", "mlx_ferrum cache 2"),
        "of an earlier version, .*make the file again",
    ),
    "another format": (say("format", "other"), "format is 'other', expected 'mlx_ferrum cache 3'"),
    "no format": (say("format", None), "format is None"),
    "other layers": (say("layers", "[]"), r"layers is '\[\]'"),
    "no firsts": (say("firsts", None), "the list of first blocks is missing"),
    "firsts of one group": (say("firsts", "[0]"), r"first blocks of 2 groups, found \[0\]"),
    "firsts below 0": (say("firsts", "[0, -1]"), "blocks from -1 on, expected"),
    "firsts behind what is seen": (say("firsts", "[3, 3]"), "blocks from 3 on, expected"),
    "firsts too early": (say("firsts", "[0, 0]"), "expected shape"),
    "firsts of text": (say("firsts", '["0", "0"]'), "the first blocks as a list in JSON, found"),
    "firsts that are true": (
        say("firsts", "[true, true]"),
        "the first blocks as a list in JSON, found",
    ),
    "firsts that are no JSON": (
        say("firsts", "["),
        "expected the first blocks as a list in JSON, found",
    ),
}


@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
@pytest.mark.parametrize(("tamper", "message"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_files_are_refused(
    models: Any,
    tamper: Callable[[Any, Any], None],
    message: str,
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a line that names the file. Without slack, so that blocks behind the window are gone."""
    monkeypatch.setattr(caches, "SLACK", 0)
    path, ids = tmp_path / "c.safetensors", random_ids(70, seed=1)
    with backend.in_use():
        model = models["window"]
        cache = model.make_cache()
        for a, b in itertools.pairwise([0, 60, 70]):
            logits(model, ids[a:b], cache)
        saved.save(path, cache)
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        mx.eval(arrays)
        assert json.loads(metadata["firsts"]) != [0, 0]
        tamper(arrays, metadata)
        mx.save_safetensors(str(path), arrays, metadata)
        with pytest.raises(ValueError, match=message) as raised:
            saved.load(path, model)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
