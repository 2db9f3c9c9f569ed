"""Bodies of requests. tests/test_server_openapi.py compares them with what the endpoints read."""

from __future__ import annotations

from .. import sampling
from ..anthropic.messages import IGNORED as ANTHROPIC_IGNORED
from ..embedding import TEXTS
from ..ollama.fields import IGNORED as OLLAMA_IGNORED
from ..openai.chat import EFFORTS, IGNORED, TOP
from ..openai.completions import PROMPTS
from ..openai.constraint import MODES
from ..openai.messages import NO_TEXT, SET, TEXT_PARTS
from ..openai.responses import INCLUDED, REFUSED
from .schema import (
    ANY,
    BOOLEAN,
    STRING,
    Schema,
    either,
    fields,
    items,
    number,
    one_of,
    refused,
    texts,
    whole,
)

LIMIT = whole(1, 2**31)
OBJECT: Schema = {"type": "object"}
STOP = texts(sampling.STOPS, least=1)
BIAS: Schema = {
    "type": "object",
    "patternProperties": {
        "^[0-9]+$": {"type": ["number", "null"], "minimum": -100, "maximum": 100}
    },
    "additionalProperties": False,
    "description": "The id of each token, and what is added to its logit; -100 bans it.",
}
WINDOW = whole(0, 2**31)
FILL = "The text after the gap, for models with fill-in-the-middle tokens."


def _sampling(
    repetition: str = "repetition_penalty", window: str = "penalty_window"
) -> dict[str, Schema]:
    return {
        "temperature": number(0, 100),
        "top_p": number(0, 1),
        "top_k": whole(-1, 2**31),
        "min_p": number(0, 1),
        "typical_p": number(0, 1),
        "seed": whole(-sampling.SEEDS, 2 * sampling.SEEDS - 1),
        repetition: number(0.01, 100),
        "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        window: WINDOW if window == "penalty_window" else whole(-1, 2**31),
        "stop": STOP,
        "logit_bias": BIAS,
        "ignore_eos": BOOLEAN,
    }


SAMPLING = _sampling()
PARTS = items(fields("type text", type=one_of(*TEXT_PARTS), text=STRING))
CONTENT = either(STRING, PARTS)
ARGUMENTS = fields(**{name: refused() for name in SET})
FUNCTION = fields("name", name=STRING, description=STRING, parameters=OBJECT)
MESSAGE = fields(
    "role",
    role=STRING,
    content=CONTENT,
    tool_calls=items(OBJECT),
    **{name: refused() for name in NO_TEXT},
)
MESSAGES = items(MESSAGE, minItems=1)
CHAT_TOOLS = items(fields("type function", type=one_of("function"), function=FUNCTION))
CHAT_FORMAT = fields(
    type=one_of("text", "json_object", "json_schema"), json_schema=fields(schema=OBJECT)
)
NAMED = fields(name=STRING)
CHOICE = fields(
    type=one_of("function", "allowed_tools"),
    name=STRING,
    function=NAMED,
    mode=one_of("auto", "required"),
    tools=items(fields(name=STRING, function=NAMED)),
    allowed_tools=fields(
        mode=one_of("auto", "required"), tools=items(fields(name=STRING, function=NAMED))
    ),
)
TOOL_CHOICE = either(one_of(*MODES), CHOICE)
STRUCTURED = fields(
    json=either(OBJECT, BOOLEAN, STRING),
    json_object=BOOLEAN,
    regex=STRING,
    choice=items({**STRING, "minLength": 1}, minItems=1),
    grammar=STRING,
)
STREAMING = {
    "stream": BOOLEAN,
    "stream_options": fields(include_usage=BOOLEAN, include_obfuscation=ANY),
}

CHAT = fields(
    "messages",
    model=STRING,
    messages=MESSAGES,
    max_completion_tokens=LIMIT,
    max_tokens=LIMIT,
    n_predict=LIMIT,
    n=whole(1, 128),
    logprobs=BOOLEAN,
    top_logprobs=whole(0, TOP),
    reasoning_effort=one_of(*EFFORTS),
    tools=CHAT_TOOLS,
    tool_choice=TOOL_CHOICE,
    parallel_tool_calls=BOOLEAN,
    response_format=CHAT_FORMAT,
    structured_outputs=STRUCTURED,
    continue_final_message=BOOLEAN,
    chat_template_kwargs=ARGUMENTS,
    modalities=refused(["text"]),
    **{name: refused() for name in ("audio", "web_search_options", "functions", "function_call")},
    **dict.fromkeys(sorted(IGNORED), ANY),
    **STREAMING,
    **SAMPLING,
)

IDS = items({"type": "integer"})
COMPLETION = fields(
    "prompt",
    model=STRING,
    prompt=either(STRING, IDS, items(either(STRING, IDS), minItems=1, maxItems=PROMPTS)),
    max_tokens=whole(0, 2**31),
    n_predict=whole(0, 2**31),
    n=whole(1, 128),
    logprobs=either(BOOLEAN, whole(0, TOP)),
    echo=BOOLEAN,
    suffix={**STRING, "description": FILL},
    response_format=CHAT_FORMAT,
    structured_outputs=STRUCTURED,
    best_of={**either(whole(1, 128), refused()), "description": "Only the same as n."},
    **dict.fromkeys(sorted(IGNORED), ANY),
    **STREAMING,
    **SAMPLING,
)

