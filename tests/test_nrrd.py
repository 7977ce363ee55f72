"""NRRD and MetaImage. SimpleITK, which writes and reads both, is the oracle."""

import bz2
import gzip
import os
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import nrrd
import numpy as np
import pytest

from segapp.errors import ScanError
from segapp.formats import find_scans, read_labels, read_scan, write_segmentation
from segapp.scan import Scan, Segmentation, make_classes

sitk = pytest.importorskip("SimpleITK")

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, 0.28, -0.96], [0, 0.96, 0.28]]
)
VOXELS = np.arange(24).reshape(2, 3, 4)  # (i, j, k), no two alike
LPS = np.diag([-1.0, -1, 1, 1])


def itk_image(array, vector=False):
    """An oblique image off the origin, with three different spacings, of (k, j, i[, c])."""
    image = sitk.GetImageFromArray(array, isVector=vector)
    count = image.GetDimension()
    image.SetSpacing([0.7, 0.9, 2.5][:count])
    image.SetOrigin([-91.3, 12.7, 3.1][:count])
    image.SetDirection((TURN if count == 3 else np.array([[0.8, -0.6], [0.6, 0.8]])).ravel())
    return image


def assert_same_places(scan, image):
    """Each corner lies where ITK says, in mm."""
    count = image.GetDimension()
    for corner in np.ndindex(2, 2, 2):
        index = [int(c * (n - 1)) for c, n in zip(corner, scan.shape, strict=True)]
        place = (LPS @ scan.affine @ [*index, 1])[:3]
        expected = [*image.TransformIndexToPhysicalPoint(index[:count]), 0][:3]
        assert place == pytest.approx(expected, abs=1e-9)


def segmentation(labels, affine):
    scan = Scan(np.zeros((1, *labels.shape), np.uint8), affine, Path("gone.nrrd"))
    values = list(range(int(labels.max()) + 1))
    return Segmentation(labels, scan, make_classes([f"c{v}" for v in values], values))


def nrrd_file(path, fields="", voxels=VOXELS.astype("<i2"), encoding="raw", pack=bytes):
    """A NRRD file by hand; `fields` replace or follow the plain ones."""
    given = dict(line.split(": ", 1) for line in fields.splitlines())
    header = {
        "type": {"u1": "uchar", "i2": "short", "f4": "float"}[voxels.dtype.str[1:]],
        "dimension": voxels.ndim,
        "sizes": " ".join(map(str, voxels.shape)),
        "endian": "little",
        "encoding": encoding,
    }
    lines = ["NRRD0005", *(f"{key}: {value}" for key, value in (header | given).items())]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + pack(voxels.tobytes(order="F")))
    return path


def meta_file(path, fields="", voxels=VOXELS.astype("<i2"), data=None, last="LOCAL"):
    given = dict(line.split(" = ", 1) for line in fields.splitlines())
    header = {
        "ObjectType": "Image",
        "NDims": voxels.ndim,
        "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": "MET_SHORT",
    }
    header = header | given | {"ElementDataFile": last}
    text = "".join(f"{key} = {value}\n" for key, value in header.items())
    path.write_bytes(text.encode() + (voxels.tobytes(order="F") if data is None else data))
    return path


# ITK writes, we read; we write, ITK reads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_reads_what_itk_writes(tmp_path, suffix, dtype):
    array = (np.arange(24).reshape(4, 3, 2) * 5).astype(dtype)  # (k, j, i)
    image = itk_image(array)
    for compressed in (False, True):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=compressed)
        scan = read_scan(tmp_path / f"a{suffix}")
        assert scan.voxels.dtype == np.dtype(dtype)
        assert np.array_equal(scan.voxels[0], array.T)
        assert scan.warnings == ()
        assert_same_places(scan, image)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3, 2, 3)])
