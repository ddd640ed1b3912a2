from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from chat_engine.errors import DrainingError, EngineFailedError, InvalidArgumentError, OverloadedError, to_wire
from tests.client.commands import COMMAND, WAIT_S, Terminal, environment, run, start
from tests.client.fake_server import FakeTriton, Received, fail, pb, say
from tests.ipv6 import needs_ipv6
from triton_chat.cli import status
from triton_chat.cli.options import Connection


def messages_of(received: Received) -> object:
    return json.loads(received.tensor("messages")[0])


def test_ask(fake: FakeTriton) -> None:
    done = run(fake.url, "ask", "hello", "--system", "be brief", "--max-tokens", "5", "--stop", "x", "--stop", "y")
    assert (done.returncode, done.stderr) == (0, b"")
    received = fake.next_request()
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert messages_of(received) == messages
    assert json.loads(done.stdout) == messages
    assert json.loads(received.tensor("sampling_parameters")[0]) == {"max_tokens": 5, "stop": ["x", "y"]}


@needs_ipv6
@pytest.mark.parametrize("scheme", ["", "grpc://"])
def test_ask_over_ipv6(scheme: str) -> None:
    server = FakeTriton("[::1]:0")
    try:
        done = run(scheme + server.url, "ask", "hello")
    finally:
        server.stop()
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_sampling_flag_arrives(fake: FakeTriton) -> None:
    flags = "--min-tokens 1 --temperature 0 --top-p 0.9 --top-k 5 --min-p 0.1 --presence-penalty 1 --seed 7 "
    flags += "--frequency-penalty -1 --repetition-penalty 1.1 --logit-bias 42=-100 --stop-token-id 3 --ignore-eos "
    flags += "--logprobs 0 --prompt-logprobs 2 --return-token-ids --no-skip-special-tokens "
    flags += "--priority 1 --model m --timeout 9 --idle-timeout 8"
    assert run(fake.url, "ask", "x", *flags.split()).returncode == 0
    received = fake.next_request()
    assert json.loads(received.tensor("sampling_parameters")[0]) == {
        "min_tokens": 1,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 1,
        "seed": 7,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "logit_bias": {"42": -100},
        "stop_token_ids": [3],
        "ignore_eos": True,
        "logprobs": 0,
        "prompt_logprobs": 2,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }
    assert (received.message.model_name, received.message.parameters["priority"].uint64_param) == ("m", 1)


def test_piped_text_follows_the_question(fake: FakeTriton) -> None:
    assert run(fake.url, "ask", "Summarise", stdin="日本 😀\n".encode()).returncode == 0
    assert messages_of(fake.next_request()) == [{"role": "user", "content": "Summarise\n\n日本 😀"}]
    assert run(fake.url, "ask", stdin=b"only this").returncode == 0
    assert messages_of(fake.next_request()) == [{"role": "user", "content": "only this"}]


def test_utf8_whatever_the_locale(fake: FakeTriton) -> None:
    done = run(fake.url, "complete", "déjà 日本 😀", LC_ALL="C", LANG="C")
    assert done.stdout.decode() == "déjà 日本 😀\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "part"),
    [
        (("ask", "x"), b"\xff\xfe", "standard input is not UTF-8"),
        (("ask",), None, "no question"),
        (("complete",), None, "no prompt"),
        (("ask", "x", "--logit-bias", "3"), None, "ID=VALUE"),
        (("ask", "x", "--temperature", "nan"), None, "JSON"),
        (("ask", "x", "--bogus"), None, "--bogus"),
        (("ask", "x", "--url", "http://localhost:8000"), None, "speaks gRPC"),
        (("ask", "x", "--model", "nope"), None, "`triton-chat models`"),
        (("chat", "--json"), None, "use ask"),
        (("chat", "--return-token-ids"), None, "use ask"),
    ],
)
def test_wrong_use_is_2(fake: FakeTriton, arguments: tuple[str, ...], stdin: bytes | None, part: str) -> None:
    done = run(fake.url, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert part in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (to_wire(EngineFailedError("the engine failed")), 1),
        (to_wire(InvalidArgumentError("must be at least 0 (got -1)", field="temperature")), 2),
        (to_wire(DrainingError("the server is shutting down")), 3),
        (to_wire(OverloadedError("as many as allowed are running")), 4),
        ("Exceeds maximum queue size", 4),
    ],
)
def test_what_the_server_refuses(fake: FakeTriton, text: str, code: int) -> None:
    fake.reply = lambda _: iter([fail(text)])
    done = run(fake.url, "ask", "x")
    assert done.returncode == code
    assert f"error: {text.partition(' [code=')[0]}\n" in done.stderr.decode()


