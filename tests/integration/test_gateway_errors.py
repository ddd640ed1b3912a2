"""Whatever is wrong with a request: the class of the `openai` package, a body that names the field, an idle engine."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.integration.calls import VOCAB_SIZE, chat, settled, stubs_of
from tests.integration.openai_calls import CALL_S, Asker, options
from tests.integration.servers import GatewayFactory

HELLO: Any = chat("Hello!")
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
JSON = {"Content-Type": "application/json"}
DATA_URL = "data:image/png;base64,iVBORw0KGgo="
NESTED = b"[" * 100_000


@pytest.fixture(scope="module")
def http(gateway: LocalGateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=CALL_S) as client:
        yield client


@dataclass(frozen=True)
class Bad:
    """A request, and how it is refused. `says` are parts of the message."""

    path: str
    body: Any
    param: str | None
    says: str | tuple[str, ...] = ()
    status: int = 400
    code: str | None = None
    headers: Any = None
    method: str = "POST"

    def send(self, http: httpx2.Client) -> httpx2.Response:
        raw = self.body if isinstance(self.body, bytes) or callable(self.body) else json.dumps(self.body).encode()
        content = raw() if callable(raw) else raw
        return http.request(self.method, self.path, content=content, headers=self.headers or JSON)


def asks(param: str | None, says: str | tuple[str, ...] = (), **changes: Any) -> Bad:
    """A question to the chat model with one thing wrong."""
    return Bad(CHAT, {"model": "chat", "messages": HELLO, "max_tokens": 4, **changes}, param, says)


def says(param: str, content: Any, part: str | tuple[str, ...] = (), **fields: Any) -> Bad:
    return asks(param, part, messages=[{"role": "user", "content": content, **fields}])


def continues(param: str | None, part: str | tuple[str, ...] = (), **changes: Any) -> Bad:
    return Bad(COMPLETIONS, {"model": "chat", "prompt": "Hello", "max_tokens": 4, **changes}, param, part)


def embeds(param: str | None, part: str | tuple[str, ...] = (), **changes: Any) -> Bad:
    return Bad(EMBEDDINGS, {"model": "embeddings", "input": "Hello", **changes}, param, part)


def without(bad: Bad, field: str) -> Bad:
    return Bad(bad.path, {key: value for key, value in bad.body.items() if key != field}, field, "is required")


def endless() -> Iterator[bytes]:
    """A chunked body, whose length nobody announces."""
    yield b'{"model": "chat", "messages": [{"role": "user", "content": "'
    for _ in range(80):
        yield b"x" * 2**16
    yield b'"}]}'


def plain(body: bytes, says: str, status: int = 400, **headers: str) -> Bad:
    return Bad(CHAT, body, None, says, status, headers={**JSON, **headers})


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def formatted(schema: dict[str, Any], says: str) -> Bad:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return asks("response_format.json_schema.schema", says, response_format=form)


A_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
VALID = json.dumps({"model": "chat", "messages": HELLO, "max_tokens": 1}).encode()

# What the gateway refuses by itself: nothing at all reaches Triton.
BY_THE_GATEWAY: dict[str, Bad] = {
    "no body": plain(b"", "empty"),
    "no JSON": plain(b'{"model": "chat",', "not JSON"),
    "a form": plain(b"model=chat", "application/json", 415, **{"Content-Type": "application/x-www-form-urlencoded"}),
    "text": plain(VALID, "application/json", 415, **{"Content-Type": "text/plain"}),
    "another character set": plain(VALID, "UTF-8", 415, **{"Content-Type": "application/json; charset=utf-16"}),
    "compressed": plain(VALID, "compressed", 415, **{"Content-Encoding": "gzip"}),
    "no UTF-8": plain(b'{"model": "\xff"}', "not JSON"),
    "NaN": plain(VALID.replace(b"1}", b"NaN}"), "not JSON"),
    "half a surrogate": plain(VALID.replace(b"Hello", rb"\ud800"), "not JSON"),
    "a list": plain(b"[]", "JSON object"),
    "a number": plain(b"1", "JSON object"),
    "null": plain(b"null", ""),
    "nested deeply": plain(NESTED, "not JSON"),
    "nested deeply in a field": plain(VALID.replace(b"1}", NESTED + b"}"), "not JSON"),
    "too large": plain(b'{"model": "' + b"x" * 5 * 2**20 + b'"}', "too large", 413),
    "too large and chunked": Bad(CHAT, endless, None, "too large", 413),
    "unknown route": Bad("/v1/images/generations", {}, None, "no such route", 404, "unknown_url"),
    "another method": Bad(CHAT, b"", None, "method", 405, "method_not_allowed", method="GET"),
    "unknown field": asks("bogus", "not a field", bogus=1),
    "unknown field of completions": continues("bogus", "not a field", bogus=1),
    "unknown field of embeddings": embeds("bogus", "not a field", bogus=1),
    "unknown field of a message": says("messages[0].bogus", "a", "not a field", bogus=1),
    "no model": without(asks(None), "model"),
    "no messages": without(asks(None), "messages"),
    "no prompt": without(continues(None), "prompt"),
    "no input": without(embeds(None), "input"),
    "empty messages": asks("messages", "at least 1", messages=[]),
    "messages of a wrong type": asks("messages", "list", messages="Hello"),
    "a message of a wrong type": asks("messages[0]", "object", messages=["Hello"]),
    "content of a wrong type": says("messages[0].content", 5, "string"),
    "content missing": asks("messages[0].content", "required", messages=[{"role": "user"}]),
    "unknown role": asks("messages[0].role", "user", messages=[{"role": "narrator", "content": "a"}]),
    "a result of no call": asks("messages[0].tool_call_id", "required", messages=[{"role": "tool", "content": "a"}]),
    "a name of a wrong type": says("messages[0].name", "a", "string", name=5),
    "an image": says(
        "messages[0].content[0].type", [{"type": "image_url", "image_url": {"url": DATA_URL}}], "not images"
    ),
    "audio": says(
        "messages[0].content[0].type", [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}], "text"
    ),
    "a file": says("messages[0].content[0].type", [{"type": "file", "file": {"file_id": "a"}}], "text"),
    "no parts": says("messages[0].content", [], "at least 1"),
    "a chat template": asks("chat_template", "only the model's own", chat_template="{{ 7 * 7 }}"),
    "an unknown kind of tool": asks("tools[0].type", "function", tools=[{"type": "web_search"}]),
    "an unknown format": asks("response_format.type", "", response_format={"type": "yaml"}),
    "two formats": asks(
        "response_format", "structured_outputs", response_format=A_SCHEMA, structured_outputs={"regex": "a"}
    ),
    "audio out": asks("modalities", "only text", modalities=["audio"]),
    "text for a number": asks("temperature", "number", temperature="1"),
    "truth for a number": asks("max_tokens", "integer", max_tokens=True),
    "fraction for an integer": asks("max_tokens", "integer", max_tokens=1.5),
    "a seed beyond 64 bits": asks("seed", "18446744073709551615", seed=2**64),
    "a negative seed beyond 64 bits": asks("seed", "-9223372036854775808", seed=-(2**63) - 1),
    "no tokens": asks("max_tokens", "at least 1", max_tokens=0),
    "beams": asks("use_beam_search", "beam search", use_beam_search=True),
    "a prompt to be cut": continues("truncate_prompt_tokens", "never truncated", truncate_prompt_tokens=10),
    "two formats by older names": continues("guided_regex", "guided_json", guided_json={}, guided_regex="a"),
    "two beginnings of an answer": asks(
        "continue_final_message", "add_generation_prompt", continue_final_message=True, add_generation_prompt=True
    ),
    "huge n": asks("n", "at most 16", n=10**6),
    "more n than any number": asks("n", "", n=10**30),
    "top_logprobs alone": asks("top_logprobs", "logprobs", top_logprobs=2),
    "empty stop": asks("stop", "at least 1", stop=""),
    "bias of no id": asks("logit_bias.cat", "", logit_bias={"cat": 1}),
    "options without a stream": asks("stream_options", "stream: true", stream_options={"include_usage": True}),
    "a long user": asks("user", "512", user="a" * 1000),
    "empty prompt list": continues("prompt", "empty", prompt=[]),
    "empty token list": continues("prompt[0]", "at least 1", prompt=[[]]),
    "mixed prompts": continues("prompt[1]", "string", prompt=["a", 1]),
    "negative token id": continues("prompt[0]", "greater than or equal to 0", prompt=[-1]),
    "many prompts": continues("prompt", "at most 16", prompt=["a"] * 17),
    "many prompts times n": continues("prompt", "at most 16", prompt=["a"] * 9, n=2),
    "best_of": continues("best_of", "must be n", best_of=3),
    "a suffix": continues("suffix", "suffix", suffix="end"),
    "prompt logprobs in a stream": continues("prompt_logprobs", "streams", prompt_logprobs=1, stream=True),
    "embeddings of nothing": embeds("input", "empty", input=[]),
    "many embeddings": embeds("input", ("2049", "2048"), input=["a"] * 2049),
    "no tokens left": embeds("truncate_prompt_tokens", "-1", truncate_prompt_tokens=-2),
    "no dimensions": embeds("dimensions", "at least 1", dimensions=0),
    "unknown encoding": embeds("encoding_format", "", encoding_format="hex"),
    "nothing to tokenize": Bad(TOKENIZE, {"model": "chat"}, "prompt", "required"),
    "two things to tokenize": Bad(TOKENIZE, {"model": "chat", "prompt": "a", "messages": HELLO}, "prompt", "not both"),
    "no tokens to detokenize": Bad(DETOKENIZE, {"model": "chat", "tokens": []}, "tokens", "at least 1"),
}

# What only the model can know: it comes as far as Triton and not into the engine.
BY_THE_MODEL: dict[str, Bad] = {
    "129 tools": asks("tools", ("129", "128"), tools=[tool(f"f{i}") for i in range(129)]),
    "two tools of a name": asks("tools[1].function.name", "two tools", tools=[tool("f"), tool("f")]),
    "a name with blanks": asks("tools[0].function.name", "letters", tools=[tool("get weather")]),
    "a choice of no tool": asks(
        "tool_choice.function.name", "no tool has the name 'g'", tools=[tool("f")], tool_choice=tool("g")
    ),
    "required without tools": asks("tool_choice", "needs tools", tool_choice="required"),
    "a result of an unknown call": asks(
        "messages[0].tool_call_id", "c1", messages=[{"role": "tool", "tool_call_id": "c1", "content": "a"}]
    ),
    "arguments that are no JSON": asks(
        "messages[0].tool_calls[0].function.arguments",
        "not JSON",
        messages=[{"role": "assistant", "tool_calls": [{**tool("f", arguments="{"), "id": "c1"}]}],
    ),
    "a schema of an unknown type": formatted({"type": "strin"}, "strin"),
    "a schema that refers to nothing": formatted({"$ref": "#/$defs/x"}, ""),
    "a schema that nothing can follow": formatted(
        {"type": "object", "required": ["a"], "properties": {"a": False}}, ""
    ),
    "a huge schema": formatted({"enum": ["x" * 300_000]}, "131072"),
    "a schema that explodes": formatted({"type": "integer", "multipleOf": 999_983}, "complex"),
    "a regex that explodes": asks("structured_outputs.regex", "", structured_outputs={"regex": "(.?){5000}" * 50}),
    "a broken regex": continues("guided_regex", "", guided_regex="["),
    "a broken grammar": asks("structured_outputs.grammar", "", structured_outputs={"grammar": "start: x"}),
    "a strict tool of an unknown type": asks(
        "tools", "strin", tools=[tool("f", strict=True, parameters={"properties": {"a": {"type": "strin"}}})]
    ),
    "template arguments": asks("chat_template_kwargs.a", "does not read it", chat_template_kwargs={"a": 1}),
    "temperature too high": asks("temperature", ("less than or equal to 2", "2.5"), temperature=2.5),
    "top_p below zero": asks("top_p", "greater than or equal to 0", top_p=-0.1),
    "penalty too high": asks("presence_penalty", "2", presence_penalty=3),
    "huge number": asks("max_tokens", "2147483647", max_tokens=10**30),
    "huge number by its newer name": asks("max_completion_tokens", "2147483647", max_completion_tokens=10**30),
    "huge top_logprobs": asks("top_logprobs", ("1000000", "20"), logprobs=True, top_logprobs=10**6),
    "negative top_logprobs": asks("top_logprobs", "-1", logprobs=True, top_logprobs=-1),
    "many stops": asks("stop", ("1000", "16"), stop=["a"] * 1000),
    "long stop": asks("stop", ("10000", "256"), stop="a" * 10_000),
    "many biases": asks("logit_bias", ("2000", "1024"), logit_bias={str(key): 1 for key in range(2000)}),
    "bias too strong": asks("logit_bias.5", "100", logit_bias={"5": 101}),
    "bias of a huge id": asks("logit_bias", "token ids", logit_bias={"9" * 5000: 1}),
    "huge logprobs": continues("logprobs", ("1000000", "20"), logprobs=10**6),
    "huge logprobs of an echo": continues("logprobs", ("1000000", "20"), logprobs=10**6, echo=True),
    "huge token id": continues("prompt", f"0 to {VOCAB_SIZE - 1}", prompt=[10**30]),
    "huge stop token": asks("stop_token_ids", f"0 to {VOCAB_SIZE - 1}", stop_token_ids=[2**31]),
    "huge token id to embed": embeds("input", f"0 to {VOCAB_SIZE - 1}", input=[10**30]),
    "token id of no token": continues("prompt", (str(VOCAB_SIZE), f"0 to {VOCAB_SIZE - 1}"), prompt=[VOCAB_SIZE]),
    "bias of no token": asks(
        "logit_bias", (str(VOCAB_SIZE), f"0 to {VOCAB_SIZE - 1}"), logit_bias={str(VOCAB_SIZE): 1}
    ),
    "stop token of no token": asks("stop_token_ids", str(VOCAB_SIZE), stop_token_ids=[VOCAB_SIZE]),
    "neither answer nor prompt": continues("max_tokens", ("0", "prompt_logprobs"), max_tokens=0),
    "huge prompt_logprobs": continues("prompt_logprobs", ("1000", "20"), prompt_logprobs=1000),
    "min_tokens over max_tokens": asks("min_tokens", ("5", "max_tokens"), min_tokens=5),
    "NUL": says("messages[0].content", "a\0b", "NUL"),
    "NUL in a prompt": continues("prompt", "NUL", prompt="a\0b"),
    "empty prompt": continues("prompt", "at least one", prompt=""),
    "more tokens than the context": asks("max_tokens", ("5000", "2048"), max_tokens=5000),
    "a text that is too long": embeds("input[1]", ("5000", "maximum context length is 2048"), input=["a", "x " * 2500]),
    "more tokens left than fit": embeds("truncate_prompt_tokens", "2048", truncate_prompt_tokens=2049),
    "no token to embed": embeds("input[0]", (str(VOCAB_SIZE), f"0 to {VOCAB_SIZE - 1}"), input=[[VOCAB_SIZE]]),
    "more dimensions than there are": embeds("dimensions", ("5000", "192"), dimensions=5000),
    "no token to detokenize": Bad(
        DETOKENIZE, {"model": "chat", "tokens": [VOCAB_SIZE]}, "tokens", (str(VOCAB_SIZE), f"0 to {VOCAB_SIZE - 1}")
    ),
}
MODEL_NOT_FOUND = {
    path: Bad(path, {**body, "model": "gpt-17"}, "model", "gpt-17", 404, "model_not_found")
    for path, body in {
        CHAT: {"messages": HELLO},
        COMPLETIONS: {"prompt": "a"},
        EMBEDDINGS: {"input": "a"},
        TOKENIZE: {"prompt": "a"},
        DETOKENIZE: {"tokens": [1]},
    }.items()
} | {
    "embeddings of a chat model": Bad(EMBEDDINGS, {"model": "chat", "input": "a"}, "model", "", 404, "model_not_found"),
    "chat with an embedding model": Bad(
        CHAT, {"model": "embeddings", "messages": HELLO}, "model", "", 404, "model_not_found"
    ),
    "a path for a model": Bad(
        CHAT, {"model": "../../chat", "messages": HELLO}, "model", "there is no", 404, "model_not_found"
    ),
    "a model of Triton that is none here": Bad(
        CHAT, {"model": "chat_unary", "messages": HELLO}, "model", "", 404, "model_not_found"
    ),
    "the door for clients of Triton's vLLM backend": Bad(
        CHAT, {"model": "vllm_model", "messages": HELLO}, "model", "", 404, "model_not_found"
    ),
}
ALL = {**BY_THE_GATEWAY, **MODEL_NOT_FOUND, **BY_THE_MODEL}


@pytest.mark.parametrize("case", ALL)
def test_a_mistake_is_named(http: httpx2.Client, case: str) -> None:
    bad = ALL[case]
    answer = bad.send(http)
    assert (answer.status_code, answer.headers["content-type"]) == (bad.status, "application/json"), answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", bad.param), error
    assert error["code"]
    assert bad.code in (None, error["code"])
    for part in (bad.says,) if isinstance(bad.says, str) else bad.says:
        assert part in error["message"]
    assert len(error["message"]) < 500
    assert "/work" not in error["message"]
    assert "http" not in error["message"]


def test_a_mistake_in_a_stream_is_a_status_too(http: httpx2.Client) -> None:
    for bad in (*BY_THE_MODEL.values(), *MODEL_NOT_FOUND.values()):
        if bad.path in (CHAT, COMPLETIONS):
            streamed = Bad(bad.path, {**bad.body, "stream": True}, bad.param).send(http)
            assert (streamed.status_code, streamed.json()["error"]["param"]) == (bad.status, bad.param)


def test_no_mistake_reaches_the_engine(http: httpx2.Client, triton: LocalTriton) -> None:
    counters = (
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_exec_count",
        "triton_chat_requests_total",
        "triton_chat_engine_steps_total",
        "triton_chat_prompt_tokens_total",
    )
    before, stubs = settled(triton), stubs_of(triton)
    for bad in (*BY_THE_GATEWAY.values(), *MODEL_NOT_FOUND.values()):
        bad.send(http)
    grown = settled(triton) - before
    for model in ("chat", "chat_unary", "embeddings", "tokenizer", "vllm_model"):
        assert [name for name in counters if grown(name, model=model)] == []
    for bad in BY_THE_MODEL.values():
        bad.send(http)
    grown = settled(triton) - before
    assert [name for name in counters if name.startswith("triton_chat") and grown(name)] == []
    assert (stubs_of(triton), triton.poll()) == (stubs, None)


def test_nothing_is_fetched(http: httpx2.Client) -> None:
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.png"
        for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file": {"file_url": url}}):
            assert says("messages[0].content[0].type", [part]).send(http).status_code == 400
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_neither_a_bystander_nor_the_probe_notices(
    http: httpx2.Client, gateway: LocalGateway, ask: Asker, client: OpenAI
) -> None:
    """Mistakes by several callers at once, for as long as the bystander's stream runs."""
    fields: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_tokens": 400, "temperature": 1, "seed": 1}
    fields["extra_body"] = {"ignore_eos": True}
    alone = ask("chat", "sync stream", **fields).only.text
    over = threading.Event()

    def bother(number: int) -> None:
        with httpx2.Client(base_url=gateway.url, timeout=CALL_S) as caller:
            while not over.is_set():
                refused.extend(bad.send(caller).status_code for bad in list(ALL.values())[number::3])

    refused: list[int] = []
    callers = [threading.Thread(target=bother, args=(number,)) for number in range(3)]
    text, latencies = "", []
    with client.chat.completions.create(**fields, stream=True) as stream:
        for caller in callers:
            caller.start()
        for number, chunk in enumerate(stream):
            text += chunk.choices[0].delta.content or ""
            if number % 20 == 0:
                latencies.append(seconds_of(lambda: http.get("/health/live").raise_for_status()))
        over.set()
    for caller in callers:
        caller.join()
    assert text == alone
    assert len(refused) > len(ALL) / 3
    assert {status for status in refused if not 400 <= status < 500} == set()
    assert statistics.median(latencies) < 0.25  # three callers and the engine share two cores with it
    assert max(latencies) < 1.5


