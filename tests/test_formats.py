import gzip
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from lzma import compress as xz
from pathlib import Path
from zlib import compress, crc32

import cv2
import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segapp.errors import OutputError, ScanError
from segapp.formats import (
    find_scans,
    listing,
    output_suffix,
    read_labels,
    read_scan,
    source,
    stem,
    write_segmentation,
)
from segapp.scan import Scan, Segmentation, make_classes

GREY = np.arange(15, dtype=np.uint8).reshape(3, 5)  # 3 rows, 5 columns
COLOUR = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])


def rows(scan):
    """Voxels (C, I, J, 1) as (row, column), or (row, column, channel)."""
    pixels = scan.voxels[..., 0].transpose(2, 1, 0)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def png(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def png16(path, pixels):
    """A 16-bit RGB(A) PNG, which Pillow can't write."""
    order = [2, 1, 0, 3][: pixels.shape[2]]
    assert cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., order]))
    return path


def raw_png(path, width, bits, colour_type, line):
    """A PNG of one row in a mode that Pillow can't write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compress(line)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))


def nifti(path, voxels, affine=AFFINE, change=None):
    header = nib.Nifti1Header(endianness=">" if voxels.dtype.str[0] == ">" else "<")
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_xyzt_units("mm")
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    if change:
        change(header)
    nib.save(nib.Nifti1Image(voxels, None, header), path)
    return path


def patch(path, offset, form, *values):
    """Change header bytes of an uncompressed file."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(data)
    return path


def segmentation(labels, scan=None, values=None):
    values = values or list(range(int(labels.max()) + 1))
    scan = scan or Scan(np.zeros((1, *labels.shape), np.uint8), None, Path("none.png"))
    return Segmentation(labels, scan, make_classes([f"c{v}" for v in values], values))


# Names and folders


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii.gz", "a"),
        ("x/a.b.PNG", "a.b"),
        ("a.NII.GZ", "a"),
        ("a.tiff", "a"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_stem(name, expected):
    assert stem(name) == expected


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jpg", ".png"),
        ("a.bmp", ".png"),
        ("a.PNG", ".png"),
        ("a.tiff", ".tif"),
        ("a.tif", ".tif"),
        ("a.nii", ".nii"),
        ("a.nii.gz", ".nii.gz"),
    ],
)
def test_output_suffix(tmp_path, name, suffix):
    path = tmp_path / name
    nifti(path, np.zeros((2, 3, 4))) if ".nii" in name else png(path, GREY)
    assert output_suffix(path) == suffix
    assert (output_suffix(path, "nifti"), output_suffix(path, "png")) == (".nii.gz", ".png")
    with pytest.raises(ScanError, match="is no DICOM, which --format dicomseg needs"):
        output_suffix(path, "dicomseg")


def test_output_suffix_unknown(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ScanError, match=r"no scan of a known format \(suffix \.txt\); read are"):
        output_suffix(tmp_path / "a.txt")


