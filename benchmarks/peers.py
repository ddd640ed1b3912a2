"""The environments of the peers: what is missing is set up under `.cache/bench`, or it is said why that cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local.options import ENVIRONMENTS, ROOT

ACCELERATE = "accelerate==1.15.0"
"""`transformers serve` loads models by it; the product does without."""
LLAMA_CPP = "0.3.36"
"""Of llama-cpp-python, for the llama.cpp in its source archive: its own server, in Python, has no batches."""


class MissingError(RuntimeError):
    """A peer cannot run here, and why."""


@dataclass(frozen=True)
class Workshop:
    """Where environments are made.

    Attributes:
        folder: of all of them.
        logs: of what was done.
        set_up: whether what is missing may be made, which takes minutes.
    """

    folder: Path
    logs: Path
    set_up: bool

    def vllm(self, python: Path) -> Path:
        """The Python of an environment with vLLM; the one of `make serve ENGINE=vllm` is made by make."""
        if not python.exists():
            self._may("vLLM's environment")
            if python.parent.parent != ENVIRONMENTS["vllm"]:
                raise MissingError(f"there is no {python}")
            self._run(["make", ".venv-vllm/.ready"], "vllm", cwd=ROOT)
        return python

    def accelerate(self) -> Path:
        """A folder of packages for `transformers serve`, to be added to those of this environment."""
        target = self.folder / ACCELERATE.replace("==", "-")
        if not (target / "accelerate").exists():
            self._may(ACCELERATE)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            self._run([*pip, ACCELERATE], "accelerate")
        return target

    def llama_server(self) -> Path:
        """llama.cpp's own server, compiled for this processor."""
        build = self.folder / f"llama-cpp-{LLAMA_CPP}"
        program = build / "build" / "bin" / "llama-server"
        if not program.exists():
            self._may("llama.cpp's server")
            if not (shutil.which("cmake") and shutil.which("c++")):
                raise MissingError("llama.cpp's server is compiled here, which needs cmake and a C++ compiler")
            self._compile(build)
        return program

    def gguf(self, checkpoint: Path, dtype: str) -> Path:
        """The checkpoint in llama.cpp's own form."""
        target = checkpoint / f"model-{dtype}.gguf"
        if not target.exists():
            package = self._source(self.folder / f"llama-cpp-{LLAMA_CPP}") / "gguf-py"
            command = [sys.executable, "-m", "benchmarks.gguf_model", str(checkpoint), str(target), dtype]
            self._run(command, "gguf", cwd=ROOT, more={"PYTHONPATH": str(package)})
        return target

    def _compile(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        self._run([*pip, "--dest", str(folder), f"llama-cpp-python=={LLAMA_CPP}"], "llama-cpp-download")
        (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
        archive.unlink()
        off = [f"-D{name}=OFF" for name in _LLAMA_CPP_WITHOUT]
        build = str(folder / "build")
        configure = ["cmake", "-S", str(self._source(folder)), "-B", build, "-DCMAKE_BUILD_TYPE=Release", *off]
        self._run(configure, "llama-cpp-configure")
        cores = str(len(os.sched_getaffinity(0)))
        self._run(["cmake", "--build", build, "--target", "llama-server", "--parallel", cores], "llama-cpp-build")

    @staticmethod
    def _source(folder: Path) -> Path:
        return folder / f"llama_cpp_python-{LLAMA_CPP}" / "vendor" / "llama.cpp"

    def _may(self, what: str) -> None:
        if not self.set_up:
            raise MissingError(f"{what} is not set up, and --quick sets nothing up; a run without it does")

    def _run(
        self, command: Sequence[str], name: str, cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"setup-{name}.log"
        with log.open("wb") as output:
            environment = {**os.environ, **(more or {})}
            done = subprocess.run(
                command, cwd=cwd, env=environment, check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        if done.returncode:
            raise MissingError(f"setting it up failed ({name}): {last_line(log)} (see {log})")


_LLAMA_CPP_WITHOUT = (
    "BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL",
)  # fmt: skip


def last_line(log: Path) -> str:
    """The last words in a log, without the frame that tracebacks of groups have."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((found for line in reversed(lines) if (found := line.strip(" |+-\r"))), "it said nothing")


def version_of(python: Path, *names: str) -> str:
    """Of the first of these packages that the environment has, without importing it; "" without either."""
    if not python.exists():
        return ""
    code = (
        "import sys; from importlib.metadata import distributions as d; "
        "print(next((x.version for x in d() if x.name in sys.argv[1:]), ''))"
    )
    done = subprocess.run([str(python), "-c", code, *names], check=False, capture_output=True, text=True)
    return done.stdout.strip()
