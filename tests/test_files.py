import hashlib
import os
import stat
import sys
from pathlib import Path

import pytest

from segapp.errors import OutputError
from segapp.files import atomic_path, require_writable, sha256, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "folder" / "scan.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename must not cross file systems"
        assert temporary.name.startswith("."), "a reader of the folder must not pick it up"
        assert temporary.name.endswith(".nii.gz"), "writers choose the format by the suffix"
    assert target.read_bytes() == b"half"
    assert names(target.parent) == ["scan.nii.gz"]


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.png", ".png"), ("a.b.tif", ".tif"), ("a", ""), ("a.v1.nii", ".nii")]
)
def test_the_temporary_name_keeps_the_suffix(tmp_path, name, suffix):
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.suffix == suffix
        temporary.write_bytes(b"")


def test_a_replaced_file_is_old_or_new(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_nothing_is_left_behind(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write()
    assert names(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


def test_a_full_disk_is_an_output_error(tmp_path):
    def write():
        with atomic_path(tmp_path / "a.txt"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.txt: can't be written \(No space left on device\)"):
        write()
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_mode_follows_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
        assert os.umask(mask) == mask, "the umask itself stays"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"can't be written \(") as caught:
        write_text(tmp_path / "file" / "a.txt", "y")
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="choose another folder"):
        require_writable(tmp_path / "file")


def test_a_target_that_is_a_folder(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError, match=r"a\.txt: can't be written"):
        write_text(tmp_path / "a.txt", "y")
    assert names(tmp_path) == ["a.txt"]


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "a.txt", "µm ±\n")
    assert (tmp_path / "a.txt").read_bytes() == "µm ±\n".encode()


def test_require_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_file_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    """A loss of power leaves the old file or the whole new one."""
    flushed = []

    def fsync(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        flushed.append((name, names(tmp_path), (tmp_path / "a.txt").is_file()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "new")
    (partial, inside, renamed), folder = flushed
    assert inside == [partial]
    assert partial.startswith(".partial")
    assert not renamed
    assert folder == (tmp_path.name, ["a.txt"], True)