def test_find_scans(tmp_path):
    for name in ["b.png", "sub/a.nii.gz", ".x.png", ".hidden/a.png", "notes.txt", "B.tif"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [entry.name for entry in find_scans(tmp_path)] == ["B", "b", "sub/a"]
    assert find_scans(tmp_path)[2].paths == (tmp_path / "sub/a.nii.gz",)
    (tmp_path / "empty").mkdir()
    assert find_scans(tmp_path / "empty") == []
    with pytest.raises(ScanError, match="can't be listed"):
        find_scans(tmp_path / "missing")


def test_find_scans_follows_links_once(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").touch()
    (inside / "link").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    (inside / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert [entry.name for entry in find_scans(inside)] == ["a", "broken", "link/a"]


def test_channel_files(tmp_path):
    for name in ["a_0000.png", "a_0001.png", "b_0000.png", "c.png", "d_0007.png"]:
        png(tmp_path / name, GREY)
    entries = {entry.name: entry for entry in find_scans(tmp_path, channel_files=2)}
    assert list(entries) == ["a", "b", "c", "d_0007"]
    assert [path.name for path in entries["a"].paths] == ["a_0000.png", "a_0001.png"]
    assert read_scan(entries["a"].paths).voxels.shape == (2, 5, 3, 1)
    with pytest.raises(ScanError, match=r"2 channel files are expected, missing: b_0001\.png"):
        read_scan(entries["b"].paths)
    assert [entry.name for entry in find_scans(tmp_path)][:2] == ["a_0000", "a_0001"]


@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".dcm", ""])
def test_a_file_that_may_not_be_read_is_named_with_the_cause(tmp_path, forbid, suffix):
    path, other = tmp_path / f"a{suffix}", png(tmp_path / "b.png", GREY)
    path.write_bytes(b"something")
    forbid(path)
    for read in (read_scan, read_labels, lambda p: read_scan([p, other]), output_suffix):
        with pytest.raises(ScanError) as error:
            read(path)
        assert str(error.value) == f"{path}: can't be read (Permission denied)"
    assert [entry.name for entry in find_scans(tmp_path)] == ["a", "b"]


def test_a_name_that_no_file_can_have_is_one_that_can_not_be_read(tmp_path):
    path = tmp_path / f"{'a' * 300}.png"
    for read in (read_scan, read_labels, output_suffix):
        with pytest.raises(ScanError, match=r"a\.png: can't be read \(File name too long\)"):
            read(path)


def test_files_of_a_folder_that_can_not_be_entered_are_scans_that_can_not_be_read(
    tmp_path, monkeypatch
):
    png(tmp_path / "a.png", GREY)
    closed = png(tmp_path / "b.png", GREY)
    look = Path.stat

    def stat(self, **options):
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return look(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert [entry.paths for entry in find_scans(tmp_path)] == [(tmp_path / "a.png",), (closed,)]
    with pytest.raises(ScanError, match=r"b\.png: can't be read \(Permission denied\)"):
        read_scan(closed)


def test_a_folder_that_is_a_link_to_itself_can_not_be_listed(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ScanError, match="loop: can't be listed"):
        find_scans(tmp_path / "loop")


def test_all_channels_of_a_scan_count_for_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_MEMORY", source._Memory())
    paths = [nifti(tmp_path / f"a_{n:04}.nii", np.ones((4, 5, 6), np.int16)) for n in range(3)]
    of_one = 4 * 5 * 6 * (3 * 2 + 4)
    source.limit_memory(2 * of_one + 30 * 500, per_pixel=500)
    assert read_scan(paths[:2]).channels == 2
    with pytest.raises(ScanError, match=r"a_0000\.nii: would take 0 MB, and 0 MB are left"):
        read_scan(paths)
    assert read_scan(paths[:1]).channels == 1  # what is refused leaves nothing behind


def test_channels_on_another_grid(tmp_path):
    a = nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.int16))
    b = nifti(tmp_path / "b.nii", np.full((2, 3, 4), 2, np.int16))
    scan = read_scan([a, b])
    assert scan.voxels.shape == (2, 2, 3, 4)
    assert scan.voxels[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.raises(ScanError, match="one grid"):
        read_scan([a, nifti(tmp_path / "c.nii", np.ones((2, 3, 5), np.int16))])
    moved = AFFINE.copy()
    moved[0, 3] += 1
    with pytest.raises(ScanError, match="affines differ"):
        read_scan([a, nifti(tmp_path / "c.nii", np.ones((2, 3, 4), np.int16), moved)])


# Raster images


def test_axes(tmp_path):
    pixels = np.zeros((3, 5), np.uint8)
    pixels[1, 3] = 7  # row 1, column 3
    scan = read_scan(png(tmp_path / "a.png", pixels))
    assert scan.voxels.shape == (1, 5, 3, 1)
    assert scan.voxels[0, 3, 1, 0] == 7
    assert scan.affine is None
    assert scan.warnings == ()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_8_bit_images(tmp_path, suffix, pixels):
    assert np.array_equal(rows(read_scan(png(tmp_path / f"a{suffix}", pixels))), pixels)


def test_16_bit_png(tmp_path):
    grey = GREY.astype(np.uint16) * 4000
    scan = read_scan(png(tmp_path / "a.png", grey))
    assert scan.voxels.dtype == np.uint16
    assert np.array_equal(rows(scan), grey)
    colour = COLOUR.astype(np.uint16) * 1400
    scan = read_scan(png16(tmp_path / "b.png", colour))
    assert np.array_equal(rows(scan), colour)
    opaque = np.dstack([colour, np.full((3, 5), 65535, np.uint16)])
    scan = read_scan(png16(tmp_path / "c.png", opaque))
    assert np.array_equal(rows(scan), colour)
    assert scan.warnings == ()


def test_16_bit_grey_alpha_png(tmp_path):
    line = b"\0" + struct.pack(">4H", 1000, 65535, 2000, 65535)
    raw_png(tmp_path / "a.png", 2, 16, 4, line)
    assert rows(read_scan(tmp_path / "a.png")).tolist() == [[1000, 2000]]
    assert rows(read_labels(tmp_path / "a.png")).tolist() == [[1000, 2000]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha(tmp_path, mode):
    image = Image.fromarray(GREY).convert(mode)
    image.save(tmp_path / "opaque.png")
    scan = read_scan(tmp_path / "opaque.png")
    assert np.array_equal(scan.voxels[0, :, :, 0].T, GREY)
    assert scan.channels == (3 if mode == "RGBA" else 1)
    assert scan.warnings == ()
    assert np.array_equal(rows(read_labels(tmp_path / "opaque.png")), GREY)
    image.putpixel((0, 0), (0,) * len(mode))
    image.save(tmp_path / "clear.png")
    assert "alpha" in read_scan(tmp_path / "clear.png").warnings[0]
    with pytest.raises(ScanError, match="partly transparent"):
        read_labels(tmp_path / "clear.png")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    image.save(tmp_path / f"a{suffix}")
    scan = read_scan(tmp_path / f"a{suffix}")
    assert rows(scan).tolist() == [[[0, 0, 0], [255, 0, 0], [9, 9, 9]]]
    assert rows(read_labels(tmp_path / f"a{suffix}")).tolist() == [[0, 1, 2]]
    image.putpixel((1, 0), 2)
    image.save(tmp_path / f"a{suffix}")
    assert rows(read_scan(tmp_path / f"a{suffix}")).tolist() == [[0, 9, 9]]


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_1_bit(tmp_path, name):
    png(tmp_path / name, np.array([[False, True, True]]))
    image, mask = read_scan(tmp_path / name), read_labels(tmp_path / name)
    assert image.voxels.dtype == mask.voxels.dtype == np.uint8
    assert rows(image).tolist() == [[0, 255, 255]]
    assert rows(mask).tolist() == [[0, 1, 1]]


def test_group4_tiff(tmp_path):
    Image.fromarray(np.array([[False, True, True]])).save(tmp_path / "a.tif", compression="group4")
    assert rows(read_scan(tmp_path / "a.tif")).tolist() == [[0, 255, 255]]
    assert rows(read_labels(tmp_path / "a.tif")).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bit_grey_png(tmp_path, bits):
    line = {2: b"\0\x1b", 4: b"\0\x01\x23"}[bits]  # values 0, 1, 2, 3
    raw_png(tmp_path / "a.png", 4, bits, 0, line)
    assert rows(read_labels(tmp_path / "a.png")).tolist() == [[0, 1, 2, 3]]
    step = 85 if bits == 2 else 17
    assert rows(read_scan(tmp_path / "a.png")).tolist() == [[0, step, 2 * step, 3 * step]]


def test_jpeg(tmp_path):
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    scan = read_scan(png(tmp_path / "a.jpg", flat))
    assert np.abs(rows(scan).astype(int) - flat).max() <= 2
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "cmyk.jpg")
    scan = read_scan(tmp_path / "cmyk.jpg")
    assert np.abs(rows(scan).astype(int) - flat).max() <= 3
    assert "CMYK" in scan.warnings[0]
    with pytest.raises(ScanError, match=r"JPEG.*save masks as PNG"):
        read_labels(tmp_path / "a.jpg")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_orientation_is_not_applied(tmp_path, compression):
    exif = Image.Exif()
    exif[274] = 6
    png(tmp_path / "a.jpg", np.zeros((8, 16), np.uint8), exif=exif)
    scan = read_scan(tmp_path / "a.jpg")
    assert scan.shape == (16, 8, 1)
    assert "orientation tag 6" in scan.warnings[0]
    png(tmp_path / "a.tif", GREY, tiffinfo={274: 6}, compression=compression)
    if compression:
        with pytest.raises(ScanError, match="turned by its orientation tag"):
            read_scan(tmp_path / "a.tif")
    else:
        assert np.array_equal(rows(read_scan(tmp_path / "a.tif")), GREY)


def test_content_decides(tmp_path):
    png(tmp_path / "a.png", GREY)
    for name in ["b.jpg", "b.tif"]:
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
        assert np.array_equal(rows(read_labels(tmp_path / name)), GREY)
    (tmp_path / "c.png").write_bytes(png(tmp_path / "c.jpg", GREY).read_bytes())
    with pytest.raises(ScanError, match="JPEG"):
        read_labels(tmp_path / "c.png")


# TIFF

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiff_dtypes(tmp_path, dtype, byteorder):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype) * 5, byteorder=byteorder)
    scan = read_scan(tmp_path / "a.tif")
    assert scan.voxels.dtype == np.dtype(dtype)
    assert scan.voxels.dtype.isnative
    assert np.array_equal(rows(scan), GREY.astype(dtype) * 5)
    labels = read_labels(tmp_path / "a.tif")
    assert labels.voxels.dtype.kind in "iu"
    assert np.array_equal(rows(labels), GREY.astype(int) * 5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32"])
def test_lzw_tiff(tmp_path, dtype, channels):
    pixels = (COLOUR if channels == 3 else GREY).astype(dtype) * 2
    order = pixels[..., ::-1] if channels == 3 else pixels
    lzw = [cv2.IMWRITE_TIFF_COMPRESSION, 5]
    assert cv2.imwrite(str(tmp_path / "a.tif"), np.ascontiguousarray(order), lzw)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        packed = file.pages[0].compression == 5  # OpenCV before 5.0 leaves three floats as they are
    if packed and dtype != "uint8" and (channels == 3 or dtype == "int8"):  # no mode of Pillow's
        with pytest.raises(ScanError, match=r"LZW.*Deflate"):
            read_scan(tmp_path / "a.tif")
        return
    scan = read_scan(tmp_path / "a.tif")
    assert scan.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(rows(scan), pixels)


@pytest.mark.parametrize("compression", ["zlib", "packbits", "lzma"])
def test_compressed_tiff(tmp_path, compression):
    if compression == "packbits":
        png(tmp_path / "a.tif", GREY, compression="packbits")
    else:
        tifffile.imwrite(tmp_path / "a.tif", GREY, compression=compression)
    assert np.array_equal(rows(read_labels(tmp_path / "a.tif")), GREY)


def test_unreadable_compression_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    data = (tmp_path / "a.tif").read_bytes()
    tag, jetraw = struct.pack("<HHIH", 259, 3, 1, 1), struct.pack("<HHIH", 259, 3, 1, 48124)
    (tmp_path / "a.tif").write_bytes(data.replace(tag, jetraw))
    with pytest.raises(ScanError, match=r"JETRAW.*Deflate"):
        read_scan(tmp_path / "a.tif")


def test_tiff_planes_alpha_and_extra_channels(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(rows(read_scan(path)), COLOUR)
    alpha = np.dstack([COLOUR, np.full((3, 5), 255, np.uint8)])
    tifffile.imwrite(path, alpha, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(rows(read_scan(path)), COLOUR)
    tifffile.imwrite(path, alpha, photometric="rgb", extrasamples=["unspecified"])
    assert read_scan(path).channels == 4


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_miniswhite(tmp_path, compression):
    path = tmp_path / "a.tif"
    if compression:
        Image.fromarray(255 - GREY).save(path, compression=compression, tiffinfo={262: 0})
    else:
        tifffile.imwrite(path, GREY, photometric="miniswhite")
    scan, mask = read_scan(path), read_labels(path)
    assert np.array_equal(rows(scan), 255 - GREY)
    assert "inverted" in scan.warnings[0]
    assert np.array_equal(rows(mask), GREY)
    assert "as stored" in mask.warnings[0]


def test_jpeg_tiff(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.tif", compression="jpeg")
    assert np.abs(rows(read_scan(tmp_path / "a.tif")).astype(int) - flat).max() <= 2
    with pytest.raises(ScanError, match="JPEG"):
        read_labels(tmp_path / "a.tif")
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "b.tif")
    scan = read_scan(tmp_path / "b.tif")
    assert np.array_equal(rows(scan), flat)
    assert "converted to RGB" in scan.warnings[0]


def test_complex_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.complex64))
    with pytest.raises(ScanError, match="complex64 voxels"):
        read_scan(tmp_path / "a.tif")


def test_several_pages(tmp_path):
    stack = np.stack([GREY, GREY])
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True)
    tifffile.imwrite(tmp_path / "c.tif", stack, volumetric=True, tile=(16, 16, 16))
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    frames[0].save(tmp_path / "d.png", save_all=True, append_images=frames[1:])
    for name in ["a.tif", "b.tif", "c.tif", "d.png"]:
        with pytest.raises(ScanError, match="has 2 pages"):
            read_scan(tmp_path / name)


