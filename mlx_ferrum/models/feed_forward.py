"""What follows attention in a layer: one MLP, or experts where the file has them."""

from __future__ import annotations

from .. import ops
from ..nn import Experts, GatedMLP, RMSNorm
from ..profile import stage
from .base import MLP, BaseArgs, Weights
from .experts import ExpertArgs

FUSED = "ffn_gate_up_exps.weight"  # each expert's gate and then its up, (experts, 2 * rows, k)
SELECTION_BIAS = "exp_probs_b.bias"


class SharedExpert(GatedMLP):
    """mlp(x) * sigmoid(x gateᵀ) + add, for every token: x and add: (..., hidden) -> (..., hidden)"""

    def __init__(self, args: BaseArgs, size: int, w: Weights) -> None:
        hidden = args.hidden_size
        super().__init__(
            w.linear("ffn_gate_shexp", size, hidden),
            w.linear("ffn_up_shexp", size, hidden),
            w.linear("ffn_down_shexp", hidden, size),
        )
        self.share = w.linear("ffn_gate_inp_shexp", 1, hidden)

    @stage("shared expert")
    def __call__(
        self, x: ops.Array, norm: RMSNorm | None = None, add: ops.Array | None = None
    ) -> ops.Array:
        if norm is not None:
            x = norm(x)
        return ops.sigmoid_gate(super().__call__(x), self.share(x), add=add)


def feed_forward(args: BaseArgs, w: Weights, layer: int) -> MLP | Experts:
    """x and add: (b, l, hidden) -> (b, l, hidden), from the tensors of one layer."""
    experts = args.experts
    if experts is None or layer < experts.dense_layers:
        return MLP(args, w)
    is_dense = "ffn_gate.weight" in w and "ffn_gate_exps.weight" not in w and FUSED not in w
    return MLP(args, w) if is_dense else _experts(args, experts, w)


def _experts(args: BaseArgs, experts: ExpertArgs, w: Weights) -> Experts:
    count, wide, hidden = experts.count, experts.size, args.hidden_size
    has_bias = SELECTION_BIAS in w
    if has_bias and not experts.by_scores:
        raise NotImplementedError(
            f"tensor {w.prefix + SELECTION_BIAS!r}: a bias of the choice is not supported where weights are "
            "the softmax of the chosen"
        )
    router = w.tensor("ffn_gate_inp.weight", count, hidden)
    if FUSED in w:
        whole = w.tensor(FUSED, count, 2 * wide, hidden)
        gate, up = whole.part(0, wide), whole.part(wide, 2 * wide)
    else:
        gate, up = (
            w.tensor(f"ffn_{name}_exps.weight", count, wide, hidden) for name in ("gate", "up")
        )
    return Experts(
        router,
        gate,
        up,
        w.tensor("ffn_down_exps.weight", count, hidden, wide),
        routing=experts.routing,
        bias=w.vector(SELECTION_BIAS, count) if has_bias else None,
        shared=SharedExpert(args, experts.shared_size, w) if experts.shared_size else None,
    )