def seconds_of(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_half_a_body_holds_nobody_up(http: httpx2.Client, gateway: LocalGateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.options.port)))
            one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            one.sendall(b"Content-Length: 1000\r\n\r\n{")
        assert seconds_of(lambda: http.get("/health/live").raise_for_status()) < 1


# As the classes of the package.


def test_over_the_context_has_both_numbers(client: OpenAI, engine: Any) -> None:
    long: Any = chat("word " * 3000)
    count = len(engine.tokenize(long).token_ids)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="chat", messages=long, stream=stream)
        assert (refused.value.code, refused.value.type) == ("context_length_exceeded", "invalid_request_error")
        assert str(count) in refused.value.message
        assert "2048" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="chat", prompt=[7] * 3000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", None)
    assert "3000" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="embeddings", input=["a", "word " * 3000])
    assert refused.value.code == "context_length_exceeded"
    assert "2048" in refused.value.message


async def test_classes_and_fields(client: OpenAI, gateway: LocalGateway) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=HELLO, temperature=3)
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-17", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")
    async with AsyncOpenAI(**options(gateway)) as caller:
        with pytest.raises(openai.BadRequestError):
            await caller.chat.completions.create(model="chat", messages=[], stream=True)
        with pytest.raises(openai.NotFoundError):
            await caller.embeddings.create(model="chat", input="a")


