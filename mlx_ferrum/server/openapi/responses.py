"""What the server answers. tests/test_server_openapi.py compares it with answers, those of streams included."""

from __future__ import annotations

from .schema import (
    ANY,
    BOOLEAN,
    COUNT,
    NULL,
    NUMBER,
    STRING,
    Schema,
    either,
    items,
    one_of,
    optional,
    sent,
)

OPENAI_ERROR = sent(
    error=sent(message=STRING, type=STRING, param=optional(STRING), code=optional(STRING))
)
ANTHROPIC_ERROR = sent(type=one_of("error"), error=sent(type=STRING, message=STRING))
OLLAMA_ERROR = sent(error=STRING)

OBJECT: Schema = {"type": "object"}
USAGE = sent(
    "prompt_tokens_details completion_tokens_details",
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=sent(cached_tokens=COUNT),
    completion_tokens_details=OBJECT,
)
ENTRY = {"token": STRING, "logprob": NUMBER, "bytes": items(COUNT)}
TOKENS = items(sent(**ENTRY, top_logprobs=items(sent(**ENTRY))))
LOGPROBS = optional(sent(content=TOKENS, refusal=NULL))
CALL = sent(id=STRING, type=one_of("function"), function=sent(name=STRING, arguments=STRING))
CALL_DELTA = sent(
    "id type",
    index=COUNT,
    id=STRING,
    type=one_of("function"),
    function=sent("name", name=STRING, arguments=STRING),
)
REASON = one_of("stop", "length", "tool_calls")
REASONING = {"reasoning_content": STRING, "reasoning": STRING}
REPLY = {"id": STRING, "created": COUNT, "model": STRING, "system_fingerprint": STRING}
CHAT = sent(
    **REPLY,
    object=one_of("chat.completion"),
    usage=USAGE,
    choices=items(
        sent(
            index=COUNT,
            message=sent(
                "reasoning_content reasoning tool_calls",
                role=one_of("assistant"),
                content=optional(STRING),
                refusal=NULL,
                tool_calls=items(CALL),
                **REASONING,
            ),
            logprobs=LOGPROBS,
            finish_reason=REASON,
        )
    ),
)
CHAT_CHUNK = sent(
    "usage",
    **REPLY,
    object=one_of("chat.completion.chunk"),
    usage=optional(USAGE),
    choices=items(
        sent(
            index=COUNT,
            delta=sent(
                "role content reasoning_content reasoning tool_calls",
                role=one_of("assistant"),
                content=STRING,
                tool_calls=items(CALL_DELTA),
                **REASONING,
            ),
            logprobs=LOGPROBS,
            finish_reason=optional(REASON),
        )
    ),
)
COMPLETION_CHOICE = sent(
    text=STRING,
    index=COUNT,
    finish_reason=one_of("stop", "length", None),
    logprobs=optional(
        sent(
            tokens=items(STRING),
            token_logprobs=items(optional(NUMBER)),
            top_logprobs=items(optional({"type": "object", "additionalProperties": NUMBER})),
            text_offset=items(COUNT),
        )
    ),
)
COMPLETION = {
    **REPLY,
    "object": one_of("text_completion"),
    "choices": items(COMPLETION_CHOICE),
}
COMPLETION_WHOLE = sent(**COMPLETION, usage=USAGE)
COMPLETION_CHUNK = sent("usage", **COMPLETION, usage=optional(USAGE))

STATUS = one_of("in_progress", "completed", "incomplete", "failed")
OUTPUT = either(
    sent(
        id=STRING,
        type=one_of("message"),
        status=STATUS,
        role=one_of("assistant"),
        content=items(
            sent(type=one_of("output_text"), text=STRING, annotations=items(ANY), logprobs=TOKENS)
        ),
    ),
    sent(
        id=STRING,
        type=one_of("reasoning"),
        status=STATUS,
        summary=items(ANY),
        content=items(sent(type=one_of("reasoning_text"), text=STRING)),
    ),
    sent(
        id=STRING,
        type=one_of("function_call"),
        status=STATUS,
        call_id=STRING,
        name=STRING,
        arguments=STRING,
    ),
)
RESPONSE = sent(
    id=STRING,
    object=one_of("response"),
    created_at=COUNT,
    status=STATUS,
    background=BOOLEAN,
    error=optional(sent(code=STRING, message=STRING)),
    incomplete_details=optional(sent(reason=STRING)),
    instructions=optional(STRING),
    max_output_tokens=optional(COUNT),
    metadata=OBJECT,
    model=STRING,
    output=items(OUTPUT),
    parallel_tool_calls=BOOLEAN,
    previous_response_id=optional(STRING),
    reasoning=sent(effort=optional(STRING), summary=NULL),
    store=BOOLEAN,
    temperature=NUMBER,
    text=OBJECT,
    tool_choice=ANY,
    tools=items(OBJECT),
    top_p=NUMBER,
    truncation=STRING,
    usage=optional(
        sent(
            input_tokens=COUNT,
            input_tokens_details=sent(cached_tokens=COUNT),
            output_tokens=COUNT,
            output_tokens_details=sent(reasoning_tokens=COUNT),
            total_tokens=COUNT,
        )
    ),
    user=ANY,
)
PLACE = {"item_id": STRING, "output_index": COUNT, "content_index": COUNT}
RESPONSE_EVENT = sent(
    "response item part delta text arguments name logprobs item_id output_index content_index",
    type={"type": "string", "pattern": "^response\\."},
    sequence_number=COUNT,
    response=RESPONSE,
    item=OBJECT,
    part=OBJECT,
    delta=STRING,
    text=STRING,
    arguments=STRING,
    name=STRING,
    logprobs=items(OBJECT),
    **PLACE,
)
RESPONSE_ERROR_EVENT = sent(
    type=one_of("error"),
    sequence_number=COUNT,
    code=optional(STRING),
    message=STRING,
    param=optional(STRING),
)
RESPONSE_COUNTED = sent(object=one_of("response.input_tokens"), input_tokens=COUNT)
DELETED = sent(id=STRING, object=one_of("response"), deleted=BOOLEAN)

