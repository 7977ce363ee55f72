"""DICOM read from files that the tests write; positions are checked by hand or against ITK."""

import zlib

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AXIAL,
    CANARY,
    ORIENTATIONS,
    affine,
    body_start,
    decimals,
    enhanced,
    image,
    lossless_jpeg,
    uid,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import base as decoders
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from segapp.errors import ScanError
from segapp.formats import find_scans, read_labels, read_scan

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-1000, 2000, (4, 6, 5)).astype(np.int16)  # (K, rows, columns)
LARGER = RNG.integers(0, 2000, (2, 40, 36)).astype(np.uint16)  # as encoders ask for
PLACE = {"ipp0": (-30.5, 12, 700), "spacing": (0.8, 0.6), "step": 2.5}


def voxels(volume):
    """(K, rows, columns) → (1, I, J, K)."""
    return volume.transpose(2, 1, 0)[None]


def refused(path, problem):
    with pytest.raises(ScanError, match=problem) as error:
        read_scan(path)
    assert "\n" not in str(error.value)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_lies_where_its_header_says(tmp_path, name):
    iop = ORIENTATIONS[name]
    paths = write_series(tmp_path, VOLUME, iop, **PLACE)
    scan = read_scan(paths)
    assert np.array_equal(scan.voxels, voxels(VOLUME))
    assert scan.voxels.dtype == np.int16
    assert np.allclose(scan.affine, affine(iop, **PLACE), atol=1e-6)
    assert scan.files == tuple(paths)
    assert scan.warnings == ()


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_itk_sees_each_voxel_at_the_same_place(tmp_path, name):
    sitk = pytest.importorskip("SimpleITK")
    paths = write_series(tmp_path, VOLUME, ORIENTATIONS[name], **PLACE)
    theirs = sitk.ReadImage([str(path) for path in paths])
    ours = read_scan(list(reversed(paths)))
    for at in np.ndindex(ours.shape):
        lps = np.array(theirs.TransformIndexToPhysicalPoint([int(n) for n in at]))
        ras = (ours.affine @ [*at, 1])[:3]
        assert np.allclose(ras, lps * [-1, -1, 1], atol=1e-4)
        assert ours.voxels[0][at] == theirs.GetPixel(*(int(n) for n in at))


def test_positions_order_slices_not_names_or_instance_numbers(tmp_path):
    paths = write_series(tmp_path / "a", VOLUME, **PLACE, InstanceNumber=lambda k: 9 - k)
    shuffled = [tmp_path / name for name in ("z", "b", "m", "a.dcm")]
    for path, new in zip(paths, shuffled, strict=True):
        path.rename(new)
    (tmp_path / "a").rmdir()
    (entry,) = find_scans(tmp_path)
    scan = read_scan(entry.paths)
    assert np.array_equal(scan.voxels, voxels(VOLUME))
    assert scan.files == tuple(shuffled)


def test_series_are_told_apart(tmp_path):
    write_series(tmp_path / "ct", VOLUME, seed="one", SeriesNumber=2)
    for path in write_series(tmp_path / "more", VOLUME + 1, seed="two", SeriesNumber=7):
        path.rename(tmp_path / "ct" / f"b{path.name}")
    sagittal = write_series(tmp_path / "x", VOLUME[:2], ORIENTATIONS["sagittal"], seed="two")
    for path in sagittal:  # a localizer that shares the series' UID
        path.rename(tmp_path / "ct" / f"c{path.name}")
    image(tmp_path / "ct" / "single.dcm", VOLUME[0], seed="three")
    (tmp_path / "ct" / "notes.txt").write_text("hello")
    (tmp_path / "x").rmdir()
    (tmp_path / "more").rmdir()
    entries = {entry.name: entry.paths for entry in find_scans(tmp_path)}
    assert {name: len(paths) for name, paths in entries.items()} == {
        "ct_series2": 4,
        "ct_series3": 2,
        "ct_series7": 4,
        "ct/single": 1,
    }
    assert np.array_equal(read_scan(entries["ct_series7"]).voxels, voxels(VOLUME + 1))
    with pytest.raises(ScanError, match="holds 4 scans, one is expected"):
        read_scan(tmp_path)