# TIFF stacks

STACK = np.arange(60, dtype=np.uint16).reshape(3, 4, 5) * 900  # (k, j, i)
_PLACE = {"axes": "ZYX", "PhysicalSizeX": 500, "PhysicalSizeY": 0.7, "PhysicalSizeZ": 2}
_PLACE |= {"PhysicalSizeYUnit": "mm", "PhysicalSizeZUnit": "mm"}


@pytest.mark.parametrize("compression", [None, "zlib", "lzma"])
@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, None),
        ({"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2, "unit": "pixel"}}, None),
        ({"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2, "unit": "mm"}}, (0.5, 0.7, 2)),
        (
            {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2, "unit": "\\u00B5m"}},
            (0.0005, 0.0007, 0.002),
        ),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, None),
        ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 1}}, None),
        ({"ome": True, "metadata": _PLACE}, (0.5, 0.7, 2)),
    ],
)
def test_declared_stack(tmp_path, options, spacing, compression):
    path = tmp_path / "a.tif"
    resolution = (1 / 0.5, 1 / 0.7)
    tifffile.imwrite(path, STACK, **options, compression=compression, resolution=resolution)
    scan = read_scan(path)
    assert scan.voxels.dtype == np.uint16
    assert np.array_equal(scan.voxels, STACK.T[None])
    assert np.array_equal(read_labels(path).voxels, STACK.T[None])
    if spacing is None:
        assert scan.affine is None
    else:
        assert np.allclose(scan.affine, np.diag([-spacing[0], -spacing[1], spacing[2], 1]))
        assert "assumed to be axial" in scan.warnings[0]