def test_colours_are_channels(tmp_path, suffix, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)  # ([k,] j, i, c)
    image = itk_image(array, vector=True)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    scan = read_scan(tmp_path / f"a{suffix}")
    expected = array.reshape(-1, 3, 2, 3).transpose(3, 2, 1, 0)
    assert np.array_equal(scan.voxels, expected)
    assert_same_places(scan, image)
    with pytest.raises(ScanError, match="one value per pixel"):
        read_labels(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_plane_is_axial(tmp_path, suffix):
    image = itk_image(np.arange(6, dtype=np.uint8).reshape(3, 2))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    scan = read_scan(tmp_path / f"a{suffix}")
    assert scan.voxels[0, :, :, 0].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert scan.spacing_mm == pytest.approx((0.7, 0.9, 1))
    assert_same_places(scan, image)
    assert len(scan.warnings) == 1
    assert "plane" in scan.warnings[0]


@pytest.mark.parametrize("top", [3, 300])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_reads_what_is_written(tmp_path, suffix, top):
    sitk.WriteImage(itk_image(np.zeros((4, 3, 2), np.int16)), str(tmp_path / "a.nrrd"))
    affine = read_scan(tmp_path / "a.nrrd").affine
    labels = (np.arange(24).reshape(2, 3, 4) * top // 23).astype(np.uint16)
    path = tmp_path / f"b{suffix}"
    write_segmentation(segmentation(labels, affine), path)
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    assert array.dtype == (np.uint16 if top > 255 else np.uint8)
    assert np.array_equal(array.T, labels)
    scan = read_labels(path)
    assert np.array_equal(scan.voxels[0], labels)
    assert_same_places(scan, image)
    assert np.allclose(scan.affine, affine, rtol=0, atol=1e-12)
    if suffix == ".nrrd":
        assert np.array_equal(scan.affine, affine)
        assert np.array_equal(nrrd.read(str(path))[0], labels)
    first = path.read_bytes()
    write_segmentation(segmentation(labels, affine), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_no_place_stays_no_place(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_segmentation(segmentation(np.ones((2, 3, 4), np.uint8), None), path)
    scan = read_labels(path)
    assert scan.affine is None
    assert scan.voxels.shape == (1, 2, 3, 4)
    assert scan.warnings == ()


# NRRD by hand


@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz", "bzip2", "bz2"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<f4"])
def test_nrrd_encodings(tmp_path, encoding, dtype):
    voxels = VOXELS.astype(dtype)
    endian = "endian: big" if dtype[0] == ">" else ""
    pack = {"r": bytes, "g": gzip.compress, "b": bz2.compress}[encoding[0]]
    scan = read_scan(nrrd_file(tmp_path / "a.nrrd", endian, voxels, encoding, pack))
    assert scan.voxels.dtype.isnative
    assert scan.voxels.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(scan.voxels[0], VOXELS)
    assert scan.affine is None
    assert scan.warnings == ()


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", [1, 1, 1]),
        ("RAS", [1, 1, 1]),
        ("LAS", [-1, 1, 1]),
        ("left-posterior-superior", [-1, -1, 1]),
        ("LPS", [-1, -1, 1]),
        ("left-anterior-superior-time", [-1, 1, 1]),
    ],
)
def test_nrrd_spaces(tmp_path, space, signs):
    fields = (
        f"space: {space}\nspace directions: (0,0,2) ( 3, 0 ,0) (0,4,0)\nspace origin: (10,20,30)"
    )
    scan = read_scan(nrrd_file(tmp_path / "a.nrrd", fields))
    expected = np.array([[0, 3, 0, 10], [0, 0, 4, 20], [2, 0, 0, 30]]) * np.reshape(signs, (3, 1))
    assert np.array_equal(scan.affine[:3], expected)
    assert scan.spacing_mm == (2, 3, 4)
    assert scan.warnings == ()


DIRECTIONS = "space directions: (2,0,0) (0,3,0) (0,0,4)"


