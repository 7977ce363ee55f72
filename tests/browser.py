"""A Chromium for tests: the one that the system has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def find_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


_shared: list[ExitStack] = []  # of `one_chromium`, while that lasts
_kept: list[Any] = []  # the Chromium that it keeps


@contextmanager
def one_chromium() -> Iterator[None]:
    """What opens pages inside of this shares one Chromium, though no cookies and no storage. It is
    started by the first that does. Nothing else of the thread may run an event loop meanwhile."""
    with ExitStack() as stack:
        _shared.append(stack)
        try:
            yield
        finally:
            _shared.clear()
            _kept.clear()


@contextmanager
def open_page(is_allowed: Callable[[str], bool]) -> Iterator[Any]:
    """An empty page; fails in the end on any request that is not allowed and on any console error.
    Skips the test where there is no browser, or fails it with SEGAPP_REQUIRE_BROWSER=1."""
    faults: list[str] = []
    with ExitStack() as own:
        if _shared and not _kept:
            _kept.append(_shared[0].enter_context(_chromium()))
        browser = _kept[0] if _kept else own.enter_context(_chromium())
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        own.callback(context.close)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if is_allowed(r.url) else faults.append(r.url))
        page.set_default_timeout(20_000)
        yield page
    assert not faults, faults


@contextmanager
def _chromium() -> Iterator[Any]:
    """A Chromium of its own."""
    required = os.environ.get("SEGAPP_REQUIRE_BROWSER") == "1"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is missing") if required else pytest.skip("playwright is missing")
    if not (browser_path := find_browser()):
        pytest.fail("no Chromium here") if required else pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        yield browser
        browser.close()