def test_colour_and_lzw_stacks(tmp_path):
    colours = np.stack([COLOUR, COLOUR + 50])  # (k, j, i, c)
    for options in ({"imagej": True}, {"ome": True}):
        options |= {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}
        tifffile.imwrite(tmp_path / "a.tif", colours, **options)
        assert np.array_equal(read_scan(tmp_path / "a.tif").voxels, colours.transpose(3, 2, 1, 0))
    first, *rest = [Image.fromarray(page) for page in STACK]
    about = {270: "ImageJ=1.54f\nimages=3\nslices=3\n"}
    lzw = {"compression": "tiff_lzw", "tiffinfo": about}
    first.save(tmp_path / "b.tif", save_all=True, append_images=rest, **lzw)
    assert np.array_equal(read_scan(tmp_path / "b.tif").voxels, STACK.T[None])


def test_undeclared_stacks(tmp_path):
    path = tmp_path / "a.tif"
    ome = tifffile.OmeXml()
    ome.addimage("uint16", STACK.shape, (3, 1, 1, 4, 5, 1), axes="ZYX")
    plain = ome.tostring()
    cases = [
        ({"imagej": True, "metadata": {"axes": "TYX"}}, "ImageJ stack with its number of slices"),
        ({"imagej": True, "metadata": {"axes": "CYX"}}, "has 3 pages"),
        ({"ome": True, "metadata": {"axes": "TYX"}}, "has 3 pages"),
        ({"ome": True, "metadata": {"axes": "CYX"}}, "has 3 pages"),
        ({"description": "ImageJ=1.54f\nimages=3\nslices=4\n"}, "has 3 pages"),
        ({"description": "ImageJ=1.54f\nimages=9\nslices=9\n"}, "has 9 pages"),
        ({"description": plain.replace('SizeZ="3"', 'SizeZ="4"')}, "has 3 pages"),
        ({"description": plain.replace('IFD="0"', 'IFD="2"')}, "has 3 pages"),
        ({"description": plain.replace("<OME", "<!DOCTYPE x><OME", 1)}, "not plain"),
        ({"description": plain.replace("<Image", "<Imag", 1)}, "OME-XML is damaged"),
    ]
    for options, problem in cases:
        options = {"metadata": None} | options
        tifffile.imwrite(path, STACK, photometric="minisblack", **options)
        with pytest.raises(ScanError, match=problem):
            read_scan(path)
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata=None, description=plain)
    assert read_scan(path).shape == (5, 4, 3)  # the text itself is good
    with tifffile.TiffWriter(path) as writer:
        for page in (STACK[0], STACK[1], STACK[2].astype(np.uint8)):
            about = "ImageJ=1.54f\nimages=3\nslices=3\n"
            writer.write(page, description=about, metadata=None, photometric="minisblack")
    with pytest.raises(ScanError, match="pages differ"):
        read_scan(path)


