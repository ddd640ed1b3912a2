"""What the tests need beyond the Python environment: told, or set up, before anything is run.

    python -m tools.needs test-browser   one sentence and exit code 1 where something is missing
    python -m tools.needs --packages     Debian's packages of all that is missing and that `make` does not set up itself

Standard library only, and no syntax newer than Python 3.8: `make` runs this before the environment exists.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from local import preflight
from tools import prometheus

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv" / ".ready"
"""The stamp of the Makefile."""

RUNTIMES = ("runc", "crun")
_SBIN = ":/usr/sbin:/usr/local/sbin"
"""Where runc lies on some systems; not on everybody's PATH."""
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Need(NamedTuple):
    name: str
    packages: tuple[str, ...]
    """Debian's."""
    is_there: Callable[[], bool]


def chromium() -> str | None:
    """The path of a Chromium, under any of its names."""
    return next(filter(None, map(shutil.which, _CHROMIUMS)), None)


def runtime() -> str | None:
    """The name of what podman starts containers with."""
    return next(filter(_which, RUNTIMES), None)


def has_chinese_font() -> bool:
    fc_list = shutil.which("fc-list")
    if fc_list is None:
        return False
    found = subprocess.run([fc_list, ":lang=zh"], stdout=subprocess.PIPE, check=False).stdout
    return bool(found.strip())


CONTAINERS = (
    Need("podman", ("podman",), lambda: _which("podman")),
    Need("runc or crun", ("runc",), lambda: runtime() is not None),
    Need("mmdebstrap", ("mmdebstrap",), lambda: _which("mmdebstrap")),
)
CHROMIUM = Need("Chromium", ("chromium",), lambda: chromium() is not None)
CHINESE_FONT = Need("a font with Chinese", ("fontconfig", "fonts-wqy-microhei"), has_chinese_font)
LIBNUMA = Need("libnuma", ("libnuma1",), lambda: preflight.libnuma() is not None)
GIT = Need("git", ("git",), lambda: _which("git"))
NEEDS = {
    "test": (),
    "test-vllm-engine": (LIBNUMA,),
    "test-browser": (CHROMIUM, CHINESE_FONT),
    "test-image": CONTAINERS,
    "test-image-vllm": CONTAINERS,
    "test-fresh": (*CONTAINERS, GIT),
}
"""By target of the Makefile. What `test` needs, `make` sets up by itself."""


def missing(needs: Sequence[Need]) -> list[Need]:
    return [need for need in needs if not need.is_there()]


def sentence(what: str, needs: Sequence[Need]) -> str:
    """That `what` needs these, and how to get them."""
    names, those = _listed([need.name for need in needs]), "it" if len(needs) == 1 else "them"
    return f"{what} needs {names}: install {those} (on Debian, apt-get install {packages(needs)})"


def packages(needs: Sequence[Need]) -> str:
    return " ".join(package for need in needs for package in need.packages)


def problems(target: str) -> list[str]:
    """What keeps `make <target>` from running here, and what helps."""
    found = [] if ENVIRONMENT.exists() else [str(problem) for problem in preflight.before_install(ROOT)]
    lacking = missing(NEEDS[target])
    if lacking:
        found.append(sentence(f"make {target}", lacking))
    return found


def provide_prometheus() -> str | None:
    """None where it is there now, else a sentence that says why not, and what helps."""
    if prometheus.is_there():
        return None
    print("Prometheus for the tests of the alert rules, of this system's packages (30 MB)", flush=True)
    try:
        prometheus.set_up()
    except prometheus.SetUpError as error:
        return (
            f"the tests of the alert rules need Prometheus, which could not be set up because {error}: "
            f"put prometheus and promtool on PATH (on Debian or Ubuntu, apt-get install {prometheus.PACKAGE})"
        )
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.needs", description="Say what the tests need and lack.")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("target", nargs="?", choices=list(NEEDS))
    wanted.add_argument("--packages", action="store_true", help="of all targets, one a line")
    options = parser.parse_args()
    if options.packages:
        print("".join(f"{package}\n" for package in all_packages()), end="")
        return 0
    found = problems(options.target)
    if not found and options.target == "test":
        found = list(filter(None, [provide_prometheus()]))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def all_packages() -> list[str]:
    """What the environment and the targets lack, each once."""
    of_python = [package for problem in preflight.before_install(ROOT) for package in problem.packages]
    lacking = missing([need for needs in NEEDS.values() for need in needs])
    return list(dict.fromkeys([*of_python, *(package for need in lacking for package in need.packages)]))


def _which(program: str) -> bool:
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + _SBIN) is not None


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


if __name__ == "__main__":
    sys.exit(main())
