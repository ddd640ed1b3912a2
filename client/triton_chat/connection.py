"""What both kinds of connection have in common: where the server is, and what goes with each call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from triton_chat import wire
from triton_chat.channel import DEFAULT_URL, Target, channel_options, parse_url
from triton_chat.kinds import Kinds
from triton_chat.rpc import Rpc, StreamRpc, failure
from triton_chat.types import Timeouts


class Connection:
    """Addresses, limits, headers and the mapping of errors."""

    def __init__(
        self,
        url: str | Target = DEFAULT_URL,
        *,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        grpc_status: bool = False,
    ) -> None:
        """Nothing is connected yet.

        Args:
            url: `host:port`, `grpc://host:port`, or `grpcs://host:port` for TLS (roots: gRPC's
                `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`). Calls are spread over all addresses that the host has. Or a
                `Target`, such as one of these addresses.
            timeouts: limits in seconds; single calls may override some.
            headers: gRPC metadata of every call, such as what a proxy asks for.
            grpc_status: ask the server to end failed streams with a gRPC status, see `wire.STATUS_METADATA`.

        Raises:
            InvalidRequestError: the address cannot be one.
        """
        self.target: Target = url if isinstance(url, Target) else parse_url(url)
        self.timeouts = timeouts or Timeouts()
        self._headers = _lowered(headers)
        self._stream_headers = wire.STATUS_METADATA if grpc_status else ()
        self._kinds = Kinds()

    def _open_channel(self, library: Any) -> Any:
        """A channel of `grpc` or `grpc.aio`."""
        options = channel_options(self.target, self.timeouts.connect)
        if self.target.tls:
            return library.secure_channel(self.target.address, grpc.ssl_channel_credentials(), options=options)
        return library.insecure_channel(self.target.address, options=options)

    def _arguments(self, rpc: Rpc[Any], headers: Mapping[str, str] | None) -> dict[str, Any]:
        """The arguments of gRPC that stand beside a request; headers of the call win over the client's."""
        timeout = self.timeouts.control if rpc.timeout is None else rpc.timeout
        return {"metadata": self._metadata(headers), "timeout": timeout}

    def _stream_arguments(self, rpc: StreamRpc) -> dict[str, Any]:
        return {"metadata": self._metadata(rpc.headers) + self._stream_headers, "timeout": rpc.timeout}

    def _metadata(self, headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
        return tuple({**self._headers, **_lowered(headers)}.items())

    def _batch_limit(self, timeout: float | None) -> float:
        return self.timeouts.batch if timeout is None else timeout

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Map gRPC's errors to this package's."""
        try:
            yield
        except grpc.RpcError as error:
            raise failure(error, self.target.address) from error


def _lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}
