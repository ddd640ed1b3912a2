"""Which format a model writes its answers in: named by the settings, shipped by the checkpoint, or found out."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from chat_engine.answer_format import AnswerFormat
from chat_engine.errors import ConfigError
from chat_engine.reading.chat_template import ChatTemplate
from chat_engine.request import Reply
from chat_engine.text.answer_formats import known_formats
from chat_engine.text.answer_parts import AnswerParts, Part
from chat_engine.text.answer_regions import REASONING, region_template

log = logging.getLogger(__name__)

NO_FORMAT = "none"
_THINKS = "think"

_NAME, _ARGUMENTS = "probe_tool_7304", {"probe_key": "probe value 7305", "probe_count": 7306}
_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "probe description 7307",
        "parameters": {
            "type": "object",
            "properties": {
                "probe_key": {"type": "string", "description": "probe 7308"},
                "probe_count": {"type": "integer", "description": "probe 7309"},
            },
            "required": ["probe_key", "probe_count"],
        },
    },
}
_QUESTION = {"role": "user", "content": "probe question 7302"}
_ID = "call07301"  # nine letters and digits, as some templates want


def find_format(
    tokenizer: PreTrainedTokenizerBase, backend: Tokenizer, template: ChatTemplate | None, setting: str | None
) -> AnswerFormat | None:
    """The format of a model; None where its answers are just text.

    Args:
        tokenizer: what transformers has made of the checkpoint.
        backend: its fast tokenizer.
        template: the chat template in use, if any.
        setting: a name of ours, or "none"; None: what the checkpoint ships, else the first of ours that reads what the
            chat template writes.

    Raises ConfigError where there is no format of that name.
    """
    if setting is not None:
        return _named(setting)
    if template is None:
        return None
    written = _written(template.variants[-1])
    found = (written and _that_reads(written)) or _by_tokens(backend)
    shipped = getattr(tokenizer, "response_template", None)
    if shipped is not None and (chosen := _shipped(tokenizer, shipped, found, written)):
        return chosen
    return _without_unknown_tags(found or known_formats()[_THINKS], backend, template)


def _named(setting: str) -> AnswerFormat | None:
    if setting == NO_FORMAT:
        return None
    if setting not in known_formats():
        names = ", ".join([*known_formats(), NO_FORMAT])
        raise ConfigError(f"answer_format: there is no format {setting}; choose one of: {names}")
    return known_formats()[setting]


# What the checkpoint ships.


def _shipped(
    tokenizer: PreTrainedTokenizerBase, shipped: Mapping[str, Any], found: AnswerFormat | None, written: str
) -> AnswerFormat | None:
    """The checkpoint's own; where one of ours reads and writes calls as it does, with that, which can do more.

    transformers reads a call when it is complete. With the syntax known, its arguments are streamed, and the model can
    be made to call.
    """
    own = AnswerFormat("tokenizer", _without_end(shipped, tokenizer.eos_token), shipped=True)
    try:
        region_template(own, True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the tokenizer's response_template is left aside: %s", error)
        return None
    if not own.reads_calls:
        return own
    with_ours = replace(own, call=found.call) if found and found.call else None
    if with_ours and _reads(own, written) and _reads(with_ours, written):
        return with_ours
    return own


def _without_end(shipped: Mapping[str, Any], end: str | None) -> Mapping[str, Any]:
    """Without the end token as what closes the content: an answer ends by its id, and text of that name is text."""
    content = (shipped.get("fields") or {}).get("content") or {}
    pattern = content.get("close_pattern")
    try:
        is_end = bool(end and pattern and re.fullmatch(pattern, end)) or (
            end is not None and content.get("close") == end
        )
    except re.error:
        is_end = False
    if not is_end:
        return shipped
    kept = {name: value for name, value in content.items() if name not in ("close", "close_pattern")}
    return {**shipped, "fields": {**shipped["fields"], "content": kept}}


# What the chat template writes.


def _that_reads(written: str) -> AnswerFormat | None:
    """The first that reads the call, and would write it in the same way, if there is such a one."""
    reading = [ours for ours in known_formats().values() if _reads(ours, written)]
    alike = [ours for ours in reading if _writes(ours, written)]
    return next(iter(alike + reading), None)


def _written(template: ChatTemplate) -> str:
    """A call as the template writes it, from where the answer begins on; none where it writes no calls."""
    call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    result = {"role": "tool", "tool_call_id": _ID, "name": _NAME, "content": "probe result 7310"}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    says = {"role": "assistant", "content": "probe answer 7303"}
    tools = (_PROBE_TOOL,)
    calling = template.try_turns([_QUESTION, calls], tools, ended=True)
    calling = calling or template.try_turns([_QUESTION, calls, result], tools, ended=True)  # some want it there
    saying = template.try_turns([_QUESTION, says], tools, ended=True)
    if not calling or not saying or _NAME not in calling:
        return ""
    return calling[len(os.path.commonprefix([calling, saying])) :]  # noqa: RUF071 - characters are meant


def _reads(one: AnswerFormat, written: str) -> bool:
    """Whether it reads the very call, and leaves nothing of it in the content."""
    if not one.reads_calls:
        return False
    parts = AnswerParts(Reply(one, (_PROBE_TOOL,)))
    read: list[Part] = [*parts.feed(written), *parts.finish()]
    deltas = [delta for part in read for delta in part.calls]
    text = "".join(part.text for part in read)
    try:
        arguments = json.loads("".join(delta.arguments for delta in deltas))
    except ValueError:
        return False
    names = [delta.name for delta in deltas if delta.name]
    return names == [_NAME] and arguments == _ARGUMENTS and _NAME not in text and "probe_key" not in text


def _writes(one: AnswerFormat, written: str) -> bool:
    """Whether it would begin the call in the same way, but for blanks."""
    if one.call is None:
        return False
    syntax = one.call.written
    begin = syntax.before_all + syntax.before_name + _NAME + syntax.before_arguments
    if syntax.arguments == "json":
        begin += json.dumps(_ARGUMENTS)
    return "".join(begin.split()) in "".join(written.split())


# What the vocabulary has.


def _by_tokens(backend: Tokenizer) -> AnswerFormat | None:
    """For templates that write no calls: the first whose markers, at both ends of a call, are tokens of their own."""
    tokens = _tokens(backend)
    for ours in known_formats().values():
        call = ours.call
        if call and call.opens and call.closes and tokens.issuperset(call.opens) and tokens.issuperset(call.closes):
            return ours
    return None


def _without_unknown_tags(chosen: AnswerFormat, backend: Tokenizer, template: ChatTemplate) -> AnswerFormat | None:
    """Without reasoning, if neither the chat template nor the vocabulary has its tags; None if nothing is left."""
    closing = chosen.tags[1] if chosen.tags else ""
    if any(closing in one.source for one in template.variants) or closing in _tokens(backend):
        return chosen
    if not chosen.reads_calls:
        return None
    fields = {name: field for name, field in chosen.template["fields"].items() if name != REASONING}
    return replace(chosen, template={**chosen.template, "fields": fields}, tags=None)


def _tokens(backend: Tokenizer) -> set[str]:
    return {token.content for token in backend.get_added_tokens_decoder().values()}