@pytest.mark.parametrize("affine", [None, np.diag([-0.7, -0.123456789, 2.5, 1])])
def test_written_stack(tmp_path, affine):
    path, labels = tmp_path / "a.tif", (STACK.T % 7).astype(np.uint8)
    scan = Scan(np.zeros((1, *labels.shape), np.uint8), affine, Path("gone.tif"))
    write_segmentation(segmentation(labels, scan, [0, 1, 2, 3, 4, 5, 300]), path)
    mask = read_labels(path)
    assert mask.voxels.dtype == np.uint16
    assert np.array_equal(mask.voxels[0], np.where(labels == 6, np.uint16(300), labels))
    assert np.array_equal(tifffile.imread(path).T, mask.voxels[0])
    if affine is None:
        assert mask.affine is None
    else:
        assert np.allclose(mask.affine, affine, rtol=1e-7, atol=0)
    first = path.read_bytes()
    write_segmentation(segmentation(labels, scan, [0, 1, 2, 3, 4, 5, 300]), path)
    assert path.read_bytes() == first
    elsewhere = Scan(scan.voxels, AFFINE, scan.source)
    with pytest.raises(OutputError, match="place in space"):
        write_segmentation(segmentation(labels, elsewhere), path)


def bomb_tiff(path, packed, compression, tile=0):
    """A page of 16 × 16 bytes, or one tile of it, that holds `packed`."""
    tags = [(256, 16), (257, 16), (258, 8), (259, compression), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 0), (325, len(packed))] if tile else []
    tags += [] if tile else [(273, 0), (278, 16), (279, len(packed))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [(tag, 4, 1, start if tag in (273, 324) else n) for tag, n in sorted(tags)]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4) + packed)
    return path


