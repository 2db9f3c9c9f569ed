"""The settings of replies that the user can change during a session: sampling, and the length."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_ferrum import cli

if TYPE_CHECKING:
    from mlx_ferrum.sample.recommended import Recommended
    from mlx_ferrum.tokenizer import Tokenizer

TEMP, MIN_P = 0.7, 0.05  # where the file recommends nothing
MAX_TOKENS = 1024


class Setting(NamedTuple):
    """How a setting is read; `word` stands for the value `neutral`, and None means the same."""

    kind: Callable[[str], Any] = float
    word: str = ""
    neutral: float | None = None


SETTINGS = {
    "temp": Setting(),
    "top-k": Setting(int, "off", 0),
    "typical": Setting(float, "off", 1.0),
    "top-p": Setting(float, "off", 1.0),
    "min-p": Setting(float, "off", 0.0),
    "xtc-probability": Setting(float, "off", 0.0),
    "xtc-threshold": Setting(),
    "repetition-penalty": Setting(float, "off", 1.0),
    "presence-penalty": Setting(float, "off", 0.0),
    "frequency-penalty": Setting(float, "off", 0.0),
    "penalty-window": Setting(int, "all", None),
    "seed": Setting(int, "off", None),
    "max-tokens": Setting(cli.token_count),
}


def defaults(recommended: Recommended) -> Mapping[str, Any]:
    """What holds unless the user says otherwise: the file's recommendation, else TEMP and MIN_P."""
    if not recommended.values:
        return {"temp": TEMP, "min_p": MIN_P}
    return {"temp": TEMP, **recommended.values}


class Settings:
    """The command line's values, and changes to them. A bad change is a ValueError and changes nothing."""

    def __init__(self, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
        """args: with the options that `cli.sampling_arguments` adds, and max_tokens"""
        self._args, self._tokenizer = args, tokenizer
        self.options = self._options(args)

    @property
    def max_tokens(self) -> int:
        """Tokens of a reply; -1 for as many as fit."""
        return int(self._args.max_tokens)

    def set(self, name: str, text: str) -> None:
        """Change one setting. Raises ValueError for an unknown name or a bad value."""
        name = name.replace("_", "-")
        if name not in SETTINGS:
            raise ValueError(f"unknown setting {name!r}, expected one of {', '.join(SETTINGS)}")
        changed = argparse.Namespace(**vars(self._args))
        setattr(changed, name.replace("-", "_"), _value(name, text))
        self.options = self._options(changed)
        self._args = changed

    def lines(self) -> list[str]:
        """All settings and their values, one a line."""
        return [f"  {name:<20} {self.value(name)}" for name in SETTINGS]

    def value(self, name: str) -> str:
        """The present value of a setting, as the user would write it."""
        setting, value = SETTINGS[name], getattr(self._args, name.replace("-", "_"))
        if setting.word and value in (None, setting.neutral):
            return setting.word
        return f"{value:g}" if isinstance(value, float) else str(value)

    def summary(self) -> str:
        """The temperature and what else is switched on, in one line."""
        shown = ["temp", *(n for n, s in SETTINGS.items() if s.word == "off" and n != "seed")]
        return ", ".join(f"{n} {self.value(n)}" for n in shown if self.value(n) != "off")

    def _options(self, args: argparse.Namespace) -> dict[str, Any]:
        """What `stream_generate` gets. Raises ValueError for a value out of range."""
        return {
            "sampler": cli.sampler(args, self._tokenizer),
            "logits_processors": cli.processors(args),
            "logit_bias": dict(args.logit_bias),
        }


def _value(name: str, text: str) -> Any:
    setting = SETTINGS[name]
    if setting.word and text == setting.word:
        return setting.neutral
    try:
        return setting.kind(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None
    except ValueError:
        kind = "a number" if setting.kind is float else "a whole number"
        word = f" or {setting.word}" if setting.word else ""
        raise ValueError(f"{name}: {text!r} found, expected {kind}{word}") from None
