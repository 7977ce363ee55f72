"""Who uploaded what: only its own browser may name an upload in a call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from segapp.web.limits import Refusal


@dataclass
class _Upload:
    place: Path  # resolved
    browsers: set[str] = field(default_factory=set)
    last: float = 0.0  # time.monotonic() of the last upload or use


class Uploads:
    """The uploaded files that the server still has, by the path that its client was told.

    Gradio keeps a file by its content and name, so two browsers may share one. Safe to use from
    several threads.
    """

    def __init__(self) -> None:
        self._files: dict[str, _Upload] = {}
        self._settling = 0
        self._lock = Lock()

    def record(self, paths: Iterable[str], browser: str) -> None:
        """Remember that a browser ("" for a client that nothing tells apart) uploaded files."""
        with self._lock:
            for path in paths:
                upload = self._files.setdefault(path, _Upload(Path(path).resolve()))
                upload.browsers.add(browser)
                upload.last = time.monotonic()

    def may_use(self, path: str, browser: str) -> bool:
        """Whether a browser may name this file in a call; counts as a use of it."""
        with self._lock:
            upload = self._files.get(path)
            if upload is None or not ({browser, ""} & upload.browsers):
                return False
            upload.last = time.monotonic()
            return True

    def holds(self, path: Path) -> bool:
        """Whether this file, by its resolved path, is an upload."""
        with self._lock:
            return any(upload.place == path for upload in self._files.values())

    @contextmanager
    def settling(self) -> Iterator[None]:
        """While a complete upload is given its place and recorded, `sweep` deletes nothing."""
        with self._lock:
            self._settling += 1
        try:
            yield
        finally:
            with self._lock:
                self._settling -= 1

    def sweep(self, older_than_s: float, in_use: set[Path]) -> int:
        """Delete uploads that nobody used for `older_than_s` seconds, and their emptied folders.

        in_use: files to keep however old. Returns how many were deleted: 0 also while an upload is
        just arriving, which could be one of those; the next sweep finds them.
        """
        deleted = 0
        with self._lock:
            if self._settling:
                return 0
            before = time.monotonic() - older_than_s
            for name, upload in list(self._files.items()):
                path = Path(name)
                if upload.last > before or in_use & {path, upload.place}:
                    continue
                path.unlink(missing_ok=True)
                with suppress(OSError):  # another file of the same content lies there
                    path.parent.rmdir()
                del self._files[name]
                deleted += 1
        return deleted


def check_files(body: bytes, uploads: Uploads, browser: str) -> bytes:
    """The JSON body of a call, with every file in it checked to be an upload of this browser.

    A file is an object with a "path"; its "url" is taken out, as the server has no use for it.
    Raises Refusal: 400 for what is not a JSON object, 403 for any other file, path or address.
    """
    try:
        call = json.loads(body)
        if not isinstance(call, dict):
            raise ValueError("not an object")
        waiting: list[Any] = [call]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                _check_file(value, uploads, browser)
                waiting.extend(value.values())
            elif isinstance(value, list):
                waiting.extend(value)
        # What was checked is what is passed on: no other reading of the same bytes is possible.
        return json.dumps(call).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The call's body must be a JSON object.") from error


def _check_file(value: dict[str, Any], uploads: Uploads, browser: str) -> None:
    path = value.get("path")
    if path is None and value.get("url") is None:
        return
    if not isinstance(path, str) or not uploads.may_use(path, browser):
        raise Refusal(403, "This file was not uploaded here, or is gone; upload it (again).")
    value.pop("url", None)