@pytest.mark.parametrize(("compression", "pack"), [(8, compress), (32946, compress), (34925, xz)])
def test_tiff_bombs(tmp_path, compression, pack):
    good = bomb_tiff(tmp_path / "a.tif", pack(bytes(range(256))), compression)
    assert rows(read_scan(good)).ravel().tolist() == list(range(256))
    cases = [
        (bomb_tiff(tmp_path / "b.tif", pack(bytes(1 << 26)), compression), "more pixels"),
        (bomb_tiff(tmp_path / "c.tif", pack(bytes(1 << 26)), compression, 2**20), "the limit is"),
        (bomb_tiff(tmp_path / "d.tif", pack(bytes(99))[:-9], compression), "can't be unpacked"),
    ]
    for path, problem in cases:
        tracemalloc.start()
        with pytest.raises(ScanError, match=problem):
            read_scan(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()


def test_endless_pages(tmp_path):
    pages = [struct.pack("<HHHIII", 1, 256, 3, 1, 5, 8 + 18 * (k + 1)) for k in range(20_001)]
    pages[-1] = pages[-1][:-4] + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(pages))
    with pytest.raises(ScanError, match="has 20001 pages"):
        read_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_png_bombs(tmp_path, kind):
    body = b"a\0\0" + compress(bytes(1 << 26))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))
    for pixels in (GREY, COLOUR.astype(np.uint16)):
        path = tmp_path / "a.png"
        png(path, pixels) if pixels is GREY else png16(path, pixels)
        data = path.read_bytes()
        path.write_bytes(data[:33] + chunk + data[33:])
        tracemalloc.start()
        with pytest.raises(ScanError, match="too large"):
            read_scan(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()


def test_images_in_an_archive(tmp_path):
    flat = np.full((8, 8, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", STACK, imagej=True, metadata={"axes": "ZYX"})
    png16(tmp_path / "b.png", COLOUR.astype(np.uint16) * 1400)
    png(tmp_path / "g.tif", GREY, compression="tiff_lzw")
    for name in ("a.png", "a.bmp", "a.jpg"):
        png(tmp_path / name, flat)
    files = sorted(tmp_path.iterdir())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in files:
            archive.write(file, f"x/{file.name}")
    for file in files:
        inside = read_scan(tmp_path / "all.zip" / "x" / file.name)
        assert np.array_equal(inside.voxels, read_scan(file).voxels)


# Masks


def test_colour_masks(tmp_path):
    png(tmp_path / "grey.png", np.dstack([GREY] * 3))
    assert np.array_equal(rows(read_labels(tmp_path / "grey.png")), GREY)
    png(tmp_path / "colour.png", COLOUR)
    with pytest.raises(ScanError, match="one value per pixel"):
        read_labels(tmp_path / "colour.png")


@pytest.mark.parametrize("suffix", [".tif", ".nii.gz"])
def test_float_masks(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"

    def save(values):
        array = np.array([values], np.float32)
        tifffile.imwrite(path, array) if suffix == ".tif" else nifti(path, array.T)
        return path

    mask = read_labels(save([0, 1, 300]))
    assert mask.voxels.dtype == np.int32
    assert mask.voxels.ravel().tolist() == [0, 1, 300]
    assert mask.warnings == ()
    mask = read_labels(save([0, 1.0005, -2]))
    assert mask.voxels.ravel().tolist() == [0, 1, -2]
    assert "rounded" in mask.warnings[0]
    with pytest.raises(ScanError, match=r"values like 0\.5"):
        read_labels(save([0, 0.5, 1]))
    with pytest.raises(ScanError, match="1 are not finite"):
        read_labels(save([0, np.nan, 1]))
    with pytest.raises(ScanError, match=r"values like 1e\+20"):
        read_labels(save([0, 1e20, 1]))


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2"]
)
def test_nifti(tmp_path, suffix, dtype):
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = nifti(tmp_path / f"a{suffix}", voxels)
    scan = read_scan(path)
    assert scan.voxels.dtype == np.dtype(dtype).newbyteorder("=")
    assert scan.voxels.dtype.isnative
    assert np.array_equal(scan.voxels[0], voxels)
    assert np.array_equal(scan.affine, nib.load(path).affine)
    assert scan.spacing_mm == (2, 3, 5)
    assert scan.warnings == ()
    assert np.array_equal(read_labels(path).voxels, voxels[None])


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(1, 0, 100), (0, 5, 100), (np.nan, 0, 100), (0.5, 0, 50.0), (1, -1024, -924.0)],
)
def test_nifti_scaling(tmp_path, slope, inter, expected):
    path = nifti(tmp_path / "a.nii", np.full((2, 2, 2), 100, np.int16))
    scan = read_scan(patch(path, 112, "<ff", slope, inter))
    assert scan.voxels.dtype == (np.int16 if expected == 100 else np.float32)
    assert (scan.voxels == expected).all()
    assert (read_labels(path).voxels == expected).all()


def test_nifti_content_decides_on_gzip(tmp_path):
    plain = nifti(tmp_path / "a.nii", np.ones((2, 2, 2), np.uint8)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(plain)
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain))
    for name in ["b.nii.gz", "c.nii"]:
        assert (read_scan(tmp_path / name).voxels == 1).all()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 1, 1), (2, 3, 4, 1)])
def test_nifti_dimensions(tmp_path, shape):
    scan = read_scan(nifti(tmp_path / "a.nii", np.ones(shape, np.uint8)))
    assert scan.shape == (*shape, 1)[:3]


