"""Two small models and a text, of which golden/compare.json says what llama-perplexity --kl-divergence measures."""

from __future__ import annotations

from pathlib import Path

import random_models
from random_models import Sizes

SIZE, CHUNKS = 64, 12
TEXT = " ".join(f"{n} boats on the sea near Oban," for n in range(120))


def models(folder: Path) -> list[Path]:
    """The base, and the same weights with another rotary frequency."""
    return [
        random_models.write(
            folder / f"{base}.gguf",
            "llama",
            1,
            sizes=Sizes(layers=2, vocab=350),
            types=("F32",),
            metadata={"rope.freq_base": base},
        )
        for base in (10000.0, 9000.0)
    ]
