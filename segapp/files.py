"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from segapp.errors import OutputError

PARTIAL = ".partial-"  # begins the name of every file that is being written
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")  # which it writes beside ours, and renames to ours


def is_partial(path: Path) -> bool:
    """Whether it is a file that was being written when its process ended, or still is."""
    return path.name.startswith(PARTIAL) or bool(_OF_SAFETENSORS.fullmatch(path.name))


@contextmanager
def atomic_path(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it vanishes.

    The temporary name keeps the suffix (".nii.gz"), because writers choose the format by it. The
    file is flushed to disk before it is renamed, and its name after. mode: of the file, if not the
    usual one. Raises OutputError where the folder can't be written.
    """
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{PARTIAL}{secrets.token_hex(8)}{suffix}"
        temporary.touch(exist_ok=False)  # not mkstemp, whose files only their owner may read
        mode = temporary.stat().st_mode & 0o777 if mode is None else mode
        temporary.chmod(mode)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(mode)  # some writers put a private file of their own in its place
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _flush_names(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """A renamed file has its new name after a loss of power too, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system does
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` at once or not at all; file names in it keep their bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write CSV to `path` at once or not at all: floats with 6 significant digits, empty where a
    row has None or no such column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, text.getvalue())


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder}: no file can be written there ({error.strerror}); choose another folder"
        ) from error


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """`require_writable`, and where the folder is new and still empty, remove it after an error."""
    is_new = not folder.exists()
    require_writable(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def free_name(out: Path) -> Path:
    """The path with the first number at its end, from 2 on, that is not taken: a → a-2."""
    names = (out.with_name(f"{out.name}-{n}") for n in count(2))
    return next(name for name in names if not name.exists())
