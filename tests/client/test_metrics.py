from __future__ import annotations

import pytest

from triton_chat import metrics
from triton_chat.errors import ServerUnavailableError

PAGE = """
# HELP nv_inference_pending_request_count Pending
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="chat",version="1"} 3
nv_inference_pending_request_count{model="other",version="1"} 4
tokens_total{model="a \\"b\\" \\\\n, c}",x="y"} 1.5e2 1700000000
bare_total 7
broken{model="chat"} not-a-number
"""


def test_samples_and_labels() -> None:
    page = metrics.parse(PAGE)
    assert page.total("nv_inference_pending_request_count") == 7
    assert page.total("nv_inference_pending_request_count", model="chat") == 3
    assert page.total("tokens_total", model='a "b" \\n, c}') == 150
    assert page.total("bare_total") == 7
    assert page.total("broken") is None


def test_rates() -> None:
    before = metrics.MetricsPage((metrics.Sample("t", {}, 10.0),), read_at=1.0)
    after = metrics.MetricsPage((metrics.Sample("t", {}, 30.0),), read_at=3.0)
    assert after.rate_since(before, "t") == 10
    assert before.rate_since(after, "t") is None
    assert after.rate_since(before, "unknown") is None


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:1/metrics"])
def test_a_page_that_is_not_there(url: str) -> None:
    with pytest.raises(ServerUnavailableError):
        metrics.fetch(url)
