"""tritonserver's flags, for the container and for `make serve`. Pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from triton_chat_server.errors import CommandError

EXIT_TIMEOUT_S = 35
"""Longer than the engine's own `drain_seconds` (30 by default), which ends what still runs with a proper error."""

CLOSED = ("shared-memory", "trace", "logging")
"""Shared memory reads and writes memory of this machine, traces write files, log settings name files.

The API of the repository stays open for its index, by which the gateway finds the models; the mode `none` refuses to
load and unload.
"""

_RESTRICTING = ("http-restricted-api", "grpc-restricted-protocol")
_ALIASES = {"model-store": "model-repository"}
_LOOKED_AT = (
    *("model-repository", "model-store", "model-control-mode", "model-config-name", "disable-auto-complete-config"),
    *("exit-timeout-secs", "metrics-interval-ms", "allow-gpu-metrics", *_RESTRICTING),
    *("http-address", "grpc-address", "metrics-address"),
)
"""Flags that this module finds by their names."""
_KEY = re.compile(r"(?<=:)[^:=]+=.*")
_PASSWORD = re.compile(r"(?<=password=).*", re.IGNORECASE)


def server_flags(
    repository: Path,
    *,
    gpu: bool,
    given: Sequence[str] = (),
    closed: Sequence[str] = CLOSED,
    address: str | None = None,
) -> list[str]:
    """The flags, `given` last. A flag in `given` replaces ours; an API that it restricts keeps the key it has there.

    Args:
        address: where to listen; None leaves it to tritonserver, which takes 0.0.0.0.
    """
    ours = [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--metrics-interval-ms=1000",
        *(address_flags(address) if address is not None else []),
    ]
    if not gpu:
        ours += ["--model-config-name=cpu", "--allow-gpu-metrics=false"]
    taken = names(given)
    kept = [flag for flag in ours if not names([flag]) & taken]
    return [*kept, *_closing_flags(closed, given), *given]


def address_flags(address: str) -> list[str]:
    """Where to listen, in tritonserver's spellings; its HTTP and metrics take IPv4 or IPv6, never both.

    The wildcards open gRPC to both families. HTTP reads names and brackets as addresses that nobody can reach.
    """
    http, grpc = (f"ipv6:{address}", f"[{address}]") if ":" in address else (address, address)
    return [f"--http-address={http}", f"--grpc-address={grpc}", f"--metrics-address={http}"]


def check_whole(given: Sequence[str]) -> None:
    """Raises CommandError for a flag of ours that is abbreviated: tritonserver would take it, this module miss it."""
    for name in names(given) - {""}:
        for whole in _LOOKED_AT:
            if whole.startswith(name) and name not in _LOOKED_AT:
                raise CommandError(f"--{name} is an abbreviation; write the full flag, such as --{whole}")


def closed_apis(given: Sequence[str]) -> tuple[str, ...]:
    """What to close to the network: where models can be loaded by a request, that too, and their index with it."""
    loads = values("model-control-mode", given) not in ([], ["none"])
    return (*CLOSED, "model-repository") if loads else CLOSED


def names(arguments: Sequence[str]) -> set[str]:
    """The flags among `arguments`, without dashes: `--http-port=1` and `--http-port 1` are both `http-port`."""
    found = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
    return {_ALIASES.get(name, name) for name in found}


def values(name: str, arguments: Sequence[str]) -> list[str]:
    """What a flag is given as, in either form."""
    found = []
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == f"--{name}":
            found.append(value if equals else "".join(arguments[index + 1 : index + 2]))
    return found


def last(name: str, arguments: Sequence[str], default: str) -> str:
    """What a flag is given as at its last place."""
    return (values(name, arguments) or [default])[-1]


def shown(arguments: Sequence[str]) -> list[str]:
    """`arguments` for a log, without passwords and the keys of restricted APIs."""
    hidden = {value for flag in _RESTRICTING for value in values(flag, arguments) if value}
    return [
        _PASSWORD.sub("...", _KEY.sub("...", argument) if any(map(argument.endswith, hidden)) else argument)
        for argument in arguments
    ]


def _closing_flags(closed: Sequence[str], given: Sequence[str]) -> list[str]:
    """Asks for a key that nobody is told. It can be seen in /proc, by processes in the same container alone."""
    header, key = secrets.token_hex(8), secrets.token_hex(16)
    return [
        f"--{flag}={','.join(apis)}:{header}={key}"
        for flag in _RESTRICTING
        if (apis := [api for api in closed if api not in _restricted(flag, given)])
    ]


def _restricted(flag: str, given: Sequence[str]) -> set[str]:
    """The APIs in `<api>,<api>:<header>=<key>`."""
    return {api for value in values(flag, given) for api in value.partition(":")[0].split(",")}
