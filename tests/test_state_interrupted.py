"""Ctrl-C before any line of the bookkeeping leaves counts exact and sequences usable."""

from __future__ import annotations

import sys

import numpy as np
from moments import Moments

from mlx_ferrum.state.kinds import KV
from mlx_ferrum.state.model import ModelStates
from mlx_ferrum.state.sequence import Sequence

TEXT = list(range(60))


def allocate(shape: tuple[int, ...], bits: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def read(states: ModelStates, sequence: Sequence, upto: int) -> None:
    for start in range(sequence.position, upto, 3):
        ids = TEXT[start : min(start + 3, upto)]
        batch = states.batch([(sequence, len(ids))], np.array(ids))
        batch.advance()


def live(states: ModelStates, sequences: list[Sequence]) -> None:
    """All that can happen to a sequence, over blocks of 2 and a window of 4."""
    sequences.append(states.begin(TEXT))
    read(states, sequences[0], 13)
    sequences.append(states.fork(sequences[0]))
    read(states, sequences[1], 20)
    states.rewind(sequences[0], 9)
    read(states, sequences[0], 17)
    states.free(sequences.pop(0))
    sequences.append(states.begin(TEXT))
    read(states, sequences[1], 27)
    states.rewind(sequences[1], 0)
    read(states, sequences[1], 5)


def interrupted(at: int) -> tuple[ModelStates, list[Sequence], bool]:
    """What is left, and whether the interruption came before the end."""
    states = ModelStates([KV(1, 1, 1), KV(1, 1, 1, window=4)], allocate, block=2, slack=1)
    sequences: list[Sequence] = []
    sys.settrace(Moments(at, "state"))
    try:
        live(states, sequences)
    except KeyboardInterrupt:
        return states, sequences, True
    finally:
        sys.settrace(None)
    return states, sequences, False


def test_ctrl_c_before_any_line() -> None:
    moments = 0
    for at in range(0, 100_000, 11):
        states, sequences, came = interrupted(at)
        for sequence in sequences:
            if sequence.owner is None:
                continue
            states.rewind(sequence, len(sequence.tokens))
            read(states, sequence, sequence.position + 7)
            assert sequence.tokens == TEXT[: sequence.position], at
            states.free(sequence)
        for group in states.groups:
            assert not any(group.pool.references), at
            assert repr(group.pool).startswith("Pool(0 blocks held"), at
        moments += came
        if not came:
            break
    assert moments > 200
