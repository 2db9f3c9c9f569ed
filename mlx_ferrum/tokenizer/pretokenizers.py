r"""The pre-tokenizers that `tokenizer.ggml.pre` names.

The expressions are those that the models' authors publish, in the form llama.cpp gives them: its classes
know no letter case beyond ASCII (`\p{Upper}` and `\p{Lower}` in unicode.py), and a few differ from the
model's own in rare cases. Token ids follow llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .splitting import AsciiDigitGroups, DigitGroups, Pattern, Step, TrailingSpace

# Parts of expressions
_CONTRACTION = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_SUFFIX = rf"(?:{_CONTRACTION})?"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT, _DIGITS = r"[\p{N}]", r"[\p{N}]{1,3}"
_SIGN_OR_WORD = r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_CJK_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def _words(digits: str, *, contraction: str = f"{_CONTRACTION}|", letters: str = r"\p{L}") -> str:
    """Like GPT-4's: contractions, words with one sign before them, numbers, signs, white space."""
    signs = rf" ?[^\s{letters}\p{{N}}]+[\r\n]*"
    return f"{contraction}{_FIRST}[{letters}]+|{digits}|{signs}|{_SPACES}"


def _cased(digits: str, *, suffix: str = "", marks: str = "") -> str:
    """Like GPT-4o's: a word ends where lower case turns to upper."""
    upper, lower = rf"[\p{{Upper}}{marks}]", rf"[\p{{Lower}}{marks}]"
    word = f"{_FIRST}{upper}*{lower}+{suffix}|{_FIRST}{upper}+{lower}*{suffix}"
    return rf"{word}|{digits}|{_SIGNS}[\r\n/]*|{_SPACES}"


def _marked(digits: str) -> str:
    """As _cased, where letters of both cases and marks make one word."""
    word = rf"{_FIRST}[\p{{L}}\p{{M}}]+{_SUFFIX}"
    return rf"{word}|{digits}|{_SIGNS}[\r\n/]*|{_SPACES}"


# Whole steps
_GPT2 = Pattern(
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
_LLAMA3, _QWEN2 = Pattern(_words(_DIGITS)), Pattern(_words(_DIGIT))
_LINES = Pattern(r"[^\n]+|\n+")
_NUMBER, _NUMBERS, _THREES = Pattern(_DIGIT), Pattern(r"[\p{N}]+"), Pattern(_DIGITS)
_KANA, _HANGUL = Pattern(_CJK_KANA), Pattern(_CJK_HANGUL)
_ASCII_THREE = Pattern("[0-9][0-9][0-9]")
_DEEPSEEK3 = Pattern(rf"{_SIGN_OR_WORD}[\r\n]*|{_SPACES}")
_SENTENCES = Pattern(" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+")
_BAILING = Pattern(
    rf"{_CONTRACTION}|{_FIRST}[\p{{L}}]+|{_DIGIT}|{_SIGNS}[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)
_EXAONE_MOE = Pattern(
    rf"{_CONTRACTION}|{_FIRST}(?:[\p{{L}}][\p{{M}}]*(?: [\p{{L}}][\p{{M}}]*)*)+|{_DIGIT}"
    rf"|{_SIGNS}[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
)
_JAIS2 = Pattern(
    rf"{_CONTRACTION}|{_FIRST}[\p{{L}}]+|{_DIGITS}|{_SIGNS}[\r\n]*|\s*[\r\n]+|"
    + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"\s{1,2}(?!\S)|\s",
)
_KIMI_K2 = Pattern(
    rf"[\p{{Han}}]+|{_FIRST}[\p{{NotHan}}]+{_SUFFIX}|{_DIGITS}|{_SIGNS}[\r\n]*|{_SPACES}",
)
_YOUTU_SCRIPTS = Pattern(
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_CJK_KANA}",
)
_AFMOE_SCRIPTS = Pattern(
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+",
)
# Letters that have a case, as DeepSeek LLM's tokenizer lists them.
_CASED_LETTERS = Pattern(
    r"\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+",
)
_DEEPSEEK_SIGNS = Pattern(
    r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
)


@dataclass(frozen=True)
class PreTokenizer:
    """How one kind of file cuts text.

    steps: for splitting.split. whole_words: a word that is a token is not merged. add_bos: the default;
    always_bos: whatever the file says.
    raw: tokens are plain text with U+2581 for spaces and <0xXX> for bytes, not GPT-2's byte letters.
    whole_newlines: as whole_words, for line breaks. metaspace: words start at U+2581.
    """

    steps: tuple[Step, ...]
    whole_words: bool = False
    add_bos: bool = False
    always_bos: bool = False
    raw: bool = False
    whole_newlines: bool = False
    metaspace: bool = False


def _gpt_like() -> dict[str, PreTokenizer]:
    """Names whose expression is GPT-2's, alone or after other cuts."""
    signs = r"[\p{P}$+<=>^~|"
    digit_first = "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"
    plain = (
        "gpt-2 phi-2 mpt olmo jais jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code "
        "roberta-bpe modern-bert gigachat a.x-4.0 mellum exaone4 trillion granite-docling"
    )
    chameleon = (
        *map(Pattern, ("<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", "[\t\n]|    |  ", _DIGIT)),
        Pattern(r"[\p{P}!-/:-@\[-`{-~]"),
        _GPT2,
    )
    return {
        "default": PreTokenizer((Pattern(f"{signs}]+"), _GPT2, _NUMBERS, _ASCII_THREE)),
        "falcon": PreTokenizer((Pattern(f"{signs}`]+"), _GPT2, _ASCII_THREE)),
        "chameleon": PreTokenizer(chameleon, add_bos=True),
        **dict.fromkeys(plain.split(), PreTokenizer((_GPT2,))),
        **dict.fromkeys(digit_first.split(), PreTokenizer((_NUMBER, _GPT2))),
    }


def _gpt4_like() -> dict[str, PreTokenizer]:
    """Names whose expression is of GPT-4's or GPT-4o's family."""
    llama3 = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"
    qwen2 = "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2"
    marks = r"\p{L}\p{M}"
    tiny_aya = PreTokenizer((DigitGroups(), Pattern(_marked(_DIGITS))))
    seed_coder = rf"{_CONTRACTION}|{_FIRST}[\p{{L}}]+|{_DIGIT}|{_SIGNS}|{_SPACES}"
    granite = Pattern(_cased(_DIGITS, suffix=_SUFFIX, marks=r"\p{M}"))
    gpt4o = PreTokenizer((Pattern(_cased(_DIGITS, suffix=_SUFFIX)),))
    return {
        **dict.fromkeys(llama3.split(), PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)),
        **dict.fromkeys(("glm4", "glm5"), PreTokenizer((_LLAMA3,), whole_words=True)),
        **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
        **dict.fromkeys(qwen2.split(), PreTokenizer((_QWEN2,))),
        "qwen35": PreTokenizer((Pattern(_words(_DIGIT, letters=marks)),)),
        "ufakzeka": PreTokenizer((Pattern(_words(_DIGIT, contraction="")),)),
        "laguna": PreTokenizer((_LINES, _QWEN2)),
        "minicpm5": PreTokenizer((_THREES, Pattern(_words(r"[\p{N}]+"))), whole_words=True),
        "jais-2": PreTokenizer((_JAIS2,)),
        "seed-coder": PreTokenizer((Pattern(seed_coder),)),
        "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
        **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((_BAILING,))),
        **dict.fromkeys("gpt-4o llama4 kanana2 talkie minimax-m2".split(), gpt4o),
        "tekken": PreTokenizer((Pattern(_cased(_DIGIT)),), whole_words=True, add_bos=True),
        "granite-embed-multi-97m": PreTokenizer((granite,), whole_words=True),
        "youtu": PreTokenizer((_YOUTU_SCRIPTS, Pattern(_marked(_DIGIT))), whole_words=True),
        **dict.fromkeys(("tiny_aya", "cohere2moe"), tiny_aya),
        "kimi-k2": PreTokenizer((_KIMI_K2,)),
    }


