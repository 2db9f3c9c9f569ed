"""Writes mlx_ferrum/tokenizer/unicode_runs.py from the Unicode 15.1 character database.

Usage: pip install unicodedata2==15.1.0 && python tests/golden/make_unicode.py
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from pathlib import Path

import unicodedata2

TARGET = Path(__file__).parents[2] / "mlx_ferrum" / "tokenizer" / "unicode_runs.py"
HEADER = '''"""General categories of Unicode {version}, run-length encoded (made by tests/golden/make_unicode.py).

Each run is the category's first letter (U: unassigned) and its length in code points, from U+0000 on.
"""

RUNS = """
{runs}
"""
'''


def category(code_point: int) -> str:
    """The first letter of the general category, with unassigned code points set apart."""
    name = unicodedata2.category(chr(code_point))
    return "U" if name == "Cn" else name[0]


def main() -> None:
    """Write the table, refusing any other version of Unicode."""
    if unicodedata2.unidata_version != "15.1.0":
        raise ValueError(f"Unicode {unicodedata2.unidata_version} found, 15.1.0 expected")
    classes = map(category, range(sys.maxunicode + 1))
    runs = " ".join(f"{name}{len(list(run))}" for name, run in itertools.groupby(classes))
    TARGET.write_text(HEADER.format(version="15.1", runs=textwrap.fill(runs, 98)))


if __name__ == "__main__":
    main()
