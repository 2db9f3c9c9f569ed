"""Chat templates: what they see, which one is chosen, what messages and arguments may be."""

from __future__ import annotations

import json

import pytest
import vocabularies

from mlx_ferrum import gguf
from mlx_ferrum.template import ChatTemplates
from mlx_ferrum.tokenizer import Tokenizer

CHAT = """
{%- for message in messages %}
    <{{ message.role }}>{{ message['content'] | trim }}
{% endfor %}
{% if add_generation_prompt %}
<assistant>
{% endif %}
"""
MESSAGES = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": 'é <b> "q"', "parameters": {}}}


def tokenizer(**templates):
    """A tokenizer with chat templates by metadata key."""
    keys = {"tokenizer." + key.replace("__", "."): text for key, text in templates.items()}
    return Tokenizer.from_metadata(vocabularies.pairs("gpt-2") | keys)


def test_blocks_are_trimmed_as_templates_expect():
    made = tokenizer(chat_template=CHAT)
    assert made.has_chat_template
    assert made.apply_chat_template(MESSAGES) == (
        "    <system>Be brief.\n    <user>Hi\n<assistant>\n"
    )
    without = made.apply_chat_template(MESSAGES, add_generation_prompt=False)
    assert without == "    <system>Be brief.\n    <user>Hi\n"


