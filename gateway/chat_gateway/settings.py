"""What the gateway is told, from the environment: `TRITON_CHAT_GATEWAY_<NAME>`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, HttpUrl, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """Times are in seconds, sizes in bytes. Lists are separated by commas; `ALIASES` is a JSON object."""

    model_config = SettingsConfigDict(
        env_prefix="TRITON_CHAT_GATEWAY_", frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(9000, ge=0, le=65535)
    triton_url: str = Field("localhost:8001", description="Triton's gRPC endpoint; grpcs:// for TLS.")
    aliases: dict[str, str] = Field({}, description='Other names of models, as {"gpt-4o-mini": "chat"}.')

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Bearer keys; with none, and no file, nobody is asked."
    )
    api_keys_file: Path | None = Field(None, description="One key a line; read again when it changes.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins a browser may call from; none by default."
    )

    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    max_choices: int = Field(16, ge=1, description="Largest `n`, and most prompts times `n`, of one request.")
    max_embedding_inputs: int = Field(256, ge=1)

    request_timeout: float = Field(600.0, gt=0, description="For a whole answer.")
    first_token_timeout: float = Field(120.0, gt=0, description="For the first token, the queue included.")
    token_timeout: float = Field(30.0, gt=0, description="Between two tokens.")
    keep_alive: float = Field(15.0, gt=0, description="Silence after which a stream gets a comment.")
    retry_after: int = Field(2, ge=1, description="What 429 and 503 advise.")
    drain_timeout: int = Field(30, ge=0, description="How long running answers may take to finish at SIGTERM.")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: HttpUrl | None = Field(
        None, description="OTLP over HTTP, such as http://collector:4318; no tracing without it."
    )
