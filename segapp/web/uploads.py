"""Uploaded files: whose they are, and until when they are needed."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_LOOSE = re.compile(r"tmp\w+")  # what Gradio writes an upload to, before it knows its place
_MOST_HEADER = 1 << 14  # bytes of a part's header, which holds the file's name


@dataclass
class _Upload:
    """browsers: who sent this file. pending: how often it was sent without anything done with it
    yet. jobs: by tab, how many jobs and results need it."""

    browsers: set[str] = field(default_factory=set)
    pending: int = 0
    jobs: Counter[str] = field(default_factory=Counter)
    sent: float = 0.0


class Uploads:
    """The files that Gradio keeps below `root`, each at <SHA-256 of its content>/<name>: the same
    file from two browsers is one, and is deleted when neither needs it any more."""

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[Path, _Upload] = {}
        self._lock = threading.Lock()

    def add(self, paths: Iterable[str], browser: str) -> None:
        """A browser has sent files."""
        with self._lock:
            for path in paths:
                upload = self._files.setdefault(Path(path), _Upload())
                upload.browsers.add(browser)
                upload.pending += 1
                upload.sent = time.monotonic()

    def belongs_to(self, path: str, browser: str) -> bool:
        """Whether this browser, or a client without a cookie, has sent the file."""
        upload = self._files.get(Path(path))
        return upload is not None and bool({browser, ""} & upload.browsers)

    def use(self, paths: Iterable[str], tab: str) -> None:
        """A job of a tab is to work on files."""
        with self._lock:
            for path in paths:
                if upload := self._files.get(Path(path)):
                    upload.pending = max(0, upload.pending - 1)
                    upload.jobs[tab] += 1

    def drop(self, paths: Iterable[Path], tab: str) -> None:
        """A job of a tab, or its result, needs files no more."""
        with self._lock:
            for path in paths:
                if upload := self._files.get(path):
                    upload.jobs[tab] -= 1
                    self._delete_if_free(path)

    def leave(self, tab: str) -> None:
        """A tab is gone, with all its jobs."""
        with self._lock:
            for path, upload in list(self._files.items()):
                if upload.jobs.pop(tab, 0):
                    self._delete_if_free(path)

    def sweep(self, pending_s: float, used_s: float) -> None:
        """Delete what was sent so long ago and never used, or by a tab that never said goodbye, and
        what uploads that broke off have left."""
        now = time.monotonic()
        with self._lock:
            for path, upload in list(self._files.items()):
                age = now - upload.sent
                if age > pending_s:
                    upload.pending = 0
                if age > used_s:
                    upload.jobs.clear()
                self._delete_if_free(path)
        for path in self.root.iterdir():
            if _LOOSE.fullmatch(path.name) and path.is_file():
                with suppress(OSError):  # it found its place meanwhile
                    if time.time() - path.stat().st_mtime > pending_s:
                        path.unlink()

    def _delete_if_free(self, path: Path) -> None:
        upload = self._files[path]
        if upload.pending or +upload.jobs:
            return
        del self._files[path]
        path.unlink(missing_ok=True)
        if not any(other.parent == path.parent for other in self._files):
            with suppress(OSError):  # somebody is sending the same content under another name
                path.parent.rmdir()


class PartHeaders:
    """Watches a multipart body go by and tells when the header of a part, in which a file's name
    stands, is longer than any real one: parsers keep it in memory."""

    def __init__(self, content_type: str):
        found = re.search(r'boundary="?([^";,]{1,70})"?', content_type)
        self.mark = b"\r\n--" + found[1].encode("latin-1") if found else None
        self.kept = b"\r\n"  # the first boundary has no line before it
        self.header = False

    def too_long(self, chunk: bytes) -> bool:
        """Takes the next bytes. A body without a boundary is too long at once."""
        if self.mark is None:
            return True
        data, at = self.kept + chunk, 0
        while True:
            end = data.find(b"\r\n\r\n" if self.header else self.mark, at)
            if end < 0:
                break
            if self.header and end - at > _MOST_HEADER:
                return True
            at = end + (4 if self.header else len(self.mark))
            self.header = not self.header
        if self.header:
            self.kept = data[at:]
            return len(self.kept) > _MOST_HEADER
        self.kept = data[max(at, len(data) - len(self.mark)) :]
        return False
