"""Somebody with a browser in front of the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Dialog, Locator, Page, Request, WebSocket, expect

LAPTOP = (1280, 800)
PHONE = (390, 844)
PATIENCE_MS = 30_000

_WATCH_GROWTH = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const running = document.querySelector(".st-key-running [data-testid=stMarkdownContainer]");
    const length = running ? running.textContent.length : 0;
    if (length && length !== window.lengths.at(-1)) window.lengths.push(length);
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


@dataclass
class Observed:
    """What the page did that nobody sees."""

    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    received: list[bytes | str] = field(default_factory=list)

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.netloc)

    def dialog(self, dialog: Dialog) -> None:
        self.errors.append(f"a dialog opened: {dialog.message}")
        dialog.dismiss()

    def error(self, error: Exception) -> None:
        self.errors.append(str(error))

    def websocket(self, socket: WebSocket) -> None:
        self.hosts.add(urlsplit(socket.url).netloc)
        socket.on("framereceived", lambda frame: self.received.append(frame))


class Visitor:
    def __init__(
        self,
        browser: Browser,
        url: str,
        size: tuple[int, int] = LAPTOP,
        *,
        dark: bool = False,
        locale: str = "en-US",
        pixels: int = 1,
    ) -> None:
        width, height = size
        self.observed = Observed()
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            device_scale_factor=pixels,
            has_touch=size == PHONE,
            is_mobile=size == PHONE,
            locale=locale,
            accept_downloads=True,
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.page.on("request", self.observed.request)
        self.page.on("dialog", self.observed.dialog)
        self.page.on("pageerror", self.observed.error)
        self.page.on("websocket", self.observed.websocket)
        self.page.goto(url)
        expect(self.input).to_be_visible(timeout=PATIENCE_MS)

    @property
    def input(self) -> Locator:
        return self.key("input").locator("textarea")

    @property
    def running(self) -> Locator:
        return self.key("running")

    @property
    def growing_text(self) -> Locator:
        """Not the words that stand there before the first token."""
        return self.running.get_by_test_id("stMarkdownContainer")

    @property
    def problem(self) -> Locator:
        return self.page.get_by_test_id("stAlert")

    def key(self, name: str) -> Locator:
        """What the script made with this key."""
        return self.page.locator(f".st-key-{name}")

    def button(self, name: str) -> Locator:
        return self.key(name).locator("button")

    def question(self, number: int) -> Locator:
        return self.key(f"asked-{number}")

    def answer(self, number: int) -> Locator:
        """The `number`-th from 0, once it does not grow any more."""
        return self.key(f"answer-{number}")

    def ask(self, text: str) -> None:
        self.input.fill(text)
        self.input.press("Enter")

    def set(self, name: str, value: str) -> None:
        """Types into a field of the sidebar and leaves it."""
        field = self.key(name).locator("input, textarea")
        field.fill(value)
        field.press("Tab")

    def watch_growth(self) -> None:
        self.page.evaluate(_WATCH_GROWTH)

    def growth(self) -> list[int]:
        """The lengths that the running answer has had since `watch_growth`."""
        return list(self.page.evaluate("window.lengths"))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def leave(self) -> None:
        self.context.close()
