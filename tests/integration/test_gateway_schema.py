"""The gateway's own OpenAPI: requests made from it, right ones and wrong ones, and what the answers must keep to."""

from __future__ import annotations

from typing import Any

import httpx2
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from chat_gateway.app import create_app
from chat_gateway.settings import GatewaySettings
from local.gateway import LocalGateway

load_all_checks()

EXAMPLES = 30
"""For each route, beside those that cover each field's limits."""
MOST_TOKENS = 4
MODELS = {"/v1/embeddings": "embeddings"}
LENGTHS = ("max_tokens", "max_completion_tokens")


schema = schemathesis.openapi.from_dict(create_app(GatewaySettings()).openapi())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_keep_to_the_schema(case: Any, gateway: LocalGateway) -> None:
    """No 5xx, no undocumented status or shape, no wrong request taken.

    Some right ones are refused: a schema cannot say what fields must not come together, or how many tokens there are.
    """
    if isinstance(case.body, dict) and case.method == "POST":
        case.body = runnable(case.path, case.body)
    case.call_and_validate(base_url=gateway.url, excluded_checks=[positive_data_acceptance], timeout=60)


def runnable(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """As right or wrong as it was, but with a name of a model that exists, and short."""
    body = dict(body)
    if isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 256:
        body["model"] = MODELS.get(path, "chat")
    for name in LENGTHS:
        if type(body.get(name)) is int and body[name] > MOST_TOKENS:
            body[name] = MOST_TOKENS
    if path.endswith("chat/completions") and not any(name in body for name in LENGTHS):
        body["max_tokens"] = MOST_TOKENS
    return body


def test_the_schema_is_the_one_that_is_served(gateway: LocalGateway) -> None:
    assert httpx2.get(f"{gateway.url}/openapi.json").json() == schema.raw_schema
