"""A Chromium for tests: the one that the system has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def find_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def open_page(is_allowed: Callable[[str], bool]) -> Iterator[Any]:
    """An empty page; fails in the end on any request that is not allowed and on any console error.
    Skips the test where there is no browser, or fails it with SEGAPP_REQUIRE_BROWSER=1."""
    required = os.environ.get("SEGAPP_REQUIRE_BROWSER") == "1"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is missing") if required else pytest.skip("playwright is missing")
    if not (browser_path := find_browser()):
        pytest.fail("no Chromium here") if required else pytest.skip("no Chromium here")
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if is_allowed(r.url) else faults.append(r.url))
        page.set_default_timeout(20_000)
        yield page
        browser.close()
    assert not faults, faults
