"""The SDK and the command line against a real tritonserver with the real engine."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from local.triton import LocalTriton
from tests.client.commands import WAIT_S, Terminal, run, start
from tests.client.fake_server import FakeTriton
from triton_chat import errors, metrics
from triton_chat.client import AsyncChatClient, ChatClient
from triton_chat.types import Timeouts

LONG = ("--max-tokens", "1900", "--min-tokens", "1900", "--ignore-eos")
LONG_OPTIONS = {"max_tokens": 400, "min_tokens": 400, "ignore_eos": True}


@pytest.fixture
def url(triton: LocalTriton) -> str:
    return triton.grpc_address


@pytest.fixture
def client(url: str) -> Iterator[ChatClient]:
    with ChatClient(url) as chat_client:
        yield chat_client


def becomes_idle(triton: LocalTriton, within_s: float) -> bool:
    """Whether the engine has nothing left to do; polls, because the server has no event for it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        page = metrics.fetch(triton.metrics_url)
        if not page.total("triton_chat_requests_running") and not page.total("triton_chat_requests_waiting"):
            return True
        time.sleep(0.05)
    return False


class TestCommands:
    def test_ask(self, url: str) -> None:
        done = run(url, "ask", "Hello!", "--max-tokens", "8", "--temperature", "0", "--stats")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert "tokens in" in done.stderr.decode()

    def test_the_same_seed_gives_the_same_answer(self, url: str) -> None:
        flags = ("--max-tokens", "12", "--temperature", "1", "--seed", "7")
        assert run(url, "ask", "Hello!", *flags).stdout == run(url, "ask", "Hello!", *flags).stdout

    def test_json(self, url: str) -> None:
        document = json.loads(run(url, "ask", "Hi", "--max-tokens", "5", "--logprobs", "2", "--json").stdout)
        assert document["num_output_tokens"] == len(document["logprobs"]) <= 5
        assert all(len(entry["top_logprobs"]) == 2 for entry in document["logprobs"])
        assert document["finish_reason"] in {"stop", "length"}

    def test_piped_text_is_part_of_the_prompt(self, url: str) -> None:
        alone = json.loads(run(url, "ask", "Summarise", "--max-tokens", "1", "--json").stdout)
        piped = run(url, "ask", "Summarise", "--max-tokens", "1", "--json", stdin="日本 😀 text".encode())
        assert json.loads(piped.stdout)["num_input_tokens"] > alone["num_input_tokens"]

    def test_complete_echoes(self, url: str) -> None:
        done = run(url, "complete", "Once upon a time", "--max-tokens", "4", "--echo")
        assert done.stdout.decode().startswith("Once upon a time")

    def test_models_and_status(self, triton: LocalTriton, url: str) -> None:
        assert "chat" in run(url, "models").stdout.decode()
        done = run(url, "status", "--metrics-url", triton.metrics_url, "--interval", "0.1", "--json")
        assert done.returncode == 0, done.stderr
        (chat,) = (model for model in json.loads(done.stdout)["models"] if model["name"] == "chat")
        assert chat["ready"]
        assert None not in chat["load"].values()

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (("ask", "x", "--temperature", "-1"), "temperature"),
            (("ask", "x", "--max-tokens", "100000000"), "context"),
            (("ask", "x", "--model", "nope"), "nope"),
            (("complete", "x\x01", "--stop", ""), "stop"),
        ],
    )
    def test_what_the_server_refuses(self, url: str, arguments: tuple[str, ...], part: str) -> None:
        done = run(url, *arguments)
        assert done.returncode == 2, done.stderr
        assert part in done.stderr.decode()

    def test_ctrl_c_frees_the_engine(self, triton: LocalTriton, url: str) -> None:
        with start(url, "ask", "Tell me a story", *LONG) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=WAIT_S)
        assert process.returncode == 130
        assert becomes_idle(triton, within_s=1)

    def test_chat_ctrl_c_stops_only_the_answer(self, triton: LocalTriton, url: str) -> None:
        terminal = Terminal(url, "chat", "--stats", "--ignore-eos", "--max-tokens", "1900")
        try:
            terminal.expect_prompt()
            terminal.type("Tell me a story\n")
            terminal.expect("story\r\n")
            while not metrics.fetch(triton.metrics_url).total("triton_chat_requests_running"):
                time.sleep(0.01)
            terminal.type(Terminal.CTRL_C)
            terminal.expect("[stopped]")
            terminal.expect_prompt()
            assert becomes_idle(triton, within_s=1)
            terminal.type("/stats\n")
            terminal.expect("statistics off")
            terminal.expect_prompt()  # before it, the terminal's mode may change under the end of input
            terminal.type(Terminal.CTRL_D)
            assert terminal.wait() == 0
        finally:
            terminal.close()


