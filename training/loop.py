"""Train a small language model on windows of a book: the plan, the loop, the held-out loss.

Knows no architecture: a model is a `torch.nn.Module` whose output has `logits`, and an objective says
which loss of it to reduce. The seed fixes everything but the rounding of sums, which is the machine's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import torch
import vocabulary

VOCABULARY, CONTEXT = 2048, 512

# (model, inputs, targets), both (batch, length) tokens -> (cross entropy in nats per token, loss to reduce)
Objective = Callable[
    [torch.nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class Plan:
    """How to train; a step is `batch` windows of `CONTEXT` tokens."""

    steps: int = 3200
    batch: int = 4
    peak: float = 2e-3  # learning rate, after `warmup` steps
    horizon: int = 3200  # the step by which a cosine brings the rate to 0
    warmup: int = 150
    cooldown: int = 0  # last steps, over which the rate also falls to 0 in a line
    decay: float = 0.1
    chapters: int = 1600  # the step from which one window of a batch begins with a chapter
    evaluate: int = 200  # steps between evaluations and checkpoints
    seed: int = 1611

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = (step - self.warmup) / (self.horizon - self.warmup)
        rate = self.peak * 0.5 * (1 + math.cos(math.pi * progress))
        left = self.steps - step
        return rate * left / self.cooldown if left < self.cooldown else rate


def plain(
    model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective that reduces the cross entropy alone."""
    loss = cross_entropy(model(inputs).logits, targets).mean()
    return loss, loss


class Training:
    """A model, its optimizer, and how many steps are behind them."""

    def __init__(
        self,
        make: Callable[[], torch.nn.Module],
        objective: Objective,
        plan: Plan,
        tokens: np.ndarray,
    ) -> None:
        """make: draws a model from torch's generator. tokens: (n,) to draw windows from."""
        torch.manual_seed(plan.seed)
        self.plan, self.tokens, self.step = plan, torch.from_numpy(tokens), 0
        self.chapters = np.flatnonzero(tokens[:-CONTEXT] == VOCABULARY - 1)
        self.model, self.objective = make(), objective
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": plan.decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )

    def advance(self) -> float:
        """Do a step; returns its cross entropy in nats per token."""
        rate = self.plan.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._windows()
        loss, objective = self.objective(self.model, batch[:, :-1], batch[:, 1:])
        self.optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _windows(self) -> torch.Tensor:
        """(batch, CONTEXT + 1) tokens, from places that the seed and the step decide."""
        rng = np.random.default_rng((self.plan.seed, self.step))
        starts = rng.integers(0, len(self.tokens) - CONTEXT, self.plan.batch)
        if self.step >= self.plan.chapters:
            starts[0] = rng.choice(self.chapters)
        return torch.stack([self.tokens[start : start + CONTEXT + 1] for start in starts])

    def save(self, path: Path) -> None:
        """Write weights and the optimizer's state; what was there is replaced when they are complete."""
        part = path.with_name(path.name + ".part")
        state = {"step": self.step, "model": self.model.state_dict()}
        torch.save({**state, "optimizer": self.optimizer.state_dict()}, part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Take up what `save` wrote."""
        state = torch.load(path)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def held_out_loss(model: torch.nn.Module, tokens: np.ndarray) -> float:
    """Nats over all but the first of `tokens`, each given what precedes it in its window of `CONTEXT`."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, CONTEXT):
            window = torch.from_numpy(tokens[start : start + CONTEXT + 1])[None]
            total += cross_entropy(model(window[:, :-1]).logits, window[:, 1:]).sum().item()
    return total


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(batch, length, vocab), (batch, length) -> (batch * length,) nats."""
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )


def train(training: Training, held_out: np.ndarray, nbytes: int, path: Path) -> None:
    """Run to the end of the plan; checkpoints and figures at intervals. nbytes: of the held-out text."""
    plan, start, losses = training.plan, time.perf_counter(), []
    while training.step < plan.steps:
        losses.append(training.advance())
        if training.step % plan.evaluate == 0 or training.step == plan.steps:
            loss = held_out_loss(training.model, held_out)
            training.save(path)
            print(
                f"step {training.step}: {time.perf_counter() - start:.0f} s, "
                f"loss {np.mean(losses):.4f}, held out {figures(loss, len(held_out) - 1, nbytes)}",
                flush=True,
            )
            losses.clear()


def figures(nats: float, tokens: int, nbytes: int) -> str:
    """A loss for people."""
    return f"{nats / tokens:.4f} nats per token, {nats / math.log(2) / nbytes:.4f} bits per byte"


def main(
    description: str | None,
    make: Callable[[], torch.nn.Module],
    objective: Objective,
    plan: Plan,
) -> int:
    """Train, or resume, from a command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="the text, as corpus.py describes")
    parser.add_argument("checkpoint", type=Path, help="file to write, or to resume from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = corpus.read(args.corpus)
    tokenizer = vocabulary.train(text.train, VOCABULARY)
    tokens, held_out = (np.array(vocabulary.encode(tokenizer, chapters)) for chapters in text)
    training = Training(make, objective, plan, tokens)
    if args.checkpoint.exists():
        training.resume(args.checkpoint)
    print(f"{len(tokens)} tokens to train on, {len(held_out)} held out", flush=True)
    train(training, held_out, sum(map(len, text.held_out)), args.checkpoint)
    return 0