@pytest.mark.parametrize(
    ("fields", "spacing", "warning"),
    [
        ("spacings: 2 3 4", (2, 3, 4), "assumed to be axial"),
        ('spacings: 2 3 4\nunits: "um" "um" "um"', (0.002, 0.003, 0.004), "converted"),
        (f"space dimension: 3\n{DIRECTIONS}\nspace origin: (0,0,0)", (2, 3, 4), "LPS is assumed"),
        (f"space: LPS\n{DIRECTIONS}", (2, 3, 4), "no origin"),
        (
            f'space: LPS\nspace units: "µm" "µm" "µm"\n{DIRECTIONS}\nspace origin: (0,0,0)',
            *((0.002, 0.003, 0.004), "converted"),
        ),
        (
            f'space: LPS\nspace units: "m" "m" "m"\n{DIRECTIONS}\nspace origin: (1,2,3)',
            *((2000, 3000, 4000), "converted"),
        ),
        (
            f'space: LPS\nspace units: "el" "el" "el"\n{DIRECTIONS}\nspace origin: (0,0,0)',
            *((2, 3, 4), "not known"),
        ),
    ],
)
def test_nrrd_assumptions_are_told(tmp_path, fields, spacing, warning):
    scan = read_scan(nrrd_file(tmp_path / "a.nrrd", fields))
    assert scan.spacing_mm == pytest.approx(spacing)
    assert (np.sign(np.diag(scan.affine)) == [-1, -1, 1, 1]).all()
    assert warning in scan.warnings[0]


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_nrrd_channels_anywhere(tmp_path, axis):
    voxels = np.moveaxis(np.stack([VOXELS, VOXELS + 100]), 0, axis).astype("<i2")
    kinds, directions = ["domain"] * 3, ["(2,0,0)", "(0,3,0)", "(0,0,4)"]
    kinds.insert(axis, "vector")
    directions.insert(axis, "none")
    fields = f"kinds: {' '.join(kinds)}"
    place = f"\nspace: RAS\nspace directions: {' '.join(directions)}\nspace origin: (0,0,0)"
    for more in ("", place):
        scan = read_scan(nrrd_file(tmp_path / "a.nrrd", fields + more, voxels))
        assert np.array_equal(scan.voxels, [VOXELS, VOXELS + 100])
    assert scan.spacing_mm == (2, 3, 4)


def test_nrrd_alpha(tmp_path):
    voxels = np.full((4, 2, 3), 255, np.uint8)
    fields = "kinds: RGBA-color domain domain"
    assert read_scan(nrrd_file(tmp_path / "a.nrrd", fields, voxels)).channels == 3
    voxels[3, 0, 0] = 0
    scan = read_scan(nrrd_file(tmp_path / "a.nrrd", fields, voxels))
    assert "alpha" in scan.warnings[0]


def test_nrrd_slice_in_space(tmp_path):
    fields = "space: LPS\nspace directions: (0,2,0) (0,0,3)\nspace origin: (7,0,0)"
    scan = read_scan(nrrd_file(tmp_path / "a.nrrd", fields, VOXELS[:, :, 0].astype("<i2")))
    assert scan.shape == (2, 3, 1)
    assert scan.affine[:3].tolist() == [[0, 0, -1, -7], [-2, 0, 0, 0], [0, 3, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "before"),
    [
        ("line skip: 2", b"one\ntwo\n"),
        ("byte skip: 5", b"12345"),
        ("lineskip: 1\nbyteskip: 2", b"one\n12"),
        ("byte skip: -1", b"anything"),
    ],
)
@pytest.mark.parametrize("detached", [False, True])
def test_nrrd_skips(tmp_path, fields, before, detached):
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    if detached:
        nrrd_file(path, f"{fields}\ndata file: ./my voxels.raw", pack=lambda data: b"")
        (tmp_path / "my voxels.raw").write_bytes(before + VOXELS.astype("<i2").tobytes(order="F"))
    else:
        nrrd_file(path, fields, pack=lambda data: before + data)
    assert np.array_equal(read_scan(path).voxels[0], VOXELS)