ANTHROPIC_USAGE = {
    "input_tokens": COUNT,
    "cache_creation_input_tokens": COUNT,
    "cache_read_input_tokens": COUNT,
    "output_tokens": COUNT,
}
END = {
    "stop_reason": one_of("end_turn", "max_tokens", "tool_use", "stop_sequence", None),
    "stop_sequence": optional(STRING),
}
MESSAGE = sent(
    id=STRING,
    type=one_of("message"),
    role=one_of("assistant"),
    model=STRING,
    content=items(
        either(
            sent(type=one_of("text"), text=STRING),
            sent(type=one_of("thinking"), thinking=STRING, signature=STRING),
            sent(type=one_of("tool_use"), id=STRING, name=STRING, input=OBJECT),
        )
    ),
    usage=sent(**ANTHROPIC_USAGE),
    **END,
)
MESSAGE_EVENT = either(
    sent(type=one_of("message_start"), message=MESSAGE),
    sent(type=one_of("ping", "message_stop")),
    sent(type=one_of("content_block_start"), index=COUNT, content_block=OBJECT),
    sent(type=one_of("content_block_delta"), index=COUNT, delta=OBJECT),
    sent(type=one_of("content_block_stop"), index=COUNT),
    sent(type=one_of("message_delta"), delta=sent(**END), usage=sent(output_tokens=COUNT)),
    ANTHROPIC_ERROR,
)
COUNTED = sent(input_tokens=COUNT)

LINE = {"model": STRING, "created_at": STRING, "thinking": STRING, "done": BOOLEAN}
FIGURES = {
    "done_reason": STRING,
    "total_duration": COUNT,
    "load_duration": COUNT,
    "prompt_eval_count": COUNT,
    "prompt_eval_duration": COUNT,
    "eval_count": COUNT,
    "eval_duration": COUNT,
}
OLLAMA_CALL = sent(function=sent(name=STRING, arguments=OBJECT))
OLLAMA_MESSAGE = sent(
    "thinking tool_calls",
    role=one_of("assistant"),
    content=STRING,
    thinking=STRING,
    tool_calls=items(OLLAMA_CALL),
)
OLLAMA_CHAT = sent(" ".join(["thinking", *FIGURES]), **LINE, **FIGURES, message=OLLAMA_MESSAGE)
GENERATED = sent(" ".join(["thinking", *FIGURES]), **LINE, **FIGURES, response=STRING)
DETAILS = sent(
    parent_model=STRING,
    format=STRING,
    family=STRING,
    families=items(STRING),
    parameter_size=STRING,
    quantization_level=STRING,
)
LISTED: dict[str, Schema] = {
    "name": STRING,
    "model": STRING,
    "modified_at": STRING,
    "size": COUNT,
    "digest": STRING,
    "details": DETAILS,
    "loaded": BOOLEAN,
}
TAGS = sent(models=items(sent(**LISTED)))
RUNNING = sent(models=items(sent(**LISTED, size_vram=COUNT)))
SHOWN = sent(details=DETAILS, model_info=OBJECT, capabilities=items(STRING))
VERSION = sent(version=STRING)
VECTOR = items(NUMBER)
EMBEDDED = sent(
    model=STRING,
    embeddings=items(VECTOR),
    total_duration=COUNT,
    load_duration=COUNT,
    prompt_eval_count=COUNT,
)
EMBEDDINGS = sent(
    object=one_of("list"),
    data=items(
        sent(object=one_of("embedding"), index=COUNT, embedding=either(VECTOR, STRING)),
    ),
    model=STRING,
    usage=sent(prompt_tokens=COUNT, total_tokens=COUNT),
)
MODEL = sent(
    "context_length",
    id=STRING,
    object=one_of("model"),
    created=COUNT,
    owned_by=STRING,
    loaded=BOOLEAN,
    context_length=COUNT,
)
MODELS = sent(object=one_of("list"), data=items(MODEL))
TOKENIZED = sent(
    tokens=items(either(COUNT, sent(id=COUNT, piece=STRING))), count=COUNT, max_model_len=COUNT
)
DETOKENIZED = sent(content=STRING, prompt=STRING)
HEALTH = sent(status=one_of("loading", "ready", "failing"))