def _others() -> dict[str, PreTokenizer]:
    """DeepSeek's, those that cut at sentence signs or digits only, and SentencePiece turned into BPE."""
    break_ = Pattern("[\r\n]")
    deepseek3 = PreTokenizer((_THREES, _KANA, _DEEPSEEK3))
    spark = Pattern(rf"{_SIGN_OR_WORD}|[\r\n]|\s+(?!\S)|\s+")
    coder = (break_, Pattern(r"\s?[\p{L}]+"), Pattern(r"\s?[\p{P}]+"), _HANGUL, _NUMBER)
    llm = (break_, _CASED_LETTERS, _DEEPSEEK_SIGNS, TrailingSpace(), _HANGUL, _NUMBERS)
    gemma4 = PreTokenizer((_LINES,), raw=True, whole_newlines=True, always_bos=True)
    mmbert = PreTokenizer((_LINES,), raw=True, whole_newlines=True, metaspace=True)
    return {
        **dict.fromkeys("deepseek-v3 hunyuan-dense joyai-llm hy_v4".split(), deepseek3),
        "deepseek-llm": PreTokenizer(llm),
        "deepseek-coder": PreTokenizer(coder),
        "spark2_5": PreTokenizer((_THREES, _KANA, spark, _NUMBER)),
        "afmoe": PreTokenizer((DigitGroups(), _AFMOE_SCRIPTS, _DEEPSEEK3)),
        **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_SENTENCES,))),
        "viking": PreTokenizer((_SENTENCES, _NUMBER)),
        "superbpe": PreTokenizer((_NUMBERS, AsciiDigitGroups())),
        **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), gemma4),
        "mmbert": mmbert,
        "sarvam-moe": PreTokenizer((_LINES,), raw=True),
    }


@cache
def table() -> dict[str, PreTokenizer]:
    """Pre-tokenizer by its name in `tokenizer.ggml.pre`."""
    return {**_gpt_like(), **_gpt4_like(), **_others()}


def by_name(name: str) -> PreTokenizer:
    """The pre-tokenizer of a name; NotImplementedError lists the known names."""
    if name not in table():
        known = " ".join(sorted(table()))
        raise NotImplementedError(f"tokenizer.ggml.pre: {name!r} is not supported; known: {known}")
    return table()[name]
