"""What one browser tab has on the server: its scans and results in a private folder."""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from segapp.engines import Engine
from segapp.formats import Entry
from segapp.formats.source import forget_archives, share_memory
from segapp.predict import Predictor
from segapp.web.inputs import Upload, distinct, group_uploads, shown_name
from segapp.web.result import Result, make_result
from segapp.web.uploads import Uploads, tab_key

log = logging.getLogger("segapp")

# Until what nobody uses is deleted: of a page that stays open, and of a program's last call. Those
# of a closed page, and of a client that says it is there and then leaves, go at once.
PAGE_SECONDS, CALL_SECONDS = 12 * 3600.0, 3600.0
GONE_SECONDS = 60.0  # of a job that was done for a tab after it had gone; it may come back

_MOST_GONE = 10_000
_TOKEN = re.compile(r"[0-9a-f]{32}")
_PREFIX, _LOCK = "segapp-", "lock"

Report = Callable[[float, str], object]  # share of the work that is done, what is being done


class Stopped(BaseException):
    """The work was cancelled, or nobody waits for it any more. Like KeyboardInterrupt it is no
    Exception, so that no file's failure is made of it."""


class _Stoppable:
    """An engine that stops between two batches."""

    def __init__(self, engine: Engine, stop: threading.Event):
        self.engine, self.stop = engine, stop
        self.batch_size, self.calls_at_once = engine.batch_size, engine.calls_at_once
        self.precision = engine.precision

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        if self.stop.is_set():
            raise Stopped
        return self.engine(batch)


def stoppable(predictor: Predictor, stop: threading.Event) -> Predictor:
    """The same predictor, which raises Stopped before its next batch once `stop` is set."""
    mine = copy(predictor)
    mine.engine = _Stoppable(predictor.engine, stop)
    return mine


class Session:
    """A folder that only this user account can read, and the results in it.

    owner: the browser it belongs to; see `browser_of`. Its token is the key to everything in it,
    and nobody can guess it; the owner is asked for all the same. kept_s: seconds that it is kept
    unused. release: told of the uploads that it needs no more. batch: the last one, if any.
    chosen: the number of the result that is being read, if any.
    """

    def __init__(
        self,
        root: Path,
        owner: str = "",
        kept_s: float = PAGE_SECONDS,
        release: Callable[[list[Path]], None] = lambda _: None,
    ):
        self.kept_s = kept_s
        self.token = secrets.token_hex(16)
        self.owner = owner
        self.folder = root / self.token
        self.folder.mkdir(mode=0o700)
        self.results: list[Result] = []
        self.chosen: int | None = None
        self.batch: Any = None
        self.uploads: list[Path] = []  # one as often as jobs need it
        self.closed = False
        self.used = time.monotonic()
        self._release = release
        self._jobs: dict[str, threading.Event] = {}
        self._labels: set[str] = set()
        self._names: set[str] = set()
        self._drops = 0
        self._lock = threading.Lock()

    def begin(self, job: str) -> threading.Event:
        """What stops a job of that kind that now begins. Raises Stopped where it is too late."""
        with self._lock:
            if self.closed:
                raise Stopped
            stop = self._jobs[job] = threading.Event()
            return stop

    def stop(self, job: str) -> None:
        """Stop the job of that kind that is going on, if any."""
        if stop := self._jobs.get(job):
            stop.set()

    def close(self) -> None:
        """Stop what is going on and delete all files."""
        with self._lock:
            self.closed = True
            for stop in self._jobs.values():
                stop.set()
            uploads, self.uploads = self.uploads, []
        self._release(uploads)
        forget_archives()
        shutil.rmtree(self.folder, ignore_errors=True)

    def place(self, name: str) -> Path:
        """A new folder in the session's own."""
        with self._lock:
            self._drops += 1
            folder = self.folder / f"{name}{self._drops}"
        folder.mkdir(mode=0o700)
        return folder

    def gather(self, uploads: Sequence[Path], channel_files: int) -> list[Upload]:
        """The scans that uploaded files hold."""
        uploads = list(dict.fromkeys(uploads))
        self.uploads += uploads
        return group_uploads(uploads, self.place("uploads"), channel_files)

    def segment(
        self,
        predictor: Predictor | None,
        model: str,
        entries: Iterable[Entry],
        report: Report,
        stop: threading.Event,
    ) -> None:
        """Add a result for every entry; one that fails is a result that says why.

        Without a predictor the scan is only made ready to be read. report: called after each slab
        and scan. Raises Stopped when `stop` is set or the session closed meanwhile: what was done
        before stays, unless the session is closed.
        """
        entries = list(entries)
        share_memory(1)
        mine = stoppable(predictor, stop) if predictor else None
        try:
            for index, entry in enumerate(entries):
                entry = distinct(entry, self._labels, self._names)
                name = shown_name(entry)

                def on_slab(done: int, total: int, _: object, name=name, index=index) -> None:
                    part = f", slice {done} of {total}" if total > 1 else ""
                    report((index + 0.95 * done / total) / len(entries), f"{name}{part}")

                if stop.is_set() or self.closed:
                    raise Stopped
                report(index / len(entries), name)
                folder = self.place("scan")
                result = make_result(mine, model, entry, folder, self._out(), on_slab)
                self.results.append(result)
                report((index + 1) / len(entries), name)
        except OSError as error:
            if self.closed:  # closing takes the folder away under our feet
                raise Stopped from error
            raise
        finally:
            self.used = time.monotonic()

    def _out(self) -> Path:
        folder = self.folder / "out"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


