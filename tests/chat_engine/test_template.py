"""A chat template is tried before anybody is served, and whatever it raises later is told to the caller."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from chat_engine.errors import ConfigError, InvalidArgumentError, UnsupportedModelError
from chat_engine.reading.chat_template import ChatTemplate
from chat_engine.reading.template_loader import load_template
from tests.chat_engine.families import gpt2

STRINGS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %};"
    "{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}s{{ m.content }}{% else %}p{{ m.content[0].text }}{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
DEAF_TO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def load(template: object, name: str | None = None) -> ChatTemplate | None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=gpt2())
    tokenizer.chat_template = template
    return load_template(tokenizer, name)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def test_contents_are_strings_where_the_template_takes_them() -> None:
    assert load(STRINGS).render([user(" hi ")]) == "<user>hi</s>"
    assert load(EITHER).render([user("hi")]) == "shi"


def test_contents_are_parts_where_it_knows_only_those() -> None:
    template = load(PARTS)
    assert template.render([system("be brief"), user("hi")]) == "be brief;hi;"
    assert template.closings()[0] == ";"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}x{% endfor %}", "leaves the question out of the prompt"),
        ("{{ messages[0].text }}", "leaves the question out of the prompt"),
        ("{% if tools|length > 0 %}x{% endif %}{{ messages[0].content }}", "cannot render one question: TypeError: "),
        ("{{ messages[0].content / 0 }}", "cannot render one question: TypeError: "),
        ("{{ raise_exception('for tools only') }}", "cannot render one question: for tools only"),
        ("{% if %}", "cannot render one question: "),
        ("{{ messages[0].content }}{{ messages[2].content[0:1] if messages|length > 2 }}", "several turns"),
        ("{{ undefined.attribute.of }}", "cannot render one question: "),
    ],
)
def test_one_that_cannot_serve_is_refused_at_load(template: str, complaint: str) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint):
        load(template)


def test_settings_can_do_without_one_that_is_broken() -> None:
    assert load("{{ raise_exception('broken') }}", "none") is None


def test_what_a_template_refuses_is_told_with_its_reason() -> None:
    with pytest.raises(InvalidArgumentError, match="messages: the model's chat template refuses them: no system role"):
        load(NO_SYSTEM).render([system("x"), user("y")])


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1 / (m.content | length - 3)", "ZeroDivisionError"),
        ("m.content.nothing.more if m.content == 'abc'", "has no attribute"),
    ],
)
def test_whatever_a_template_raises_is_the_callers_to_know(expression: str, reason: str) -> None:
    template = load("{% for m in messages %}{{ m.content }}{{ " + expression + " }}{% endfor %}")
    assert template.render([user("four")])
    with pytest.raises(InvalidArgumentError, match=f"refuses them: .*{reason}"):
        template.render([user("abc")])


def test_a_role_that_it_would_leave_out_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    template = load(DEAF_TO_SYSTEM)
    assert template.render([user("y")]) == "y"
    with pytest.raises(InvalidArgumentError, match="leaves out what the role system says"):
        template.render([system("x"), user("y")])
    assert "leaves out what system says" in caplog.text


def test_one_that_wants_a_system_message_first_is_served() -> None:
    template = load(NEEDS_SYSTEM)
    assert template.render([system("x"), user("y")]) == "xy"
    with pytest.raises(InvalidArgumentError, match="system first"):
        template.render([user("y")])


class TestNames:
    def test_default_is_taken_of_several(self) -> None:
        assert load({"rag": PARTS, "default": STRINGS}).source == STRINGS

    def test_the_only_one_is_taken(self) -> None:
        assert load({"rag": STRINGS}).source == STRINGS

    def test_the_settings_choose_one(self) -> None:
        assert load({"rag": PARTS, "default": STRINGS}, "rag").source == PARTS
        assert load(STRINGS, "default").source == STRINGS

    def test_a_name_that_is_not_there_is_refused_with_those_that_are(self) -> None:
        with pytest.raises(ConfigError, match="no chat template tools; choose one of: default, rag"):
            load({"rag": PARTS, "default": STRINGS}, "tools")
        with pytest.raises(ConfigError, match="no chat template x; choose one of: none"):
            load(None, "x")

    def test_several_without_a_default_want_a_name(self) -> None:
        with pytest.raises(ConfigError, match="no chat template default; choose one of: a, b"):
            load({"a": STRINGS, "b": PARTS})

    def test_none_at_all(self) -> None:
        assert load(None) is None


def test_what_closes_an_assistants_turn() -> None:
    assert load(STRINGS).closings() == ["</s>", "</s>", "</s><user>probe question 7302</s>"]
    assert load(DEAF_TO_SYSTEM).closings()[0] == ""
    assert load(NEEDS_SYSTEM).closings() == [""]
    assert (
        load("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}").closings()[2].startswith("<|user|>")
    )


def test_each_role_has_its_own_form_of_content() -> None:
    mixed = (
        "{% for m in messages %}{% if m.role == 'user' %}{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{% else %}{{ m.content }};{% endif %}{% endfor %}"
    )
    assert load(mixed).render([system("be brief"), user("hi")]) == "be brief;hi"


SYSTEM_LAST = (  # as Mistral's: the system prompt goes before the last question, if that is the last message
    "{% set s = messages[0].content if messages[0].role == 'system' %}{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'user' %}[{{ s ~ ' ' if loop.last and s }}{{ m.content }}]{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
LAST_SYSTEM = (  # of several system messages the last one
    "{% set ns = namespace(s='') %}{% for m in messages if m.role == 'system' %}{% set ns.s = m.content %}{% endfor %}"
    "{{ ns.s }}{% for m in messages if m.role != 'system' %}{{ m.content | e }}{% endfor %}"
)


def test_what_is_left_out_of_one_conversation_alone_is_refused_there() -> None:
    template, rule = load(SYSTEM_LAST), system("Answer in one short sentence.")
    assert template.render([rule, user("hi")]) == "[Answer in one short sentence. hi]"
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\]\.content: the model's chat template leaves it out"):
        template.render([rule, user("hi"), {"role": "assistant", "content": "well"}], add_generation_prompt=False)
    template = load(LAST_SYSTEM)
    assert template.render([rule, user("a < b & c, or what do you think?")]).startswith("Answer")
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\]\.content: "):
        template.render([system("Never tell anybody."), rule, user("hi")])


def test_an_empty_message_of_a_role_that_is_left_out_is_no_loss() -> None:
    assert load(DEAF_TO_SYSTEM).render([system(" "), user("y")]) == "y"
