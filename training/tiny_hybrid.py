"""Train `tiny-hybrid`, a small Qwen3.5, on the King James Bible: 3.1 million weights, three of four layers recurrent.

    pip install '.[train]'
    python training/tiny_hybrid.py kjv.txt tiny_hybrid.pt     # 40 minutes on one core
    python training/export.py tiny-hybrid kjv.txt tiny_hybrid.pt tiny-hybrid.gguf

corpus.py says where kjv.txt comes from, and what is held out. A second call resumes at the last checkpoint.
The plan is that of tiny_moe.py, cut short at 2,200 of 3,200 steps.
"""

from __future__ import annotations

import math

import loop
import torch
import transformers
from loop import CONTEXT, VOCABULARY, Plan

PLAN = Plan(steps=2200, cooldown=400)
STEPS = (1e-3, 1e-1)  # softplus(dt) of a head at first


def config() -> transformers.Qwen3_5TextConfig:
    """Sizes: K-quants need rows of a multiple of 256."""
    return transformers.Qwen3_5TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        full_attention_interval=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_conv_kernel_dim=4,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
        use_cache=False,
    )


def model() -> transformers.Qwen3_5ForCausalLM:
    """A model to train: heads forget with half-lives of under a token to hundreds.

    transformers gives all heads a step of softplus(1), so that most would forget within a token.
    """
    made = transformers.Qwen3_5ForCausalLM(config())
    low, high = map(math.log, STEPS)
    for layer in made.model.layers:
        if layer.block_type == "linear_attention":
            bias = layer.linear_attn.dt_bias
            step = torch.empty_like(bias).uniform_(low, high).exp()
            torch.nn.init.zeros_(bias).data += step.expm1().log()  # softplus's inverse
    return made


if __name__ == "__main__":
    raise SystemExit(loop.main(__doc__, model, loop.plain, PLAN))
