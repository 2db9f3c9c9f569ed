"""Output that follows a grammar (llguidance): a JSON schema, any JSON object, a regular expression, or lark.

    grammars = Grammars(tokenizer, model.args.vocab_size)
    request = Request(prompt, limit, constraint=grammars.json_schema(schema), end_tokens=tokenizer.eos_token_ids)

A `Grammar` is compiled once and can be given to any number of requests; each text begins a `Follower` of its own.
`reasoning=Reasoning("<think>", "</think>", is_open=False)` leaves the model free until it has closed its reasoning;
`calls=ToolCalls(format, tools)` lets it call tools instead.
Grammars are compiled by the thread that asks, without the GIL; big ones take a tenth of a second. Needs the extra
`server`.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .follower import Follower
    from .grammars import Grammar, Grammars, Reasoning, ToolCalls
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            **dict.fromkeys(("Grammar", "Grammars", "Reasoning", "ToolCalls"), "grammars"),
            "Follower": "follower",
        },
    )

__all__ = ["Follower", "Grammar", "Grammars", "Reasoning", "ToolCalls"]
