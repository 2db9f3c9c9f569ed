"""The choices of all layers as text, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .choices import Choices

BUSIEST = 4  # experts that a line of the table names


def as_text(layers: Sequence[Choices], used: int) -> list[str]:
    """A line a layer, and what the columns mean."""
    experts = layers[0].counts.size
    lines = [
        f"{layers[0].tokens} tokens; each layer gives a token {used} of {experts} experts",
        "",
        f"{'layer':>5} {'effective':>10} {'unused':>7}  busiest (share of the tokens)",
    ]
    for layer in layers:
        shares = layer.shares
        named = "  ".join(f"{i:>4} {shares[i]:4.0%}" for i in layer.busiest(BUSIEST))
        lines.append(
            f"{layer.layer:>5} {layer.effective:>10.1f} {len(layer.unused):>7}  {named}".rstrip()
        )
    even = used / experts
    return [
        *lines,
        "",
        f"Even use would give each expert {even:.1%} of the tokens. effective: so many experts, used "
        f"evenly, would be as varied ({experts} at most).",
    ]


def as_json(layers: Sequence[Choices], used: int) -> dict[str, Any]:
    """counts: tokens that chose each expert; dense layers are left out."""
    return {
        "tokens": layers[0].tokens,
        "experts": layers[0].counts.size,
        "experts_used": used,
        "layers": [
            {
                "layer": layer.layer,
                "effective_experts": round(layer.effective, 3),
                "unused": layer.unused,
                "counts": layer.counts.tolist(),
            }
            for layer in layers
        ],
    }
