"""A DNS server with one name, whose addresses a test may change: what a headless Service of Kubernetes is to a client.

Source: RFC 1035, section 4.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from types import TracebackType
from typing import Final

from triton_chat.channel import Target

NAME: Final = "triton.test"

_HEADER: Final = struct.Struct("!6H")
_NAME_ERROR: Final = 3
_ANSWER: Final = 0x8400
"""A response, with authority."""
_TYPES: Final = {1: 4, 28: 6}
"""A and AAAA, with their IP versions."""


class NameServer:
    """Answers on a port of its own until its `with` block ends; `lookups` counts the questions for an IPv4 address."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: tuple[str, ...] = addresses
        self.lookups = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def target(self, port: int) -> Target:
        """The name as gRPC wants it, to be looked up here."""
        return Target(f"dns://127.0.0.1:{self._port}/{NAME}:{port}", NAME, tls=False)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self._port))
        self._thread.join()
        self._socket.close()

    @property
    def _port(self) -> int:
        return int(self._socket.getsockname()[1])

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        number = _HEADER.unpack_from(query)[0]
        end = query.index(b"\0", _HEADER.size) + 1
        question = query[_HEADER.size : end + 4]
        name, (kind, _) = question[:-4], struct.unpack("!2H", question[-4:])
        if name.lower() != _encoded(NAME):
            return _HEADER.pack(number, _ANSWER | _NAME_ERROR, 1, 0, 0, 0) + question
        self.lookups += kind == 1
        found = [ip for ip in map(ipaddress.ip_address, self.addresses) if ip.version == _TYPES.get(kind)]
        records = [_record(kind, ip.packed) for ip in found]
        return _HEADER.pack(number, _ANSWER, 1, len(records), 0, 0) + question + b"".join(records)


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in (*name.split("."), ""))


def _record(kind: int, packed: bytes) -> bytes:
    """Of the name in the question, and not to be kept."""
    return struct.pack("!3HIH", 0xC000 | _HEADER.size, kind, 1, 0, len(packed)) + packed
