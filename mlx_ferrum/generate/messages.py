"""What a command's arguments make of a prompt: a conversation in the model's chat template, or plain text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from mlx_ferrum.tokenizer import Tokenizer

TEMPLATE_OPTIONS = ("system", "template_arg", "prefill")


def check_template(args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """Raises ValueError for options that need a template where there is none; says so if the prompt has to do alone."""
    if args.raw or tokenizer.has_chat_template:
        return
    for name in TEMPLATE_OPTIONS:
        if getattr(args, name):
            option = name.replace("_", "-")
            raise ValueError(f"{args.model} has no chat template, which --{option} needs")
    if not args.quiet:
        print(
            f"{args.model} has no chat template: the prompt is continued as it is", file=sys.stderr
        )


def prompt_text(
    args: argparse.Namespace, tokenizer: Tokenizer, prompt: str | Sequence[Mapping[str, Any]]
) -> str:
    """The prompt, text or messages, as the model should read it.

    Raises ValueError for messages without a template, or that it refuses.
    """
    if isinstance(prompt, str):
        if args.raw or not tokenizer.has_chat_template:
            return prompt
        messages: list[Mapping[str, Any]] = [{"role": "user", "content": prompt}]
    elif args.raw:
        raise ValueError('"messages" need the chat template, which --raw leaves out')
    else:
        messages = list(prompt)
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    if args.prefill:
        messages.append({"role": "assistant", "content": args.prefill})
    return tokenizer.apply_chat_template(
        messages, continue_final_message=bool(args.prefill), **dict(args.template_arg)
    )
