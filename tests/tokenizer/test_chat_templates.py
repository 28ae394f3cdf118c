"""Chat templates as transformers renders them; what happens to hostile ones is in tests/attacks."""

from __future__ import annotations

import datetime
import re
import threading
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from exllama.errors import TemplateError, UsageError
from exllama.tokenizer.chat_template import ChatTemplate

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "  Why is the sky blue?\n"},
    {"role": "assistant", "content": "<think>physics</think>Rayleigh."},
    {"role": "user", "content": "naïve “quotes” & <b>tags</b> 🙂"},
]
_PARAMETERS = {"type": "object", "properties": {"a": {"type": "number"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": _PARAMETERS}}]

# The constructions that published templates are made of, each in the way that they use it.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_e"
        "nd|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system = false %}{% endif %}{% for m in loop_messages %}{% if loop.index0 == 0 and system %}"
        "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}"
        "{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ '<s>' + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' </s>' }}{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul 2024' %}"
        "\n{%- endif %}\n{% for m in messages %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.c"
        "ontent | trim ~ '<|eot_id|>' }}{% endfor %}{{ date_string }}"
    ),
    "namespace": (
        "{%- set ns = namespace(multi=true, last=messages|length - 1) %}\n{%- for message in messages[::-1] %}"
        "\n    {%- set index = (messages|length - 1) - loop.index0 %}"
        "\n    {%- if ns.multi and message.role == 'user' and message.content is string and not(message.conten"
        "t.startswith('<tool>')) %}\n        {%- set ns.multi = false %}\n        {%- set ns.last = index %}"
        "\n    {%- endif %}\n{%- endfor %}{{ ns.last }} {{ ns.multi }}"
    ),
    "thinking": (
        "{% for m in messages %}{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "|{{ m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] }}{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    ),
    "tools": (
        "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{{ tool.function | tojson(indent=4) }}"
        "{% for name, value in tool.function.parameters.properties.items() %}{{ name }}={{ value.type }}"
        "{% endfor %}{% endfor %}{% endif %}"
    ),
    "macro": (
        "{% macro show(m, last=false) %}[{{ m.role | upper }}] {{ m.content | trim }}{% if last %}"
        "!{% endif %}{% endmacro %}{% for m in messages %}{{ show(m, loop.last) }}{{ '; ' if not loop.last }}"
        "{% endfor %}"
    ),
    "call block": (
        "{% macro box() %}<{{ caller() }}>{% endmacro %}{% for m in messages %}{% call box() %}{{ m.role }}"
        "{% endcall %}{% endfor %}"
    ),
    "set block": (
        "{% set text %}{% for m in messages %}{{ m.role }} {% endfor %}{% endset %}"
        "{{ text | trim | replace('user', 'USER') }}"
    ),
    "filters": (
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | map('trim') | list "
        "| join(' / ') }} {{ messages | length }} {{ [3,1,2] | sort | first }}"
        " {{ {'b': 1, 'a': 2} | dictsort }} {{ 'x' | default('y') }} {{ nothing | default('y') }}"
        " {{ 3.7 | int }} {{ '5' | int + 1 }} {{ [1,2,3] | sum }} {{ 2.567 | round(1) }}"
        " {{ messages | rejectattr('role', 'equalto', 'user') | list | length }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index == 4 %}"
        "{% break %}{% endif %}{{ m.role }}{{ loop.previtem.role if loop.previtem }}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "blanks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  user\n    {% endif %}\n{% endfor %}\n",
    "indent": "{{ messages[0].content | indent(4) }}|{{ 'a\nb\n\nc' | indent(2, true) }}|{{ 'a\nb' | indent }}",
    "operators": (
        "{{ 7 // 2 }} {{ 7 % 2 }} {{ 2 ** 5 }} {{ 'ab' * 2 }} {{ '%s-%d' % ('x', 3) }} {{ [1] + [2] }}"
        " {{ 1.5 * 2 }} {{ 'a' in 'abc' }} {{ none }} {{ true }} {{ {'a': 1}['a'] }} {{ 'abc'[1:] }}"
        " {{ 'abc'[-1] }} {{ (1, 2)[0] }}"
    ),
    "strings": (
        "{{ 'a,b'.split(',') }} {{ 'x'.join(['a', 'b']) }} {{ 'abc'.find('c') }}"
        " {{ '{} and {}'.format(1, 'two') }} {{ 'aXb'.replace('X', '-') }} {{ 'Title case'.title() }}"
        " {{ ' x '.strip() }} {{ 'abc'.endswith('c') }}"
    ),
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(10, 0, -3) %}{{ i }},{% endfor %}",
    "escapes": "{{ '<a href=\"x\">&' | e }} {{ '<b>' | safe }} {{ messages[3].content }}",
    "undefined": "[{{ missing }}] [{{ messages[0].missing }}] {{ missing is defined }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers(name: str) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    template, tools = TEMPLATES[name], TOOLS if name == "tools" else None
    settings = {"tools": tools, "chat_template": template, "add_generation_prompt": True} | names
    expected = render_jinja_template([CONVERSATION], **settings)[0][0]
    allowed = {"tools": tools} if tools else {}
    assert ChatTemplate(template, names).render(CONVERSATION, **allowed) == expected


def test_arguments() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ add_generation_prompt }} {{ tools }}")
    assert template.render([], add_generation_prompt=False, enable_thinking=False) == "False False None"