class Sessions:
    """The open sessions, by their tab and by their token."""

    def __init__(self, root: Path, uploads: Uploads | None = None):
        self.root = root
        self.uploads = uploads or Uploads(root)
        self._by_tab: dict[str, Session] = {}
        self._beats: Counter[str] = Counter()  # by tab, connections that say that it is there
        self._gone: OrderedDict[str, None] = OrderedDict()  # tabs that left, the last ones
        self._lock = threading.Lock()

    def open(self, tab: str, owner: str, kept_s: float = PAGE_SECONDS) -> Session:
        """A new session of a tab, in place of the one that it has."""
        key = tab_key(tab, owner)
        kept_s = min(kept_s, GONE_SECONDS) if key in self._gone else kept_s
        with self._lock:
            session = Session(self.root, owner, kept_s, lambda p: self.uploads.drop(p, key))
            before = self._by_tab.get(key)
            self._by_tab[key] = session
        if before is not None:
            before.close()
        return session

    def of_tab(self, tab: str, owner: str) -> Session | None:
        """The session of a tab; None where it has none. Another browser's tab of the same name is
        another tab."""
        return self._theirs(self._by_tab.get(tab_key(tab, owner)), owner)

    def of_token(self, token: str, owner: str) -> Session | None:
        """The session of a secret address; None where there is none, or it is another browser's."""
        return self._theirs(next((s for s in self.all() if s.token == token), None), owner)

    def _theirs(self, session: Session | None, owner: str) -> Session | None:
        if session is None or session.closed or session.owner not in ("", owner):
            return None
        session.used = time.monotonic()
        return session

    def all(self) -> list[Session]:
        return list(self._by_tab.values())

    def close(self, tab: str, owner: str) -> None:
        """Delete what a tab has, which stays open."""
        if (session := self.of_tab(tab, owner)) is not None:
            session.close()
            self._forget()

    def arrive(self, tab: str, owner: str) -> None:
        """A tab says that it is there, perhaps again, by a connection that it keeps open."""
        key = tab_key(tab, owner)
        with self._lock:
            self._beats[key] += 1
            self._gone.pop(key, None)
            if session := self._by_tab.get(key):
                session.kept_s = max(session.kept_s, CALL_SECONDS)

    def depart(self, tab: str, owner: str) -> None:
        """A connection of `arrive` has ended; see `leave`."""
        with self._lock:
            self._beats[tab_key(tab, owner)] -= 1

    def leave(self, tab: str, owner: str) -> bool:
        """Delete what a tab has and what it waits for, unless it is there; whether it has left."""
        key = tab_key(tab, owner)
        with self._lock:
            self._beats = +self._beats
            if key in self._beats:
                return False
            self._gone[key] = None
            if len(self._gone) > _MOST_GONE:
                self._gone.popitem(last=False)
        self.close(tab, owner)
        self.uploads.leave(key)
        return True

    def close_all(self) -> None:
        for session in self.all():
            session.close()
        self._forget()

    def sweep(self) -> None:
        """Close the sessions that nobody has used for as long as they are kept, and delete what
        somebody was just writing when a session was closed."""
        for session in self.all():
            if time.monotonic() - session.used > session.kept_s:
                session.close()
        self._forget()
        with self._lock:
            open_now = {session.token for session in self._by_tab.values()}
            for folder in self.root.iterdir():
                if _TOKEN.fullmatch(folder.name) and folder.name not in open_now:
                    shutil.rmtree(folder, ignore_errors=True)

    def _forget(self) -> None:
        with self._lock:
            self._by_tab = {tab: s for tab, s in self._by_tab.items() if not s.closed}

    def may_read(self, path: Path, owner: str) -> bool:
        """Whether a browser may have a file by its path: one that a session of its own wrote."""
        if not path.is_relative_to(self.root):
            return False
        token, *inside = path.relative_to(self.root).parts or ("",)
        shared = bool(inside) and inside[0].startswith(("out", "slices", "batch"))
        return shared and self.of_token(token, owner) is not None


@cache
def private_root() -> Path:
    """The one folder of this process for uploads and sessions; removed at exit.

    Gradio keeps its own temporary files there too: it reads the environment variable set here, so
    call this before any component is made. What a process that was killed left is removed now.
    """
    _remove_orphans(Path(tempfile.gettempdir()))
    root = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()  # mode 0700
    lock = os.open(root / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # held as long as the process lives
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    return root


def _remove_orphans(folder: Path) -> None:
    """Remove the folders of this user's processes that are no more: nobody holds their locks."""
    for root in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if root.is_symlink() or root.stat().st_uid != os.getuid():
                continue
            lock = os.open(root / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(lock)
