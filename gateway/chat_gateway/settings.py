"""What the gateway is told, from the environment: `TRITON_CHAT_GATEWAY_<NAME>`."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, HttpUrl, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triton_chat.channel import parse_url

PREFIX = "TRITON_CHAT_GATEWAY_"
STANDARD_OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

_SERVICE_LINKS = ("SERVICE_", "PORT_")
"""What Kubernetes adds for a Service of this name; see `enableServiceLinks` of a pod."""


class GatewaySettings(BaseSettings):
    """Times are in seconds, sizes in bytes. Lists are separated by commas; `ALIASES` is a JSON object."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        validate_by_name=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on; :: in a container, for IPv6 and IPv4.")
    port: int = Field(9000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    triton_url: str = Field("localhost:8001", description="Triton's gRPC endpoint; grpcs:// for TLS.")
    aliases: dict[str, str] = Field({}, description='Additional names of models, such as {"gpt-4o-mini": "chat"}.')

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted bearer keys; without keys or a file, no key is required."
    )
    api_keys_file: Path | None = Field(None, description="File with one key per line; reloaded when it changes.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins from which browsers may call; none by default."
    )

    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Maximum size of a request body.")
    max_choices: int = Field(16, ge=1, description="Maximum of `n`, and of prompts times `n`, in one request.")
    max_embedding_inputs: int = Field(
        2048, ge=1, description="Maximum number of texts in one request; OpenAI's limit by default."
    )

    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse", description="Fields at the top of a request that no API has: a 400, or as if they were not there."
    )

    request_timeout: float = Field(600.0, gt=0, description="Time limit for a whole answer.")
    first_token_timeout: float = Field(120.0, gt=0, description="Time limit for the first token, including the queue.")
    token_timeout: float = Field(30.0, gt=0, description="Time limit between two tokens.")
    max_queue_seconds: float = Field(
        2.0,
        ge=0,
        description="Estimated wait for other requests' first tokens from which on a request is refused; 0: off.",
    )
    keep_alive: float = Field(15.0, gt=0, description="Idle time after which a stream sends a comment.")
    retry_after: int = Field(2, ge=1, description="Value of Retry-After in 429 and 503 responses.")
    drain_timeout: int = Field(30, ge=0, description="Time for running answers to finish after SIGTERM.")

    head_timeout: float = Field(20.0, gt=0, description="Time limit for the head of a request to arrive.")
    body_timeout: float = Field(60.0, gt=0, description="Time limit for the body of a request to arrive.")
    idle_timeout: float = Field(
        75.0, gt=0, description="Time a connection without a request stays open; longer than load balancers keep it."
    )
    slow_reader_seconds: float = Field(
        60.0, gt=0, description="Time after which a client that reads nothing of its answer loses the connection."
    )
    max_connections: int = Field(4096, ge=0, description="Maximum number of connections; 0: no limit.")
    max_connections_per_address: int = Field(
        0, ge=0, description="Maximum from one address; 0: no limit, as behind a proxy, which is one address."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug also logs successful requests of probes and for the metrics."
    )
    otlp_endpoint: HttpUrl | None = Field(
        None,
        validation_alias=AliasChoices(f"{PREFIX}OTLP_ENDPOINT", STANDARD_OTLP_ENDPOINT),
        description=f"OTLP over HTTP, such as http://collector:4318; or {STANDARD_OTLP_ENDPOINT}. None: no tracing.",
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        host = value.strip().removeprefix("[").removesuffix("]")
        if not host or (":" in host and not _is_ipv6(host)):
            raise ValueError(f"must be an address or a name, such as 127.0.0.1, ::1 or ::, not {value!r}")
        return host

    @field_validator("triton_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parse_url(value)
        return value


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Which of some environment variables look like settings and are none: somebody's typing error."""
    known = {variable(field) for field in GatewaySettings.model_fields}
    return sorted(
        name
        for name in names
        if name.startswith(PREFIX) and name not in known and not name.removeprefix(PREFIX).startswith(_SERVICE_LINKS)
    )