def test_keys(triton: LocalTriton, start_gateway: GatewayFactory, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-the-file\n")
    guarded = start_gateway(triton, API_KEYS="first,second", API_KEYS_FILE=str(file))
    before = settled(triton)
    for key in ("wrong", "firs", "first,second", "FIRST", "x" * 5000):
        with OpenAI(**{**options(guarded), "api_key": key}) as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                stranger.chat.completions.create(model="chat", messages=HELLO)
            assert (refused.value.code, refused.value.type) == ("invalid_api_key", "authentication_error")
            assert key not in refused.value.message
            with pytest.raises(openai.AuthenticationError):
                stranger.models.list()
    with httpx2.Client(base_url=guarded.url) as http:
        for path in ("/v1/models", "/metrics", "/version", "/docs", "/openapi.json", "/nothing"):
            assert (http.get(path).status_code, path) == (401, path)
        for headers in ({}, {"Authorization": "Basic first"}, {"Authorization": "Bearer"}, {"X-Api-Key": "first"}):
            assert http.post(CHAT, json={}, headers=headers).status_code == 401
        assert http.post(CHAT, content=b"x" * 5 * 2**20).status_code == 401
        assert [http.get(path).status_code for path in ("/health/live", "/health/ready")] == [200, 200]
    assert (settled(triton) - before)("nv_inference_exec_count") == 0
    for key in ("first", "second", "from-the-file"):
        with OpenAI(**{**options(guarded), "api_key": key}) as friend:
            assert friend.chat.completions.create(model="chat", messages=HELLO, max_tokens=1).choices
    log = guarded.options.log_path.read_text()
    assert not any(secret in log for secret in ("from-the-file", "firs", "wrong", "Hello"))
