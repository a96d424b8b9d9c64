"""Chat templates: what transformers renders is rendered, and what would never end is ended, in a sentence."""

import re

import pytest

from seqloom.hub import chat_template
from seqloom.hub.chat_template import ChatTemplate, TemplateFault
from seqloom.training.tokenizer import CHAT_TEMPLATE

ENOUGH = 10_000

GOOD = {
    CHAT_TEMPLATE: "今 天",
    "{{ messages[-1]['content'] | upper }}{{ eos_token }}": "今 天</s>",
    "{% for each in messages %}\n{{ '<|' + each.role + '|>' }}{{ each.content }}\n{% endfor %}": "<|user|>今 天\n",
    "{%- generation %}{{ messages | tojson }}{% endgeneration -%}  ": '[{"role": "user", "content": "今 天"}]',
    "{% if add_generation_prompt and not tools %}{{ strftime_now('%%') }}{% endif %}": "%",
    "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}": "01",
    "": "",
}

BOUNDLESS = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "it takes more than 0.5 seconds",
    "{{ 2 ** (10 ** 9) }}": "it takes more than 0.5 seconds",
    "{{ 'x' * 10 ** 10 }}": "it takes more than 1,024 MiB of memory",
    "{% set n = namespace(t='xxxx') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}": "MiB of memory",
    "{% for i in range(9999) %}{{ messages[0].content * 9 }}{% endfor %}": "it writes more than 10,000 characters",
    "{{ 'x' * 10001 }}": "it writes more than 10,000 characters",
    "{% for i in range(10 ** 9) %}x{% endfor %}": "OverflowError: Range too big. The sandbox blocks ranges larger than",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError: maximum recursion depth exceeded",
}
BROKEN = {
    "{{ messages[": "TemplateSyntaxError: ",
    "{{ nothing.at.all }}": "UndefinedError: 'nothing' is undefined",
    "{{ 1 // 0 }}": "ZeroDivisionError: ",
    "{{ raise_exception('No \n 今\x1b.') }}": "TemplateError: No 今\x1b",
    "{{ raise_exception('x' * 10 ** 6) }}": "TemplateError: xxx",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "SecurityError: ",
    "{% include '/etc/passwd' %}": "TypeError: no loader for this environment specified",
}


@pytest.fixture(scope="module")
def shared():
    """One process for all that leave it alive."""
    template = ChatTemplate("", {"eos_token": "</s>"})
    template.render("warm", ENOUGH)
    yield template
    template.close()


@pytest.mark.parametrize("template", GOOD)
def test_a_template_is_rendered_as_transformers_does(template, shared, char_tokenizer, monkeypatch):
    monkeypatch.setattr(shared, "_template", template)
    assert shared.render("今 天", ENOUGH) == GOOD[template]
    chat = [{"role": "user", "content": "今 天"}]
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    if template:
        assert char_tokenizer("a").apply_chat_template(chat, **options) == GOOD[template]


@pytest.mark.parametrize("template", [*BOUNDLESS, *BROKEN])
def test_a_template_without_end_is_ended_and_the_next_text_is_rendered(template, shared, monkeypatch):
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5 if "0.5" in BOUNDLESS.get(template, "") else 60)
    monkeypatch.setattr(shared, "_template", template)
    with pytest.raises(TemplateFault, match=re.escape((BOUNDLESS | BROKEN)[template])) as raised:
        shared.render("abc", ENOUGH)
    assert len(str(raised.value)) <= 200
    monkeypatch.undo()
    assert shared.render("abc", ENOUGH) == ""


def test_a_process_that_died_is_begun_anew():
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render("a", ENOUGH) == "a"
    template._process.kill()
    template._process.wait()
    assert template.render("b", ENOUGH) == "b"
    template.close()
    assert template.render("c", ENOUGH) == "c"
    template.close()
