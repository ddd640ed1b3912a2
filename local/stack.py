"""tritonserver, the gateway and the page: the whole stack."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Self

from local import ports
from local.gateway import LocalGateway
from local.options import StackOptions
from local.page import LocalPage
from local.service import LocalService, start_together, stop_together
from local.triton import LocalTriton


class LocalStack:
    """As a context manager: all ready inside the block, stopped after it from the page down."""

    def __init__(self, options: StackOptions) -> None:
        options = _with_ports(options)
        self.triton = LocalTriton(options.triton)
        self.gateway = LocalGateway(options.gateway, self.triton.grpc_address, after=self.triton)
        self.page = LocalPage(options.page, self.gateway.url)

    @property
    def servers(self) -> tuple[LocalService, ...]:
        return (self.triton, self.gateway, self.page)

    def start(self) -> None:
        """Returns when all are ready. Raises ServerError, with none of them left, when one does not get there."""
        start_together(self.servers)

    def stop(self) -> None:
        """Page, gateway, tritonserver, each to its end. Ctrl-C meanwhile kills all that are left."""
        stop_together(self.servers)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _with_ports(options: StackOptions) -> StackOptions:
    """Free ports for all in one go, so that no two are the same."""
    http, grpc, metrics, gateway, page = ports.choose(options.triton.host, options.ports)
    return StackOptions(
        triton=replace(options.triton, http_port=http, grpc_port=grpc, metrics_port=metrics),
        gateway=replace(options.gateway, port=gateway),
        page=replace(options.page, port=page),
    )
