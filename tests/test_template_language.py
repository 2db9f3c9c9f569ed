"""Templates give the text that Jinja gives in transformers' environment."""

from __future__ import annotations

import itertools

import pytest
import transformers_jinja

from mlx_ferrum.template import ChatTemplate
from mlx_ferrum.template.process import Renderer

CALL = {
    "id": "call00001",
    "type": "function",
    "function": {
        "name": "weather",
        "arguments": {"city": "Zürich", "days": 2, "scale": 1.0, "far": 1e20, "near": 1e-7},
    },
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The wéather <now> & "later".',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
            "required": ["city"],
        },
    },
}
USER = {"role": "user", "content": "  What's 2 < 3?\n"}
CONVERSATIONS = {
    "plain": [USER],
    "system": [
        {"role": "system", "content": "Be brief. "},
        USER,
        {"role": "assistant", "content": " Yes."},
        USER,
    ],
    "tools": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": '{"t": 20}'},
    ],
    "no content": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "reasoning": [
        USER,
        {
            "role": "assistant",
            "content": "<think>\neasy\n</think>\n\nYes",
            "reasoning_content": "hm",
        },
        USER,
    ],
}
# Templates of this project's own, which use what those of models do.
TEMPLATES = [
    """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{% for message in messages %}
[{{ message.role | upper }}] {{ message['content'] or '-' }}
    {% if loop.last and add_generation_prompt %}
[ASSISTANT]
    {% endif %}
{% endfor %}{{ system_message }}
""",
    """{%- set ns = namespace(last=-1, found=false, list=[]) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if not ns.found and m.role == 'user' %}{% set ns.found = true %}{% set ns.last = index %}{% endif %}
    {%- set ns.list = ns.list + [m.role] %}
{%- endfor %}
{{- ns.last }}{{ ns.list | join(',') }}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {{- '(' + thought + ')' }}
    {%- endif %}
    {%- if m.reasoning_content is defined and m.reasoning_content %}{{ '{' ~ m.reasoning_content ~ '}' }}{% endif %}
    {{- '<|' ~ m.role ~ '|>' + content + '\\n' }}
{%- endfor %}""",
    """{%- macro typed(name, spec, deep=false) -%}
    {{ name }}: {% if spec.enum is defined %}{{ spec.enum | map('tojson') | join(' | ') }}
    {%- else %}{{ spec.type }}{% endif %}
    {%- if deep %}!{% endif %}
{%- endmacro %}
{%- if tools is iterable and tools | length > 0 %}
    {%- for tool in tools | selectattr('type', 'equalto', 'function') %}
        {%- for name, spec in tool.function.parameters.properties.items() %}
{{ typed(name, spec) }}{{ ', ' if not loop.last }}
        {%- endfor %}
{{ tool | tojson }}
{{ tool.function | tojson(indent=4) }}
{{ tool.function.parameters.properties | dictsort }}
    {%- endfor %}
{%- endif %}
{%- for m in messages %}
    {%- for call in m.tool_calls or [] %}
        {%- set call = call.function if call.function is defined else call %}
{{ call.name }}({% for k, v in call.arguments.items() %}
{{ k }}={{ v }}|{{ v | tojson }}{% if v is number %}#{% endif %} {% endfor %})
{{ call.arguments | tojson(sort_keys=true, separators=(',', ':')) }} {{ call.arguments }}
    {%- endfor %}
{%- endfor %}""",
    """{% for m in messages %}
  {#- a comment -#}
  {%- if m.role == 'tool' %}{% continue %}{% endif %}
  {% generation %}
<{{ m.role }}>{{ m.get('content') }}{% endgeneration -%}
  {%- if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{{ messages | map(attribute='role') | list }} {{ (messages | last).role }}
""",
]  # fmt: skip
FEATURES = [
    "{{ {'b': [1, 'é<'], 'a': none} | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}",
    "{{ strftime_now('%Y-%m') }}",
    "{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 4 / 2 }} {{ 2 ** 10 }} {{ 10 ** 20 }}",
    "{{ none }}{{ true }}{{ nothing }}{{ [1, 'x', none, 1.5] }}{{ {'a': (1, 2)} }}{{ \"it's\" ~ [\"it's\"] }}",
    "{{ none is iterable }}{{ 'a' is iterable }}{{ {} is mapping }}{{ nothing is defined }}",
    "{{ nothing is iterable }}{{ nothing is not sequence }}{{ not none is sequence }}",
    "{{ {'a': nothing}.a is iterable }}{{ 'a' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}",
    "{% if tools is iterable and tools | length > 0 %}x{% endif %}a is iterable",
    "{{ x is number }}{{ x is float }}{{ x is string }}{{ x is mapping }}{{ x is iterable }}",
    "{% for x in [4, 5] %}{{ loop.index }}{{ loop.first }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{% for x in [4, 5] %}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}{% else %}-{% endfor %}",
    "{% for x in [1, 2, 3] if x != 2 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{% endcall %}",
    "{% set a, b = 1, 2 %}{% set c %}{{ a }}-{{ b }}{% endset %}{{ c }}{% set d | upper %}q{% endset %}{{ d }}",
    "{% filter upper %}a{% endfilter %}{% raw %}{{ x }}{% endraw %}{% with a = 3 %}{{ a }}{% endwith %}",
    "{{ 'a<t>b</t>c'.split('</t>')[-1].lstrip() }}{{ ' x '.strip() }}",
    "{{ 'ab'.replace('a', 'c') }}{{ 'ab'.startswith(('b', 'a')) }}{{ 'ab'.find('b') }}",
    "{{ '{:>3}{}'.format(5, 'x') }}{{ '%s-%03d' | format('a', 7) }}{{ 'a b'.split() }}",
    "{{ '-'.join(['a', 'b']) }}{{ 'aXb'.lower().title() }}",
    "{{ ['b', 'a'] | sort | join('-') }}{{ [1, 2, 3] | sum }}{{ [1, 1] | unique | list }}",
    "{{ 'abc' | first }}{{ [3, 1] | max }}{{ range(5) | batch(2) | list }}",
    "{{ 'a\nb\n\nc' | indent(2) }}{{ 'a' | default('b') }}{{ '' | default('b', true) }}",
    "{{ 'abc'[::-1] }}{{ [1, 2, 3][:-1] }}{{ [1, 2, 3][-1] }}",
    "{{ {'a': 1} | items | list }}{{ {'a': 1}.get('b', 2) }}{{ 'a' in {'a': 1} }}{{ 1 < 2 < 3 }}{{ nothing or 'x' }}",
    "{{ x | tojson }}{{ x }}{{ [x] | tojson }}",
    "a\n", "a\n\n", "  {{ 1 }}\n", "{% if true %}\n\n a{% endif %}\n\nb", "  {#- c #}\n b\n {# d #}\nc",
    "{%- if true %}\r\na\r\n{% endif %}\r\nb", "\t{%- if true %}\n a\n\t{%- endif %}\n",
    "{%+ if true %}x{% endif +%}\n\ny",
]  # fmt: skip


@pytest.fixture(scope="module")
def renderer():
    return Renderer()


@pytest.mark.parametrize(("source", "name"), list(itertools.product(TEMPLATES, CONVERSATIONS)))
def test_conversations(renderer, source, name):
    template = ChatTemplate(source, renderer=renderer)
    for tools, prompt in itertools.product((None, [TOOL, TOOL]), (False, True)):
        variables = {
            "messages": CONVERSATIONS[name],
            "tools": tools,
            "add_generation_prompt": prompt,
            "bos_token": "<s>",
        }
        assert template.render(**variables) == transformers_jinja.render(source, **variables)


@pytest.mark.parametrize("source", FEATURES)
def test_what_templates_may_use(renderer, source):
    for x in (2.0, 1e20, 1.5, 3):
        text = ChatTemplate(source, renderer=renderer).render(x=x)
        assert text == transformers_jinja.render(source, x=x)


def test_text_marked_as_safe_is_text():
    """Jinja escapes what is added to it even where nothing else is escaped; models should see none of it."""
    source = "{{ 'a' | safe + '<b>' }}"
    assert transformers_jinja.render(source) == "a&lt;b&gt;"
    assert ChatTemplate(source).render() == "a<b>"