def test_nifti_2(tmp_path):
    affine = oblique() / [[3], [3], [3], [1]]
    nib.save(nib.Nifti2Image(np.ones((2, 3, 4), np.int16), affine), tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    assert np.array_equal(scan.affine, affine)  # NIfTI-2 holds it as float64
    write_segmentation(segmentation(np.ones((2, 3, 4), np.uint8), scan), tmp_path / "b.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "b.nii.gz").affine, affine)


def test_nifti_rgb(tmp_path):
    voxels = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["G"] = 7
    path = nifti(tmp_path / "a.nii", voxels)
    scan = read_scan(path)
    assert scan.voxels.shape == (3, 2, 3, 4)
    assert scan.voxels[:, 0, 0, 0].tolist() == [0, 7, 0]
    with pytest.raises(ScanError, match="one value per pixel"):
        read_labels(path)


def test_nifti_not_finite(tmp_path):
    voxels = np.ones((2, 2, 2), np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0] = np.nan, np.inf
    scan = read_scan(nifti(tmp_path / "a.nii", voxels))
    assert scan.voxels.sum() == 6
    assert scan.warnings == ("2 voxels are not finite; read as 0",)


def test_nifti_geometry_warnings(tmp_path):
    voxels = np.ones((2, 3, 4), np.int16)

    def unset(header):
        header["sform_code"] = header["qform_code"] = 0

    path = nifti(tmp_path / "a.nii", voxels, change=unset)
    scan = read_scan(path)
    assert np.array_equal(scan.affine, nib.load(path).affine)
    assert "orientation is assumed" in scan.warnings[0]

    def shift_sform(header):
        header["srow_x"][3] += 7

    scan = read_scan(nifti(path, voxels, change=shift_sform))
    assert scan.affine[0, 3] == 17
    assert "disagree" in scan.warnings[0]

    def micrometres(header):
        header.set_xyzt_units("micron")

    scan = read_scan(nifti(path, voxels, change=micrometres))
    assert scan.spacing_mm == pytest.approx((0.002, 0.003, 0.005))
    assert "micrometres" in scan.warnings[0]


@pytest.mark.parametrize(
    ("problem", "offset", "form", "values"),
    [
        ("impossible size", 42, "<h", [0]),
        ("a.nii: ", 42, "<h", [-5]),
        ("complex", 70, "<hh", [32, 64]),
        ("a.nii: ", 70, "<h", [999]),
        ("not a NIfTI file", 344, "<4s", [b"ni1\0"]),
        ("is truncated", 42, "<hhh", [500, 500, 500]),
        ("the limit is", 42, "<hhh", [30000, 30000, 30000]),
        ("no place in space", 280, "<f", [np.nan]),
        ("no place in space", 280, "<f", [0]),
        ("24 volumes", 40, "<hhhhhh", [5, 1, 1, 1, 4, 6]),
        ("2 or 3 dimensions", 40, "<h", [1]),
        ("is truncated", 108, "<f", [1e9]),
    ],
)
def test_nifti_bad_headers(tmp_path, problem, offset, form, values):
    path = nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.int16))
    with pytest.raises(ScanError, match=problem) as caught:
        read_scan(patch(path, offset, form, *values))
    assert "\n" not in str(caught.value)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ScanError):
        read_scan(tmp_path / "a.nii.gz")


def test_nifti_zero_spacing(tmp_path):
    path = nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.int16))
    patch(path, 80, "<f", 0)  # pixdim[1]
    assert read_scan(path).spacing_mm == (2, 3, 5)  # the sform does not need it
    with pytest.raises(ScanError, match="spacing of zero"):
        read_scan(patch(path, 254, "<h", 0))


def test_nifti_checksum(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.int16))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(ScanError, match="CRC"):
        read_scan(path)


# Writing


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), suffix=st.sampled_from([".png", ".tif", ".nii", ".nii.gz"]))
def test_what_is_written_is_read(tmp_path, data, suffix):
    depth = 1 if suffix in (".png", ".tif") else data.draw(st.integers(1, 4))
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), depth)
    top = data.draw(st.sampled_from([255, 65535]))
    values = data.draw(st.lists(st.integers(0, top), min_size=1, max_size=5, unique=True))
    labels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, len(values), shape)
    result = segmentation(labels.astype(np.uint8), values=values)
    path = tmp_path / f"a{suffix}"
    write_segmentation(result, path)
    mask = read_labels(path)
    assert mask.voxels.dtype == (np.uint16 if max(values) > 255 else np.uint8)
    assert np.array_equal(mask.voxels[0], result.mask_values())
    first = path.read_bytes()
    write_segmentation(result, tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes() == first


def oblique(shear=0.0):
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([0.7, 0.9, 2.5])
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[0, 2] += shear
    affine[:3, 3] = [-91.3, 12.7, 3.1]
    return affine


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (3, 0), (0, 0), (4, 1)])
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1), (2, 3)])
def test_nifti_keeps_the_geometry(tmp_path, codes, unit, shape):
    def change(header):
        header["qform_code"], header["sform_code"] = codes
        header.set_xyzt_units(unit)
        header["descrip"] = header["db_name"] = header["intent_name"] = b"Jane Doe"

    source = nifti(tmp_path / "a.nii.gz", np.ones(shape, np.int16), oblique(), change)
    scan = read_scan(source)
    write_segmentation(segmentation(np.ones(scan.shape, np.uint8), scan), tmp_path / "b.nii.gz")
    before, after = nib.load(source), nib.load(tmp_path / "b.nii.gz")
    assert before.shape[:3] == after.shape
    assert np.array_equal(before.affine, after.affine)
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert before.header[field] == after.header[field]
    assert np.array_equal(read_scan(tmp_path / "b.nii.gz").affine, scan.affine)
    raw = gzip.decompress((tmp_path / "b.nii.gz").read_bytes())
    assert b"Jane" not in raw
    assert struct.unpack_from("<ff", raw, 112) == (1, 0)  # scl_slope, scl_inter
    assert after.get_data_dtype() == np.uint8


@pytest.mark.parametrize("shear", [0, 0.4])
def test_nifti_from_another_source(tmp_path, shear):
    affine = oblique(shear)
    scan = Scan(np.zeros((1, 2, 3, 4), np.int16), affine, Path("gone.nii"))
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_segmentation(segmentation(labels, scan), tmp_path / "b.nii")
    image = nib.load(tmp_path / "b.nii")
    assert np.array_equal(image.affine, affine.astype(np.float32))
    assert np.array_equal(np.asarray(image.dataobj), labels)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 0 if shear else 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert read_scan(tmp_path / "b.nii").warnings == ()


