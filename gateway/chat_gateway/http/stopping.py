"""What a request hears that the drain time did not suffice for: `Server` cancels it, and it ends with this error."""

from __future__ import annotations

from starlette.types import Scope

from chat_gateway.errors import ApiError, unavailable


def is_stopping(scope: Scope) -> bool:
    """Whether a request may have been cancelled because the gateway stops."""
    app = scope.get("app")
    return app is not None and bool(app.state.draining)


def cut_short(retry_after: int) -> ApiError:
    return unavailable("the gateway stopped before the answer was complete; try again later", retry_after)
