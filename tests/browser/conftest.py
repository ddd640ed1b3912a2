from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.visitor import Visitor
from tools import needs

HERE = Path(__file__).parent
TIMEOUT_S = 300
"""A test may start the whole stack."""

Visit = Callable[..., Visitor]
"""Opens the page at an address; other arguments are those of `Visitor`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Not for the whole session: while it is there, its event loop is in the way of asyncio's tests."""
    path = needs.chromium()
    if path is None:
        pytest.fail(needs.sentence("a test in a browser", [needs.CHROMIUM]), pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """In every visit nothing comes from elsewhere, no script fails, and no dialog opens."""
    visitors: list[tuple[str, Visitor]] = []

    def open_page(url: str, *args: object, **options: object) -> Visitor:
        visitor = Visitor(chromium, url, *args, **options)
        visitors.append((urlsplit(url).netloc, visitor))
        return visitor

    yield open_page
    for host, visitor in visitors:
        visitor.leave()
        assert visitor.observed.hosts == {host}
        assert visitor.observed.errors == []
