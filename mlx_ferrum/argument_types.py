"""Types of arguments of the command lines. Each raises what argparse shows with the argument's name."""

from __future__ import annotations

import argparse
import os

from . import amounts


def token_count(text: str) -> int:
    """The type of --max-tokens: 1 or more, or -1."""
    value = int(text)
    if value != -1 and value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more, nor -1 for no limit")
    return value


def positive(text: str) -> int:
    """The type of sizes: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def count(text: str) -> int:
    """The type of numbers that may be 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is not 0 or more")
    return value


def size(text: str) -> int:
    """The type of sizes in bytes, such as 500M."""
    try:
        return amounts.read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def expert_memory(text: str) -> int | str:
    """The type of --expert-memory: bytes, 0 for none of them, or "auto"."""
    if text.lower() == "auto":
        return "auto"
    return 0 if text.lower() in ("0", "none") else size(text)


def file_name(text: str) -> str:
    """The type of options that name a file. An unset shell variable gives an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def stop_string(text: str) -> str:
    """The type of --stop: text, and some."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return utf8(text)


def utf8(text: str) -> str:
    """The type of arguments that go to the model: UTF-8, whatever the locale is."""
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError("is not valid UTF-8") from None


def token_bias(text: str) -> tuple[int, float]:
    """The type of --logit-bias: ID=BIAS."""
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ID=BIAS, such as 42=-1.5") from None