def test_nifti_gzip_header_is_bare(tmp_path):
    write_segmentation(segmentation(np.ones((2, 2, 2), np.uint8)), tmp_path / "secret.nii.gz")
    data = (tmp_path / "secret.nii.gz").read_bytes()
    assert data[3] == 0  # no name
    assert data[4:8] == bytes(4)  # no time


def test_written_image_faces_the_right_way(tmp_path):
    labels = np.zeros((5, 3, 1), np.uint8)
    labels[3, 1, 0] = 1
    write_segmentation(segmentation(labels), tmp_path / "a.png")
    assert np.argwhere(np.asarray(Image.open(tmp_path / "a.png"))).tolist() == [[1, 3]]


def test_refused_outputs(tmp_path):
    volume = segmentation(np.ones((2, 2, 2), np.uint8))
    with pytest.raises(OutputError, match="volume"):
        write_segmentation(volume, tmp_path / "a.png")
    for name in ["a.jpg", "a.txt", "a"]:
        with pytest.raises(OutputError, match="masks are written as"):
            write_segmentation(volume, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_segmentation(volume, tmp_path / "file" / "a.nii")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# Damage


def test_no_file(tmp_path):
    for reader in (read_scan, read_labels):
        with pytest.raises(ScanError, match="no such file"):
            reader(tmp_path / "a.png")
        with pytest.raises(ScanError, match=r"is a folder|holds no scan"):
            reader(tmp_path)
    (tmp_path / "a.xyz").write_bytes(b"1")
    with pytest.raises(ScanError, match=r"no scan of a known format \(suffix \.xyz\)"):
        read_scan(tmp_path / "a.xyz")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ScanError, match="not a regular file"):
        read_scan(tmp_path / "pipe.png")


@pytest.mark.parametrize("suffix", listing._ALL)
def test_empty_and_foreign_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(ScanError, match="the file is empty"):
        read_scan(path)
    for content in (b"hello", b"PK\3\4" + bytes(1000), b"GIF89a" + bytes(500), b"\x1f\x8b" * 300):
        path.write_bytes(content)
        with pytest.raises(ScanError):
            read_scan(path)


def examples(folder):
    noise = np.random.default_rng(0).integers(0, 255, (12, 14), np.uint8)
    yield png(folder / "a.png", noise)
    yield png16(folder / "b.png", np.dstack([noise.astype(np.uint16) * 200] * 3))
    yield png(folder / "c.bmp", noise)
    tifffile.imwrite(folder / "d.tif", noise)
    tifffile.imwrite(folder / "e.tif", noise, compression="zlib")
    tifffile.imwrite(folder / "f.tif", np.stack([noise, noise]), photometric="minisblack")
    yield from (folder / "d.tif", folder / "e.tif", folder / "f.tif")
    yield png(folder / "g.tif", noise, compression="tiff_lzw")
    yield png(folder / "h.jpg", noise)
    yield nifti(folder / "i.nii", noise.reshape(12, 7, 2))
    yield nifti(folder / "j.nii.gz", noise.reshape(12, 7, 2))


@pytest.mark.parametrize("index", range(10))
def test_truncated_files(tmp_path, index):
    path = list(examples(tmp_path))[index]
    data = path.read_bytes()
    try:
        whole = read_scan(path).voxels
    except ScanError:
        whole = None  # the stack, whose first page must not be taken for an image either
    tail = range(max(0, len(data) - 6), len(data))
    refused = 0
    for end in {*range(0, len(data), 1 + len(data) // 120), *tail}:
        path.write_bytes(data[:end])
        try:
            scan = read_scan(path)
        except ScanError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        else:  # an end mark or padding is missing, but no pixel
            assert end in tail
            assert np.array_equal(scan.voxels, whole)
    assert refused > 80


@pytest.mark.parametrize("index", range(10))
def test_flipped_bytes_raise_nothing_else(tmp_path, index):
    path = list(examples(tmp_path))[index]
    data = path.read_bytes()
    generator, refused = np.random.default_rng(index), 0
    for _ in range(150):
        broken = bytearray(data)
        for position in generator.integers(0, min(len(data), 500), 3):
            broken[position] = generator.integers(0, 256)
        path.write_bytes(broken)
        for reader in (read_scan, read_labels):
            try:
                reader(path)
            except ScanError as error:
                assert "\n" not in str(error)  # noqa: PT017
                refused += 1
    assert refused


def test_size_limit(tmp_path, monkeypatch):
    paths = list(examples(tmp_path))
    monkeypatch.setattr(source, "MAX_VOXELS", 100)
    for path in paths:
        with pytest.raises(ScanError, match=r"the limit is 100|pages"):
            read_scan(path)


def test_huge_images_do_not_warn(tmp_path, monkeypatch):
    path = png(tmp_path / "a.png", GREY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow warns beyond this …
        assert read_scan(path).shape == (5, 3, 1)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)  # … and refuses twice as much
        with pytest.raises(ScanError, match="too many pixels"):
            read_scan(path)


def test_import_is_cheap():
    code = (
        "import sys, segapp.formats;"
        "sys.exit(any(m in sys.modules for m in ('nibabel', 'PIL', 'tifffile', 'cv2', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
