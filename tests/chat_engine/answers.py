"""Answers as models of each family write them, and what a caller is to get of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chat_engine.request import Reply, ToolCallDelta
from chat_engine.text.answer_formats import known_formats
from chat_engine.text.answer_parts import AnswerParts, Kind

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
TOOLS = (WEATHER, NOW)

ARGUMENTS = '{"city": "北京 \\"{🎉}\\"", "days": 2}'
ONE, OTHER = ("get_weather", ARGUMENTS), ("now", "{}")
REASONING = "<think>\nHmm, 天气?\n</think>\n\n"
HERMES = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
LIST = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}'
XML_CITY = "<parameter=city>\n  北京 🎉\nnew line\n</parameter>\n"
XML = f"<tool_call>\n<function=get_weather>\n{XML_CITY}<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
XML_NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
XML_READ = ("get_weather", '{"city": "  北京 🎉\\nnew line", "days": 2}')
V3 = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜>"
V3_NOW = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"
V31_NOW = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
LLAMA = f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}'
LLAMA_NOW = '{"name": "now", "parameters": {}}'


@dataclass(frozen=True)
class Recorded:
    """A text, and what it means."""

    family: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    tools: tuple[dict[str, Any], ...] = TOOLS

    def __str__(self) -> str:
        return f"{self.family}-{self.text[:24]!r}-{len(self.text)}"


HMM = "Hmm, 天气?"
WELL_FORMED = [
    Recorded("hermes", f"{REASONING}Let me see.\n\n{HERMES}", "Let me see.", HMM, (ONE,)),
    Recorded("hermes", f"{HERMES}\n{HERMES_NOW}", calls=(ONE, OTHER)),
    Recorded("qwen3_coder", f"{REASONING}Also:\n{XML}\n{XML_NOW}", "Also:", HMM, (XML_READ, OTHER)),
    Recorded(
        "mistral",
        f"好的。[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}[TOOL_CALLS]now[ARGS]{{}}",
        "好的。",
        "",
        (ONE, OTHER),
    ),
    Recorded("mistral", f"[TOOL_CALLS]get_weather{ARGUMENTS}[TOOL_CALLS]now{{}}", calls=(ONE, OTHER)),
    Recorded("mistral", f"[THINK]Hmm[/THINK]So[TOOL_CALLS]get_weather{ARGUMENTS}", "So", "Hmm", (ONE,)),
    Recorded("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{ARGUMENTS}", calls=(ONE,)),
    Recorded("mistral_list", f"[TOOL_CALLS] [{LIST}]", calls=(ONE, OTHER)),
    Recorded("deepseek_v3", f"{REASONING}好\n{BEGIN}{V3}\n{V3_NOW}{END}", "好", HMM, (ONE, OTHER)),
    Recorded("deepseek_v31", f"{BEGIN}{V31}{V31_NOW}{END}", calls=(ONE, OTHER)),
    Recorded("granite", f"<|tool_call|>[{LIST}]", calls=(ONE, OTHER)),
    Recorded("granite", f"{REASONING}Hi.\n<tool_call>[{LIST}]", "Hi.", HMM, (ONE, OTHER)),
    Recorded("phi4", f"<|tool_call|>[{LIST}]<|/tool_call|>", calls=(ONE, OTHER)),
    Recorded("llama3", LLAMA, calls=(ONE,)),
    Recorded("llama3", f"<|python_tag|>{LLAMA}", calls=(ONE,)),
    Recorded("llama3", f"{REASONING}{LLAMA}", "", HMM, (ONE,)),
    Recorded("think", f"{REASONING}So: 晴 🌞", "So: 晴 🌞", HMM),
]
UNUSUAL = [
    # More than one call, text around them, other orders and forms.
    Recorded("hermes", f"{HERMES} \n\nDone. \n", "Done. \n", "", (ONE,)),
    Recorded("hermes", '<tool_call>{"arguments": {"a": []}, "name": "now"}</tool_call>', calls=(("now", '{"a": []}'),)),
    Recorded("hermes", '<tool_call>{"name": "now"}</tool_call>', calls=(OTHER,)),
    Recorded("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', calls=(OTHER,)),
    Recorded("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\":1}"}', calls=(("now", '{"a":1}'),)),
    Recorded("hermes", '<tool_call>{"name": "now", "arguments": {}}} well</tool_call>', "well", "", (OTHER,)),
    Recorded("llama3", f"<|python_tag|>{LLAMA}; {LLAMA_NOW}", calls=(ONE, OTHER)),
    Recorded("llama3", f"\n{LLAMA}\n", calls=(ONE,)),
    Recorded("granite", f"<|tool_call|>[{LIST}]\nThere.", "There.", "", (ONE, OTHER)),
    Recorded("mistral", "[TOOL_CALLS]now[ARGS]null", calls=(OTHER,)),
    Recorded("mistral", "[TOOL_CALLS]now[ARGS]oops", calls=(("now", "oops"),)),
    # What only looks like a call, or like reasoning.
    Recorded("hermes", "a < b </think> \n<tool> \n", "a < b </think> \n<tool> \n"),
    Recorded("hermes", "a\n<tool_call>\nnonsense\n</tool_call>\nb", "a\n<tool_call>\nnonsense\n</tool_call>\nb"),
    Recorded("hermes", '<tool_call>{"nam": "now"}</tool_call>', '<tool_call>{"nam": "now"}</tool_call>'),
    Recorded("hermes", HERMES, HERMES, tools=()),
    Recorded("hermes", "say <think>x</think>", "say <think>x</think>"),
    Recorded("llama3", '{"name": "Bob", "age": 3}\n', '{"name": "Bob", "age": 3}\n'),
    Recorded("llama3", '{"a": {"name": "now"}}', '{"a": {"name": "now"}}'),
    Recorded("llama3", f"See {LLAMA}", f"See {LLAMA}"),
    Recorded("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    Recorded("phi4", "<|tool_call|>[oh]<|/tool_call|>x", "<|tool_call|>[oh]<|/tool_call|>x"),
    Recorded("mistral", "[TOOL_CALLS] [1]", "[TOOL_CALLS] [1]"),
    Recorded("deepseek_v3", f"a {BEGIN}b", f"a {BEGIN}b"),
    Recorded("mistral", f"[TOOL_CALLS]{'now' * 300}[ARGS]{{}}", f"[TOOL_CALLS]{'now' * 300}[ARGS]{{}}"),
    Recorded("qwen3_coder", f"<tool_call>{' ' * 999}{XML_NOW[11:]}", f"<tool_call>{' ' * 999}{XML_NOW[11:]}"),
    # Cut.
    Recorded("hermes", "x <tool_c", "x <tool_c"),
    Recorded("hermes", 'x <tool_call>{"name": "no', 'x <tool_call>{"name": "no'),
    Recorded("hermes", '<tool_call>{"name": "now"', calls=(("now", ""),)),
    Recorded("hermes", '<tool_call>{"name": "now", "arguments": {"ci', calls=(("now", '{"ci'),)),
    Recorded("hermes", "<think>\nHmm \n", "", "Hmm"),
    Recorded("hermes", "<think>\nHmm </thi", "", "Hmm </thi"),
    Recorded("qwen3_coder", "<tool_call>\n<function=get", "<tool_call>\n<function=get"),
    Recorded("qwen3_coder", "<tool_call>\n<function=get_weather>", calls=(("get_weather", "{"),)),
    Recorded("qwen3_coder", XML[: XML.index("line")], calls=((XML_READ[0], '{"city": "  北京 🎉\\nnew '),)),
    Recorded("qwen3_coder", XML[: XML.index("</par") + 4], calls=((XML_READ[0], '{"city": "  北京 🎉\\nnew line'),)),
    Recorded("qwen3_coder", XML[: XML.index("</par") + 14], calls=((XML_READ[0], '{"city": "  北京 🎉\\nnew line"'),)),
    Recorded("mistral", "[TOOL_CALLS]get_wea", "[TOOL_CALLS]get_wea"),
    Recorded("mistral", "[TOOL_CALLS]now[ARGS]", calls=(("now", ""),)),
    Recorded("mistral_list", '[TOOL_CALLS][{"name": "now", "arguments": {"a', calls=(("now", '{"a'),)),
    Recorded("deepseek_v3", f"a {BEGIN}", f"a {BEGIN}"),
    Recorded("deepseek_v3", f"a {BEGIN}{V3[: V3.index('{')]}", "a", "", (("get_weather", ""),)),
    Recorded("llama3", LLAMA[:25], calls=(("get_weather", ""),)),
    Recorded("llama3", LLAMA[:50], calls=(("get_weather", LLAMA[len('{"name": "get_weather", "parameters": ') : 50]),)),
    # What the prompt has written of the answer.
    Recorded("hermes", "hm\n</think>\n\nyes", "yes", "hm", prefix="<|im_start|>assistant\n<think>\n"),
    Recorded("hermes", "<think>\nhm</think>yes", "yes", "hm", prefix="<|im_start|>assistant\n<think>\n"),
    Recorded("hermes", "\n<th", "", "<th", prefix="<|im_start|>assistant\n<think>\n"),
    Recorded("hermes", "\n\nyes", "yes", prefix="<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    Recorded("think", "a\n", "a\n", prefix="<|assistant|>"),
    Recorded("think_first", "hm\n</think>\n\nyes", "yes", "hm"),
    Recorded("think_first", "<think>hm</think>yes", "yes", "hm"),
    Recorded("think_first", "yes", "yes", prefix="<think></think>"),
]  # fmt: skip


def reply_of(recorded: Recorded) -> Reply:
    return Reply(known_formats()[recorded.family], recorded.tools, recorded.prefix)


@dataclass(frozen=True)
class Read:
    """What a caller has got."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]


