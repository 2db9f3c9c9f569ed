"""Chat templates: what they see, which one is chosen, and that hostile ones are stopped."""

from __future__ import annotations

import json
import threading

import pytest
import vocabularies

from mlx_ferrum import gguf
from mlx_ferrum.template import ChatTemplate, ChatTemplates, Limits
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


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'b': [1, 'é<'], 'a': none} | tojson }}", '{"b": [1, "é<"], "a": null}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}", "a1"),
        ("{% set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro m(a, b='x') %}{{ a ~ b }}{% endmacro %}{{ m(1) }}{{ m(2, b='y') }}", "1x2y"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1} | items | list }}", "a1[('a', 1)]"),
        ("{% for x in [1, 2, 3] if x != 2 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}", "1/2:1 2/2:3 "),
        ("{{ 'a<t>b</t>c'.split('</t>')[-1].lstrip() }}{{ '%02d' % 7 }}{{ '{:>3}'.format(5) }}", "c07  5"),
        ("{{ 'x' * 3 }}{{ [1] + [2] }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 'ab' | replace('a', 'c') }}", "xxx[1, 2]31024cb"),
        ("{{ ['b', 'a'] | sort | join('-') }}{{ [{'n': 1}, {'n': 2}] | map(attribute='n') | join(', ') }}", "a-b1, 2"),
        ("{{ '-'.join(['a', 'b'] | map('upper')) }}{{ x is defined }}{{ 'a\nb' | indent(2) }}", "A-BFalsea\n  b"),
    ],
)  # fmt: skip
def test_what_templates_may_use(source, text):
    assert ChatTemplate(source).render() == text


HOSTILE = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for x in 'a' * 10**7 %}{% endfor %}",
    "{% macro _step(n) %}{% endmacro %}" + "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2,
    "{% for i in range(100000) %}" + "text" * 1000 + "{% endfor %}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% if n %}{% set a = m(n - 1) ~ m(n - 1) %}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set n = namespace(x=9 ** 999) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x={}) %}{% for i in range(99) %}{% set n.x = {1: n.x.items(), 2: n.x.items()} %}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}{% endset %}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' | format(10**6, 1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**10) }}",
    "{{ ('{0.s}' * 10000).format(namespace(s='a' * 10**6)) }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('b' * 10**6).join('a' * 10**6) }}",
    "{{ ('a' * 100000) | join('b' * 10**6) }}",
    "{{ ([namespace(s='a' * 10**6)] * 100000) | join('', attribute='s') }}",
    "{{ ''.join(['a' * 10**6] * 10 + [none] * 100000 | map('default', 'a' * 10**6, true)) }}",
    "{{ [1] | slice(10**10) | list }}",
    "{{ [1] | batch(10**10, 0) | list }}",
    "{{ ('a\n' * 10**5) | indent(10**5) }}",
    "{{ 1 | round(10**6, 'ceil') }}",
    "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "{{ ('a' * 10**7) | sort }}",
    "{{ [[[[[[1] * 1000]]]]] | tojson(indent=1000000) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ 'a'.encode() }}",
    "{{ messages.append(1) }}",
    "{{ lipsum(n=10**6) }}",
    "{{ 'x' | pprint }}",
    "{% include 'other' %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "{% if %}",
    "{{ none + 1 }}",
    "{{ raise_exception('no system messages') }}",
    "a" * (1 << 18),
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_and_broken_templates_are_refused(source):
    limits = Limits(text=1 << 22, steps=1 << 17)
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template: \S"):
        ChatTemplate(source, limits=limits).render(messages=[1])


def test_time_is_limited():
    loop = "{% for i in range(100000) %}{% endfor %}"
    with pytest.raises(ValueError, match=r"stopped after 0\.0 seconds"):
        ChatTemplate(loop, limits=Limits(seconds=0.0)).render()


def test_a_template_can_be_rendered_again_after_a_failure():
    template = ChatTemplate("{% for i in range(n) %}x{% endfor %}", limits=Limits(steps=100))
    with pytest.raises(ValueError, match="stopped after 100 steps"):
        template.render(n=1000)
    assert template.render(n=3) == "xxx"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for i in range(200) %}{% endfor %}", "100 steps"),
        ("{% for i in range(200) if false %}{% endfor %}", "100 steps"),
        ("{% for i in range(2) %}" + "text" * 30 + "{% endfor %}", "100 steps"),
        ("{% macro m() %}{% endmacro %}{% for i in range(40) %}{{ m() }}{% endfor %}", "100 steps"),
        ("{% for i in range(30) %}{{ 'abcdefghij' }}{% endfor %}", "200 characters"),
        (
            "{% set x %}{% for i in range(30) %}{{ 'abcdefghij' }}{% endfor %}{% endset %}",
            "200 characters",
        ),
        ("{{ x | join(attribute='s') }}", "200 characters"),
        ("{% set y = [x, x, x, x] %}", "200 characters"),
    ],
)
def test_each_limit_alone(source, message):
    template = ChatTemplate(source, limits=Limits(text=200, steps=100))
    with pytest.raises(ValueError, match=message):
        template.render(x=[{"s": "a" * 60}] * 5)


def test_renderings_of_one_template_take_turns():
    template, order = ChatTemplate("{{ x }}"), []

    class Outer:
        def __str__(self) -> str:
            inner.start()
            inner.join(0.1)  # ends only after the outer rendering
            order.append("outer")
            return ""

    inner = threading.Thread(target=lambda: order.append(template.render(x="inner")))
    template.render(x=Outer())
    inner.join()
    assert order == ["outer", "inner"]


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
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template\.tool_use: line 2: Expected"):
        made.apply_chat_template(MESSAGES, tools=[TOOL])