def test_one_series_is_named_by_its_folder(tmp_path):
    write_series(tmp_path / "study" / "head", VOLUME)
    assert [e.name for e in find_scans(tmp_path)] == ["study/head"]
    assert [e.name for e in find_scans(tmp_path / "study" / "head")] == ["head"]
    assert np.array_equal(read_scan(tmp_path).voxels, voxels(VOLUME))


def test_a_missing_slice(tmp_path):
    smooth = (np.arange(5)[:, None, None] * 10 + np.zeros((5, 6, 5))).astype(np.int16)
    paths = write_series(tmp_path, smooth, **PLACE)
    paths.pop(2).unlink()
    between = r"\(between 0001.dcm and 0003.dcm\)"
    refused(paths, f"1 of 5 slices are missing {between}.*--allow-gaps")
    scan = read_scan(paths, allow_gaps=True)
    assert np.array_equal(scan.voxels, voxels(smooth))  # linear: what was there
    assert np.allclose(scan.affine, affine(**PLACE), atol=1e-6)
    assert "filled by interpolation" in scan.warnings[0]


def test_uneven_slices(tmp_path):
    heights = [0, 1, 2.4, 3, 4]
    paths = write_series(
        tmp_path,
        np.stack([np.full((3, 4), 10 * h) for h in heights]).astype(np.int16),
        ImagePositionPatient=lambda k: decimals((0, 0, heights[k])),
    )
    refused(paths, r"0\.6 to 1\.4 mm apart")
    scan = read_scan(paths, allow_gaps=True)
    assert scan.voxels[0, 0, 0].tolist() == [0, 10, 20, 30, 40]


def test_slices_at_one_place(tmp_path):
    paths = write_series(tmp_path / "a", VOLUME)
    (copy,) = write_series(tmp_path / "b", VOLUME[:1])
    scan = read_scan([*paths, copy])
    assert np.array_equal(scan.voxels, voxels(VOLUME))
    assert scan.warnings == ("1 slices are there twice; read once",)
    write_series(tmp_path / "b", VOLUME[1:2])  # other content where the first slice is
    refused([*paths, copy], "1 of its 5 slices lie where another one is")


def test_gantry_tilt_keeps_every_voxel_where_it_is(tmp_path):
    step = (0, 0.5, 2.5)
    scan = read_scan(write_series(tmp_path, VOLUME, step=step))
    assert np.array_equal(scan.voxels, voxels(VOLUME))
    assert np.allclose(scan.affine, affine(step=step), atol=1e-6)
    assert "tilt of 11.3°" in scan.warnings[0]
    other = write_series(tmp_path, VOLUME, ImagePositionPatient=lambda k: [0, 5 * (k % 2), k])
    refused(other, "do not lie on one line")


@pytest.mark.parametrize(
    ("tags", "expected", "dtype"),
    [
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, [-1024, -1, 3071], np.int16),
        ({"RescaleSlope": -2, "RescaleIntercept": 5}, [5, -2041, -8185], np.int16),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 0}, [0, 511.5, 2047.5], np.float32),
        ({"RescaleSlope": None, "RescaleIntercept": None}, [0, 1023, 4095], np.uint16),
    ],
)
def test_rescaling(tmp_path, tags, expected, dtype):
    pixels = np.array([[0, 1023, 4095]], np.uint16)
    image(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11, **tags)
    scan = read_scan(tmp_path / "a.dcm")
    assert scan.voxels.ravel().tolist() == expected
    assert scan.voxels.dtype == dtype
    assert any("may not be HU" in w for w in scan.warnings) == (tags["RescaleSlope"] is None)


@pytest.mark.parametrize("slope", ["0", "NaN", "inf"])
def test_impossible_rescaling(tmp_path, slope):
    image(tmp_path / "a.dcm", VOLUME[0], RescaleSlope=slope)
    refused(tmp_path / "a.dcm", "RescaleSlope or RescaleIntercept is 0 or not a number")


def test_slices_with_rescaling_of_their_own(tmp_path):
    volume = np.full((3, 2, 2), 10, np.uint16)
    paths = write_series(tmp_path, volume, RescaleSlope=lambda k: k + 0.5)
    assert read_scan(paths).voxels[0, 0, 0].tolist() == [5, 15, 25]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_monochrome1_equals_its_twin(tmp_path, dtype):
    info = np.iinfo(dtype)
    pixels = RNG.integers(info.min, info.max, (4, 5)).astype(dtype)
    image(tmp_path / "a", pixels)
    image(tmp_path / "b", info.max - pixels + info.min, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_scan(tmp_path / "a").voxels, read_scan(tmp_path / "b").voxels)


