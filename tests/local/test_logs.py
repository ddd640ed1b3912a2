from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import logs
from local.options import ROOT, StackOptions


def make_runs(folder: Path, count: int) -> list[Path]:
    runs = [folder / f"20260101-0000{number:02d}-{number}" for number in range(count)]
    for run in runs:
        run.mkdir(parents=True)
        (run / "gateway.log").write_text("words")
    return runs


def test_two_processes_of_one_clone_log_apart() -> None:
    script = "from local.options import StackOptions as S; s = S(); print(s.triton.log_path.parent, s.page.log_path)"
    command = [sys.executable, "-c", script]
    found = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert found[0] != found[1]


def test_the_servers_of_one_process_log_side_by_side() -> None:
    stack = StackOptions()
    paths = [server.log_path for server in (stack.triton, stack.gateway, stack.page)]
    assert len({path.parent for path in paths}) == 1
    assert len(set(paths)) == 3


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, logs.KEPT_RUNS + 3)
    (tmp_path / "notes").mkdir()
    run = tmp_path / "20260102-000000-1"
    with logs.kept(run):
        left = sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir() and not entry.is_symlink())
    assert left == [*(one.name for one in runs[4:]), run.name, "notes"]


def test_a_run_that_goes_on_is_kept_however_old(tmp_path: Path) -> None:
    old = tmp_path / "20250101-000000-1"
    with logs.kept(old):
        make_runs(tmp_path, logs.KEPT_RUNS)
        with logs.kept(tmp_path / "20260102-000000-1"):
            assert old.is_dir()
    with logs.kept(tmp_path / "20260102-000000-2"):
        assert not old.is_dir()


def test_latest_is_the_run_that_began_last(tmp_path: Path) -> None:
    for name in ("20260102-000000-1", "20260102-000001-2"):
        with logs.kept(tmp_path / name):
            assert (tmp_path / logs.LATEST).resolve().name == name
            assert (tmp_path / logs.LATEST).readlink() == Path(name)


def test_a_run_that_another_launcher_clears_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_runs(tmp_path, logs.KEPT_RUNS + 1)
    opened = os.open

    def gone(path: os.PathLike[str], flags: int) -> int:
        if str(path).endswith("-0"):
            raise FileNotFoundError
        return opened(path, flags)

    monkeypatch.setattr(os, "open", gone)
    with logs.kept(tmp_path / "20260102-000000-1"):
        pass
