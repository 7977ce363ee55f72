"""Zip archives as folders, and limits on what they may hold."""

import bz2
import gzip
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from dicom_files import write_series
from PIL import Image

from segapp.errors import ScanError
from segapp.formats import find_scans, read_scan, source

PIXELS = np.arange(20, dtype=np.uint8).reshape(4, 5)


def png():
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format="PNG")
    return stream.getvalue()


def pack(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]
)
def test_an_archive_is_a_folder(tmp_path, compression):
    volume = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    members = {"sub/a.png": png(), "notes.txt": b"hello", "__MACOSX/._a.png": b"x", ".b.png": b"x"}
    for path in write_series(tmp_path / "x", volume, seed="x"):
        members[f"ct/{path.name}"] = path.read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    archive = pack(folder / "up.zip", members, compression)
    entries = find_scans(archive)
    assert [entry.name for entry in entries] == ["ct", "sub/a"]
    assert np.array_equal(read_scan(entries[0].paths).voxels[0], volume.transpose(2, 1, 0))
    assert np.array_equal(read_scan(entries[1].paths).voxels[0, :, :, 0].T, PIXELS)
    assert entries[0].source == archive / "ct"
    write_series(folder / "ct", volume)
    names = [entry.name for entry in find_scans(folder)]  # and inside a folder as well
    assert names == ["ct", "up/ct", "up/sub/a"]
    assert not list(tmp_path.glob("**/*.png"))  # nothing is unpacked


def test_an_archive_that_holds_one_scan_is_read(tmp_path):
    archive = pack(tmp_path / "up.zip", {"a.png": png()})
    assert read_scan(archive).shape == (5, 4, 1)
    with pytest.raises(ScanError, match="holds 2 scans, one is expected"):
        read_scan(pack(tmp_path / "two.zip", {"a.png": png(), "b.png": png()}))
    with pytest.raises(ScanError, match="holds no scan, one is expected"):
        read_scan(pack(tmp_path / "none.zip", {"a.txt": b"x"}))


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/out.png"])
def test_no_member_leads_out(tmp_path, name):
    archive = pack(tmp_path / "up.zip", {"a.png": png(), name: png()})
    with pytest.raises(ScanError, match="whose name leads out of it"):
        find_scans(archive)
    (entry,) = find_scans(tmp_path)  # in a folder it is one scan that fails
    with pytest.raises(ScanError, match="whose name leads out of it"):
        read_scan(entry.paths)