class TestClient:
    def test_counts_and_the_prefix_cache(self, client: ChatClient) -> None:
        question = "What is the capital of France? " * 8
        first = client.generate(question, max_tokens=4)
        second = client.generate(question, max_tokens=4)
        assert first.num_input_tokens == second.num_input_tokens > 0
        assert 0 < second.num_cached_tokens < second.num_input_tokens

    def test_streamed_text_is_the_same_as_unary_text(self, client: ChatClient) -> None:
        options = {"temperature": 0.0, "max_tokens": 16}
        streamed = client.generate("Hello!", temperature=0.0, max_tokens=16)
        (unary,) = client.generate_batch(["Hello!"], sampling=_sampling(options))
        assert (unary.text, unary.finish_reason) == (streamed.text, streamed.finish_reason)

    def test_a_batch(self, client: ChatClient) -> None:
        results = client.generate_batch(["Hello!", "Hi"], sampling=_sampling({"max_tokens": 3}))
        assert [result.num_output_tokens <= 3 for result in results] == [True, True]

    def test_errors_of_a_stream(self, client: ChatClient) -> None:
        with pytest.raises(errors.InvalidRequestError, match="top_p"):
            client.generate("hi", top_p=7)
        with pytest.raises(errors.ContextLengthError):
            client.generate("hi", max_tokens=10**8)
        with pytest.raises(errors.InvalidRequestError):
            client.generate(prompt="a\0b")
        with pytest.raises(errors.ModelNotFoundError):
            client.generate("hi", model="nope")

    def test_errors_of_a_batch(self, client: ChatClient) -> None:
        with pytest.raises(errors.InvalidRequestError, match="top_p"):
            client.generate_batch(["hi", "ho"], sampling=_sampling({"top_p": 7}))
        with pytest.raises(errors.ModelNotFoundError):
            client.generate_batch(["hi"], model="nope")
        with pytest.raises(errors.InvalidRequestError):
            client.generate_batch(["hi"], model="chat")

    def test_closing_frees_the_engine(self, triton: LocalTriton, client: ChatClient) -> None:
        with client.stream("Tell me a story", **LONG_OPTIONS) as stream:  # type: ignore[arg-type]
            next(stream)
        assert becomes_idle(triton, within_s=1)

    def test_a_timeout_frees_the_engine(self, triton: LocalTriton, client: ChatClient) -> None:
        with pytest.raises(errors.StreamTimeoutError):
            client.generate("Tell me a story", timeout=0.05, **LONG_OPTIONS)  # type: ignore[arg-type]
        assert becomes_idle(triton, within_s=1)

    def test_threads_share_a_client(self, client: ChatClient) -> None:
        texts: list[str] = []
        ask = lambda: texts.append(client.generate("Hello!", temperature=0.0, max_tokens=12).text)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert len(texts) == 6

    async def test_async(self, url: str) -> None:
        async with AsyncChatClient(url, timeouts=Timeouts(first_token=20)) as client:
            assert await client.is_ready("chat")
            result = await client.generate("Hello!", max_tokens=6)
            assert 0 < result.num_output_tokens <= 6


def test_the_fake_server_is_true_to_the_real_one(url: str) -> None:
    """What the tests of the client rely on: the same errors and the same shape of an answer from both."""
    fake = FakeTriton()
    try:
        seen = []
        for address in (fake.url, url):
            with ChatClient(address) as client:
                events = list(client.stream(prompt="hello there", max_tokens=4))
                with pytest.raises(errors.ModelNotFoundError) as caught:
                    client.generate("hi", model="nope")
                shape = [bool(event.finish_reason) for event in events]
                seen.append((str(caught.value), shape[-1], any(shape[:-1])))
        assert seen[0] == seen[1]
    finally:
        fake.stop()


def _sampling(values: dict[str, float]) -> object:
    from triton_chat.types import SamplingParams

    return SamplingParams(**values)  # type: ignore[arg-type]
