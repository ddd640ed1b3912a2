"""The supervisor as a process, over a stand-in for tritonserver: what it notices, passes on, and leaves behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.keeper import remove_shared_memory
from tests.server import stand_in
from triton_chat_server.supervise.supervisor import SILENT_VARIABLE

PREFIX = f"triton_chat_test_{os.getpid()}_"
SHARED_MEMORY = Path("/dev/shm")


class Supervised:
    """A supervisor and its stand-in, which runs when this is made."""

    def __init__(self, told: Path, *flags: str) -> None:
        self.told = told
        region = SHARED_MEMORY / f"{PREFIX}region"
        region.touch()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "triton_chat_server.supervise"),
                *(sys.executable, stand_in.__file__, "server", "--allow-http=false", "--allow-metrics=false", *flags),
                f"--backend-config=python,shm-region-prefix-name={PREFIX}",
            ],
            env={**os.environ, "TOLD": str(told)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),  # some crash on purpose
        )
        eventually(lambda: (told / "pids").exists())
        self.server, self.model = map(int, (told / "pids").read_text().split())

    def end(self, within: float = 15.0) -> tuple[int, str]:
        """Exit code and last line; nothing is left."""
        _, log = self.process.communicate(timeout=within)
        assert not any(Path(f"/proc/{pid}").exists() for pid in (self.server, self.model))
        assert not list(SHARED_MEMORY.glob(PREFIX + "*"))
        return self.process.returncode, log.splitlines()[-1] if log else ""


def only_model(name: str) -> tuple[str, str]:
    return "--model-control-mode=explicit", f"--load-model={name}"


def eventually(check: Callable[[], bool], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    made = Supervised(tmp_path, "--exit-timeout-secs=0")
    yield made
    made.process.kill()
    made.process.communicate()


def heartbeat_folders() -> set[Path]:
    return set(SHARED_MEMORY.glob(f"{PREFIX}heartbeats_*"))


def test_a_dead_model_ends_the_server_at_once(supervised: Supervised) -> None:
    began = time.monotonic()
    os.kill(supervised.model, signal.SIGKILL)
    assert supervised.end() == (1, "serve: the process of the model 'm' is dead; ending the server")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGSEGV])
def test_a_model_that_is_stopped_or_crashes(supervised: Supervised, number: signal.Signals) -> None:
    began = time.monotonic()
    os.kill(supervised.model, number)
    code, line = supervised.end()
    assert code == 1
    assert ("no heartbeat for 6 s" if number == signal.SIGSTOP else "is dead") in line
    assert time.monotonic() - began < 10


def test_a_model_that_says_it_does_not_work(supervised: Supervised) -> None:
    (supervised.told / "complaint").write_text("the engine failed")
    assert supervised.end() == (1, "serve: the model 'm' does not work: the engine failed; ending the server")


def test_how_long_a_model_may_be_silent_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SILENT_VARIABLE, "1.5")
    one = Supervised(tmp_path)
    os.kill(one.model, signal.SIGSTOP)
    words = "the process of the model 'm' has sent no heartbeat for 1.5 s"
    assert one.end() == (1, f"serve: {words}; ending the server")


@pytest.mark.parametrize("flags", [(), ("--allow-http=true", "--http-port=1")], ids=["alone", "with its other thread"])
def test_a_pause_of_its_own_is_no_signal(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Longer than it waits between two looks; it goes on as before."""
    supervised = Supervised(tmp_path, "--exit-timeout-secs=0", *flags)
    supervised.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, supervised.process.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(1.2)  # it is the pause that is tested
    supervised.process.send_signal(signal.SIGCONT)
    supervised.process.send_signal(signal.SIGUSR1)
    signals = supervised.told / "signals"
    eventually(lambda: signals.exists())
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end() == (0, "")
    assert signals.read_text().split() == ["SIGUSR1", "SIGTERM"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139)])
def test_a_server_that_dies(supervised: Supervised, number: signal.Signals, code: int) -> None:
    os.kill(supervised.server, number)
    assert supervised.end() == (code, f"serve: tritonserver died of {number.name}")


