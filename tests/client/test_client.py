from __future__ import annotations

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest
from tritonclient.grpc import model_config_pb2

from tests.client import fake_server
from tests.client.fake_server import WAIT_S, FakeTriton, Received, echo, fail, infer_response, pb, say, tokens_response
from triton_chat import errors, tokenizer
from triton_chat.client import ChatClient
from triton_chat.types import Timeouts, TokenizerInfo, Tokens

QUICK = Timeouts(first_token=0.1, idle=0.1)


def test_events_come_one_by_one(client: ChatClient) -> None:
    events = list(client.stream(prompt="hello there"))
    assert [event.text for event in events] == ["hello", " there"]
    assert [event.finish_reason for event in events] == ["", "stop"]
    assert (events[-1].num_input_tokens, events[-1].num_output_tokens, events[-1].num_cached_tokens) == (7, 2, 3)


def test_the_first_event_does_not_wait_for_the_second(fake: FakeTriton, client: ChatClient) -> None:
    fake.reply = fake.stalls_after("first")
    with client.stream("hi") as stream:
        assert next(stream).text == "first"


def test_generate_collects(client: ChatClient) -> None:
    result = client.generate(prompt="hello there", max_tokens=5)
    assert (result.text, result.finish_reason, result.num_output_tokens) == ("hello there", "stop", 2)
    assert result.ttft_s is not None
    assert 0 < result.ttft_s <= result.duration_s
    assert result.to_dict()["text"] == "hello there"


def test_generate_collects_what_is_known_of_tokens(fake: FakeTriton, client: ChatClient) -> None:
    entry = {"token": "a", "logprob": -1.0, "bytes": [97], "token_id": 5, "rank": 1, "top_logprobs": []}
    first = json.dumps([entry | {"logprob": None, "rank": None}])
    fake.reply = lambda _: iter(
        [
            say("", prompt_token_ids="[5, 5]", prompt_logprobs=first),
            say("x", tokens=1, prompt_logprobs=json.dumps([entry]), token_ids="[7]"),
            say("y", "stop", tokens=3, token_ids="[8, 2]"),
        ]
    )
    result = client.generate("hi", prompt_logprobs=0, return_token_ids=True)
    assert json.loads(fake.next_request().tensor("sampling_parameters")[0]) == {
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }
    assert (result.prompt_token_ids, result.token_ids) == ((5, 5), (7, 8, 2))
    assert [token.logprob for token in result.prompt_logprobs] == [None, -1.0]
    assert {"prompt_logprobs", "token_ids", "prompt_token_ids"} < result.to_dict().keys()
    fake.reply = echo
    assert not {"prompt_logprobs", "token_ids", "prompt_token_ids"} & client.generate("hi").to_dict().keys()


def test_what_is_sent(fake: FakeTriton) -> None:
    with ChatClient(fake.url, headers={"Authorization": "Bearer x"}) as client:
        client.generate("hi", model="m", priority=1, request_id="id-1", seed=3)
    received = fake.next_request()
    assert (received.message.model_name, received.message.id) == ("m", "id-1")
    assert received.message.parameters["priority"].uint64_param == 1
    assert received.tensor("sampling_parameters") == ['{"seed":3}']
    assert received.metadata["authorization"] == "Bearer x"
    assert "triton_grpc_error" not in received.metadata


def test_headers_of_a_call_join_those_of_the_client_and_win(fake: FakeTriton) -> None:
    with ChatClient(fake.url, headers={"X-A": "1", "X-B": "2"}) as client:
        client.generate("hi", headers={"x-b": "3", "Traceparent": "00-1"})
        metadata = fake.next_request().metadata
        client.tokenize("hi", headers={"x-a": "4"})
    assert (metadata["x-a"], metadata["x-b"], metadata["traceparent"]) == ("1", "3", "00-1")
    assert fake.requests[-1].metadata["x-a"] == "4"


def test_a_request_without_an_id_gets_one(client: ChatClient, fake: FakeTriton) -> None:
    stream = client.stream("hi")
    assert fake.next_request().message.id == stream.request_id != ""