def test_unreachable_is_3() -> None:
    done = run("127.0.0.1:1", "ask", "x")
    assert done.returncode == 3
    assert "is it running?" in done.stderr.decode()


def test_timeout_is_124_and_keeps_what_came(fake: FakeTriton) -> None:
    fake.reply = fake.stalls_after("some text")
    done = run(fake.url, "ask", "x", "--idle-timeout", "0.1")
    assert (done.returncode, done.stdout) == (124, b"some text\n")
    assert "no new token for 0.1 seconds" in done.stderr.decode()


def test_ctrl_c_is_130_and_cancels(fake: FakeTriton) -> None:
    fake.reply = fake.stalls_after("some text")
    with start(fake.url, "ask", "x") as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"some text"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, rest, errors) == (130, b"\n", b"")
    assert fake.next_request().cancelled.wait(WAIT_S)


def test_a_closed_pipe_is_no_error_and_cancels(fake: FakeTriton) -> None:
    def endless(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        while not received.cancelled.wait(0.001):
            yield say("line\n", tokens=1)

    fake.reply = endless
    with start(fake.url, "ask", "x") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"line"
        process.stdout.close()
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert fake.next_request().cancelled.wait(WAIT_S)


def test_json_is_one_document(fake: FakeTriton) -> None:
    done = run(fake.url, "complete", "hello 日本", "--json", "--stats")
    document = json.loads(done.stdout)
    assert (document["text"], document["finish_reason"], document["model"]) == ("hello 日本", "stop", "chat")
    assert (document["num_input_tokens"], document["num_output_tokens"], document["num_cached_tokens"]) == (7, 2, 3)
    assert document["ttft_s"] <= document["duration_s"]
    assert "2 tokens in" in done.stderr.decode()


def paced(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
    """Four responses of five tokens, 0.3 seconds apart."""
    for index in range(4):
        received.cancelled.wait(0.3)
        yield say("words ", "stop" if index == 3 else "", (index + 1) * 5)


@pytest.mark.parametrize("command", ["ask", "complete"])
def test_json_tells_the_pace_of_the_tokens_as_they_came(fake: FakeTriton, command: str) -> None:
    fake.reply = paced
    document = json.loads(run(fake.url, command, "x", "--json").stdout)
    assert 0.3 <= document["ttft_s"] <= document["duration_s"] - 0.6
    assert document["tokens_per_s"] == pytest.approx(15 / (document["duration_s"] - document["ttft_s"]), rel=0.4)


def test_an_answer_of_one_response_has_no_rate(fake: FakeTriton) -> None:
    fake.reply = lambda _: iter([say("all of it", "stop", 20)])
    done = run(fake.url, "ask", "x", "--json", "--stats")
    assert json.loads(done.stdout)["tokens_per_s"] is None
    assert "tokens/s" not in done.stderr.decode()


def test_logprobs_and_stats_go_to_stderr(fake: FakeTriton) -> None:
    entry = {"token": "yes", "logprob": -0.1, "bytes": [121], "top_logprobs": [{"token": "no", "logprob": -2.5}]}
    prompt = {"token": "Q", "logprob": None, "bytes": [81], "token_id": 5, "rank": None, "top_logprobs": []}
    prompt_logprobs = json.dumps([prompt, prompt | {"logprob": -1.5, "rank": 2}])
    fake.reply = lambda _: iter([say("yes", "length", 1, json.dumps([entry]), prompt_logprobs=prompt_logprobs)])
    done = run(fake.url, "ask", "x", "--logprobs", "1", "--prompt-logprobs", "0", "--stats")
    assert done.stdout == b"yes\n"
    assert "'Q' -\n'Q' -1.500\n'yes' -0.100" in done.stderr.decode()
    assert "'yes' -0.100  'no' -2.500" in done.stderr.decode()
    assert "prompt 7, 3 from the cache; length]" in done.stderr.decode()


def test_token_ids_go_to_stderr(fake: FakeTriton) -> None:
    fake.reply = lambda _: iter([say("yes", "length", 1, token_ids="[5, 6]", prompt_token_ids="[1, 2]")])
    done = run(fake.url, "ask", "x", "--return-token-ids")
    assert (done.stdout, done.stderr) == (b"yes\n", b"prompt: 1 2\nanswer: 5 6\n")


def test_complete_reads_the_prompt_and_echoes(fake: FakeTriton) -> None:
    done = run(fake.url, "complete", "--echo", stdin=b"Once upon\n")
    assert done.stdout == b"Once upon\n"
    received = fake.next_request()
    assert received.tensor("text_input") == ["Once upon"]
    assert [tensor.name for tensor in received.message.inputs] == ["text_input", "exclude_input_in_output"]


def test_models(fake: FakeTriton) -> None:
    lines = run(fake.url, "models").stdout.decode().splitlines()
    assert lines[1].split() == ["chat", "1", "READY", "yes"]
    assert "no weights" in lines[2]
    document = json.loads(run(fake.url, "models", "--json").stdout)
    assert [(model["name"], model["ready"]) for model in document] == [("chat", True), ("broken", False)]


@pytest.fixture
def metrics_url() -> Iterator[str]:
    """A metrics page on which the model makes 100 tokens between two reads."""
    reads = iter(range(1000))

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            tokens = 100 * next(reads)
            page = 'nv_inference_pending_request_count{model="chat",version="1"} 4\n'
            page += f'triton_chat_generation_tokens_total{{model="chat"}} {tokens}\n'
            page += (
                'triton_chat_requests_running{model="chat"} 2\ntriton_chat_kv_cache_usage_ratio{model="chat"} 0.25\n'
            )
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_status(fake: FakeTriton, metrics_url: str) -> None:
    arguments = ("status", "--metrics-url", metrics_url, "--interval", "0.1")
    text = run(fake.url, *arguments).stdout.decode()
    assert "fake 1.0: live yes, ready yes" in text
    load = json.loads(run(fake.url, *arguments, "--json").stdout)["models"][0]["load"]
    assert (load["queued"], load["running"], load["waiting"], load["kv_cache_usage_ratio"]) == (4, 2, None, 0.25)
    assert 0 < load["tokens_per_s"] <= 1000


def test_status_without_metrics_says_so(fake: FakeTriton) -> None:
    done = run(fake.url, "status", "--metrics-url", "http://127.0.0.1:1/metrics")
    assert done.returncode == 0
    assert "--metrics-url names another address" in done.stderr.decode()


def test_status_of_a_server_that_is_not_ready_is_1(fake: FakeTriton, metrics_url: str) -> None:
    fake.ready = False
    assert run(fake.url, "status", "--metrics-url", metrics_url, "--interval", "0").returncode == 1


def test_status_watch_goes_on(fake: FakeTriton, metrics_url: str) -> None:
    arguments = ("status", "--watch", "--metrics-url", metrics_url, "--interval", "0.01", "--json")
    with start(fake.url, *arguments) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += b'"server"' in line
            if seen == 2:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 130


def test_status_watch_ends_though_the_interrupt_came_where_python_drops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def show(*_: object) -> bool:
        shown.append(1)
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(status, "_show", show)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        status.status(Connection("localhost:1", as_json=False), None, True, 0)
    assert shown == [1]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("command", ["", "ask", "chat", "complete", "models", "status"])
def test_help_teaches(command: str) -> None:
    done = run("", *command.split(), "--help")
    assert done.returncode == 0
    assert "triton-chat " in done.stdout.decode()
    assert "124  a time limit was exceeded" in done.stdout.decode()


@pytest.mark.parametrize("command", ["ask", "chat", "complete"])
def test_help_says_what_goes_together(command: str) -> None:
    words = " ".join(run("", command, "--help").stdout.decode().split())
    assert "one of --json-schema, --regex, --choice, --grammar and --structured-outputs" in words
    assert "A sampling parameter that is not given has the server's default." in words


def test_help_does_not_list_what_is_refused() -> None:
    listed = {command: run("", command, "--help").stdout.decode() for command in ("ask", "chat")}
    for flag in ("--json ", "--logprobs ", "--prompt-logprobs ", "--return-token-ids "):
        assert flag in listed["ask"]
        assert flag not in listed["chat"]
        done = run("", "chat", flag.strip(), *(["1"] if flag.endswith("logprobs ") else []), stdin=b"")
        assert (done.returncode, "use ask" in done.stderr.decode()) == (2, True)


def test_help_does_not_load_grpc() -> None:
    check = "import sys, triton_chat.cli; sys.exit('grpc' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], env=environment(""), check=False).returncode == 0


def test_version() -> None:
    assert run("", "--version").stdout.decode().startswith("triton-chat ")


def test_no_color(fake: FakeTriton) -> None:
    for no_color, coloured in (("", True), ("1", False)):
        terminal = Terminal(fake.url, "models", TERM="xterm-256color", **({"NO_COLOR": no_color} if no_color else {}))
        try:
            terminal.expect("broken")
            assert (b"\x1b[3" in terminal.output or b"\x1b[1;3" in terminal.output) <= coloured
            assert terminal.wait() == 0
        finally:
            terminal.close()


def test_stdout_that_is_closed_from_the_start(fake: FakeTriton) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([*COMMAND, "ask", "x"], env=environment(fake.url), stdin=subprocess.DEVNULL, stdout=writer):
        os.close(writer)
