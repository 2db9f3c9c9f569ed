"""Special tokens in text: which are found, and that long texts take linear time."""

from __future__ import annotations

import random
import time

import nasty_texts
import numpy as np
import pytest

from mlx_ferrum import gguf
from mlx_ferrum.tokenizer.special import SpecialTokens
from mlx_ferrum.tokenizer.vocabulary import TokenType, Vocabulary

SPACE = " \t\n\v\f\r"


def vocabulary(texts: list[str], types: list[TokenType] | None = None) -> Vocabulary:
    """Tokens that are all user-defined ones unless `types` says otherwise."""
    kinds = types or [TokenType.USER_DEFINED] * len(texts)
    keys = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": np.array(kinds)}
    return Vocabulary.from_metadata(keys, {})


def one_after_the_other(found: Vocabulary, text: str, parse_special: bool) -> list[str | int]:
    """The definition: the whole text is cut at the longest token, then what is left at the next one."""
    pieces: list[str | int] = [text] if text else []
    for token in found.special_texts(parse_special):
        cut: list[str | int] = []
        for piece in pieces:
            while isinstance(piece, str) and found.tokens[token] in piece:
                before, _, piece = piece.partition(found.tokens[token])
                before = before.rstrip(SPACE) if token in found.lstrip else before
                piece = piece.lstrip(SPACE) if token in found.rstrip else piece
                cut += [before, token] if before else [token]
            cut += [piece] if piece != "" else []
        pieces = cut
    return pieces


@pytest.mark.parametrize("strips", ["", "left", "right"])
@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_searched_for_one_after_the_other(seed, strips):
    """Random vocabularies whose tokens overlap, begin alike and hold each other."""
    rng = random.Random(f"{seed} {strips}")
    texts = list(
        dict.fromkeys("".join(rng.choices("ab <\n", k=rng.randint(1, 7))) for _ in range(40))
    )
    kinds = rng.choices([TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL], k=len(texts))
    found = vocabulary(texts, kinds)
    some = frozenset(rng.sample(range(len(texts)), len(texts) // 2))
    found.lstrip, found.rstrip = (
        some if strips == side else frozenset() for side in ("left", "right")
    )
    special = SpecialTokens(found)
    for _ in range(400):
        parts = [nasty_texts.scrambled(rng)[:4], *rng.choices([*texts, *"ab <\n"], k=12)]
        text = "".join(rng.sample(parts, rng.randint(0, len(parts))))
        for parse in (False, True):
            assert special.partition(text, parse) == one_after_the_other(found, text, parse), text


@pytest.fixture(scope="module")
def gemma3(gemma3_path):
    return Vocabulary.from_metadata(gguf.read(gemma3_path).metadata, {})


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    return Vocabulary.from_metadata(gguf.read(smollm2_path).metadata, {})


NUMBERED = [f"<tool_{i}>" for i in range(5000)]


def seconds(special: SpecialTokens, text: str) -> float:
    """The processor's time for the last of two runs."""
    for _ in range(2):
        start = time.process_time()
        special.partition(text, True)
        took = time.process_time() - start
    return took


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("smollm2", "<|im_end|>"),
        ("smollm2", "Hello there<|im_end|>\n"),
        ("smollm2", "<"),
        ("smollm2", "<|im"),
        ("gemma3", "<end_of_turn>\n"),
        ("gemma3", "<unused"),
        ("gemma3", "\n"),
        ("gemma3", "  "),
        ("numbered", "<"),
        ("numbered", "<tool_"),
        ("numbered", "".join(NUMBERED)),
    ],
)
def test_long_texts_take_linear_time(smollm2, gemma3, name, unit):
    found = {"smollm2": smollm2, "gemma3": gemma3, "numbered": vocabulary(NUMBERED)}
    special = SpecialTokens(found[name])
    size = 1 << 20
    short, long = (seconds(special, unit * (n // len(unit))) for n in (size // 8, size))
    assert long < max(0.1, 24 * short)
    assert long < 4, "a megabyte takes well under a second on a machine with nothing else to do"