def test_template_of_a_real_file(smollm2_path):
    made = Tokenizer.from_metadata(gguf.read(smollm2_path).metadata)
    assert made.apply_chat_template([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_tokens_tools_and_unknown_keys_are_passed_through():
    source = (
        "{{ bos_token }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
        "{% for m in messages %}{{ m.thought }}{% for c in m.tool_calls or [] %}{{ c.name }}{% endfor %}{% endfor %}"
        "{{ eos_token }}"
    )
    messages = [
        {"role": "user", "content": "x", "thought": "hm"},
        {"role": "assistant", "tool_calls": [{"name": "g"}]},
    ]
    made = tokenizer(chat_template=source + "{{ enable_thinking }}")
    text = made.apply_chat_template(messages, tools=[TOOL], enable_thinking=False)
    assert text == "<s>" + json.dumps(TOOL, ensure_ascii=False) + "hmg</s>False"


def test_the_template_for_tools_is_chosen_when_there_are_tools():
    made = tokenizer(
        chat_template="plain", chat_template__tool_use="with tools", chat_template__rag="r"
    )
    assert made.apply_chat_template(MESSAGES) == "plain"
    assert made.apply_chat_template(MESSAGES, tools=[]) == "plain"
    assert made.apply_chat_template(MESSAGES, tools=[TOOL]) == "with tools"
    assert tokenizer(chat_template="one").apply_chat_template(MESSAGES, tools=[TOOL]) == "one"


def test_a_long_conversation_passes():
    source = "{% for m in messages %}{{ '<' ~ m['role'] ~ '>' + m['content'].strip() }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200} for _ in range(2000)]
    text = tokenizer(chat_template=source).apply_chat_template(messages)
    assert len(text) == 2000 * len("<user>" + ("word " * 200).strip())


def test_no_template():
    made = tokenizer()
    assert not made.has_chat_template
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template: missing.*--raw"):
        made.apply_chat_template(MESSAGES)
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template\.rag: int found"):
        ChatTemplates.from_metadata({"tokenizer.chat_template.rag": 1})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages: str found, expected a list"),
        ({"role": "user"}, "messages: dict found"),
        (["Hi"], r"messages\[0\]: str found"),
        ([*MESSAGES, {"content": "Hi"}], r"messages\[2\]: role None found"),
        ([{"role": 1, "content": "Hi"}], r"messages\[0\]: role 1 found"),
        ([{"role": "user", "content": 1}], r"messages\[0\]: content of type int found"),
        ([{"role": "user"}], r"messages\[0\]: no content found"),
        ([{"role": "user", "content": None}], r"messages\[0\]: no content found"),
    ],
)
def test_messages_are_checked(messages, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(chat_template=CHAT).apply_chat_template(messages)


def test_errors_name_the_template_and_the_line():
    made = tokenizer(chat_template="a", chat_template__tool_use="a\n{% if %}")
    with pytest.raises(
        ValueError, match=r"tokenizer\.chat_template\.tool_use: line 2: syntax error"
    ):
        made.apply_chat_template(MESSAGES, tools=[TOOL])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (5, "tools: int found, expected a list of dicts"),
        ({"type": "function"}, "tools: dict found"),
        ([len], r"tools\[0\]: builtin_function_or_method found"),
        ([{"type": len}], "must be plain values: Object of type builtin"),
    ],
)
def test_tools_are_checked(tools, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(chat_template=CHAT).apply_chat_template(MESSAGES, tools=tools)


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(ValueError, match="plain values: 'utf-8' codec can't encode"):
        tokenizer(chat_template=CHAT).apply_chat_template([{"role": "user", "content": "\udcff"}])


def test_only_arguments_that_the_template_uses_are_taken():
    source = (
        "{{ 'think' if enable_thinking is not defined or enable_thinking }}"
        "{% if not date is defined %}{% set date = '26 Jul' %}{% endif %}{{ date }}{{ messages | length }}"
    )
    made = tokenizer(chat_template=source, chat_template__tool_use="{{ tools | length }}")
    assert made.apply_chat_template(MESSAGES) == "think26 Jul2"
    assert made.apply_chat_template(MESSAGES, enable_thinking=False, date="x") == "x2"
    with pytest.raises(
        ValueError, match=r"does not use 'thinking'; its own .*: date, enable_thinking$"
    ):
        made.apply_chat_template(MESSAGES, thinking=False)
    with pytest.raises(ValueError, match=r"tool_use: does not use 'date'; its own .*: none$"):
        made.apply_chat_template(MESSAGES, tools=[TOOL], date="x")


PARTS = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
READS_PARTS = """{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}
{% for part in m.content %}{% if part.type == 'text' %}<{{ part.text }}>{% endif %}{% endfor %}
{% endif %}{% endfor %}"""


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "Hi there"),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", "Hi there"),
        ("{% for m in messages %}{{ '-' + m.content }}{% endfor %}", "-Hi there"),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", '"Hi there"'),
        (READS_PARTS, "<Hi ><there>"),
    ],
)
def test_content_may_be_a_list_of_text_parts(source, text):
    """Templates that read parts get them; the others get the text of the parts."""
    made = tokenizer(chat_template=source)
    messages = [{"role": "user", "content": PARTS}]
    assert made.apply_chat_template(messages) == text
    assert made.apply_chat_template([{"role": "user", "content": "x"}]) == text.replace(
        "<Hi ><there>", "x"
    ).replace("Hi there", "x")


def test_other_parts_need_a_template_that_reads_parts():
    messages = [{"role": "user", "content": [{"type": "image"}, *PARTS]}]
    assert tokenizer(chat_template=READS_PARTS).apply_chat_template(messages) == "<Hi ><there>"
    with pytest.raises(ValueError, match=r"messages\[0\]: a part of type 'image' found"):
        tokenizer(chat_template="{{ messages }}").apply_chat_template(messages)
    with pytest.raises(ValueError, match=r"messages\[0\]: a text part without text"):
        tokenizer(chat_template=CHAT).apply_chat_template(
            [{"role": "user", "content": [{"type": "text"}]}]
        )


def test_a_reply_can_be_begun():
    made = tokenizer(chat_template=CHAT)
    begun = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    expected = made.apply_chat_template(MESSAGES) + "Well, "
    assert made.apply_chat_template(begun, continue_final_message=True) == expected
    assert (
        made.apply_chat_template(begun, add_generation_prompt=False, continue_final_message=True)
        == expected
    )
    for bad in (MESSAGES, [], [*MESSAGES, {"role": "assistant", "tool_calls": []}]):
        with pytest.raises(ValueError, match=r"messages: the last has role .*expected 'assistant'"):
            made.apply_chat_template(bad, continue_final_message=True)
