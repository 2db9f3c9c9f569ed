"""Which way of calling tools and of reasoning a chat template teaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import gemma, hermes, llama3, mistral, qwen3_coder
from .calls import Calls, new_id, short_id
from .source import Reading, Source

Read = Callable[[Source, Calls, str], Reading[None]]


@dataclass(frozen=True)
class CallFormat:
    """How a family of models writes tool calls.

    name: of the family
    signs: a template is of the family if it has all texts of one of these
    markers: what begins a call
    first_markers: what does so only at the start of the reply, or behind reasoning
    read: reads calls behind a marker
    new_id: names them
    texts: what else of a call may be a special token
    """

    name: str
    signs: tuple[tuple[str, ...], ...]
    markers: tuple[str, ...]
    read: Read
    first_markers: tuple[str, ...] = ()
    new_id: Callable[[], str] = new_id
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tags:
    """What opens and closes reasoning, and the special token in the opening if it has more to it."""

    open: str
    close: str
    token: str = ""


# In this order: some families' signs are in others' templates too.
CALL_FORMATS = (
    *(
        CallFormat(name, ((of.start,),), (of.start,), of.read, texts=(of.end, of.quote))
        for name, of in (("gemma4", gemma.GEMMA4), ("functiongemma", gemma.FUNCTION_GEMMA))
    ),
    CallFormat(
        "qwen3-coder",
        (("<function=", "<parameter="),),
        (hermes.START, qwen3_coder.FUNCTION),
        qwen3_coder.read,
        texts=(hermes.END,),
    ),
    CallFormat(
        "mistral",
        ((mistral.START,),),
        (mistral.START,),
        mistral.read,
        new_id=short_id,
        texts=(mistral.ARGUMENTS, mistral.ID),
    ),
    CallFormat("hermes", ((hermes.START,),), (hermes.START,), hermes.read, texts=(hermes.END,)),
    CallFormat(
        "llama3",
        ((llama3.PYTHON_TAG,), ("<|start_header_id|>", '"parameters"')),
        (llama3.PYTHON_TAG,),
        llama3.read,
        ("{",),
    ),
)
REASONING = (
    Tags("<|channel>thought\n", "<channel|>", "<|channel>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<think>", "</think>"),
)


def call_format(template: str) -> CallFormat | None:
    """How the model of a chat template writes tool calls; None if the template shows no format that is known."""
    for each in CALL_FORMATS:
        if any(all(text in template for text in sign) for sign in each.signs):
            return each
    return None


def reasoning_tags(template: str) -> Tags | None:
    """What is around the reasoning of the model of a chat template; None if the template knows none."""
    for tags in REASONING:
        if tags.open.strip() in template or tags.close in template:
            return tags
    return None