def test_damaged_archives(tmp_path):
    good = pack(tmp_path / "a.zip", {"a.png": png() + bytes(5000)}).read_bytes()
    path = tmp_path / "b.zip"
    for content in (good[:-30], b"hello" * 100):
        path.write_bytes(content)
        with pytest.raises(ScanError, match="is a damaged zip archive"):
            read_scan(path)
    broken = bytearray(good)
    broken[60:70] = b"\xff" * 10
    path.write_bytes(broken)
    with pytest.raises(ScanError, match=r"can't be unpacked|damaged"):
        read_scan(path)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        flags = archive.getinfo("a.png").header_offset + 6
    encrypted = bytearray(good)
    encrypted[flags] |= 1
    at = good.index(b"PK\x01\x02") + 8
    encrypted[at] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(ScanError, match="is encrypted"):
        read_scan(path / "a.png")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    archive = pack(tmp_path / "up.zip", {"a.png": png() + bytes(10**6)})
    monkeypatch.setattr(source, "MAX_VOXELS", 10**5)
    with pytest.raises(ScanError, match=r"unpacks to 1000.* bytes, the limit is 100000"):
        read_scan(archive / "a.png")


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "zlib"])
def test_inflate(tmp_path, encoding):
    packers = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "zlib": zlib.compress}
    data = bytes(range(256)) * 100
    packed = packers[encoding](data)

    def inflate(content, length):
        return source.inflate(tmp_path / "x", io.BytesIO(content), encoding, length)

    assert inflate(packed, len(data)) == data
    with pytest.raises(ScanError, match="less than the 25601 bytes"):
        inflate(packed, len(data) + 1)
    with pytest.raises(ScanError, match=r"less|can't be unpacked"):
        inflate(packed[: len(packed) // 2], len(data))
    if encoding != "raw":
        with pytest.raises(ScanError, match="holds more than the 100 bytes"):
            inflate(packed, 100)
        with pytest.raises(ScanError, match=r"less|can't be unpacked"):
            inflate(b"\0" * 50, len(data))


@pytest.mark.parametrize(
    ("text", "said"), [("1000", "the limit is 1000"), ("1e3", "the limit is 1000"), ("many", "got")]
)
def test_the_limit_is_the_users(tmp_path, text, said):
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    code = "import sys; from pathlib import Path; from segapp.formats import read_scan\n"
    code += "read_scan(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        env={**os.environ, "SEGAPP_MAX_VOXELS": text},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_names_as_other_packers_write_them(tmp_path):
    archive = pack(tmp_path / "up.zip", {"./d/a.png": png(), "d//b.png": png()})
    entries = find_scans(archive)
    assert [entry.name for entry in entries] == ["d/a", "d/b"]
    assert all(read_scan(entry.paths).shape == (5, 4, 1) for entry in entries)
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as opened:
        opened.writestr("a.png", png())
        with pytest.warns(UserWarning, match="Duplicate name"):
            opened.writestr("a.png", b"another")
    with pytest.raises(ScanError, match="two members of one name"):
        find_scans(twice)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_member_fails_for_itself(tmp_path, method):
    noise = np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="PNG")
    archive = pack(tmp_path / "up.zip", {"a.png": stream.getvalue(), "b.png": png()}, method)
    data = bytearray(archive.read_bytes())
    data[60:90] = b"\xff" * 30
    archive.write_bytes(data)
    first, second = find_scans(archive)
    assert read_scan(second.paths).shape == (5, 4, 1)
    with pytest.raises(ScanError, match=r"unpacked|damaged"):
        read_scan(first.paths)


def test_listing_does_not_unpack(tmp_path):
    archive = pack(tmp_path / "up.zip", {"a.png": png() + bytes(10**8), "b.dcm": bytes(10**8)})
    tracemalloc.start()
    assert len(find_scans(archive)) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_documents_are_no_scans(tmp_path):
    pack(tmp_path / "table.xlsx", {"a.xml": b"<a/>"})
    (tmp_path / "notes.txt").write_text("of NDims = 3 and ObjectType = Image")
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert [entry.name for entry in find_scans(tmp_path)] == ["a"]


def test_links_that_meet_again_and_again(tmp_path):
    for n in range(20):
        (tmp_path / f"{n}").mkdir()
    for n in range(19):
        for link in ("a", "b"):
            (tmp_path / f"{n}" / link).symlink_to(tmp_path / f"{n + 1}")
    Image.new("L", (4, 4)).save(tmp_path / "19" / "a.png")
    assert len(find_scans(tmp_path / "0")) == 1


def test_a_scan_that_would_take_more_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_MEMORY", source._Memory())
    path = tmp_path / "a.nii"
    source.check_size(path, (100, 100, 10), itemsize=2)  # no limit yet
    needed = 100 * 100 * 10 * (3 * 2 + 4)
    source.limit_memory(needed, per_pixel=0)
    source.check_size(path, (100, 100, 10), itemsize=2)
    with pytest.raises(ScanError, match=r"would take 2 MB, and 1 MB are left"):
        source.check_size(path, (100, 100, 10), itemsize=4)
    source.limit_memory(needed + 100 * 100 * 500, per_pixel=500)
    source.check_size(path, (100, 100, 10), itemsize=2)
    source.share_memory(2)
    with pytest.raises(ScanError, match="max-memory-mb"):
        source.check_size(path, (100, 100, 10), itemsize=2)