def read(recorded: Recorded, pieces: Iterable[str]) -> Read:
    """The answer in these pieces."""
    parts = AnswerParts(reply_of(recorded))
    found = [part for piece in pieces for part in parts.feed(piece)] + parts.finish()
    ends = [part.end for part in found]
    assert ends == sorted(set(ends)) or any(part.calls for part in found)
    assert not ends or ends[-1] == len(recorded.text)
    texts = {kind: "".join(part.text for part in found if part.kind is kind) for kind in Kind}
    return Read(texts[Kind.CONTENT], texts[Kind.REASONING], joined([d for part in found for d in part.calls]))


def joined(deltas: Sequence[ToolCallDelta]) -> tuple[tuple[str, str], ...]:
    """Calls from their deltas, which have OpenAI's shape."""
    calls: list[list[str]] = []
    for delta in deltas:
        if delta.id:
            assert delta.index == len(calls)
            assert delta.id.startswith("call_")
            assert delta.name
            assert not delta.arguments
            calls.append([delta.name, ""])
        else:
            assert delta.index == len(calls) - 1
            assert not delta.name
            assert delta.arguments
            calls[-1][1] += delta.arguments
    return tuple((name, arguments) for name, arguments in calls)


def wanted(recorded: Recorded) -> Read:
    return Read(recorded.content, recorded.reasoning, recorded.calls)


def equal_calls(one: Sequence[tuple[str, str]], message: dict[str, Any]) -> bool:
    """Whether these are the calls of a message of transformers'."""
    theirs = message.get("tool_calls") or []
    theirs = [call["function"] for call in (theirs if isinstance(theirs, list) else [theirs])]
    return [(call["name"], call["arguments"]) for call in theirs] == [(n, json.loads(a)) for n, a in one]
