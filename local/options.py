"""What the local servers are told, resolved once from the environment."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from local import logs
from local.preflight import PORT_NAMES

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
RUN_LOGS = CACHE / "logs" / logs.run_name()
"""Of the servers of this process."""
DEFAULT_MODEL = ROOT / "models" / "tiny-chat"
ENVIRONMENTS = {"native": Path(sys.prefix), "vllm": ROOT / ".venv-vllm"}
"""Engine -> the Python environment in which the models run."""


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """A port of 0 means any free one. Loopback only, unless `host` says otherwise."""

    host: str = "127.0.0.1"
    extra_env: Mapping[str, str] = field(default_factory=dict)
    log_path: Path
    ready_timeout_s: float = 60.0
    exit_timeout_s: int = 30
    """How long it may finish what runs after a SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class TritonOptions(ServiceOptions):
    repository: Path = ROOT / "model_repository"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model: str | None = str(DEFAULT_MODEL)
    """A hub id or a folder; None for the one that the engine settings name."""
    engine_config: Path | None = None
    engine: str = "native"
    """Of the model `chat`, in place of the one that the engine settings name; native leaves it to them."""
    models: tuple[str, ...] = ()
    """The models to load; empty for all in the repository."""
    extra_args: tuple[str, ...] = ()
    log_path: Path = RUN_LOGS / "tritonserver.log"
    ready_timeout_s: float = 900.0

    @property
    def ports(self) -> tuple[int, int, int]:
        """HTTP, gRPC, metrics."""
        return (self.http_port, self.grpc_port, self.metrics_port)

    @property
    def model_name(self) -> str:
        """For people: a hub id as it is, a folder by its own name."""
        if self.model is None:
            return f"the model of {self.engine_config}"
        return Path(self.model).name if Path(self.model).is_absolute() else self.model

    @property
    def python_environment(self) -> Path:
        """In which all models run."""
        return ENVIRONMENTS[self.engine]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> TritonOptions:
        """Raises ValueError, naming the variable, for a port that is none and a folder that is not there."""
        engine_config = environment.get("TRITON_CHAT_ENGINE_CONFIG")
        return cls(
            host=_address(environment, "TRITON_HOST", cls.host),
            http_port=_port(environment, "TRITON_HTTP_PORT", cls.http_port),
            grpc_port=_port(environment, "TRITON_GRPC_PORT", cls.grpc_port),
            metrics_port=_port(environment, "TRITON_METRICS_PORT", cls.metrics_port),
            model=resolve_model(environment.get("TRITON_CHAT_MODEL"), None if engine_config else str(DEFAULT_MODEL)),
            engine_config=Path(engine_config).resolve() if engine_config else None,
            engine=_engine(environment.get("TRITON_CHAT_ENGINE") or cls.engine),
        )

    def with_repository(self, folder: Path) -> TritonOptions:
        """Raises ValueError where no model is in `folder`."""
        if not any(folder.glob("*/config.pbtxt")):
            raise ValueError(f"the repository must be a folder with models, <model>/config.pbtxt, not {str(folder)!r}")
        return replace(self, repository=folder.resolve())


@dataclass(frozen=True, kw_only=True)
class GatewayOptions(ServiceOptions):
    port: int = 9000
    needs_key: bool = False
    """Whether its callers must show one of the keys that the environment names."""
    log_path: Path = RUN_LOGS / "gateway.log"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> GatewayOptions:
        """Host, keys and drain time are the gateway's own settings. Raises ValueError, naming the variable."""
        keys = ("TRITON_CHAT_GATEWAY_API_KEYS", "TRITON_CHAT_GATEWAY_API_KEYS_FILE")
        return cls(
            host=_host(environment, "TRITON_CHAT_GATEWAY_HOST", cls.host),
            port=_port(environment, "GATEWAY_PORT", cls.port),
            needs_key=any(environment.get(variable) for variable in keys),
            exit_timeout_s=_seconds(environment, "TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT", cls.exit_timeout_s),
        )


@dataclass(frozen=True, kw_only=True)
class PageOptions(ServiceOptions):
    port: int = 8501
    log_path: Path = RUN_LOGS / "page.log"
    exit_timeout_s: int = 5

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> PageOptions:
        """Raises ValueError, naming the variable."""
        return cls(host=_host(environment, "UI_HOST", cls.host), port=_port(environment, "UI_PORT", cls.port))


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    triton: TritonOptions = field(default_factory=TritonOptions)
    gateway: GatewayOptions = field(default_factory=GatewayOptions)
    page: PageOptions = field(default_factory=PageOptions)

    @property
    def ports(self) -> tuple[int, int, int, int, int]:
        """Triton's HTTP, gRPC and metrics, the gateway's, the page's."""
        return (*self.triton.ports, self.gateway.port, self.page.port)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> StackOptions:
        """Raises ValueError, naming the variable, also for a port that two of them are given."""
        options = cls(
            triton=TritonOptions.from_environment(environment),
            gateway=GatewayOptions.from_environment(environment),
            page=PageOptions.from_environment(environment),
        )
        _refuse_shared_ports(options.ports)
        return options


def resolve_model(model: str | None, default: str | None) -> str | None:
    """A folder becomes absolute, because the server looks from elsewhere; anything else is a hub id."""
    if not model:
        return default
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if model.startswith(("/", ".", "~")):
        raise ValueError(f"MODEL (TRITON_CHAT_MODEL) must be a folder that exists or a hub id, not {model!r}")
    return model


def _engine(name: str) -> str:
    if name not in ENVIRONMENTS:
        raise ValueError(f"ENGINE (TRITON_CHAT_ENGINE) must be {' or '.join(ENVIRONMENTS)}, not {name!r}")
    return name


def _host(environment: Mapping[str, str], variable: str, default: str) -> str:
    """An address, or a name that stands for one; IPv6 without its brackets."""
    host = (environment.get(variable) or "").strip().removeprefix("[").removesuffix("]") or default
    return _checked(host, variable) if ":" in host else host


def _address(environment: Mapping[str, str], variable: str, default: str) -> str:
    """tritonserver's HTTP takes no names: it would listen where nobody finds it."""
    host = _host(environment, variable, default)
    return default if host == "localhost" else _checked(host, variable)


def _checked(address: str, variable: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        raise ValueError(f"{variable} must be an address, such as 127.0.0.1, ::1 or ::, not {address!r}") from None


def _port(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"{variable} must be a port, 0 to 65535 (0: any free one), not {text!r}")
    return int(text)


def _seconds(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isdecimal():
        raise ValueError(f"{variable} must be a whole number of seconds, not {text!r}")
    return int(text)


def _refuse_shared_ports(ports: tuple[int, ...]) -> None:
    variables = defaultdict(list)
    for variable, port in zip(PORT_NAMES, ports, strict=True):
        variables[port].append(variable)
    for port, names in variables.items():
        if port and len(names) > 1:
            raise ValueError(f"port {port} is set for {' and '.join(names)}; each needs its own port")
