"""Whether tritonserver answers, by its doors."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from triton_chat_server.supervise import liveness
from triton_chat_server.supervise.liveness import Liveness, doors_of, state_of

Door = tuple[str, int]


class Forbidden(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Doors:
    answers: Door
    silent: Door
    closed: Door


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Doors]:
    """One that answers, be it with a refusal, one that accepts and says nothing, and one where nobody listens."""
    monkeypatch.setattr(liveness, "_TIMEOUT_S", 0.2)
    with http.server.HTTPServer(("127.0.0.1", 0), Forbidden) as server, socket.create_server(("127.0.0.1", 0)) as mute:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            closed = gone.getsockname()
        yield Doors(server.server_address[:2], mute.getsockname(), closed)  # type: ignore[arg-type]
        server.shutdown()
        thread.join()


def test_any_answer_will_do(doors: Doors) -> None:
    assert state_of([doors.answers]) == "answers"
    assert state_of([doors.silent]) == "silent"
    assert state_of([doors.closed]) == "closed"


def test_a_busy_first_door_is_made_up_for_by_the_second(doors: Doors) -> None:
    assert state_of([doors.silent, doors.answers]) == "answers"
    assert state_of([doors.silent, doors.silent]) == "silent"
    assert state_of([doors.silent, doors.closed]) == "silent", "metrics that were never there are no sign of a stop"


def test_a_server_that_has_closed_its_first_door_stops(doors: Doors) -> None:
    assert state_of([doors.closed, doors.answers]) == "closed"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([], [("127.0.0.1", 8000), ("127.0.0.1", 8002)]),
        (["--http-port=1", "--metrics-port", "2"], [("127.0.0.1", 1), ("127.0.0.1", 2)]),
        (["--http-address=ipv6:::", "--metrics-address=ipv6:::"], [("::1", 8000), ("::1", 8002)]),
        (["--http-address=10.0.0.7"], [("10.0.0.7", 8000), ("10.0.0.7", 8002)]),
        (["--allow-http=false"], [("127.0.0.1", 8002)]),
        (["--allow-http=false", "--allow-metrics=0"], []),
        (["--http-port=x"], [("127.0.0.1", 8002)]),
    ],
)
def test_the_doors_are_those_of_the_flags(command: list[str], expected: list[Door]) -> None:
    assert doors_of(["tritonserver", *command]) == expected


def test_without_a_door_nobody_asks() -> None:
    assert Liveness.of(["tritonserver", "--allow-http=false", "--allow-metrics=false"]) is None