@pytest.mark.parametrize("code", [0, 3])
def test_a_server_that_ends_by_itself_has_failed(supervised: Supervised, code: int) -> None:
    (supervised.told / "code").write_text(str(code))
    os.kill(supervised.server, signal.SIGTERM)
    assert supervised.end() == (
        code or 1,
        f"serve: tritonserver ended with exit code {code}, although nobody asked",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_was_asked_for_ends_with_0(supervised: Supervised, number: signal.Signals) -> None:
    supervised.process.send_signal(number)
    assert supervised.end() == (0, "")
    assert (supervised.told / "signals").read_text() == "SIGTERM\n"


def test_a_stop_that_fails_says_so(supervised: Supervised) -> None:
    (supervised.told / "code").write_text("1")
    supervised.process.terminate()
    assert supervised.end() == (1, "serve: tritonserver ended with exit code 1")


def test_a_server_that_does_not_stop_is_ended_in_its_time(supervised: Supervised) -> None:
    (supervised.told / "stubborn").touch()
    supervised.process.terminate()
    assert supervised.end() == (1, "serve: tritonserver has not stopped within 3 s; ending the server")


@pytest.mark.parametrize("how", ["unload", "finish"])
def test_a_server_whose_models_have_finished_is_ended_with_0(tmp_path: Path, how: str) -> None:
    one = Supervised(tmp_path, "--exit-timeout-secs=60", *only_model("m"))
    (tmp_path / how).touch()
    one.process.terminate()
    code, line = one.end()
    assert (code, line) == (0, "serve: all models have finished, but tritonserver goes on; ending the server")


def test_of_models_that_send_no_heartbeat_it_is_not_known_whether_they_have_finished(tmp_path: Path) -> None:
    one = Supervised(tmp_path, "--exit-timeout-secs=4", *only_model("m"), "--load-model=another")
    (tmp_path / "finish").touch()
    began = time.monotonic()
    one.process.terminate()
    assert one.end() == (1, "serve: tritonserver has not stopped within 7 s; ending the server")
    assert time.monotonic() - began > 6


def test_a_model_that_dies_while_the_server_stops_is_noticed(tmp_path: Path) -> None:
    one = Supervised(tmp_path, "--exit-timeout-secs=60")
    (tmp_path / "stubborn").touch()
    one.process.terminate()
    os.kill(one.model, signal.SIGKILL)
    assert one.end() == (1, "serve: the process of the model 'm' is dead; ending the server")


def test_a_limit_that_is_none_is_for_tritonserver_to_refuse(tmp_path: Path) -> None:
    one = Supervised(tmp_path, "--exit-timeout-secs=soon", "--http-port=x")
    one.process.terminate()
    assert one.end() == (0, "")


def test_other_signals_are_passed_on(supervised: Supervised) -> None:
    supervised.process.send_signal(signal.SIGUSR1)
    supervised.process.send_signal(signal.SIGHUP)
    notes = supervised.told / "signals"
    eventually(lambda: notes.exists() and set(notes.read_text().split()) == {"SIGUSR1", "SIGHUP"})
    assert supervised.process.poll() is None
    supervised.process.terminate()
    assert supervised.end()[0] == 0


def test_when_the_supervisor_is_killed_the_server_dies_with_it(supervised: Supervised) -> None:
    supervised.process.kill()
    eventually(lambda: not Path(f"/proc/{supervised.server}").exists())
    os.kill(supervised.model, signal.SIGKILL)
    remove_shared_memory(PREFIX)


def test_its_folder_of_heartbeats_goes_with_it(supervised: Supervised) -> None:
    before = heartbeat_folders()
    supervised.process.terminate()
    supervised.end()
    assert len(before - heartbeat_folders()) == 1


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "triton_chat_server.supervise", "/none/tritonserver"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 127
    assert "/none/tritonserver cannot be run: No such file or directory" in done.stderr
