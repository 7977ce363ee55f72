"""Who uploaded what: only its own browser may name an upload in a call."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from segapp.web.limits import Refusal

log = logging.getLogger("segapp")

_LOOSE = re.compile(r"tmp\w+")  # what Gradio leaves of a call, or of an upload that broke off
_EMPTY_S = 60.0  # such a file that is still empty then was moved away, and stays so


@dataclass
class _Upload:
    """place: resolved. browsers: who sent it. pending: how often it was sent without a job having
    been started with it yet. jobs: by tab, how many jobs and results need it. last: time.monotonic
    of the last upload or use."""

    place: Path
    browsers: set[str] = field(default_factory=set)
    pending: int = 0
    jobs: Counter[str] = field(default_factory=Counter)
    last: float = 0.0


class Uploads:
    """The uploaded files that the server still has, by the path that its client was told.

    root: Gradio keeps a file at root/<SHA-256 of its content>/<name>, so two browsers may share
    one; it is deleted when neither needs it any more. Safe to use from several threads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, _Upload] = {}
        self._settling = 0
        self._lock = Lock()

    def record(self, paths: Iterable[str], browser: str) -> None:
        """Remember that a browser ("" for a client that nothing tells apart) uploaded files."""
        with self._lock:
            for path in paths:
                upload = self._files.setdefault(path, _Upload(Path(path).resolve()))
                upload.browsers.add(browser)
                upload.pending += 1
                upload.last = time.monotonic()

    def may_use(self, path: str, browser: str) -> bool:
        """Whether a browser may name this file in a call."""
        with self._lock:
            upload = self._files.get(path)
            return upload is not None and bool({browser, ""} & upload.browsers)

    def holds(self, path: Path) -> bool:
        """Whether this file, by its resolved path, is an upload."""
        with self._lock:
            return any(upload.place == path for upload in self._files.values())

    def use(self, paths: Iterable[str], tab: str) -> None:
        """A job of a tab is to work on files."""
        with self._lock:
            for path in paths:
                if upload := self._files.get(path):
                    upload.pending = max(0, upload.pending - 1)
                    upload.jobs[tab] += 1
                    upload.last = time.monotonic()

    def drop(self, paths: Iterable[Path], tab: str) -> None:
        """A job of a tab, or its result, needs files no more."""
        with self._lock:
            for path in map(str, paths):
                if upload := self._files.get(path):
                    upload.jobs[tab] -= 1
                    self._delete_if_free(path)

    def leave(self, tab: str) -> None:
        """A tab is gone, with all its jobs."""
        with self._lock:
            for path, upload in list(self._files.items()):
                if upload.jobs.pop(tab, 0):
                    self._delete_if_free(path)

    @contextmanager
    def settling(self) -> Iterator[None]:
        """While a complete upload is given its place and recorded, nothing is deleted."""
        with self._lock:
            self._settling += 1
        try:
            yield
        finally:
            with self._lock:
                self._settling -= 1

    def sweep(self, pending_s: float, used_s: float) -> None:
        """Delete what was sent so long ago and never used, what a tab needed so long ago that never
        said goodbye, and what uploads that broke off have left."""
        with self._lock:
            for path, upload in list(self._files.items()):
                age = time.monotonic() - upload.last
                if age > pending_s:
                    upload.pending = 0
                if age > used_s:
                    upload.jobs.clear()
                self._delete_if_free(path)
        for path in self.root.iterdir():
            if _LOOSE.fullmatch(path.name) and path.is_file():
                with suppress(OSError):  # it found its place meanwhile
                    about = path.stat()
                    age = time.time() - about.st_mtime
                    if age > pending_s or (age > _EMPTY_S and not about.st_size):
                        path.unlink()

    def _delete_if_free(self, path: str) -> None:
        """Not while another upload, which could be of the same content, is just arriving: the next
        sweep finds it."""
        upload = self._files[path]
        if self._settling or upload.pending or +upload.jobs:
            return
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:  # the next sweep tries again
            log.error("an upload that nobody needs can't be deleted (%s)", error.strerror)
            return
        del self._files[path]
        with suppress(OSError):  # another file of the same content lies there
            Path(path).parent.rmdir()


class Tabs:
    """Which browser a tab (Gradio's session hash) and a call's events belong to: the first that
    used them. Those of a client without cookies are anybody's who knows them."""

    def __init__(self, most: int = 10_000) -> None:
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._most = most
        self._lock = Lock()

    def claim(self, tab: str, browser: str) -> bool:
        """Whether a browser may use a tab, which is its own from now on if nobody's before."""
        with self._lock:
            owner = self._owners.setdefault(tab, browser)
            self._owners.move_to_end(tab)
            while len(self._owners) > self._most:
                self._owners.popitem(last=False)
            return owner in ("", browser)


@dataclass(frozen=True)
class Call:
    """A call's body as it is passed on, the tab that it comes from, and the files that it names."""

    body: bytes
    tab: str
    paths: list[str]


def check_call(body: bytes, uploads: Uploads, browser: str) -> Call:
    """The JSON body of a call, with every file in it checked to be an upload of this browser.

    A file is an object with a "path"; its "url" is taken out, as the server has no use for it.
    Raises Refusal: 400 for what is not a JSON object, 403 for any other file, path or address.
    """
    try:
        call = json.loads(body)
        if not isinstance(call, dict):
            raise ValueError("not an object")
        paths: list[str] = []
        waiting: list[Any] = [call]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                paths += _check_file(value, uploads, browser)
                waiting.extend(value.values())
            elif isinstance(value, list):
                waiting.extend(value)
        # What was checked is what is passed on: no other reading of the same bytes is possible.
        tab = call.get("session_hash")
        if not isinstance(tab, str) or not tab:  # a program that asks once
            tab = call["session_hash"] = secrets.token_hex(16)
        return Call(json.dumps(call).encode(), tab, list(dict.fromkeys(paths)))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The call's body must be a JSON object.") from error


def _check_file(value: dict[str, Any], uploads: Uploads, browser: str) -> list[str]:
    """The path of a file, as a list; none where this is no file."""
    path = value.get("path")
    if path is None and value.get("url") is None:
        return []
    if not isinstance(path, str) or not uploads.may_use(path, browser):
        raise Refusal(403, "This file was not uploaded here, or is gone; upload it (again).")
    value.pop("url", None)
    return [path]


def tab_key(tab: str, browser: str) -> str:
    """A tab of a browser: a session hash alone can be made up by others."""
    return f"{browser}/{tab}"
