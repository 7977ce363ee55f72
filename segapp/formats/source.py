"""Where bytes come from: files, and members of zip archives, which look like files below them.

"scans.zip/ct/1.dcm" is read from the archive into memory: nothing is unpacked to disk, so no
member can leave its folder, and nothing of a patient stays behind.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO, cast

from segapp.errors import ConfigError, ScanError

_LIMIT = "SEGAPP_MAX_VOXELS"


def _limit() -> int:
    text = os.environ.get(_LIMIT, str(2**31))
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise ConfigError(f"{_LIMIT}: got {text!r}, expected a number such as 4e9") from None


# A header that claims more values (voxels × channels) than this is refused before memory is asked
# for; the same number of bytes is the most that a member of an archive may unpack to.
MAX_VOXELS = _limit()
BYTES_PER_PIXEL = 500  # that the default network takes for each pixel of a slice
_MAX_MEMBERS = 1_000_000
_UNZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
_PIECE = 1 << 20
UNPACK_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


@dataclass
class _Memory:
    """What segmenting may take (see limit_memory): bytes for all scans that are held at once, how
    many these are, and the engine's bytes for each pixel of a slice."""

    free: float = math.inf
    scans: int = 1
    per_pixel: float = 0.0


_MEMORY = _Memory()
_CHANNEL_FILES: ContextVar[int] = ContextVar("channel_files", default=1)
_LARGEST_TILE = 1 << 20  # pixels that go through a network at once


def limit_memory(free: float, per_pixel: float) -> None:
    """From now on check_size refuses scans whose segmentation would take more than `free` bytes,
    the engine's `per_pixel` included."""
    _MEMORY.free, _MEMORY.per_pixel = free, per_pixel


def share_memory(scans: int) -> None:
    """So many scans are held at once from now on, each with its share of the memory."""
    _MEMORY.scans = scans


@contextmanager
def channels_together(count: int) -> Iterator[None]:
    """Meanwhile a file is one of `count` that are held at once, the channels of one scan."""
    token = _CHANNEL_FILES.set(count)
    try:
        yield
    finally:
        _CHANNEL_FILES.reset(token)


def check_size(path: Path, shape: Sequence[int], itemsize: int = 4) -> None:
    """Refuse an array of `shape` (with channels) beyond MAX_VOXELS, of no size, or that would take
    more memory, with its other channels' files, than `limit_memory` allows: ScanError. itemsize:
    bytes of a value."""
    shape = [int(n) for n in shape]
    if not shape or min(shape) < 1:
        raise ScanError(path, f"its header claims an impossible size {tuple(shape)}")
    if math.prod(shape) > MAX_VOXELS:
        size = " × ".join(str(n) for n in shape if n > 1)
        raise ScanError(
            path,
            f"its header claims {size} values, the limit is {MAX_VOXELS}; if that is real, set the "
            f"environment variable {_LIMIT} to a larger number",
        )
    # values as read, in the order of slices, and those of them that count; of each then labels,
    # mask values and confidence
    needed = math.prod(shape) * (3 * itemsize + 4) * _CHANNEL_FILES.get()
    engine = min(math.prod(sorted(shape)[-2:]), _LARGEST_TILE) * _MEMORY.per_pixel
    free = max(0.0, _MEMORY.free - engine) / _MEMORY.scans
    if needed > free:
        problem = f"would take {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are left for a scan"
        remedy = "allow more (--max-memory-mb), or segment it elsewhere"
        raise ScanError(path, f"{problem}; {remedy}")


class _Unpacking(io.BufferedReader):
    """A member of an archive; what is wrong with it is a ScanError when it is met."""

    def __init__(self, member: tuple[Path, IO[bytes]]):
        self.path = member[0]
        super().__init__(cast(io.RawIOBase, member[1]))

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(size)
        except _UNZIP_ERRORS as error:
            raise ScanError(self.path, f"can't be unpacked ({error})") from error


class _Bounded(io.BufferedReader):
    """Asks for no more memory than there are bytes: a damaged header may name a length of 4 GB."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _PIECE:
            here = self.tell()
            size = min(size, max(0, self.seek(0, io.SEEK_END) - here))
            self.seek(here)
        return super().read(size)


def open_binary(path: Path, only_start: bool = False) -> BinaryIO:
    """A seekable stream of a file or of an archive's member, which is unpacked into memory; with
    `only_start` as far as it is read. Raises OSError, ScanError."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ScanError(path, "is not a regular file")
    try:
        return _Bounded(io.FileIO(path))
    except NotADirectoryError:
        member = _open_member(*_split(path))
    if only_start:
        return cast(BinaryIO, _Unpacking(member))
    with _Unpacking(member) as stream:
        return io.BytesIO(stream.read())  # no more than the archive says, whatever it holds


def head(path: Path, count: int) -> bytes:
    """The first `count` bytes, fewer where there are no more."""
    with open_binary(path, only_start=True) as stream:
        return stream.read(count)


def size(path: Path) -> int:
    """Bytes of a file or of an archive's member. Raises OSError, ScanError."""
    try:
        return path.stat().st_size
    except NotADirectoryError:
        archive, member = _split(path)
        return _member(archive, member).file_size


def exists(path: Path) -> bool:
    """Whether there is such a file, folder or member."""
    if path.exists():
        return True
    try:
        size(path)
    except (OSError, ScanError):
        return False
    return True


def is_zip(path: Path) -> bool:
    """Whether `path` is a zip archive by its content."""
    return path.is_file() and head(path, 4) in (b"PK\x03\x04", b"PK\x05\x06")


