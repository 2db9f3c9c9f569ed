"""Figures of an engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Figures of an engine since it was made.

    steps: forward passes
    waits: of them, those that could not be worked out ahead, because a constraint needed the token before
    prompt_tokens: computed, after a preemption again
    hits: positions that did not have to be computed, because the pool had them
    generated_tokens: of all texts
    batch_sizes: number of sequences in a step -> number of steps
    preemptions, forks, cancelled, errors: how many
    waiting, running: texts, now
    blocks: for each pool the blocks that are held now, and its size or None
    """

    steps: int = 0
    waits: int = 0
    prompt_tokens: int = 0
    hits: int = 0
    generated_tokens: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    preemptions: int = 0
    forks: int = 0
    cancelled: int = 0
    errors: int = 0
    waiting: int = 0
    running: int = 0
    blocks: list[tuple[int, int | None]] = field(default_factory=list)
