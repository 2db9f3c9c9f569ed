"""Train `tiny-moe`, a small Qwen3-MoE, on the King James Bible: 7.6 million weights, 2.9 million at work a token.

    pip install '.[train]'
    python training/tiny_moe.py kjv.txt tiny_moe.pt     # 40 minutes on one core
    python training/export.py tiny-moe kjv.txt tiny_moe.pt tiny-moe.gguf

corpus.py says where kjv.txt comes from, and what is held out; loop.py, how long and how fast it learns. A second
call resumes at the last checkpoint.
"""

from __future__ import annotations

import loop
import torch
import transformers
from loop import CONTEXT, VOCABULARY

BALANCE = 0.01  # weight of the load-balancing loss


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


def model() -> transformers.Qwen3MoeForCausalLM:
    """A model to train."""
    return transformers.Qwen3MoeForCausalLM(config())


def objective(
    model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross entropy, and what to reduce: the cross entropy and the imbalance of the experts."""
    out = model(inputs, output_router_logits=True)
    loss = loop.cross_entropy(out.logits, targets).mean()
    used = model.config.num_experts_per_tok
    balance = sum(imbalance(logits, used) for logits in out.router_logits)
    return loss, loss + BALANCE * balance


def imbalance(logits: torch.Tensor, used: int) -> torch.Tensor:
    """Of a layer: 1 where all experts are chosen equally often, up to the number of experts where one is.

    logits: (tokens, experts) of the router. Switch Transformers, arXiv 2101.03961, equation 4.
    """
    experts = logits.shape[-1]
    chosen = torch.zeros_like(logits).scatter(1, logits.topk(used).indices, 1.0)
    return experts / used * (chosen.mean(0) * logits.softmax(-1).mean(0)).sum()


if __name__ == "__main__":
    raise SystemExit(loop.main(__doc__, model, objective, loop.Plan()))