def members(archive: Path) -> list[Path]:
    """The files in an archive as paths below it. Raises ScanError where it is damaged, holds too
    many members, two of one name, or one whose name leads out of the archive."""
    return [archive / name for name in _open_zip(archive)[1]]


def pieces(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """What a stream of encoding raw, gzip, bzip2, lzma or zlib unpacks to, 1 MB at a time, so that
    who reads it can stop. At the end checksums are compared. Raises UNPACK_ERRORS."""
    if encoding == "zlib":
        inflater = zlib.decompressobj()
        while not inflater.eof:
            packed = inflater.unconsumed_tail or stream.read(_PIECE)
            piece = inflater.decompress(packed, _PIECE)
            if not packed and not piece:
                raise EOFError("it ends too early")
            yield piece
        return
    opened: IO[bytes] = stream
    if encoding == "gzip":
        opened = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    elif encoding == "bzip2":
        opened = bz2.BZ2File(stream)
    elif encoding == "lzma":
        opened = lzma.LZMAFile(stream)  # noqa: SIM115 - the stream is the caller's
    while piece := opened.read(_PIECE):
        yield piece


def inflate(path: Path, stream: BinaryIO, encoding: str, length: int) -> bytearray:
    """`length` bytes of voxels from a stream, see `pieces`.

    No more than that is ever kept. Raises ScanError where the stream is damaged or holds less, or
    (unless raw) more.
    """
    data = bytearray()
    try:
        for piece in pieces(stream, encoding):
            data += piece
            if len(data) > length or (encoding == "raw" and len(data) == length):
                break
    except UNPACK_ERRORS as error:
        raise ScanError(path, f"is damaged: its voxels can't be unpacked ({error})") from error
    if encoding == "raw":
        del data[length:]
    if len(data) != length:
        what = "more" if len(data) > length else f"{len(data)}, less"
        raise ScanError(path, f"holds {what} than the {length} bytes that its header promises")
    return data


def header_lines(path: Path, stream: BinaryIO, last: str) -> list[str]:
    """The lines of a text header up to one that starts with `last`, or up to an empty one if that
    is "", or to the end of the file; `stream` then stands behind it. Raises ScanError where it is
    longer than 1 MB."""
    lines, length = [], 0
    while block := stream.readline(_PIECE + 1 - length):
        length += len(block)
        if length > _PIECE:
            raise ScanError(path, f"is damaged: its header goes on beyond {_PIECE} bytes")
        try:
            line = block.decode().rstrip()
        except UnicodeDecodeError:
            line = block.decode("latin-1").rstrip()
        if not line and not last:
            break
        lines.append(line)
        if last and line.startswith(last):
            break
    return lines


def beside(path: Path, name: str) -> Path:
    """The file of voxels that a header names: one of its own folder, nothing else. Raises
    ScanError, which does not repeat the name: header text may be a patient's."""
    name = name.removeprefix("./")
    plain = (
        name not in ("", "..") and PureWindowsPath(name).name == PurePosixPath(name).name == name
    )
    if not plain or name.partition(" ")[0] == "LIST" or "%" in name or "\0" in name:
        raise ScanError(
            path, "its voxels are not in one file of its own folder; save image and header as one"
        )
    found = path.with_name(name)
    if not exists(found) or (found.exists() and not found.is_file()):
        raise ScanError(path, "the file of voxels that it names is not in its folder; add it")
    return found


def _split(path: Path) -> tuple[Path, str]:
    """("a/b.zip", "c/d.dcm") of "a/b.zip/c/d.dcm"."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    raise FileNotFoundError(2, "No such file or directory", str(path))


def _open_zip(archive: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive and its files by their names, "./" and "//" in these left out."""
    state = archive.stat()
    return _cached_zip(archive, state.st_mtime_ns, state.st_size)


def forget_archives() -> None:
    """Close the archives that are kept open for the next member, so that one that was deleted is
    gone from the disk."""
    _cached_zip.cache_clear()


@lru_cache(maxsize=2)
def _cached_zip(
    archive: Path, _mtime: int, _size: int
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise ScanError(archive, f"is a damaged zip archive ({error})") from error
    if len(opened.filelist) > _MAX_MEMBERS:
        raise ScanError(archive, f"holds {len(opened.filelist)} files, more than {_MAX_MEMBERS}")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in opened.filelist:
        name = PurePosixPath(info.filename)
        if info.is_dir():
            continue
        if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in info.filename:
            raise ScanError(archive, "holds a member whose name leads out of it; not opened")
        if found.setdefault(name.as_posix(), info) is not info:
            raise ScanError(archive, "holds two members of one name; pack it again")
    return opened, found


def _member(archive: Path, name: str) -> zipfile.ZipInfo:
    try:
        return _open_zip(archive)[1][name]
    except KeyError:
        raise FileNotFoundError(2, "No such file in the archive", str(archive / name)) from None


def _open_member(archive: Path, name: str) -> tuple[Path, IO[bytes]]:
    path, info = archive / name, _member(archive, name)
    if info.flag_bits & 1:
        raise ScanError(path, "is encrypted; unpack the archive with its password first")
    if info.file_size > MAX_VOXELS:
        raise ScanError(path, f"unpacks to {info.file_size} bytes, the limit is {MAX_VOXELS}")
    try:
        return path, _open_zip(archive)[0].open(info)
    except _UNZIP_ERRORS as error:
        raise ScanError(path, f"can't be unpacked ({error})") from error