ITEM = either(
    fields("role", type=one_of("message"), role=STRING, content=CONTENT),
    fields(
        "type call_id name",
        type=one_of("function_call"),
        call_id=STRING,
        name=STRING,
        arguments=STRING,
    ),
    fields("type call_id", type=one_of("function_call_output"), call_id=STRING, output=CONTENT),
    fields(
        "type",
        type=one_of("reasoning"),
        content=items(fields(text=STRING)),
        summary=items(fields(text=STRING)),
    ),
)
RESPONSE_PROMPT = {
    "model": STRING,
    "input": either({**STRING, "minLength": 1}, items(ITEM, minItems=1)),
    "instructions": STRING,
    "previous_response_id": STRING,
    "reasoning": fields(effort=one_of(*EFFORTS)),
    "tools": items(
        fields(
            "type name", type=one_of("function"), name=STRING, description=STRING, parameters=OBJECT
        )
    ),
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": BOOLEAN,
    "text": fields(
        format=fields(type=one_of("text", "json_object", "json_schema"), schema=OBJECT),
    ),
    "chat_template_kwargs": ARGUMENTS,
    "truncation": refused("disabled"),
    **{name: refused() for name in REFUSED},
}
RESPONSE_COUNTED = fields("input", **RESPONSE_PROMPT, **dict.fromkeys(sorted(IGNORED), ANY))
RESPONSE = fields(
    "input",
    max_output_tokens=LIMIT,
    store=BOOLEAN,
    stream=BOOLEAN,
    stream_options=ANY,
    include={"anyOf": [one_of(*INCLUDED), items(one_of(*INCLUDED))]},
    top_logprobs=whole(0, TOP),
    metadata=OBJECT,
    **dict.fromkeys(sorted(IGNORED - {"store", "metadata"}), ANY),
    **RESPONSE_PROMPT,
    **SAMPLING,
)

TEXT_BLOCK = fields("type text", type=one_of("text"), text=STRING)
BLOCKS = either(STRING, items(TEXT_BLOCK))
BLOCK = either(
    TEXT_BLOCK,
    fields("type thinking", type=one_of("thinking"), thinking=STRING),
    fields("type", type=one_of("redacted_thinking")),
    fields("type id name", type=one_of("tool_use"), id=STRING, name=STRING, input=OBJECT),
    fields("type tool_use_id", type=one_of("tool_result"), tool_use_id=STRING, content=BLOCKS),
)
ANTHROPIC_PROMPT = {
    "model": STRING,
    "messages": items(
        fields(
            "role", role=one_of("user", "assistant", "system"), content=either(STRING, items(BLOCK))
        ),
        minItems=1,
    ),
    "system": BLOCKS,
    "tools": items(
        fields("name", type=one_of("custom"), name=STRING, description=STRING, input_schema=OBJECT)
    ),
    "thinking": fields(type=STRING),
    "mcp_servers": refused(),
    **dict.fromkeys(ANTHROPIC_IGNORED, ANY),
}
ANTHROPIC_CHOICE = fields(
    type=one_of("auto", "any", "tool", "none"), name=STRING, disable_parallel_tool_use=BOOLEAN
)
COUNTED = fields("model messages", tool_choice=ANTHROPIC_CHOICE, **ANTHROPIC_PROMPT)
ANTHROPIC = fields(
    "model messages max_tokens",
    max_tokens=LIMIT,
    stop_sequences=STOP,
    stream=BOOLEAN,
    tool_choice=ANTHROPIC_CHOICE,
    **ANTHROPIC_PROMPT,
    **SAMPLING,
)

OPTIONS = fields(
    num_predict=whole(-2, 2**31),
    mirostat=refused(0),
    mirostat_tau=ANY,
    mirostat_eta=ANY,
    **dict.fromkeys(sorted(OLLAMA_IGNORED), ANY),
    **_sampling("repeat_penalty", "repeat_last_n"),
)
OLLAMA = {
    "model": STRING,
    "options": OPTIONS,
    "stream": BOOLEAN,
    "think": either(BOOLEAN, one_of("low", "medium", "high")),
    "format": either(one_of("", "json"), OBJECT),
    "keep_alive": ANY,
}
OLLAMA_CHAT = fields(
    messages=items(MESSAGE),
    tools=CHAT_TOOLS,
    tool_choice=TOOL_CHOICE,
    parallel_tool_calls=BOOLEAN,
    **OLLAMA,
)
GENERATE = fields(
    prompt=STRING,
    system=STRING,
    raw=BOOLEAN,
    suffix={**STRING, "description": FILL},
    **{name: refused() for name in ("images", "template", "context")},
    **OLLAMA,
)
TEXT = {**STRING, "minLength": 1}
INPUT = either(TEXT, items(TEXT, minItems=1, maxItems=TEXTS))
EMBED = fields("input", model=STRING, input=INPUT, truncate=BOOLEAN, keep_alive=ANY, options=ANY)
EMBEDDINGS = fields(
    "input",
    model=STRING,
    input=INPUT,
    encoding_format=one_of("float", "base64"),
    dimensions=whole(1, 2**31),
    user=ANY,
)
SHOW = fields(model=STRING, name=STRING, verbose=ANY)
TOKENIZE = fields(
    model=STRING,
    content=STRING,
    prompt=STRING,
    messages=MESSAGES,
    chat_template_kwargs=ARGUMENTS,
    add_special=BOOLEAN,
    add_special_tokens=BOOLEAN,
    parse_special=BOOLEAN,
    with_pieces=BOOLEAN,
)
DETOKENIZE = fields(model=STRING, tokens=IDS)
