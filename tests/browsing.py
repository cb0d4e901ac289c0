"""A real browser, somebody who looks at a page with it, and what they ask of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PATIENCE = 60  # seconds that a test waits for something to happen


@contextmanager
def started_browser() -> Iterator[Any]:
    """Chromium; skips the test where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Somebody at the page; notes every complaint of the browser and every host that is asked."""

    def __init__(self, page: Any) -> None:
        self.page, self.complaints, self.hosts = page, list[str](), set[str]()
        self.requests = list[str]()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, url: str) -> None:
        self.requests.append(url)
        self.hosts.add(urlsplit(url).netloc)

    def until(self, expression: str) -> Any:
        """Wait until an expression of the page is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.page.evaluate(expression)):
            assert time.monotonic() < end, f"never true: {expression}\n{self.page.inner_text('main')}"
            self.page.wait_for_timeout(30)
        return value

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def download(self) -> bytes:
        with self.page.expect_download() as download:
            self.page.click("#download")
        return Path(download.value.path()).read_bytes()


@contextmanager
def opened_file(browser: Any, path: Path, **options: Any) -> Iterator[Visitor]:
    """A fresh visit, without a network, to a page on the disk."""
    context = browser.new_context(offline=True, **options)
    try:
        visitor = Visitor(context.new_page())
        visitor.page.goto(path.as_uri())
        yield visitor
    finally:
        context.close()
