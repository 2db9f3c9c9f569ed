"""Train `tiny-moe`, a small Qwen3-MoE, on the King James Bible: 7.6 million weights, 2.9 million at work a token.

    pip install '.[train]'
    python training/tiny_moe.py kjv.txt tiny_moe.pt     # 40 minutes on one core
    python training/export.py kjv.txt tiny_moe.pt tiny-moe.gguf

corpus.py says where kjv.txt comes from, and what is held out. A second call resumes at the last checkpoint.
The seed fixes everything but the rounding of sums, which is the machine's.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import torch
import transformers
import vocabulary

VOCABULARY, CONTEXT = 2048, 512


@dataclass(frozen=True)
class Plan:
    """How to train; a step is `batch` windows of `CONTEXT` tokens."""

    steps: int = 3200
    batch: int = 4
    peak: float = 2e-3  # learning rate, after `warmup` steps; a cosine brings it to 0
    warmup: int = 150
    decay: float = 0.1
    balance: float = 0.01  # of the load-balancing loss
    chapters: int = 1600  # the step from which one window of a batch begins with a chapter
    evaluate: int = 200  # steps between evaluations and checkpoints
    seed: int = 1611

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


def config() -> transformers.Qwen3MoeConfig:
    """Sizes: K-quants need rows of a multiple of 256."""
    return transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
        use_cache=False,
    )


class Training:
    """A model, its optimizer, and how many steps are behind them."""

    def __init__(self, plan: Plan, tokens: np.ndarray) -> None:
        """tokens: (n,) to draw windows from."""
        torch.manual_seed(plan.seed)
        self.plan, self.tokens, self.step = plan, torch.from_numpy(tokens), 0
        self.chapters = np.flatnonzero(tokens[:-CONTEXT] == VOCABULARY - 1)
        self.model = transformers.Qwen3MoeForCausalLM(config())
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
        """Do a step; returns its loss, without the balancing, in nats per token."""
        rate = self.plan.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._windows()
        out = self.model(batch[:, :-1], output_router_logits=True)
        loss = _cross_entropy(out.logits, batch[:, 1:]).mean()
        used = self.model.config.num_experts_per_tok
        balance = sum(imbalance(logits, used) for logits in out.router_logits)
        self.optimizer.zero_grad()
        (loss + self.plan.balance * balance).backward()
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
            total += _cross_entropy(model(window[:, :-1]).logits, window[:, 1:]).sum().item()
    return total


def imbalance(logits: torch.Tensor, used: int) -> torch.Tensor:
    """Of a layer: 1 where all experts are chosen equally often, up to the number of experts where one is.

    logits: (tokens, experts) of the router. Switch Transformers, arXiv 2101.03961, equation 4.
    """
    experts = logits.shape[-1]
    chosen = torch.zeros_like(logits).scatter(1, logits.topk(used).indices, 1.0)
    return experts / used * (chosen.mean(0) * logits.softmax(-1).mean(0)).sum()


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
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


def main() -> int:
    """Train, or resume."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="the text, as corpus.py describes")
    parser.add_argument("checkpoint", type=Path, help="file to write, or to resume from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = corpus.read(args.corpus)
    tokenizer = vocabulary.train(text.train, VOCABULARY)
    tokens, held_out = (np.array(vocabulary.encode(tokenizer, chapters)) for chapters in text)
    training = Training(Plan(), tokens)
    if args.checkpoint.exists():
        training.resume(args.checkpoint)
    print(f"{len(tokens)} tokens to train on, {len(held_out)} held out", flush=True)
    train(training, held_out, sum(map(len, text.held_out)), args.checkpoint)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
