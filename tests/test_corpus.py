"""Odd and broken scans, each with what must come of it: ok, warn, or reject.

ok and warn: the labels of every voxel are right, and lie where the scan does; warn also says why.
reject: one clear line that names the cause, nothing written, the other scans go on.
"""

import csv
import gzip
import json
import re
import tracemalloc
import zipfile
import zlib

import dicom_files
import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from batches import outcomes_of
from dicom_files import AXIAL, affine, body_start, decimals, enhanced
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from test_predict import brightness, by_brightness, load

from segapp.batch import list_inputs

RNG = np.random.default_rng(5)
VOLUME = RNG.integers(0, 255, (40, 36, 6)).astype(np.int16)  # (I, J, K)
SLICES = VOLUME.transpose(2, 1, 0)  # (K, rows, columns)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 3, -10], [0, 0, 0, 1]])
PIXELS = VOLUME[:, :, 0].T.astype(np.uint8)
CORPUS = {}  # name → (outcome, text, builder)


def ok(build):
    CORPUS[build.__name__] = ("ok", "", build)
    return build


def warn(text):
    def register(build):
        CORPUS[build.__name__] = ("warn", text, build)
        return build

    return register


def reject(text):
    def register(build):
        CORPUS[build.__name__] = ("reject", text, build)
        return build

    return register


def write_series(folder, *args, **options):
    return dicom_files.write_series(folder, *args, seed=folder, **options)


def image(path, *args, **options):
    dicom_files.image(path, *args, seed=path, **options)


def nifti(path, array=VOLUME, place=AFFINE, header=None, **fields):
    """A NIfTI-1 file whose header fields are then overwritten as they are."""
    nib.save(nib.Nifti1Image(array, place, header), path)
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    raw = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        raw[name] = value
    data[:348] = raw.binaryblock
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    return path


def dims(*sizes):
    return [len(sizes), *sizes, *[1] * (7 - len(sizes))]


def pixdim(*mm):
    return [1, *mm, *[1] * (7 - len(mm))]


# NIfTI


@reject("its header claims 32767 × 32767 × 32767 values")
def nifti_claims_too_much(folder):
    return nifti(folder / "a.nii.gz", dim=dims(32767, 32767, 32767))


@reject("promises")
def nifti_claims_more_than_the_file_can_hold(folder):
    return nifti(folder / "a.nii", dim=dims(1000, 1000, 1000))


@reject("unpacks to far more than its header promises")
def nifti_gzip_bomb(folder):
    path = nifti(folder / "a.nii.gz")
    zeros = gzip.compress(bytes(10**8), 9)
    path.write_bytes(path.read_bytes() + zeros * 100)  # 10 MB that unpack to 10 GB
    return path


@reject("its header claims .* values")
def nifti_gzip_bomb_with_an_honest_header(folder):
    path = folder / "a.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_shape((2200, 2200, 2200))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    zeros = gzip.compress(bytes(10**8), 9)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + zeros * 107)
    return path


@reject("damaged|truncated")
def nifti_truncated_gzip(folder):
    path = nifti(folder / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:-400])
    return path


