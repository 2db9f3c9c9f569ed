"""Writes compare.json: what llama-perplexity --kl-divergence says of two small random models in F32.

    PYTHONPATH=tests python tests/golden/make_compare.py path/to/llama-perplexity

In F32 llama.cpp rounds no activations; it rounds the base's logits to 16 bits, and cuts them off 16 nats below the top.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from compared_models import CHUNKS, SIZE, TEXT, models

OUT = Path(__file__).with_name("compare.json")
NUMBERS = {
    "perplexity": r"Mean PPL\(Q\) +: +([\d.]+) ± +([\d.]+)",
    "kl": r"Mean +KLD: +([\d.]+) ± +([\d.]+)",
    "probability_rms": r"RMS Δp +: +([\d.]+) ± +([\d.]+) %",
    "agreement": r"Same top p: +([\d.]+) ± +([\d.]+) %",
    "50": r"Median +KLD: +([\d.]+)",
    "90": r"90.0% +KLD: +([\d.]+)",
    "95": r"95.0% +KLD: +([\d.]+)",
    "99": r"99.0% +KLD: +([\d.]+)",
    "99.9": r"99.9% +KLD: +([\d.]+)",
    "100": r"Maximum KLD: +([\d.]+)",
}


def main() -> None:
    """Run llama-perplexity and write the numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(TEXT)
        base, other = models(folder)
        common = [sys.argv[1], "-f", "text.txt", "-c", str(SIZE), "--chunks", str(CHUNKS)]
        common += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
        common += ["--kl-divergence-base", "base"]
        subprocess.run([*common, "-m", base], cwd=folder, check=True, capture_output=True)
        done = subprocess.run(
            [*common, "-m", other, "--kl-divergence"], cwd=folder, check=True, capture_output=True
        )
    said = (done.stdout + done.stderr).decode()
    found = {key: re.search(pattern, said) for key, pattern in NUMBERS.items()}
    values = {key: [float(x) for x in match.groups()] for key, match in found.items() if match}
    assert values.keys() == NUMBERS.keys(), (NUMBERS.keys() - values.keys(), said)
    OUT.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