def test_the_time() -> None:
    rendered = ChatTemplate("{{ strftime_now('%d %b %Y') }}").render([])
    assert rendered == datetime.datetime.now().strftime("%d %b %Y")


def test_a_template_that_refuses_its_messages() -> None:
    template = ChatTemplate("{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}ok")
    assert template.render([{"role": "user", "content": "x"}]) == "ok"
    with pytest.raises(TemplateError, match="refuses these messages: user first"):
        template.render([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(("source", "message"), [
    ("{% for %}", "TemplateSyntaxError"), ("{{ x.y.z }}", "UndefinedError"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ 'a' | nothing }}", "nothing"), ("{{ messages.x() }}", "UndefinedError"), ("{{ 'a' + 1 }}", "TypeError"),
])  # fmt: skip
def test_broken_templates(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render([])


@pytest.mark.parametrize("messages", [
    "text", {"role": "user"}, None, [5], [{}], [{"role": 5}], [{"role": "us er"}], [{"role": "a" * 65}],
    [{"role": "user", "content": object()}], [{"role": "user", 5: "x"}], [{"role": "<|im_end|>"}],
])  # fmt: skip
def test_messages_that_make_no_sense(messages: Any) -> None:
    with pytest.raises(UsageError):
        ChatTemplate("x").render(messages)


def test_messages_nested_too_deeply() -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    with pytest.raises(UsageError, match="nested"):
        ChatTemplate("x").render([{"role": "user", "content": deep}])


def test_control_tokens_are_cut_apart_wherever_they_stand() -> None:
    template = ChatTemplate("{{ messages[0].content }}|{{ messages[0].parts[0]['<end>'] }}|{{ tools }}|<end>")
    message = {"role": "user", "content": "a<end>b<e<end>nd>", "parts": [{"<end>": "v"}]}
    parts = template.render_parts([message], ["<end>", "nd>b"], True, tools=["<end>"])
    assert "".join(parts) == "a<end>b<e<end>nd>||['<end>']|<end>"  # the key of `parts` is another one now
    assert sum(part.count("<end>") for part in parts) == 1
    assert not any("nd>b" in part for part in parts)


def test_a_user_s_hieroglyphs_stay() -> None:
    """They are what marks the cuts, unless a text has them."""
    template = ChatTemplate("{{ messages[0].content }}")
    glyphs = "".join(chr(code) for code in range(0x13000, 0x133FF))
    message = {"role": "user", "content": glyphs + "<end>"}
    assert template.render_parts([message], ["<end>"], True) == [glyphs + "<", "end>"]
    with pytest.raises(UsageError, match="hieroglyph"):
        template.render([{"role": "user", "content": glyphs + chr(0x133FF)}])


def test_long_conversations() -> None:
    """Honest work of half a million characters stays within the budget."""
    messages = [{"role": "user", "content": f"message {index} " + "word " * 100} for index in range(1000)]
    text = ChatTemplate(TEMPLATES["thinking"]).render(messages)
    assert len(text) > 500_000
    assert len(re.findall("message 999", text)) == 1


def test_many_threads() -> None:
    template = ChatTemplate(TEMPLATES["namespace"] + "{{ messages[0].content }}")
    results: dict[int, str] = {}

    def work(index: int) -> None:
        results[index] = template.render([{"role": "user", "content": str(index)}])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {index: f"0 False{index}" for index in range(16)}
