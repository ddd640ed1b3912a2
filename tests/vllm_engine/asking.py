"""Requests to an engine as the wire would bring them."""

from __future__ import annotations

import itertools
import json

from chat_engine.reading.request_parser import WireRequest
from chat_engine.serving import Serving
from tests.chat_engine.builders import WAIT, Inbox

_NUMBERS = itertools.count()


class Answer(Inbox):
    """What comes of a request."""

    def __init__(self, request_id: str) -> None:
        super().__init__()
        self.request_id = request_id


def submit(serving: Serving, text: str, chat: dict[str, object] | None = None, **parameters: object) -> Answer:
    request = serving.parser.parse(
        WireRequest(
            id=f"r{next(_NUMBERS)}",
            messages=json.dumps([{"role": "user", "content": text}]).encode(),
            sampling_parameters=json.dumps(parameters).encode(),
            chat_parameters=json.dumps(chat).encode() if chat else None,
        )
    )
    answer = Answer(request.id)
    serving.engine.submit(request, answer)
    return answer


def ask(serving: Serving, text: str, chat: dict[str, object] | None = None, **parameters: object) -> Answer:
    answer = submit(serving, text, chat, **parameters)
    assert answer.ended.wait(WAIT)
    return answer
