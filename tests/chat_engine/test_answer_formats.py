"""Which format a model has: tried on what its chat template writes, instead of listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chat_engine.answer_format import AnswerFormat
from chat_engine.errors import ConfigError
from chat_engine.reading.format_finder import _without_end, find_format
from chat_engine.reading.template_loader import load_template
from chat_engine.request import Reply
from chat_engine.text.answer_formats import known_formats
from chat_engine.text.answer_parts import AnswerParts, Kind
from tests.chat_engine.answers import ARGUMENTS, HERMES, ONE, TOOLS, joined
from tests.chat_engine.builders import byte_level_tokenizer

# What matters here of the families' published templates.
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{%- for c in m.tool_calls or [] %}CALL{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN25 = CHATML.replace(
    "CALL",
    """{{- '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) }}"""
    "{{- '}\n</tool_call>' }}",
)
QWEN3 = QWEN25 + "{#- content.split('</think>')[-1] -#}"
QWEN_CODER = CHATML.replace(
    "CALL",
    "{{- '\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{%- for k, v in c.function.arguments | items %}{{- '<parameter=' + k + '>\n' }}"
    "{{- (v if v is string else v | tojson) + '\n</parameter>\n' }}{%- endfor %}"
    "{{- '</function>\n</tool_call>' }}",
)
LLAMA = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.tool_calls %}"
    "{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at most') }}{%- endif %}"
    "{%- set c = m.tool_calls[0].function %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    """{{- '{"name": "' + c.name + '", ' + '"parameters": ' }}{{- c.arguments | tojson }}{{- '}<|eot_id|>' }}"""
    "{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{%- endif %}"
    "{%- endfor %}"
)
MISTRAL_LIST = (
    "{%- for m in messages %}{%- if m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}"
    "{%- set out = c.function | tojson %}{{- out[:-1] }}"
    "{%- if c.id | length != 9 %}{{- raise_exception('a call has an id of length 9') }}{%- endif %}"
    """{{- ', "id": "' + c.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}{%- endfor %}"""
    "{%- elif m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{- m.content or '' }}{%- for c in m.tool_calls or [] %}"
    "{%- set a = c.function.arguments %}{%- if a is not string %}{%- set a = a | tojson %}{%- endif %}"
    "{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + a }}{%- endfor %}{{- eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL_BARE = MISTRAL.replace("'[ARGS]' + ", "")
DEEPSEEK_R1 = (  # arguments must be texts, and the content none
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
    "{%- elif m.content is none %}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{%- for c in m.tool_calls %}"
    "{{- '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' }}"
    "{{- c.function.arguments + '\n```<｜tool▁call▁end｜>' }}{%- endfor %}"
    "{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{%- elif m.role == 'tool' %}"
    "{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{%- elif m.role == 'assistant' %}"
    "{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
)
DEEPSEEK_V31 = DEEPSEEK_R1.replace(
    "c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n'", "c.function.name + '<｜tool▁sep｜>'"
).replace("'\n```<｜tool▁call▁end｜>'", "'<｜tool▁call▁end｜>'")
GRANITE = (
    "{%- for m in messages %}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' }}{%- if m.tool_calls %}"
    "{{- '<|tool_call|>' + (m.tool_calls | map(attribute='function') | list | tojson) }}"
    "{%- else %}{{- m.content }}{%- endif %}{{- '<|end_of_text|>\n' }}{%- endfor %}"
)
PHI4 = "{%- for m in messages %}{{- '<|' + m.role + '|>' + (m.content or '') + '<|end|>' }}{%- endfor %}"
NEEDS_A_RESULT = QWEN25 + "{%- if messages[-1].tool_calls %}{{- raise_exception('a result must follow') }}{%- endif %}"


def loaded(template: str | dict[str, str], *tokens: str, **more: Any) -> PreTrainedTokenizerBase:
    backend = byte_level_tokenizer()
    backend.add_tokens(list(tokens))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template, **more
    )


def found(template: str | dict[str, str], *tokens: str, setting: str | None = None, **more: Any) -> AnswerFormat | None:
    tokenizer = loaded(template, *tokens, **more)
    return find_format(tokenizer, tokenizer.backend_tokenizer, load_template(tokenizer, None), setting)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (QWEN25, "hermes"),
        (QWEN3, "hermes"),
        (NEEDS_A_RESULT, "hermes"),
        (QWEN_CODER, "qwen3_coder"),
        (LLAMA, "llama3"),
        (MISTRAL_LIST, "mistral_list"),
        (MISTRAL, "mistral"),
        (MISTRAL_BARE, "mistral"),
        (DEEPSEEK_R1, "deepseek_v3"),
        (DEEPSEEK_V31, "deepseek_v31"),
        (GRANITE, "granite"),
        (GRANITE.replace("<|tool_call|>", "<tool_call>"), "granite"),
    ],
)
def test_what_the_template_writes(template: str, name: str) -> None:
    one = found(template)
    assert one is not None
    assert one.name == name
    assert one.call is not None


def test_by_its_tokens_where_the_template_writes_no_calls() -> None:
    assert found(PHI4) is None
    one = found(PHI4, "<|tool_call|>", "<|/tool_call|>")
    assert one is not None
    assert one.name == "phi4"


def test_reasoning_only_where_its_tags_are_known() -> None:
    def reasons(one: AnswerFormat | None) -> bool:
        assert one is not None
        parts = AnswerParts(Reply(one))
        read = [*parts.feed("<think>a</think>b"), *parts.finish()]
        return any(part.kind is Kind.REASONING for part in read)

    assert not reasons(found(QWEN25))
    assert reasons(found(QWEN3))
    assert reasons(found(QWEN25, "<think>", "</think>"))
    assert reasons(found(QWEN25, setting="hermes"))
    assert found(CHATML) is None
    plain = found(CHATML, "<think>", "</think>")
    assert plain is not None
    assert plain.name == "think"


def test_without_the_tags_the_prompt_says_nothing_of_the_answer() -> None:
    one = found(LLAMA)
    assert one is not None
    text = '{"name": "now", "parameters": {}}'
    parts = AnswerParts(Reply(one, TOOLS, prefix="<|start_header_id|>assistant<|end_header_id|>\n\n"))
    assert joined([d for part in [*parts.feed(text), *parts.finish()] for d in part.calls]) == (("now", "{}"),)


def test_the_template_for_tools_is_the_one_that_tells() -> None:
    """Where a checkpoint ships one beside the default, which may know nothing of calls."""
    one = found({"default": PHI4, "tool_use": MISTRAL})
    assert one is not None
    assert one.name == "mistral"


def test_the_setting() -> None:
    assert found(QWEN25, setting="none") is None
    for name, ours in known_formats().items():
        assert found(QWEN25, setting=name) is ours
    with pytest.raises(ConfigError, match=r"answer_format: there is no format herms; choose one of: .*hermes.*, none"):
        found(QWEN25, setting="herms")


def test_no_template_no_format() -> None:
    tokenizer = loaded(QWEN3)
    assert find_format(tokenizer, tokenizer.backend_tokenizer, None, None) is None


SHIPPED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<reason>", "close": "</reason>"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>"},
    },
}
FOREIGN = json.loads(json.dumps(SHIPPED).replace("tool_call>", "do>"))


def parsed(one: AnswerFormat, text: str, prefix: str = "<|im_start|>assistant\n") -> tuple[str, str, Any, int]:
    """Content, reasoning, calls and the number of deltas, in single characters."""
    parts = AnswerParts(Reply(one, TOOLS, prefix))
    read = [*(part for char in text for part in parts.feed(char)), *parts.finish()]
    deltas = [delta for part in read for delta in part.calls]
    texts = ["".join(part.text for part in read if part.kind is kind) for kind in (Kind.CONTENT, Kind.REASONING)]
    return texts[0], texts[1], joined(deltas), len(deltas)


def test_what_the_checkpoint_ships_comes_first() -> None:
    """With our syntax of calls where that reads the same, so that their arguments are streamed."""
    one = found(QWEN25, response_template=SHIPPED)
    assert one is not None
    assert one.template == SHIPPED
    assert one.call is known_formats()["hermes"].call
    content, reasoning, calls, deltas = parsed(one, f"<reason>\nhm</reason>\nOk.\n{HERMES}\n<|im_end|>\n")
    assert (content, reasoning, calls) == ("Ok.", "hm", (ONE,))
    assert deltas > 10
    assert parsed(one, "hm</reason>ok", "<|im_start|>assistant\n<reason>\n")[:2] == ("ok", "hm")
    assert found(QWEN25, setting="none", response_template=SHIPPED) is None


def test_a_shipped_format_that_we_do_not_know() -> None:
    """Its calls are read when they are complete; nonsense is content, and does not raise."""
    one = found(QWEN25.replace("tool_call>", "do>"), response_template=FOREIGN)
    assert one is not None
    assert one.call is None
    assert parsed(one, HERMES.replace("tool_call>", "do>"))[2] == (
        ("get_weather", json.dumps(json.loads(ARGUMENTS), ensure_ascii=False)),
    )
    assert parsed(one, "a <do>no</do> b")[:3] == ("a <do>no</do> b", "", ())
    assert parsed(one, 'a <do>{"name": "now"')[:3] == ('a <do>{"name": "now"', "", ())


def test_a_shipped_format_that_is_none_is_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    one = found(QWEN25, response_template={"fields": {"content": {"content": "pictures"}}})
    assert one is not None
    assert one.name == "hermes"
    assert "response_template is left aside" in caplog.text


def test_the_formats_are_consistent() -> None:
    """What opens and closes is what is written, so that a grammar made of it is read again."""
    for name, ours in known_formats().items():
        assert ours.tags is not None
        call = ours.call
        if call is None:
            continue
        written = call.written
        begin = written.before_all + written.before_name
        assert call.opens is None or begin.lstrip().startswith(call.opens) or call.opens[0] in begin, name
        end = written.after_arguments + written.after_all
        assert call.closes is None or any(closes in end for closes in call.closes), name
        for other in (False, True):
            arguments = "{}" if written.arguments == "json" else ""
            one = written.before_name + "now" + written.before_arguments + arguments + written.after_arguments
            text = written.before_all + one + (written.between + one) * other + written.after_all
            parts = AnswerParts(Reply(ours, TOOLS))
            read = [*parts.feed(text), *parts.finish()]
            assert joined([d for part in read for d in part.calls]) == (("now", "{}"),) * (1 + other), name
            assert not any(part.text for part in read), name


@pytest.mark.parametrize(
    ("closing", "kept"),
    [
        ({"close": "<|im_end|>"}, False),
        ({"close_pattern": r"\s*(?:<\|im_end\|>|<\|eot\|>)"}, False),
        ({"close": "<mark>"}, True),
        ({"close_pattern": "("}, True),
    ],
)
def test_the_end_token_is_no_mark_of_a_shipped_format(closing: dict[str, str], kept: bool) -> None:
    """An answer ends by its id; where the name of that token shows, it was asked for."""
    shipped = {"fields": {"content": {"content": "text", **closing}}}
    content = _without_end(shipped, "<|im_end|>")["fields"]["content"]
    assert (closing.keys() <= content.keys()) is kept
    assert _without_end({}, None) == {}
