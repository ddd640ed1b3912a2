"""What Streamlit makes of ui/app.py and the settings beside it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from streamlit import config
from streamlit.web.server.app_discovery import discover_asgi_app

from chat_page.headers import SecurityHeaders
from tests.ipv6 import needs_ipv6

START_S = 60.0
UI = Path(__file__).parents[2] / "ui"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `streamlit run <path>/ui/app.py` reads them in any folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_main_script_path", str(UI / "app.py"))
    config.get_config_options(force_reparse=True)
    yield
    monkeypatch.undo()
    config.get_config_options(force_reparse=True)


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("browser.gatherUsageStats", False),
        ("server.address", "127.0.0.1"),
        ("client.showErrorDetails", "none"),
        ("theme.dark.backgroundColor", "#14191a"),
    ],
)
def test_the_settings_are_found_from_anywhere(name: str, value: object) -> None:
    assert config.get_option(name) == value


def health(url: str) -> int:
    """The status; 0 where nobody is there."""
    try:
        return httpx2.get(f"{url}/_stcore/health", timeout=5).status_code
    except httpx2.TransportError:
        return 0


@needs_ipv6
def test_the_page_takes_both_families_on_the_address_of_its_image(tmp_path: Path) -> None:
    """In a cluster with IPv6 alone, probes and Services use nothing else."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
        port = free.getsockname()[1]
    settings = {"STREAMLIT_SERVER_ADDRESS": "::", "STREAMLIT_SERVER_PORT": str(port), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "streamlit", "run", str(UI / "app.py"), "--server.headless=true"]
    with subprocess.Popen(command, env={**os.environ, **settings}, cwd=tmp_path, stdout=subprocess.DEVNULL) as page:
        try:
            deadline = time.monotonic() + START_S
            while health(f"http://[::1]:{port}") != 200:
                assert page.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert health(f"http://127.0.0.1:{port}") == 200
        finally:
            page.terminate()


def test_streamlit_finds_the_app_with_its_headers() -> None:
    assert discover_asgi_app(UI / "app.py").import_string == "app:app"


def test_every_response_forbids_what_comes_from_elsewhere() -> None:
    async def hello(request: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", hello)], middleware=[Middleware(SecurityHeaders)])
    response = TestClient(app).get("/")
    assert "default-src 'self';" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_nothing_of_ours_is_fetched_from_elsewhere() -> None:
    sources = [path for path in UI.rglob("*") if path.suffix in {".css", ".svg", ".toml"}]
    assert len(sources) >= 4
    for source in sources:
        text = source.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|url\(", text), source