def test_bits_above_those_stored_are_no_pixels(tmp_path):
    pixels = RNG.integers(0, 4095, (4, 5)).astype(np.uint16)
    image(tmp_path / "a", pixels | 0x8000, BitsStored=12, HighBit=11)  # an overlay of old
    assert np.array_equal(read_scan(tmp_path / "a").voxels[0, :, :, 0].T, pixels)


@pytest.mark.parametrize(
    "syntax",
    [
        *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
        *(DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless),
    ],
)
def test_transfer_syntaxes(tmp_path, syntax):
    paths = write_series(tmp_path, LARGER, **PLACE, syntax=syntax)
    scan = read_scan(paths)
    assert np.array_equal(scan.voxels, voxels(LARGER))
    assert np.allclose(scan.affine, affine(**PLACE), atol=1e-6)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("syntax", "what"),
    [("1.2.840.113619.5.2", "a private"), ("1.2.840.10008.1.2.4.999", "an unknown")],
)
def test_a_transfer_syntax_of_a_maker_s_own_is_no_damage(tmp_path, syntax, what, implicit):
    """Its UID is named, for one slice and for a series of them."""
    paths = write_series(tmp_path / "series", LARGER, **PLACE)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, implicit_vr=implicit, little_endian=True, force_encoding=True)
    said = (
        rf"is stored in {what} transfer syntax \({syntax}\), which is not supported; export it "
        "again uncompressed, as Explicit VR Little Endian$"
    )
    refused(paths[0], said)
    refused(find_scans(tmp_path)[0].paths, said)


def test_a_standard_transfer_syntax_that_no_decoder_knows(tmp_path):
    image(tmp_path / "a.dcm", LARGER[0])
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = encapsulate([b"film"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    refused(
        tmp_path / "a.dcm", rf"is compressed as MPEG2 .* \({MPEG2MPML}\), which is not supported; "
    )


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg(tmp_path, bits):
    pixels = LARGER[0] & ((1 << bits) - 1)
    lossless_jpeg(tmp_path / "a.dcm", pixels, bits)
    scan = read_scan(tmp_path / "a.dcm")
    assert np.array_equal(scan.voxels[0, :, :, 0].T, pixels)
    assert scan.voxels.dtype == (np.uint8 if bits == 8 else np.uint16)


def test_12_bit_jpeg(tmp_path):
    rows, columns = np.mgrid[:40, :36]
    pixels = (rows * 50 + columns * 20).astype(np.uint16)
    lossless_jpeg(tmp_path / "a.dcm", pixels, 12, lossless=False)
    found = read_scan(tmp_path / "a.dcm").voxels[0, :, :, 0].T
    assert np.abs(found.astype(int) - pixels).max() < 40
    assert found.max() > 2000  # 12 bits, not 8


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(JPEG2000Lossless, "pylibjpeg-openjpeg"), (JPEGLSLossless, "pyjpegls")],
)
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, syntax, package):
    image(tmp_path / "a.dcm", LARGER[0], syntax=syntax)
    decoder = decoders.get_decoder(syntax)
    monkeypatch.setattr(decoder, "_unavailable", dict.fromkeys(decoder.available_plugins, ()))
    monkeypatch.setattr(decoder, "_available", {})
    refused(tmp_path / "a.dcm", f"no decoder for it is installed; pip install .*{package}")


@pytest.mark.parametrize(
    ("kind", "tags"), [("RGB", {}), ("YBR_FULL", {"PhotometricInterpretation": "YBR_FULL"})]
)
def test_colours(tmp_path, kind, tags):
    grey = np.repeat(RNG.integers(0, 255, (4, 5, 1), np.uint8), 3, axis=2)
    stored = grey if kind == "RGB" else np.dstack([grey[..., 0], *[np.full((4, 5), 128)] * 2])
    image(tmp_path / "a.dcm", stored.astype(np.uint8), modality="US", **tags)
    scan = read_scan(tmp_path / "a.dcm")
    assert np.array_equal(scan.voxels[..., 0], grey.transpose(2, 1, 0))
    assert scan.affine is None