@reject("CRC")
def nifti_wrong_checksum(folder):
    path = nifti(folder / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    return path


@reject("truncated")
def nifti_truncated(folder):
    path = nifti(folder / "a.nii")
    path.write_bytes(path.read_bytes()[:-100])
    return path


@ok
def nifti_plain_named_gz(folder):
    return nifti(folder / "a.nii").rename(folder / "b.nii.gz")


@ok
def nifti_without_a_suffix(folder):
    return nifti(folder / "a.nii").rename(folder / "scan")


@reject("impossible size|dimensions|damaged")
def nifti_zero_size(folder):
    return nifti(folder / "a.nii", dim=dims(40, 0, 6))


@reject("impossible size|dimensions|damaged")
def nifti_negative_size(folder):
    return nifti(folder / "a.nii", dim=dims(40, -36, 6))


@reject("spacing of zero")
def nifti_zero_spacing(folder):
    return nifti(folder / "a.nii", sform_code=0, pixdim=pixdim(0, 1, 1))


@warn("negative spacing")
def nifti_negative_spacing(folder):
    return nifti(folder / "a.nii", pixdim=pixdim(-2, 1.5, 3))


@reject("no place in space")
def nifti_nan_affine(folder):
    return nifti(folder / "a.nii", srow_x=[np.nan] * 4)


@warn("sform and qform disagree; the sform is used")
def nifti_two_places(folder):
    return nifti(folder / "a.nii", qform_code=1, qoffset_x=99)


@ok
def nifti_sheared(folder):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    return nifti(folder / "a.nii.gz", place=sheared)


@ok
def nifti_in_ras_order(folder):
    return nib.save(nib.as_closest_canonical(nib.Nifti1Image(VOLUME, AFFINE)), folder / "a.nii")


@ok
def nifti_thick_slices(folder):
    return nifti(folder / "a.nii", place=np.diag([0.5, 0.5, 5, 1]))


@ok
def nifti_slope_zero(folder):  # by the standard: no scaling
    return nifti(folder / "a.nii", scl_slope=0, scl_inter=7)


@ok
def nifti_slope_nan(folder):
    return nifti(folder / "a.nii", scl_slope=np.nan, scl_inter=np.nan)


@reject("slope or intercept in its header is infinite")
def nifti_slope_infinite(folder):
    return nifti(folder / "a.nii", scl_slope=np.inf)


@reject(r"holds 2 volumes .*save each as its own file")
def nifti_4d(folder):
    return nifti(folder / "a.nii.gz", np.stack([VOLUME, VOLUME], 3))


@warn("grey by luminance")
def nifti_rgb24(folder):
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours = np.repeat(VOLUME.astype(np.uint8)[..., None], 3, axis=3)
    return nifti(folder / "a.nii", np.ascontiguousarray(colours).view(rgb)[..., 0])


@warn("1 voxels are not finite; read as 0")
def nifti_nan_voxel(folder):
    values = VOLUME.astype(np.float32)
    values[0, 0, 0] = np.nan
    return nifti(folder / "a.nii", values)


@warn("same value")
def nifti_constant(folder):
    return nifti(folder / "a.nii", np.full_like(VOLUME, 100))


@reject("not a NIfTI file")
def nifti_that_is_text(folder):
    (folder / "a.nii").write_text("hello " * 100)
    return folder / "a.nii"


@reject("the file is empty")
def nifti_empty(folder):
    (folder / "a.nii.gz").touch()
    return folder / "a.nii.gz"


# DICOM


@ok
def dicom_shuffled_names(folder):
    paths = write_series(folder, SLICES, InstanceNumber=lambda k: 100 - k)
    for path, name in zip(paths, ("q", "c", "x.dcm", "a", "m", "b.IMA"), strict=True):
        path.rename(folder / name)
    return folder


@ok
def dicom_oblique(folder):
    write_series(folder, SLICES, [0.8, 0.6, 0, 0, 0, -1], (3, 4, 5), (1.5, 2), 3)
    return folder


@ok
def dicom_in_a_zip(folder):
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
        for path in write_series(folder / "ct", SLICES):
            archive.write(path, f"ct/{path.name}")
            path.unlink()
    (folder / "ct").rmdir()
    return folder / "scan.zip"


@reject("1 of 6 slices are missing.*--allow-gaps")
def dicom_missing_slice(folder):
    write_series(folder, SLICES)[3].unlink()
    return folder


@reject("slices lie where another one is")
def dicom_duplicate_positions(folder):
    write_series(folder, SLICES, ImagePositionPatient=lambda k: [0, 0, k // 2])
    return folder


@warn("gantry tilt of 11.3°")
def dicom_gantry_tilt(folder):
    write_series(folder, SLICES, step=(0, 0.6, 3))
    return folder


@ok
def dicom_negative_slope(folder):
    write_series(folder, 500 - SLICES, RescaleSlope=-1, RescaleIntercept=500)
    return folder


@warn("may not be HU")
def dicom_no_rescaling(folder):
    write_series(folder, SLICES, RescaleSlope=None, RescaleIntercept=None)
    return folder


@reject("RescaleSlope or RescaleIntercept is 0 or not a number")
def dicom_slope_zero(folder):
    write_series(folder, SLICES, RescaleSlope=0)
    return folder


@warn("MONOCHROME1")
def dicom_monochrome1(folder):
    turned = (65535 - SLICES.astype(np.int64)).astype(np.uint16)
    write_series(folder, turned, modality="MR", PhotometricInterpretation="MONOCHROME1")
    return folder


@ok
def dicom_enhanced(folder):
    enhanced(folder / "a.dcm", SLICES, AXIAL, (1, 2, 3), (1.5, 2), 3, order=[3, 0, 5, 1, 2, 4])
    return folder / "a.dcm"


def compressed(syntax):
    def build(folder):
        write_series(folder, SLICES.astype(np.uint16), syntax=syntax)
        return folder

    return build


for _name, _syntax in (
    ("jpeg_2000", JPEG2000Lossless),
    ("jpeg_ls", JPEGLSLossless),
    ("rle", RLELossless),
    ("deflated", DeflatedExplicitVRLittleEndian),
):
    CORPUS[f"dicom_{_name}"] = ("ok", "", compressed(_syntax))


@reject("unpacks to more than the 2880 bytes")
def dicom_deflate_bomb(folder):
    path = folder / "a.dcm"
    image(path, SLICES[0], syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = body_start(path)
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = pack.compress(zlib.decompress(data[start:], -15))
    bomb += b"".join(pack.compress(bytes(1 << 22)) for _ in range(100)) + pack.flush()
    path.write_bytes(data[:start] + bomb)
    return path


@reject("damaged or no valid DICOM")
def dicom_300_deep(folder):
    path = folder / "a.dcm"
    image(path, SLICES[0])
    data = path.read_bytes()
    start = b"\x40\x00\x43\xa0SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    at = data.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(data[:at] + start * 300 + end * 300 + data[at:])
    return path


@reject("PixelSpacing or position is zero, negative or not a number")
def dicom_nan_spacing(folder):
    write_series(folder, SLICES, PixelSpacing=["NaN", "NaN"])
    return sorted(folder.iterdir())[0]


@reject(r"holds no image to segment \(it is a Media Storage Directory")
def dicom_directory_that_leads_out(folder):
    path = folder / "DICOMDIR"
    image(path, SLICES[0], PixelData=None, Rows=None, Columns=None)
    directory = pydicom.dcmread(path)
    record = pydicom.Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", "secret.dcm"]
    directory.DirectoryRecordSequence = [record]
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    directory.save_as(path)
    image(folder.parent / "secret.dcm", SLICES[0])
    return path


@reject("has no pixel data")
def dicom_without_pixels(folder):
    image(folder / "a.dcm", SLICES[0], PixelData=None)
    return folder / "a.dcm"


@reject("pixels are damaged, cut short, or")
def dicom_truncated(folder):
    image(folder / "a.dcm", SLICES[0])
    (folder / "a.dcm").write_bytes((folder / "a.dcm").read_bytes()[:-1000])
    return folder / "a.dcm"


@warn("grey by luminance")
def dicom_colour_capture(folder):
    colours = np.repeat(PIXELS[..., None], 3, axis=2)
    image(folder / "a.dcm", colours, modality="OT")
    return folder / "a.dcm"


@warn("grey by luminance")
def dicom_ybr_capture(folder):
    pixels = np.dstack([PIXELS, *[np.full_like(PIXELS, 128)] * 2])
    image(folder / "a.dcm", pixels, modality="US", PhotometricInterpretation="YBR_FULL")
    return folder / "a.dcm"


@warn("do not form|slices lie up to")
def dicom_slightly_uneven(folder):
    heights = [0, 3, 6.2, 9, 12, 15]
    write_series(folder, SLICES, ImagePositionPatient=lambda k: decimals((0, 0, heights[k])))
    return folder


# PNG, JPEG, TIFF


@ok
def png_16_bit(folder):
    Image.fromarray(PIXELS.astype(np.uint16)).save(folder / "a.png")
    return folder / "a.png"


@ok
def tiff_16_bit(folder):
    tifffile.imwrite(folder / "a.tif", PIXELS.astype(np.uint16))
    return folder / "a.tif"


@ok
def png_named_jpg(folder):
    Image.fromarray(PIXELS).save(folder / "a.png")
    return (folder / "a.png").rename(folder / "a.jpg")


@ok
def png_palette_of_greys(folder):
    picture = Image.fromarray(255 - PIXELS).convert("P")
    picture.putpalette([255 - n // 3 for n in range(768)])
    picture.save(folder / "a.png")
    return folder / "a.png"


@warn("grey by luminance")
def png_rgba(folder):
    Image.fromarray(np.dstack([*[PIXELS] * 3, np.full_like(PIXELS, 255)])).save(folder / "a.png")
    return folder / "a.png"


@reject("has 6 pages")
def tiff_pages(folder):
    tifffile.imwrite(folder / "a.tif", SLICES.astype(np.uint8), photometric="minisblack")
    return folder / "a.tif"


@ok
def tiff_declared_stack(folder):
    tifffile.imwrite(
        folder / "a.tif", SLICES.astype(np.uint8), imagej=True, metadata={"axes": "ZYX"}
    )
    return folder / "a.tif"


@reject("too many pixels|its header claims 60000 × 60000 values")
def png_claims_too_much(folder):
    path = folder / "a.png"
    Image.fromarray(PIXELS).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@reject("damaged|truncated|broken")
def png_truncated(folder):
    Image.fromarray(PIXELS).save(folder / "a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:400])
    return folder / "a.png"


@reject("no scan of a known format")
def text(folder):
    (folder / "a.doc").write_text("hello")
    return folder / "a.doc"


@reject("leads out of it")
def zip_that_leads_out(folder):
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("../b.png", b"x")
    return folder / "a.zip"


def run(build, folder, out):
    folder.mkdir()
    build_into = folder / "scans"
    build_into.mkdir()
    given = build(build_into) or next(iter(build_into.iterdir()))
    tracemalloc.start()
    outcomes = outcomes_of(brightness(), list_inputs([given]), out, output_format="nifti")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return given, outcomes, peak


def test_the_corpus_is_large():
    assert len(CORPUS) >= 60


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(tmp_path, name):
    expected, text, build = CORPUS[name]
    given, (outcome,), peak = run(build, tmp_path / "in", tmp_path / "out")
    assert peak < 100e6
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    written = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    if expected == "reject":
        assert (outcome.status, row["status"]) == ("failed", "failed")
        assert re.search(text, outcome.reason), outcome.reason
        assert "\n" not in outcome.reason
        assert row["reason"] == outcome.reason
        assert written == ["predictions.csv"]
        return
    assert (outcome.status, outcome.reason) == ("ok", "")
    doubts = [w for w in outcome.warnings if "spacing unknown" not in w]
    if expected == "warn":
        assert re.search(text, row["warnings"]), row["warnings"]
    else:
        assert doubts == []
    result = load(outcome.output)
    check_voxels(name, result)
    assert given.exists()


def check_voxels(name, result):
    """Wherever a voxel lies, its label is that of the scan's value there."""
    labels = np.asarray(result.dataobj)
    values = VOLUME if labels.ndim == 3 and labels.shape[2] > 1 else VOLUME[:, :, :1]
    if name == "nifti_constant":
        values = np.full_like(VOLUME, 100)
    if name == "nifti_nan_voxel":
        values = VOLUME.copy()
        values[0, 0, 0] = 0
    if name == "nifti_in_ras_order":
        values = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(VOLUME, AFFINE)).dataobj)
    expected = np.array([0, 100, 255])[by_brightness(values)]
    assert np.array_equal(labels.reshape(values.shape), expected)
    places = {
        "dicom_shuffled_names": affine(),
        "dicom_oblique": affine([0.8, 0.6, 0, 0, 0, -1], (3, 4, 5), (1.5, 2), 3),
        "dicom_enhanced": affine(AXIAL, (1, 2, 3), (1.5, 2), 3),
        "dicom_gantry_tilt": affine(step=(0, 0.6, 3)),
        "nifti_plain_named_gz": AFFINE,
        "nifti_thick_slices": np.diag([0.5, 0.5, 5, 1]),
    }
    if name in places:
        assert np.allclose(result.affine, places[name], atol=1e-4)


@pytest.mark.slow
def test_all_at_once(tmp_path):
    """Every odd scan in one folder: each has its own line, as if it were alone."""
    for name, (_, _, build) in CORPUS.items():
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        build(folder)
    outcomes = outcomes_of(brightness(), list_inputs([tmp_path / "in"]), tmp_path / "out")
    by_name = {}
    for outcome in outcomes:
        inside = outcome.file.relative_to(tmp_path / "in")
        by_name.setdefault(inside.parts[0], []).append(outcome)
    missing = {name for name in CORPUS if name not in by_name}
    assert missing == {"text", "dicom_directory_that_leads_out"}  # no scans by their content
    for name, found in by_name.items():
        if name in CORPUS:
            failed = [o for o in found if o.status == "failed"]
            assert bool(failed) == (CORPUS[name][0] == "reject"), (name, found)
    assert json.dumps([o.status for o in outcomes]).count("ok") >= 30
