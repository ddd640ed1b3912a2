"""Real servers for tests: the repository as it is, or a copy with some lines changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from local.gateway import LocalGateway
from local.options import DEFAULT_MODEL, ROOT, GatewayOptions, TritonOptions
from local.triton import LocalTriton
from tests.integration import engines

REPOSITORY = ROOT / "model_repository"
EMBEDDINGS_MODEL = "TRITON_CHAT_EMBEDDINGS_MODEL"
"""Set for every server: a changed copy of the repository does not lie where embedder.json finds its model."""
ConfigOverrides = Mapping[str, Mapping[str, str]]
"""model -> text in its config.pbtxt and its variants -> other text."""


def failed_steps(server: LocalTriton) -> list[str]:
    """What the server's log says of steps that the engine had to compute again in parts; nobody else hears of them."""
    lines = server.options.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if "the model could not compute a step" in line]


class ServerFactory:
    """Starts servers with that engine on free ports and stops them all."""

    def __init__(self, folder: Path, engine: str = engines.NATIVE) -> None:
        self._folder = folder
        self._engine = engine
        self.started: list[LocalTriton] = []

    def __call__(
        self,
        engine_config: Mapping[str, object] | None = None,
        extra_env: Mapping[str, str] | None = None,
        config_overrides: ConfigOverrides | None = None,
        *,
        repository: Path = REPOSITORY,
        models: tuple[str, ...] = (),
        extra_args: tuple[str, ...] = (),
        exit_timeout_s: int = 10,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
    ) -> LocalTriton:
        """Returns a ready server. `engine_config` is laid over the repository's engine.json, as for the native one."""
        folder = self._folder / f"server{len(self.started)}"
        folder.mkdir(parents=True)
        server = LocalTriton(
            TritonOptions(
                repository=changed_copy(repository, folder / "repository", config_overrides),
                host=host,
                http_port=0,
                grpc_port=grpc_port,
                metrics_port=0,
                engine_config=engine_file(engines.settings_on(self._engine, engine_config), folder / "engine.json"),
                engine=self._engine,
                models=models,
                extra_env={
                    EMBEDDINGS_MODEL: str(DEFAULT_MODEL),
                    **engines.environment_of(self._engine),
                    **(extra_env or {}),
                },
                extra_args=extra_args,
                log_path=folder / "tritonserver.log",
                ready_timeout_s=240.0,  # two of vLLM may load at once, on a slow processor
                exit_timeout_s=exit_timeout_s,
            )
        )
        self.started.append(server)
        server.start()
        return server

    def stop_all(self) -> None:
        for server in self.started:
            if server.is_started:
                server.stop()


class GatewayFactory:
    """Starts gateways on free ports, each in front of some tritonserver, and stops them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[LocalGateway] = []

    def __call__(self, triton: LocalTriton, *, exit_timeout_s: int = 10, **settings: str) -> LocalGateway:
        """Returns a ready gateway. `settings` are named as in its environment, without TRITON_CHAT_GATEWAY_."""
        local = GatewayOptions(
            port=0,
            extra_env={f"TRITON_CHAT_GATEWAY_{name}": value for name, value in settings.items()},
            log_path=self._folder / f"gateway{len(self.started)}.log",
            exit_timeout_s=exit_timeout_s,
        )
        gateway = LocalGateway(local, triton.grpc_address)
        self.started.append(gateway)
        gateway.start()
        return gateway

    def stop_all(self) -> None:
        for gateway in self.started:
            if gateway.is_started:
                gateway.stop()


def changed_copy(repository: Path, target: Path, overrides: ConfigOverrides | None) -> Path:
    """The repository itself where nothing changes; a text that is not there is an error."""
    if not overrides:
        return repository
    shutil.copytree(repository, target, ignore=shutil.ignore_patterns("__pycache__"))
    for model, replacements in overrides.items():
        for path in [target / model / "config.pbtxt", *(target / model / "configs").glob("*.pbtxt")]:
            path.write_text(_replaced(path.read_text(), replacements, path))
    return target


def engine_file(changes: Mapping[str, object] | None, target: Path) -> Path | None:
    if changes is None:
        return None
    defaults = json.loads((REPOSITORY / "chat" / "1" / "engine.json").read_text())
    target.write_text(json.dumps({**defaults, **changes}))
    return target


def _replaced(text: str, replacements: Mapping[str, str], path: Path) -> str:
    for old, new in replacements.items():
        assert old in text, f"{old!r} is not in {path}"
        text = text.replace(old, new)
    return text