def test_palette(tmp_path):
    pixels = np.array([[0, 1, 2]], np.uint8)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for n, colour in enumerate(("Red", "Green", "Blue")):
        table = np.array([0, 1000 * (n + 1), 65535], np.uint16)
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    image(tmp_path / "a.dcm", pixels, modality="OT", **tags)
    scan = read_scan(tmp_path / "a.dcm")
    assert scan.voxels[..., 0, 0].T.tolist() == [[0, 0, 0], [3, 7, 11], [255, 255, 255]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_enhanced_multi_frame(tmp_path, name, order):
    enhanced(tmp_path / "a.dcm", VOLUME, ORIENTATIONS[name], **PLACE, order=order)
    scan = read_scan(tmp_path / "a.dcm")
    assert np.array_equal(scan.voxels, voxels(VOLUME))
    assert np.allclose(scan.affine, affine(ORIENTATIONS[name], **PLACE), atol=1e-6)


def test_frames_without_positions(tmp_path):
    image(tmp_path / "a.dcm", VOLUME[0], modality="US")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.NumberOfFrames, dataset.PixelData = 4, np.abs(VOLUME).tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    scan = read_scan(tmp_path / "a.dcm")
    assert scan.affine is None
    assert np.array_equal(scan.voxels, voxels(np.abs(VOLUME)))
    assert "each is segmented for itself" in scan.warnings[0]


def test_a_pixel_spacing_alone(tmp_path):
    image(tmp_path / "a.dcm", VOLUME[0], PixelSpacing=[0.2, 0.1])
    scan = read_scan(tmp_path / "a.dcm")
    assert scan.spacing_mm == pytest.approx((0.1, 0.2, 1))
    assert scan.warnings == ("no orientation is given; only the pixel spacing is known",)


def nested(depth):
    inner = Dataset()
    inner.CodeValue = "x"
    for _ in range(depth):
        outer = Dataset()
        outer.ConceptNameCodeSequence = [inner]
        inner = outer
    return inner


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({"PixelSpacing": ["NaN", "NaN"]}, "not a number"),
        ({"PixelSpacing": [0, 0]}, "zero"),
        ({"PixelSpacing": [-1, 1]}, "negative"),
        ({"PixelSpacing": [1]}, "wrong number of values"),
        ({"ImageOrientationPatient": [0] * 6}, "is no orientation"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is no orientation"),
        ({"Rows": 60000, "Columns": 60000}, "its header claims 60000 × 60000 values"),
        ({"Rows": 0}, "impossible size"),
        ({"Rows": 7}, "pixels are damaged, cut short, or do not fit its header"),
        ({"PixelData": None}, "has no pixel data"),
        ({"PixelData": b""}, "has no pixel data"),
        ({"Rows": None, "Columns": None}, "has no pixel data"),
        ({"Modality": "SEG"}, "holds no image to segment"),
        ({"BitsAllocated": 13}, "pixels are damaged"),
        ({"SamplesPerPixel": 2}, "."),
    ],
)
def test_bad_headers(tmp_path, tags, problem):
    (path,) = write_series(tmp_path, VOLUME[:1], **tags)
    refused(path, problem)


def test_masks_are_not_read_from_dicom(tmp_path):
    image(tmp_path / "a.dcm", VOLUME[0])
    with pytest.raises(ScanError, match="masks are read from NIfTI"):
        read_labels(tmp_path / "a.dcm")


@pytest.mark.parametrize("depth", [20, 300, 3000])
def test_nested_sequences(tmp_path, depth):
    dataset = image(tmp_path / "a.dcm", VOLUME[0])
    data = (tmp_path / "a.dcm").read_bytes()
    # written by hand: pydicom's own writer would meet its recursion limit
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = b"\x40\x00\x43\xa0SQ\x00\x00\xff\xff\xff\xff" + item
    end = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    at = data.index(b"\xe0\x7f\x10\x00OW")
    (tmp_path / "a.dcm").write_bytes(data[:at] + start * depth + end * depth + data[at:])
    if depth == 20:
        assert np.array_equal(read_scan(tmp_path / "a.dcm").voxels[0, :, :, 0].T, VOLUME[0])
    else:
        refused(tmp_path / "a.dcm", "header is damaged or no valid DICOM")
    assert dataset.Rows == 6


