"""Which of the package's pre-tokenizers cuts text as a tokenizer of the `tokenizers` package does.

Short texts with everything on which pre-tokenizers differ are cut by both, and the places of the cuts compared.
"""

from __future__ import annotations

from itertools import accumulate

from tokenizers import Tokenizer

from mlx_ferrum.tokenizer.pretokenizers import PreTokenizer, table
from mlx_ferrum.tokenizer.splitting import split

# Names that are taken first where several cut alike.
PREFERRED = "llama-bpe smaug-bpe qwen2 gpt-2 smollm deepseek-v3 gpt-4o tekken poro-chat".split()
# Cut alike by a pre-tokenizer and by the tokenizer that it stands for.
COMMON = (
    "Hello World, hello world!",
    "It's we'll THEY'RE I'Ve don'T 'tis",
    "it'sx don'tcha we'reall",
    "1 12 123 1234 12345 123456 1234567",
    "3.14 1,234,567.89 v2.0 a1b22c333",
    "  two   spaces\ttab\n\nlines\r\n \n  \n   indented\n\tx = 1; \n",
    "end.\n\nnext;\r\nfoo()\n/path/\n",
    "a   b     c         d" + " " * 20 + "e" + " " * 33 + "\n",
    "camelCase HTTPServer XMLHttpRequest iPhone",
    "e.g. (a+b)*c == d != e && f || g; #tag @you $5 100% ^~`|<>={}[]\\/ ... !!! ?!",
    "https://x.org/a_b?c=d&e=f#g  foo_bar __init__ /usr/bin //comment\n",
    "école naïve straße привет мир ελλάδα",
    "我在apple工作1314天，很好。",
    "日本語のテキスト、カタカナ",
    "한국어 문장입니다 123번",
)
# llama.cpp's expressions, which the package follows, may differ here: capitals beyond ASCII, marks, rare spaces.
RARE = (
    "ÉCOLE École ПриВет İstanbul",
    "नमस्ते दुनिया ไทยภาษา กำลัง العربية עברית ខ្មែរ",
    "e\u0301cole nai\u0308ve",
    "🚀🦙 👩\u200d👧 ✅ ™ © °",
    "\u00a0nbsp\u3000wide\u2028line …end？！「引用」",
    "٣٤٥٦ Ⅷ½²",
    "IMGIMGABCZ <sentinel:12> word\u2581word",
)


def pretokenizer(tokenizer: Tokenizer, whole_words: bool) -> str:
    """The name for `tokenizer.ggml.pre`.

    whole_words: whether a word that is a token is not merged, `ignore_merges` of tokenizer.json
    Raises NotImplementedError if no pre-tokenizer cuts common text alike.
    """
    names = sorted(table(), key=_rank)
    common, rare = ([(text, _cuts(tokenizer, text)) for text in texts] for texts in (COMMON, RARE))
    alike = [name for name in names if _hits(table()[name], common) == len(COMMON)]
    found = [name for name in alike if table()[name].whole_words == whole_words]
    if not found:
        instead = f" ({', '.join(alike)} would, but for ignore_merges)" if alike else ""
        raise NotImplementedError(
            "tokenizer.json: no pre-tokenizer is known that cuts text like this one"
            f"{instead}; name the right one with --pre, one of {', '.join(sorted(table()))}"
        )
    return max(found, key=lambda name: _hits(table()[name], rare))  # the first of the best


def cuts(pre: PreTokenizer, text: str) -> set[int]:
    """The places at which `pre` cuts a text."""
    return set(accumulate(map(len, split(text, pre.steps))))


def _rank(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)


def _hits(pre: PreTokenizer, wanted: list[tuple[str, set[int]]]) -> int:
    """How many texts are cut alike."""
    return 0 if pre.raw else sum(cuts(pre, text) == places for text, places in wanted)


def _cuts(tokenizer: Tokenizer, text: str) -> set[int]:
    """The places at which a tokenizer cuts a text, as far as its pre-tokenizer goes."""
    if tokenizer.pre_tokenizer is None:
        return {len(text)}
    return {end for _, (_, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
