"""`.ci/run` with programs that only pretend: what it runs, in which order it shows it, and what ends it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"
MAKE = """\
#!/bin/bash
target=${!#}
echo "begins $target"
case $target in
  $LONG) exec sleep 60 ;;
  test-fresh) [[ $LONG ]] || sleep 0.2 ;;
esac
echo "ends $target"
[[ $target != "$FAILS" ]]
"""
BESIDE = "test-vllm-engine"
BEFORE = ["environments", "check", "test"]
AFTER = [BESIDE, "test-fresh", "test-faults", "test-browser", "test-image", "test-vllm-server"]
ORDER = BEFORE + AFTER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, script in {"make": MAKE, "g++": "#!/bin/bash\n", "python": "#!/bin/bash\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(folder: Path, fails: str = "", long: str = "", **env: str) -> tuple[int, list[str]]:
    own = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(folder)}
    env = os.environ | own | {"PYTHON": str(folder / "python"), "FAILS": fails, "LONG": long} | env
    done = subprocess.run(["bash", RUN], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    assert {path.name for path in folder.iterdir()} == {"make", "g++", "python"}, "nothing is left"
    return done.returncode, done.stdout.splitlines()


def shown(*targets: str) -> list[str]:
    return [f"{word} {target}" for target in targets for word in ("begins", "ends")]


def test_what_runs_beside_another_is_shown_after_it(folder: Path) -> None:
    assert run(folder) == (0, shown(*ORDER))


def test_without_time_the_rest_is_left_out_by_name(folder: Path) -> None:
    code, lines = run(folder, LAST_BEGIN_S="0")
    assert code == 0
    left_out = [" ".join(AFTER[:2]), *AFTER[2:]]
    assert lines == shown(*BEFORE) + [f"LEFT OUT for lack of time: make {targets}" for targets in left_out]


def test_what_could_not_be_set_up_is_tried_again(folder: Path) -> None:
    assert run(folder, fails="environments") == (1, shown("environments", "environments"))


@pytest.mark.parametrize("fails", ORDER[1:])
def test_a_failure_ends_it(folder: Path, fails: str) -> None:
    code, lines = run(folder, fails)
    assert code == 1
    if fails != BESIDE:
        assert lines == shown(*ORDER[: ORDER.index(fails) + 1])


def test_a_failure_does_not_wait_for_what_runs_beside(folder: Path) -> None:
    code, lines = run(folder, fails=BESIDE, long="test-fresh")
    assert code == 1
    assert lines[:8] == shown(*BEFORE, BESIDE)
    assert lines[8:] in ([], ["begins test-fresh"])