def test_deflate_bombs(tmp_path):
    path = tmp_path / "a.dcm"
    image(path, VOLUME[0], syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = body_start(path)
    plain = zlib.decompress(data[start:], -15)
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = pack.compress(plain) + b"".join(pack.compress(bytes(1 << 20)) for _ in range(100))
    path.write_bytes(data[:start] + bomb + pack.flush())
    refused(path, "unpacks to more than the 60 bytes")


def test_a_frame_larger_than_its_header(tmp_path):
    big = np.zeros((500, 500), np.uint8)
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        image(tmp_path / "a.dcm", big, modality="OT", syntax=syntax)
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        dataset.Rows = 10
        dataset.save_as(tmp_path / "a.dcm")
        refused(tmp_path / "a.dcm", "a compressed frame of 500 × 500, its header says 500 × 10")


def strip(dataset):
    """Without file meta information."""
    bare = Dataset()
    bare.update(dataset)
    return bare


def test_without_preamble(tmp_path):
    image(tmp_path / "a", VOLUME[0])
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(data[132:])
    assert np.array_equal(read_scan(tmp_path / "b").voxels, read_scan(tmp_path / "a").voxels)
    dataset = pydicom.dcmread(tmp_path / "a")
    pydicom.dcmwrite(
        tmp_path / "c", strip(dataset), implicit_vr=True, little_endian=True, force_encoding=True
    )
    assert (tmp_path / "c").read_bytes()[:2] == b"\x08\x00"
    assert np.array_equal(read_scan(tmp_path / "c").voxels, read_scan(tmp_path / "a").voxels)
    assert len(find_scans(tmp_path)) == 3


def test_a_dicomdir_is_not_followed(tmp_path):
    outside = tmp_path / "outside.dcm"
    image(outside, VOLUME[0])
    folder = tmp_path / "disc"
    write_series(folder / "IMAGES", VOLUME)
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "outside.dcm"]
    directory = Dataset()
    directory.DirectoryRecordSequence = [record]
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.SOPClassUID = directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.SOPInstanceUID = directory.file_meta.MediaStorageSOPInstanceUID = uid("directory")
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    (entry,) = find_scans(folder)
    assert entry.name == "IMAGES"
    assert all(folder in path.parents for path in entry.paths)
    refused(folder / "DICOMDIR", r"holds no image to segment \(it is a Media Storage Directory")


def test_truncated_files_raise_nothing_else(tmp_path):
    for n, syntax in enumerate((ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless)):
        image(tmp_path / f"{n}.dcm", LARGER[0], syntax=syntax)
        data = (tmp_path / f"{n}.dcm").read_bytes()
        for end in range(0, len(data) - 20, 37):
            (tmp_path / "cut.dcm").write_bytes(data[:end])
            refused(tmp_path / "cut.dcm", ".")


def test_orientation_jitter_is_no_other_series(tmp_path):
    jitter = [decimals(np.array(AXIAL) + 1e-4 * k) for k in range(4)]
    write_series(tmp_path, VOLUME, ImageOrientationPatient=lambda k: jitter[k])
    assert len(find_scans(tmp_path)) == 1


def entries_and_states(folder):
    """name → "ok" or the reason, and the doubts of each."""
    states = {}
    for entry in find_scans(folder):
        try:
            read_scan(entry.paths)
            states[entry.name] = ("ok", entry.doubts)
        except ScanError as error:
            states[entry.name] = (error.problem, entry.doubts)
    return states


@pytest.mark.parametrize("kept", [0, 10, 200, 700, 1100])
def test_a_damaged_slice_does_not_go_missing(tmp_path, kept):
    paths = write_series(tmp_path / "ct", VOLUME)
    paths[-1].write_bytes(paths[-1].read_bytes()[:kept])
    states = entries_and_states(tmp_path)
    assert states["ct/0003"][0] != "ok"
    assert states["ct"][0] == "ok"
    assert states["ct"][1][0].startswith(("1 files beside its", "1 images of the series"))


