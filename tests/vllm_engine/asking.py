"""Requests to an engine as the wire would bring them."""

from __future__ import annotations

import itertools
import json

from chat_engine.reading.request_parser import WireRequest
from chat_engine.serving import Serving
from tests.chat_engine.builders import WAIT, Inbox

_NUMBERS = itertools.count()


def submit(serving: Serving, text: str, chat: dict[str, object] | None = None, **parameters: object) -> Inbox:
    request = serving.parser.parse(
        WireRequest(
            id=f"r{next(_NUMBERS)}",
            messages=json.dumps([{"role": "user", "content": text}]).encode(),
            sampling_parameters=json.dumps(parameters).encode(),
            chat_parameters=json.dumps(chat).encode() if chat else None,
        )
    )
    inbox = Inbox()
    serving.engine.submit(request, inbox)
    return inbox


def ask(serving: Serving, text: str, chat: dict[str, object] | None = None, **parameters: object) -> Inbox:
    inbox = submit(serving, text, chat, **parameters)
    assert inbox.ended.wait(WAIT)
    return inbox
