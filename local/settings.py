"""What the local server is told, resolved once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
DEFAULT_MODEL = ROOT / "models" / "tiny-chat"


@dataclass(frozen=True)
class TritonSettings:
    """A port of 0 means any free one. Loopback only, unless `host` says otherwise."""

    repository: Path = ROOT / "model_repository"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model: str | None = str(DEFAULT_MODEL)
    """A hub id or a folder; None for the one that the engine settings name."""
    engine_config: Path | None = None
    models: tuple[str, ...] = ()
    """The models to load; empty for all in the repository."""
    extra_env: Mapping[str, str] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    log_path: Path = CACHE / "logs" / "tritonserver.log"
    ready_timeout_s: float = 900.0
    exit_timeout_s: int = 30
    """How long tritonserver may finish what runs after a SIGTERM."""

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

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> TritonSettings:
        """Raises ValueError, naming the variable, for a port that is none and a folder that is not there."""
        engine_config = environment.get("TRITON_CHAT_ENGINE_CONFIG")
        return cls(
            host=environment.get("TRITON_HOST") or cls.host,
            http_port=_port(environment, "TRITON_HTTP_PORT", cls.http_port),
            grpc_port=_port(environment, "TRITON_GRPC_PORT", cls.grpc_port),
            metrics_port=_port(environment, "TRITON_METRICS_PORT", cls.metrics_port),
            model=resolve_model(environment.get("TRITON_CHAT_MODEL"), None if engine_config else str(DEFAULT_MODEL)),
            engine_config=Path(engine_config).resolve() if engine_config else None,
        )


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


def _port(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"{variable} must be a port, 0 to 65535 (0: any free one), not {text!r}")
    return int(text)