def test_nrrd_free_text_is_not_parsed(tmp_path):
    path = nrrd_file(tmp_path / "a.nrrd")
    text = b'NRRD0005\n# Doe\ncontent: Jane "Doe\nlabels: "a\nspace:=Doe\nspace:=Doe\n'
    path.write_bytes(path.read_bytes().replace(b"NRRD0005\n", text).replace(b"\n", b"\r\n", 4))
    assert np.array_equal(read_scan(path).voxels[0], VOXELS)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,0)", "no place in space"),
        ("space: LPS\nspace directions: (1,0,0) (1,0,0) (0,0,1)", "no place in space"),
        ("space: LPS\nspace directions: (1,0,0) (0,nan,0) (0,0,1)", "no place in space"),
        (f"space: LPS\n{DIRECTIONS}\nspace origin: (inf,0,0)", "no place in space"),
        (f"space: LPS\n{DIRECTIONS}\nspace origin: (0,0)", "does not fit"),
        ("spacings: 1 0 1", "no place in space"),
        ("spacings: 1 nan 1", "no place in space"),
        ("spacings: 1 1", "each axis"),
        ("kinds: domain domain", "each of its axes"),
        ("kinds: domain domain time", "4 volumes"),
        ("kinds: vector list domain", "1 axes of space"),
        ("encoding: ascii", "save with gzip"),
        ("encoding: hex", "save with gzip"),
        ("type: block", "no number"),
        ("endian: middle", "endian"),
        ("sizes: 2 3", "more or fewer"),
        ("sizes: 2 3 0", "impossible size"),
        ("sizes: 2 3 -4", "impossible size"),
        ("sizes: 2 3 5", "48, less than the 60 bytes"),
        ("sizes: 99999 99999 99999", "the limit is"),
        ("sizes: 2 3 Doe", "header is damaged"),
        (f"space origin: ({' ' * 900_000}x", "without end"),  # whitespace is no time bomb either
        ("byte skip: -1\nencoding: gzip", "-1 bytes"),
        ("byte skip: -2", "impossible number"),
        ("line skip: -2", "impossible number"),
        ("byte skip: 99999999999999999999999999", "0, less"),
    ],
)
def test_nrrd_refused(tmp_path, fields, problem):
    with pytest.raises(ScanError, match=problem) as caught:
        read_scan(nrrd_file(tmp_path / "a.nrrd", fields))
    assert "\n" not in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_nrrd_volumes_refused(tmp_path):
    voxels = np.ones((2, 3, 4, 5), "<i2")
    for fields in ("", "kinds: domain domain domain time"):
        with pytest.raises(ScanError, match=r"5 volumes.*its own file"):
            read_scan(nrrd_file(tmp_path / "a.nrrd", fields, voxels))
    assert read_scan(nrrd_file(tmp_path / "a.nrrd", "", voxels[..., :1])).shape == (2, 3, 4)


# MetaImage by hand