def test_grpc_status_is_asked_for_only_on_demand(fake: FakeTriton) -> None:
    def abort(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield say("some", tokens=1)
        received.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not like this")

    fake.reply = abort
    with ChatClient(fake.url, grpc_status=True) as client, pytest.raises(errors.InvalidRequestError, match="not like"):
        client.generate("hi")
    assert fake.next_request().metadata["triton_grpc_error"] == "true"


@pytest.mark.parametrize("after", [0, 1])
def test_an_error_in_the_stream_is_raised(fake: FakeTriton, client: ChatClient, after: int) -> None:
    fake.reply = lambda _: iter([say("a", tokens=1)] * after + [fail("Exceeds maximum queue size")])
    stream = client.stream("hi")
    for _ in range(after):
        next(stream)
    with pytest.raises(errors.OverloadedError):
        next(stream)
    assert list(stream) == []


def test_an_unknown_model(client: ChatClient) -> None:
    with pytest.raises(errors.ModelNotFoundError, match="nope"):
        client.generate("hi", model="nope")


def test_a_stream_that_ends_too_early_is_an_error(fake: FakeTriton, client: ChatClient) -> None:
    fake.reply = lambda _: iter([say("half an ans")])
    with pytest.raises(errors.EngineError, match="before the answer was complete"):
        client.generate("hi")


def test_nobody_there() -> None:
    with ChatClient("127.0.0.1:1") as client:
        with pytest.raises(errors.ServerUnavailableError, match=r"127\.0\.0\.1:1: is it running\?"):
            client.generate("hi")
        assert not client.is_live()
        assert not client.is_ready()


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with ChatClient(url, timeouts=Timeouts(connect=0.2)) as client, pytest.raises(errors.ServerUnavailableError):
            client.generate("hi")


def test_a_restarted_server_is_found_again(fake: FakeTriton) -> None:
    fake.reply = fake.stalls_after("one")
    with ChatClient(fake.url) as client:
        running = client.stream("hi")
        next(running)
        fake.stop()
        for call in (lambda: next(running), lambda: client.generate("hi")):
            with pytest.raises(errors.ServerUnavailableError):
                call()
        again = FakeTriton(fake.url)
        deadline = time.monotonic() + WAIT_S
        while not again.requests:
            assert time.monotonic() < deadline
            with suppress(errors.ServerUnavailableError):
                client.generate("hi")
        again.stop()


class TestCancel:
    """Every way to stop reaches the server."""

    @pytest.fixture(autouse=True)
    def _stalling(self, fake: FakeTriton) -> None:
        fake.reply = fake.stalls_after("one", "two")

    @staticmethod
    def assert_cancelled(fake: FakeTriton) -> None:
        assert fake.next_request().cancelled.wait(WAIT_S)

    def test_close(self, fake: FakeTriton, client: ChatClient) -> None:
        stream = client.stream("hi")
        next(stream)
        stream.close()
        stream.close()
        self.assert_cancelled(fake)
        assert list(stream) == []

    def test_leaving_the_block(self, fake: FakeTriton, client: ChatClient) -> None:
        def read_one_and_fail() -> None:
            with client.stream("hi") as stream:
                next(stream)
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            read_one_and_fail()
        self.assert_cancelled(fake)

    def test_dropping_it(self, fake: FakeTriton, client: ChatClient) -> None:
        for _ in client.stream("hi"):
            break
        gc.collect()
        self.assert_cancelled(fake)

    def test_dropping_it_before_the_first_event(self, fake: FakeTriton, client: ChatClient) -> None:
        client.stream("hi")
        gc.collect()
        # The request may be cancelled before it is read: then the server never sees it at all.
        if fake.arrived.acquire(timeout=0.2):
            assert fake.requests[-1].cancelled.wait(WAIT_S)

    def test_from_another_thread(self, fake: FakeTriton, client: ChatClient) -> None:
        stream = client.stream("hi")
        next(stream)
        next(stream)
        threading.Timer(0.05, stream.close).start()
        with pytest.raises(errors.RequestCancelledError):
            next(stream)
        self.assert_cancelled(fake)

    def test_an_exception_while_waiting(
        self, fake: FakeTriton, client: ChatClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = client.stream("hi")
        next(stream)

        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(stream, "_event", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        self.assert_cancelled(fake)

    def test_closing_the_client(self, fake: FakeTriton, client: ChatClient) -> None:
        stream = client.stream("hi")
        next(stream)
        client.close()
        self.assert_cancelled(fake)


class TestTimeouts:
    def test_first_token(self, fake: FakeTriton) -> None:
        fake.reply = fake.stalls_after()
        with ChatClient(fake.url, timeouts=QUICK) as client:
            with pytest.raises(errors.StreamTimeoutError, match="no first token"):
                client.generate("hi")
            assert fake.next_request().cancelled.wait(WAIT_S)

    def test_idle(self, fake: FakeTriton) -> None:
        fake.reply = fake.stalls_after("one")
        with ChatClient(fake.url, timeouts=Timeouts(idle=0.1)) as client:
            with pytest.raises(errors.StreamTimeoutError, match="no new token"):
                client.generate("hi")
            assert fake.next_request().cancelled.wait(WAIT_S)

    def test_idle_of_one_call(self, fake: FakeTriton, client: ChatClient) -> None:
        fake.reply = fake.stalls_after("one")
        with pytest.raises(errors.StreamTimeoutError, match=r"0\.1 seconds"):
            client.generate("hi", idle_timeout=0.1)

    def test_total(self, fake: FakeTriton, client: ChatClient) -> None:
        fake.reply = fake.stalls_after("one")
        with pytest.raises(errors.StreamTimeoutError):
            client.generate("hi", timeout=0.2)
        assert fake.next_request().cancelled.wait(WAIT_S)

    def test_a_slow_reader_is_not_an_idle_server(self, fake: FakeTriton) -> None:
        with ChatClient(fake.url, timeouts=QUICK) as client:
            stream = client.stream(prompt="hello")
            next(stream)
            time.sleep(0.25)  # the reader is busy for longer than the limit; this is what is tested
            assert next(stream).finish_reason == "stop"

    def test_batch(self, client: ChatClient) -> None:
        with pytest.raises(errors.StreamTimeoutError):
            client.generate_batch(prompts=["stall"], timeout=0.1)

    def test_the_watchdog_ends_with_its_streams(self, fake: FakeTriton, client: ChatClient) -> None:
        client.generate("hi")
        client.generate("hi")
        watchdogs = [thread for thread in threading.enumerate() if thread.name == "triton-chat-watchdog"]
        for thread in watchdogs:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in watchdogs)


def test_streams_of_one_client_run_side_by_side(fake: FakeTriton, client: ChatClient) -> None:
    everyone_is_here = threading.Barrier(8)

    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        everyone_is_here.wait(WAIT_S)
        yield say(received.tensor("text_input")[0], "stop", 1)

    fake.reply = reply
    texts: list[str] = []
    threads = [threading.Thread(target=lambda n=n: texts.append(client.generate(prompt=str(n)).text)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(texts) == [str(n) for n in range(8)]


def test_a_batch_keeps_its_order(fake: FakeTriton, client: ChatClient) -> None:
    results = client.generate_batch(prompts=["b", "a", "c"])
    assert [result.text for result in results] == ["b", "a", "c"]
    assert {result.ttft_s for result in results} == {None}
    received = fake.next_request()
    assert received.message.model_name == "chat_unary"
    assert [list(tensor.shape) for tensor in received.message.inputs] == [[3, 1]]
    assert len(client.generate_batch(["hi", [{"role": "user", "content": "ho"}]])) == 2


def test_an_empty_batch_is_refused(client: ChatClient) -> None:
    with pytest.raises(errors.InvalidRequestError):
        client.generate_batch([])


def test_health_and_models(fake: FakeTriton, client: ChatClient) -> None:
    assert client.is_live()
    assert client.is_ready()
    assert client.is_ready("chat")
    assert not client.is_ready("broken")
    info = client.server_metadata()
    assert (info.name, info.version, info.live, info.ready) == ("fake", "1.0", True, True)
    assert [(model.name, model.ready, model.reason) for model in client.models()] == [
        ("chat", True, ""),
        ("broken", False, "no weights"),
    ]
    fake.ready = False
    assert not client.is_ready()
    assert not client.models()[0].ready


class TestKinds:
    def test_they_are_told_by_the_tensors(self, fake: FakeTriton, client: ChatClient) -> None:
        fake.configs["mine"] = fake.configs["chat"]
        fake.configs["else"] = model_config_pb2.ModelConfig()
        fake.states = dict.fromkeys(("mine", "chat_unary", "tokenizer", "else", "no-config"), "READY")
        kinds = {model.name: model.kind for model in client.models()}
        assert kinds == {
            "mine": "chat",
            "chat_unary": "chat_unary",
            "tokenizer": "tokenizer",
            "else": "other",
            "no-config": "other",
        }

    def test_a_model_is_asked_once_while_it_is_loaded(self, fake: FakeTriton, client: ChatClient) -> None:
        kinds = [client.models()[0].kind for _ in range(3)]
        assert (kinds, fake.configs_asked) == (["chat"] * 3, ["chat"])

    def test_a_model_is_asked_again_once_it_was_away(self, fake: FakeTriton, client: ChatClient) -> None:
        client.models()
        fake.states["chat"] = "UNAVAILABLE"
        assert client.models()[0].kind == "chat"
        fake.states["chat"] = "READY"
        fake.configs["chat"] = fake.configs["tokenizer"]
        assert client.models()[0].kind == "tokenizer"
        assert fake.configs_asked == ["chat", "chat"]


class TestTokenizer:
    def test_text_and_back(self, client: ChatClient) -> None:
        tokens = client.tokenize(text="hé")
        assert tokens == Tokens((104, 195, 169), "hé", 100)
        assert client.detokenize(tokens.token_ids) == tokens
        assert client.tokenize(text="").token_ids == ()

    def test_what_is_sent(self, fake: FakeTriton, client: ChatClient) -> None:
        client.tokenize("hi", model="other", add_generation_prompt=False, add_special_tokens=True)
        sent = fake.next_request()
        assert (sent.message.model_name, sent.tensor("model")) == ("tokenizer", ["other"])
        assert sent.tensor("messages") == ['[{"role":"user","content":"hi"}]']
        flags = {name: value.bool_param for name, value in sent.message.parameters.items()}
        assert flags == {"add_generation_prompt": False, "add_special_tokens": True}
        assert {tuple(tensor.shape) for tensor in sent.message.inputs} == {(1,)}

    def test_tools_and_variables_of_the_template_are_sent(self, fake: FakeTriton, client: ChatClient) -> None:
        tool = {"type": "function", "function": {"name": "weather"}}
        client.tokenize("hi", tools=[tool], tool_choice=None, chat_template_kwargs={"enable_thinking": False})
        sent = fake.next_request()
        assert json.loads(sent.tensor("chat_parameters")[0]) == {
            "tools": [tool],
            "chat_template_kwargs": {"enable_thinking": False},
        }
        assert not sent.message.parameters

    def test_what_the_server_knows_of_the_template(self) -> None:
        said = {"root": "org/chat", "config": {}}
        knows = {"template": {"kwargs": ["enable_thinking"], "tools": True, "tool_calls": False}}
        assert tokenizer.read_info(fake_server.info_response({**said, **knows})) == TokenizerInfo(
            "org/chat", 100, {}, ("enable_thinking",), shows_tools=True, shows_tool_calls=False
        )
        assert tokenizer.read_info(fake_server.info_response(said)) == TokenizerInfo("org/chat", 100, {})

    @pytest.mark.parametrize("given", [{}, {"messages": "a", "text": "b"}, {"text": "\ud800"}])
    def test_what_cannot_be_sent_is_refused(self, client: ChatClient, given: dict[str, str]) -> None:
        with pytest.raises(errors.InvalidRequestError):
            client.tokenize(**given)

    def test_another_models_answer_is_an_error(self) -> None:
        bad = tokens_response("[1]", "a")
        del bad.outputs[0], bad.raw_output_contents[0]
        for response in (infer_response(["x"]), bad, tokens_response("7", "a"), tokens_response("[", "a")):
            with pytest.raises(errors.EngineError):
                tokenizer.read(response)

    def test_its_time_limit(self, fake: FakeTriton, client: ChatClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fake_server, "tokenize", fake.stall)
        with pytest.raises(errors.StreamTimeoutError):
            client.tokenize(text="x", timeout=0.1)
