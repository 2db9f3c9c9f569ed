"""Which of the package's pre-tokenizers cuts text as a tokenizer of the `tokenizers` package does.

Text with everything on which pre-tokenizers differ is cut by both, and the places of the cuts are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from tokenizers import Tokenizer

from mlx_ferrum.tokenizer.pretokenizers import PreTokenizer, table
from mlx_ferrum.tokenizer.splitting import split

# Names that are taken first where several cut alike.
PREFERRED = (
    "llama-bpe qwen2 gpt-2 smollm deepseek-v3 gpt-4o tekken smaug-bpe poro-chat bailingmoe".split()
)
PROBES = (
    "Hello World, hello world! It's we'll THEY'RE I'Ve don'T 'tis x'd",
    "1 12 123 1234 12345 123456 1234567 3.14 1,234,567.89 v2.0 a1b22c333 ٣٤٥٦ Ⅷ½²",
    "  two   spaces\ttab\n\nlines\r\n \n  \n   indented\n\tx = 1; \n",
    "camelCase HTTPServer XMLHttp ÉCOLE École Straße ПриВет Ελλάδα İstanbul",
    'e.g. (a+b)*c == d != e && f || g; #tag @you $5 100% ^~`|<>={}[]\\/ "quoted" ... !!! ?! -- ——',
    "https://x.org/a_b?c=d&e=f#g  foo_bar __init__ /usr/bin //comment\n/path\n",
    "我在apple工作1314天，很好。 日本語のテキスト、カタカナ 한국어 문장입니다 123번",
    "नमस्ते दुनिया हिन्दी ไทยภาษา กำลัง العربية والقرآن עברית ກາ ខ្មែរ မြန်မာ",
    "e\u0301cole nai\u0308ve 🚀🦙 👩‍👩‍👧 ✅ ™ © ° µm \u00a0nbsp\u3000wide\u2028line …end？！「引用」",
    "IMGIMGABCZ <sentinel:12> '''''' \"\"\" ??!! word\u2581word   \u00ad",
)


def pretokenizer(tokenizer: Tokenizer, whole_words: bool) -> str:
    """The name for `tokenizer.ggml.pre`.

    whole_words: whether a word that is a token is not merged, `ignore_merges` of tokenizer.json
    Raises NotImplementedError if no pre-tokenizer cuts alike.
    """
    wanted = [_cuts(tokenizer, text) for text in PROBES]
    names = [name for name in _ordered() if _alike(table()[name], wanted)]
    found = [name for name in names if table()[name].whole_words == whole_words]
    if not found:
        known = ", ".join(sorted(table()))
        raise NotImplementedError(
            "tokenizer.json: no pre-tokenizer is known that cuts text like this one"
            + (f" ({', '.join(names)} would, but for ignore_merges)" if names else "")
            + f"; name the right one with --pre, one of {known}"
        )
    return found[0]


def _ordered() -> Iterator[str]:
    yield from PREFERRED
    yield from (name for name in table() if name not in PREFERRED)


def _alike(pre: PreTokenizer, wanted: list[set[int]]) -> bool:
    return not pre.raw and all(
        cuts(pre, text) == found for text, found in zip(PROBES, wanted, strict=True)
    )


def cuts(pre: PreTokenizer, text: str) -> set[int]:
    """The places at which `pre` cuts a text."""
    return set(accumulate(map(len, split(text, pre.steps))))


def _cuts(tokenizer: Tokenizer, text: str) -> set[int]:
    """The same of a tokenizer, as far as its pre-tokenizer goes; a text without one is a single piece."""
    if tokenizer.pre_tokenizer is None:
        return {len(text)}
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return {end for _, (_, end) in pieces}