def test_meta_fields(tmp_path):
    fields = "ElementSize = 2 3 4\nPosition = 10 20 30\nOrientation = 0 0 1 1 0 0 0 1 0"
    scan = read_scan(meta_file(tmp_path / "a.mha", fields))
    # Axis i runs along z, j along x, k along y; x and y change their signs.
    assert scan.affine[:3].tolist() == [[0, -3, 0, -10], [0, 0, -4, -20], [2, 0, 0, 30]]
    assert_same_places(scan, sitk.ReadImage(str(tmp_path / "a.mha")))
    assert np.array_equal(scan.voxels[0], VOXELS)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("LONG", "i4"), ("ULONG", "u4"), ("LONG_LONG", "i8"), ("CHAR", "i1")]
)
@pytest.mark.parametrize("msb", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_meta_types(tmp_path, kind, dtype, msb):
    fields = f"ElementType = MET_{kind}\n{msb} = True"
    scan = read_scan(meta_file(tmp_path / "a.mha", fields, VOXELS.astype(f">{dtype}")))
    assert scan.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(scan.voxels[0], VOXELS)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mha")))
    assert array.dtype == np.dtype(dtype)


def test_meta_data_files(tmp_path):
    data = VOXELS.astype("<i2").tobytes(order="F")
    cases = [
        ("", data),
        ("HeaderSize = 7", b"1234567" + data),
        ("HeaderSize = -1", b"anything" + data),
        ("CompressedData = True", zlib.compress(data)),
        ("CompressedData = True", gzip.compress(data)),
        ("CompressedData = True\nHeaderSize = 3", b"123" + zlib.compress(data)),
    ]
    for fields, stored in cases:
        meta_file(tmp_path / "a.mhd", fields, data=b"", last="a.raw")
        (tmp_path / "a.raw").write_bytes(stored)
        assert np.array_equal(read_scan(tmp_path / "a.mhd").voxels[0], VOXELS)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ("ElementToIntensityFunctionSlope = 2", "intensity function"),
        ("ElementSpacing = 2 3 4\nDistanceUnits = um", "converted"),
    ],
)
def test_meta_warnings(tmp_path, fields, warning):
    scan = read_scan(meta_file(tmp_path / "a.mha", fields))
    assert np.array_equal(scan.voxels[0], VOXELS)
    assert warning in scan.warnings[0]
    assert scan.spacing_mm in (None, pytest.approx((0.002, 0.003, 0.004)))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("BinaryData = False", "as text"),
        ("ObjectType = Tube", "not of an image"),
        ("ElementType = MET_STRING", "no number"),
        ("NDims = 4", "more or fewer"),
        ("NDims = 4\nDimSize = 2 3 2 2", "2 volumes"),
        ("NDims = 1\nDimSize = 24", "2 or 3 dimensions"),
        ("DimSize = 2 3 Doe", "no list of numbers"),
        ("DimSize = 2 3 nan", "finite"),
        ("DimSize = 2 3 -4", "impossible size"),
        ("DimSize = 99999 99999 99999", "the limit is"),
        ("DimSize = 2 3 5", "less than the 60 bytes"),
        ("ElementSpacing = 1 1 0", "no place in space"),
        ("ElementSpacing = 1 1", "3 dimensions"),
        ("ElementSpacing = 1 1 inf", "finite"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1", "no place in space"),
        ("CompressedData = True", "can't be unpacked"),
        ("CompressedData = True\nHeaderSize = -1", "HeaderSize"),
    ],
)
def test_meta_refused(tmp_path, fields, problem):
    with pytest.raises(ScanError, match=problem) as caught:
        read_scan(meta_file(tmp_path / "a.mha", fields))
    assert "Doe" not in str(caught.value)


# Both: adversaries


@pytest.mark.parametrize(
    "name",
    [
        *("../a.raw", "/etc/passwd", "sub/a.raw", "..\\a.raw", "C:a.raw", "..", ".", "LIST"),
        *("LIST 2", "a%d.raw 1 3 1", "a\0.raw", "a.raw ", "Doe.raw", "sub", "pipe"),
    ],
)
def test_voxels_come_from_the_own_folder(tmp_path, name):
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    os.mkfifo(here / "pipe")
    for folder in (tmp_path, here / "sub", here):
        (folder / "a.raw").write_bytes(VOXELS.astype("<i2").tobytes(order="F"))
    paths = [
        nrrd_file(here / "a.nhdr", f"data file: {name}", pack=lambda data: b""),
        meta_file(here / "a.mhd", data=b"", last=name),
    ]
    for path in paths:
        if name.strip() == "a.raw":
            assert np.array_equal(read_scan(path).voxels[0], VOXELS)
            continue
        with pytest.raises(ScanError, match="folder") as caught:
            read_scan(path)
        assert name in ("..", ".", "sub") or name not in str(caught.value)


