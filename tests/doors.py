"""Brings the made-up sampling parameter `wobble` to each door and prints what came of it, as JSON.

A program of its own, so that tests/test_parameters.py can run it on copies of the packages whose definitions have that
parameter. What is honoured is the value where it has arrived; what is refused is the sentence.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

import chat_page
import vllm_contract
from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError
from chat_engine.reading.request_parser import RequestParser
from chat_page.settings import URL_VARIABLE
from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient
from tests.ui.fake_gateway import FakeGateway
from triton_chat import wire
from triton_chat.types import Call

WOBBLE = {"wobble": 0.5}
CHAT = {"messages": [{"role": "user", "content": "x"}]}


def engine() -> object:
    parser = RequestParser(None, EngineConfig(model="m"), 9, 9, {})  # type: ignore[arg-type]
    try:
        return parser._sampling(WOBBLE).wobble  # type: ignore[attr-defined]
    except InvalidArgumentError as error:
        return str(error)


def sdk() -> object:
    try:
        call = Call.of("x", WOBBLE)  # type: ignore[arg-type]
    except TypeError as error:
        return str(error)
    message = wire.infer_request(call)
    names = [tensor.name for tensor in message.inputs]
    raw = message.raw_input_contents[names.index(wire.SAMPLING.name)]
    return json.loads(raw[4:])["wobble"]  # after its length


def gateway_chat() -> object:
    return _gateway("/v1/chat/completions", CHAT)


def gateway_completions() -> object:
    return _gateway("/v1/completions", {"prompt": "x"})


def vllm_model() -> object:
    """Whatever it does not know is for `chat` to judge."""
    asked = vllm_contract.read({"text_input": np.array([b"x"], np.object_)}, WOBBLE)
    return json.loads(asked.inputs["sampling_parameters"][0, 0])["wobble"]


def page() -> object:
    """What it has no control for nobody can send."""
    server = FakeGateway()
    os.environ[URL_VARIABLE] = server.url
    shown = AppTest.from_file(str(Path(chat_page.__file__).parents[1] / "page.py"), default_timeout=60).run()
    keys = [control.key for control in shown.number_input]
    if "wobble" not in keys:
        return f"controls: {', '.join(keys)}"
    shown.number_input(key="wobble").set_value(WOBBLE["wobble"])
    shown.chat_input(key="input").set_value("x").run()
    body = server.wait_for(1).body
    server.stop()
    return body["wobble"]


def _gateway(path: str, body: dict[str, object]) -> object:
    fake = FakeClient()
    with TestClient(app_for(fake)) as client:
        answer = client.post(path, json={"model": "chat", **body, **WOBBLE})
        if answer.status_code != 200:
            return answer.json()["error"]["message"]
    return fake.calls[0].request.sampling.to_dict()["wobble"]


DOORS: tuple[Callable[[], object], ...] = (engine, sdk, gateway_chat, gateway_completions, vllm_model, page)

if __name__ == "__main__":
    json.dump({door.__name__: door() for door in DOORS}, sys.stdout)