def test_images_of_a_series_without_a_position_are_told(tmp_path):
    place = ["0\\0\\0", "0\\0\\1", "0\\0\\2", None]
    write_series(tmp_path / "ct", VOLUME, ImagePositionPatient=lambda k: place[k])
    doubts = entries_and_states(tmp_path)["ct"][1]
    assert doubts == ("1 images of the series have no position; not in it",)


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_uid_alone_does_not_make_a_series(tmp_path, tag):
    for n in range(2):  # as after an anonymisation that gives everybody the same UID
        options = {"SeriesInstanceUID": "1.2.3", tag: f"1.{n + 5}"}
        write_series(tmp_path / f"{n}", VOLUME, ipp0=(0, 0, n), step=2, **options)
    entries = find_scans(tmp_path)
    assert [entry.name for entry in entries] == ["0", "1"]
    assert all(np.array_equal(read_scan(e.paths).voxels, voxels(VOLUME)) for e in entries)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("NumberOfFrames", "IS", b"CANARY^JOHN "),
        ("NumberOfFrames", "IS", b"1\\2 "),
        ("DiffusionBValue", "FD", b"CANARY"),
        ("SpecificCharacterSet", "CS", b"CANARY"),
    ],
)
def test_a_header_that_lies_is_one_files_failure(tmp_path, capfd, keyword, vr, value):
    path = tmp_path / "a.dcm"
    image(path, VOLUME[0])
    dataset = pydicom.dcmread(path)
    tag = pydicom.tag.Tag(keyword)
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    dataset.save_as(path)
    write_series(tmp_path / "ct", VOLUME)
    states = entries_and_states(tmp_path)
    assert states["ct"][0] == "ok"
    assert CANARY not in states["a"][0] + "".join(capfd.readouterr())


def test_slices_left_out_in_even_steps(tmp_path):
    series = write_series(tmp_path / "a", VOLUME, step=2.5, SpacingBetweenSlices=2.5)
    assert "but the header says 2.5 mm" in read_scan(series[::2]).warnings[0]
    assert read_scan(series).warnings == ()
    thin = write_series(tmp_path / "b", VOLUME, step=5, SliceThickness=2.5)
    assert "but each is 2.5 mm thick" in read_scan(thin).warnings[0]
    gaps = write_series(tmp_path / "c", VOLUME, step=3.5, SliceThickness=2.5)
    assert read_scan(gaps).warnings == ()


def test_slices_aside(tmp_path):
    places = [[0, 0, 0], [0.6, 0, 1], [0, 0, 2], [0, 0, 3]]
    paths = write_series(tmp_path, VOLUME, ImagePositionPatient=lambda k: places[k])
    assert read_scan(paths).warnings == ("slices lie up to 0.6 mm aside of a straight line",)


def test_gaps_in_a_multi_frame_file(tmp_path):
    smooth = (np.arange(5)[:, None, None] * 10 + np.zeros((5, 6, 5))).astype(np.int16)
    enhanced(tmp_path / "a.dcm", smooth, order=[4, 0, 1, 3])
    refused(tmp_path / "a.dcm", "1 of 5 slices are missing")
    assert np.array_equal(read_scan(tmp_path / "a.dcm", True).voxels, voxels(smooth))


def test_copies_of_another_scale_are_no_copies(tmp_path):
    paths = write_series(tmp_path / "a", VOLUME)
    paths += write_series(tmp_path / "b", VOLUME[:1], RescaleIntercept=500)
    refused(paths, "lie where another one is")


def test_an_empty_pixel_spacing_is_none(tmp_path):
    image(tmp_path / "a.dcm", VOLUME[0], modality="OT", PixelSpacing="")
    assert read_scan(tmp_path / "a.dcm").affine is None


def test_a_palette_of_8_bits_in_16(tmp_path):
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = np.array([0, 100, 255], "<u2").tobytes()
    image(tmp_path / "a.dcm", np.array([[0, 1, 2]], np.uint8), modality="OT", **tags)
    assert read_scan(tmp_path / "a.dcm").voxels[0, :, 0, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("modality", ["RTDOSE", "SEG", "SR", "KO"])
def test_other_objects_are_no_scans(tmp_path, modality):
    image(tmp_path / "a.dcm", VOLUME[0], Modality=modality)
    assert find_scans(tmp_path) == []
    refused(tmp_path / "a.dcm", "holds no image to segment")
