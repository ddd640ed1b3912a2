from __future__ import annotations

from pathlib import Path

from local import readiness

LOG = """\
I1120 10:56:34.486146 4781 model_lifecycle.cc:472] "loading: chat:1"
+------------------+------+
| Repository Agent | Path |
+------------------+------+

Traceback (most recent call last):
E1120 10:56:34.952382 4781 model_lifecycle.cc:642] "failed to load 'chat' version 1: Internal: ValueError"
"""


def test_the_stage_names_what_is_still_loading() -> None:
    assert readiness.stage("") == "starting tritonserver"
    assert readiness.stage(LOG) == "loading chat"
    more = LOG + 'I1120 x] "loading: chat_unary:1"\n'
    assert readiness.stage(more) == "loading chat, chat_unary"
    assert readiness.stage(more + "I1120 x] \"successfully loaded 'chat_unary'\"\n") == "loading chat"
    assert readiness.stage(LOG + "I1120 x] \"successfully loaded 'chat'\"\n") == "opening the ports"


def test_a_log_is_read_without_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert readiness.read_log(path) == ""
    path.write_text(LOG)
    assert len(readiness.read_log(path).splitlines()) == 3


def test_complaints_are_all_but_information() -> None:
    assert readiness.complaints(LOG).splitlines()[-2:] == LOG.splitlines()[-2:]
    assert "loading: chat" not in readiness.complaints(LOG)


def test_complaints_leave_out_the_missing_gpu_and_unfold_tracebacks() -> None:
    no_gpu = 'E1120 1 server.cc:241] "CudaDriverHelper has not been initialized."'
    log = no_gpu + '\nE1120 1 x] "ValueError: no\\n\\nAt:\\n  f"'
    assert readiness.complaints(log).splitlines() == ['E1120 1 x] "ValueError: no', "", "At:", '  f"']


def test_models_are_the_folders_with_a_configuration(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").touch()
    (tmp_path / "notes").mkdir()
    assert readiness.models_in(tmp_path) == ["a", "b"]


def test_nobody_listens() -> None:
    assert not readiness.http_ready("http://127.0.0.1:9", [])
