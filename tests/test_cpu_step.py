"""A recorded decode step gives what the model gives, to the last bit, for any sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import random_models
from backends import CPU, CPU_PORTABLE
from twins import VOCABULARY, Twins, load

import mlx_ferrum
from mlx_ferrum.backends.cpu import step as steps


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    """The cpu backend, in use."""
    with CPU.in_use():
        yield


@pytest.mark.parametrize("case", random_models.CASES)
@pytest.mark.parametrize("held", [[0], [5, 0, 17], [1, 40, 3, 9, 8, 8, 2, 33]], ids=str)
def test_every_model_is_repeated_to_the_bit(case: str, held: list[int], tmp_path: Path) -> None:
    """Past windows that are full, over storage that grows, experts that change."""
    twins = Twins(load(tmp_path, case))
    which = twins.begin(*held)
    for _ in range(40):
        twins(which)
    twins.assert_same_storage()
    grown = sum(group.grown for group in twins.sides[0].groups)
    # twice for each place where keys and values lie, and each width of a table
    assert twins.calls <= 2 * (grown + 2) < 34, "most steps are repeated"


@pytest.mark.parametrize("case", ["llama", "gemma3", "qwen2moe"])
def test_portable_code_is_repeated(case: str, tmp_path: Path) -> None:
    with CPU_PORTABLE.in_use():
        twins = Twins(load(tmp_path, case), block=32)
        which = twins.begin(5, 0, 17)
        for _ in range(20):
            twins(which)
        twins.assert_same_storage()
        assert twins.calls <= 4


def test_storage_of_the_usual_blocks(tmp_path: Path) -> None:
    twins = Twins(load(tmp_path, "gemma3"), block=32, slack=512)
    which = twins.begin(20, 70)
    for _ in range(80):
        twins(which)
    assert twins.calls <= 8
    twins.assert_same_storage()


@pytest.mark.parametrize("bits", [16, 8])
def test_eight_bits_are_repeated(bits: int, tmp_path: Path) -> None:
    model = load(tmp_path)
    keeps = model.make_cache(kv_bits=bits).keeps
    for layer, kept in zip(model.body.layers, keeps, strict=True):
        layer.keeps = kept
    twins = Twins(model)
    which = twins.begin(9, 2)
    for _ in range(20):
        twins(which)
    assert twins.sides[0].storages[0].kv.bits == bits
    assert twins.calls < 12
    twins.assert_same_storage()


def test_biases_of_every_matrix_are_repeated(tmp_path: Path) -> None:
    biases = (*random_models.QKV_BIASES, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    path = random_models.write(tmp_path / "m.gguf", "llama", seed=3, biases=biases)
    twins = Twins(mlx_ferrum.load(path)[0])
    which = twins.begin(3)
    for _ in range(12):
        twins(which)
    assert twins.calls < 8, "most steps are repeated"


@pytest.mark.parametrize("case", ["llama", "gemma3", "qwen3moe"])
def test_sequences_join_and_leave(case: str, tmp_path: Path) -> None:
    """Another number of them is another step; the steps from before are still there."""
    twins = Twins(load(tmp_path, case), block=32)
    twins.begin(7, 30, 2, 11)
    for which in ([0, 1, 2], [2, 0], [1, 2, 3], [3], [0, 1, 2, 3], [3, 2], [2], [0, 1, 3]):
        for _ in range(4):
            twins(which)
    assert twins.calls <= 2 * 4 + 2, "two of each number, and again where storage grew"
    twins.free(1)
    for held in twins.begin(0, 65):
        for which in ([held, 0], [held, 2, 3]):
            for _ in range(3):
                twins(which)
    twins.assert_same_storage()


def test_random_lives_of_sequences(tmp_path: Path) -> None:
    """They begin, end, go back, fork, and read several tokens between steps."""
    twins = Twins(load(tmp_path, "gemma3"))
    live, rng = twins.begin(3, 12), np.random.default_rng(4)
    for _ in range(150):
        act, some = rng.integers(0, 12), int(rng.choice(live))
        if act == 0 and len(live) < 9:
            live += twins.begin(int(rng.integers(0, 20)))
        elif act == 1 and len(live) > 1:
            twins.free(some)
            live.remove(some)
        elif act == 2:
            twins.rewind(some, int(rng.integers(0, twins.texts[some][0].position + 1)))
        elif act == 3 and len(live) < 9:
            one, other = twins.texts[some]
            twins.texts.append((twins.sides[0].fork(one), twins.sides[1].fork(other)))
            live.append(len(twins.texts) - 1)
        elif act == 4:
            twins.read({some: int(rng.integers(1, 9))})
        else:
            twins(rng.permutation(live)[: rng.integers(1, len(live) + 1)].tolist())
    twins.assert_same_storage()


def test_only_the_last_shapes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST", 2)
    twins = Twins(load(tmp_path), block=32)
    which = twins.begin(1, 1, 1)
    for count in (1, 2, 3):
        for _ in range(3):
            twins(which[:count])
    before = twins.calls
    for count in (3, 2):
        twins(which[:count])
    assert twins.calls == before
    twins(which[:1])
    assert twins.calls == before + 1, "its step was dropped, and is recorded anew"


@pytest.mark.parametrize("token", [VOCABULARY, 1 << 40, -1])
@pytest.mark.parametrize("known", [0, 1, 2, 5])
def test_a_token_outside_the_vocabulary_is_refused(known: int, token: int, tmp_path: Path) -> None:
    """Also in a step that is repeated, after which the next ones go on."""
    twins = Twins(load(tmp_path), block=32)
    which = twins.begin(2, 9)
    for _ in range(known):
        twins(which)
    text = [twins.texts[i][0] for i in which]
    batch = twins.sides[0].batch([(t, 1) for t in text], np.array([3, token]))
    with pytest.raises(ValueError, match=rf"row ids lie between 0 and 299, found {token}"):
        twins.step(batch)
    for _ in range(4):
        twins(which)
    assert twins.calls <= 4


def test_several_tokens_at_once_go_through_the_model(tmp_path: Path) -> None:
    twins = Twins(load(tmp_path, "qwen3"), block=32)
    which = twins.begin(3, 4)
    for _ in range(4):
        twins(which)
    before = twins.calls
    made = []
    for side, run in enumerate((twins.step, twins.run)):
        texts = [twins.texts[i][side] for i in which]
        batch = twins.sides[side].batch([(texts[0], 1), (texts[1], 3)], np.array([1, 2, 3, 4]))
        made.append(run(batch))
        batch.advance()
    assert twins.calls == before + 1
    assert all(np.array_equal(x, y) for x, y in zip(*made, strict=True))
    twins(which)
    assert twins.calls == before + 1