def test_members_of_an_archive(tmp_path):
    nrrd_file(tmp_path / "a.nhdr", "data file: a.raw", pack=lambda data: b"")
    meta_file(tmp_path / "a.mhd", data=b"", last="a.raw")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.nhdr", "x/a.nhdr")
        archive.write(tmp_path / "a.mhd", "x/a.mhd")
        archive.writestr("x/a.raw", VOXELS.astype("<i2").tobytes(order="F"))
    for name in ("a.nhdr", "a.mhd"):
        scan = read_scan(tmp_path / "a.zip" / "x" / name)
        assert np.array_equal(scan.voxels[0], VOXELS)


@pytest.mark.parametrize("encoding", ["gzip", "bzip2", "zlib"])
def test_bombs_are_not_unpacked(tmp_path, encoding):
    """64 MB of zeros behind a header of 48 bytes: refused, and never in memory."""
    pack = {"gzip": gzip.compress, "bzip2": bz2.compress, "zlib": zlib.compress}[encoding]
    bomb = pack(bytes(1 << 26))
    if encoding == "zlib":
        path = meta_file(tmp_path / "a.mha", "CompressedData = True", data=bomb)
    else:
        path = nrrd_file(tmp_path / "a.nrrd", encoding=encoding, pack=lambda data: bomb)
    tracemalloc.start()
    with pytest.raises(ScanError, match="more than the 48 bytes"):
        read_scan(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "bzip2", "zlib"])
def test_cut_short_or_changed(tmp_path, encoding):
    data = VOXELS.astype("<i2").tobytes(order="F")
    packed = {"gzip": gzip.compress, "bzip2": bz2.compress, "zlib": zlib.compress}[encoding](data)
    flipped = bytearray(packed)
    flipped[-2 if encoding == "zlib" else -6] ^= 1  # in the checksum
    for stored in [bytes(flipped), *(packed[:end] for end in range(len(packed)))]:
        if encoding == "zlib":
            path = meta_file(tmp_path / "a.mha", "CompressedData = True", data=stored)
        else:
            path = nrrd_file(
                tmp_path / "a.nrrd", encoding=encoding, pack=lambda data, stored=stored: stored
            )
        with pytest.raises(ScanError):
            read_scan(path)


@pytest.mark.parametrize("start", [b"NRRD0004\n", b"ObjectType = Image\n"])
def test_endless_headers(tmp_path, start):
    path = tmp_path / "a.nrrd"
    for filler in (b"a", b"a: b\n", b"\xff\xfe:"):
        path.write_bytes(start + filler * (3 * 2**20 // len(filler)))
        with pytest.raises(ScanError, match="header goes on beyond 1048576 bytes"):
            read_scan(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_flipped_bytes_raise_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_segmentation(segmentation(VOXELS.astype(np.uint8), np.diag([-1.0, 2, 3, 1])), path)
    data, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        broken = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            broken[position] = generator.integers(0, 256)
        path.write_bytes(broken)
        for reader in (read_scan, read_labels):
            try:
                reader(path)
            except ScanError as error:
                assert "\n" not in str(error)  # noqa: PT017
                assert "may be damaged (" not in str(error)  # noqa: PT017 - told by the reader
                refused += 1
    assert refused


@pytest.mark.parametrize("start", [b"\x08\0\x05\0UL\4\0", b"\xff\xd8\xff", b"\0"])
def test_voxels_beside_a_header_are_no_scan_whatever_they_begin_with(tmp_path, start):
    (tmp_path / "a.raw").write_bytes(start.ljust(2000, b"\0"))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 10 20 10\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mhd").write_text(header + "ElementDataFile = a.raw\n")
    (entry,) = find_scans(tmp_path)
    assert entry.paths == (tmp_path / "a.mhd",)
    assert read_scan(entry.paths).voxels[0, 0, 0, 0] == start[0]
