import logging
import warnings
import zipfile
from pathlib import Path

import dicom_files
import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from batches import outcomes_of
from dicom_files import CANARY, ORIENTATIONS, enhanced, image, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from test_predict import brightness

import segapp
from segapp.batch import list_inputs
from segapp.errors import OutputError
from segapp.formats import dicom, dicomseg
from segapp.scan import Scan, Segmentation, make_classes

RAS = np.diag([-1.0, -1, 1, 1])
PLACE = {"ipp0": (12.5, -80, 41), "spacing": (0.7, 0.8)}  # mm, rows are 0.7 apart
VOLUME = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)  # 4 slices, 6 rows, 5 columns


def labelled(scan, classes=4, seed=0):
    labels = np.random.default_rng(seed).integers(0, classes, scan.shape).astype(np.uint8)
    return segmentation(scan, labels, classes)


def segmentation(scan, labels, classes=4):
    names = ["background", "liver", "tumour", *map(str, range(3, classes))][:classes]
    return Segmentation(labels, scan, make_classes(names, list(range(classes))))


def series(folder, volume=VOLUME, **options):
    files = write_series(folder / "series", volume, **{**PLACE, **options})
    return dicom.read_series(files[::-1], folder)


def written(seg, folder):
    path = folder / "out" / "seg.dcm"
    dicomseg.write(seg, path)
    return path


def by_hand(path, scan):
    """(I, J, K) labels, by nothing but the standard: bits lie least significant first, a frame's
    pixels are placed by its position, orientation and spacing. -1 where no frame lies."""
    dataset = pydicom.dcmread(path)
    count, rows, columns = int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = bits[: count * rows * columns].reshape(count, rows, columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    iop = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    grid = np.full(scan.shape, -1)
    to_voxels = np.linalg.inv(scan.affine)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        item = groups if "SegmentIdentificationSequence" in groups else shared
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        row, column = np.mgrid[:rows, :columns].reshape(2, -1)
        lps = position + np.outer(column * between_columns, iop[:3])
        lps += np.outer(row * between_rows, iop[3:])
        ijk = (np.c_[lps * [-1, -1, 1], np.ones(len(lps))] @ to_voxels.T)[:, :3]
        near = np.rint(ijk).astype(int)
        apart_mm = (ijk - near) @ scan.affine[:3, :3].T
        assert np.abs(apart_mm).max() < 1e-4
        i, j, k = near.T
        on = frame.ravel() == 1
        assert (grid[i[on], j[on], k[on]] < 1).all()  # segments do not overlap
        grid[i, j, k] = np.maximum(grid[i, j, k], np.where(on, number, 0))
    return grid


def by_highdicom(path, scan, source_uids):
    """(I, J, K) labels, by the source images that the frames refer to; gaps are 0."""
    seg = hd.seg.segread(path)
    if len(source_uids) == 1 and scan.shape[2] > 1:
        numbers = list(range(1, scan.shape[2] + 1))
        pixels = seg.get_pixels_by_source_frame(
            source_uids[0], numbers, combine_segments=True, assert_missing_frames_are_empty=True
        )
    else:
        pixels = seg.get_pixels_by_source_instance(
            source_uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
    return pixels.transpose(2, 1, 0)


def volume_of(path, scan):
    """(I, J, K) labels out of highdicom's volume, placed by its affine."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    index = np.indices(volume.array.shape).reshape(3, -1)
    world = RAS @ volume.affine @ np.vstack([index, np.ones(index.shape[1])])
    ijk = (np.linalg.inv(scan.affine) @ world)[:3]
    assert np.abs(scan.affine[:3, :3] @ (ijk - np.rint(ijk))).max() < 1e-4
    grid = np.zeros(scan.shape, int)
    grid[tuple(np.rint(ijk).astype(int))] = volume.array.ravel()
    return grid


def source_uids(scan):
    return [pydicom.dcmread(file).SOPInstanceUID for file in scan.files]


def check(path, seg):
    """Every reader finds the labels voxel for voxel, and every source image is referred to."""
    scan, uids = seg.scan, source_uids(seg.scan)
    labels = seg.labels.astype(int)
    np.testing.assert_array_equal(np.maximum(by_hand(path, scan), 0), labels)
    if scan.shape[2] == len(uids):
        np.testing.assert_array_equal(by_highdicom(path, scan, uids), labels)
    dataset, first = pydicom.dcmread(path), pydicom.dcmread(scan.files[0])
    pixels = dataset.pixel_array
    if pixels.size % 8 == 0:  # GDCM does not read the bits of a last byte that is not full
        frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(frames.squeeze() > 0, pixels.squeeze() > 0)
    referenced = dataset.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    found = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert found == uids
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert dataset[keyword].value == first[keyword].value
    return dataset


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("step", [2.5, -2.5])
def test_a_series_of_any_orientation(tmp_path, name, step):
    seg = labelled(series(tmp_path, iop=ORIENTATIONS[name], step=step))
    path = written(seg, tmp_path)
    check(path, seg)
    np.testing.assert_array_equal(volume_of(path, seg.scan), seg.labels)


def test_a_tilted_gantry(tmp_path):
    seg = labelled(series(tmp_path, step=(0, 0.9, 2.5)))
    assert abs(seg.scan.affine[1, 2]) == pytest.approx(0.9)
    check(written(seg, tmp_path), seg)


@pytest.mark.parametrize("volume", [VOLUME[:1], VOLUME[:, :3, :3], np.zeros((2, 33, 47), np.int16)])
@pytest.mark.parametrize("classes", [2, 4])
def test_sizes_that_fill_no_whole_bytes(tmp_path, volume, classes):
    seg = labelled(series(tmp_path, volume), classes)
    check(written(seg, tmp_path), seg)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
)
def test_transfer_syntaxes_of_the_source(tmp_path, syntax):
    seg = labelled(series(tmp_path, syntax=syntax))
    check(written(seg, tmp_path), seg)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]])
def test_a_multi_frame_file(tmp_path, modality, order):
    options = {"iop": ORIENTATIONS["oblique"], "order": order, "modality": modality, **PLACE}
    enhanced(tmp_path / "in.dcm", VOLUME, step=2, **options)
    scan = dicom.read(tmp_path / "in.dcm", labels=False)
    seg = labelled(scan)
    path = written(seg, tmp_path)
    dataset = pydicom.dcmread(path)
    np.testing.assert_array_equal(by_hand(path, scan), seg.labels)
    uid = pydicom.dcmread(tmp_path / "in.dcm").SOPInstanceUID
    stored = by_highdicom(path, scan, [uid])  # in the order of storage
    places = np.argsort(order) if scan.affine[2, 2] > 0 else np.argsort(order)[::-1]
    np.testing.assert_array_equal(stored[..., places], seg.labels)
    assert (
        dataset.ReferencedSeriesSequence[0]
        .ReferencedInstanceSequence[0]["ReferencedSOPInstanceUID"]
        .value
        == uid
    )


def test_groups_of_each_frame(tmp_path):
    """Orientation and spacing may stand in every frame instead of once for all."""
    enhanced(tmp_path / "in.dcm", VOLUME, **PLACE)
    dataset = pydicom.dcmread(tmp_path / "in.dcm")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    dataset.save_as(tmp_path / "in.dcm")
    seg = labelled(dicom.read(tmp_path / "in.dcm", labels=False))
    np.testing.assert_array_equal(by_hand(written(seg, tmp_path), seg.scan), seg.labels)


def test_slices_that_were_filled_in_are_left_out(tmp_path):
    files = write_series(tmp_path / "series", np.zeros((6, 6, 5), np.int16), **PLACE)
    scan = dicom.read_series([*files[:2], *files[4:]], tmp_path, allow_gaps=True)
    seg = segmentation(scan, np.ones(scan.shape, np.uint8), 2)
    grid = by_hand(written(seg, tmp_path), scan)
    assert grid[0, 0].tolist() == [1, 1, -1, -1, 1, 1]


def test_an_uneven_series_has_no_frames_to_lie_on(tmp_path):
    z = [0, 1, 2.5, 4.1]
    files = write_series(tmp_path / "s", VOLUME, ImagePositionPatient=lambda k: [0, 0, z[k]])
    scan = dicom.read_series(files, tmp_path, allow_gaps=True)
    with pytest.raises(OutputError, match="lie between those of its source"):
        written(labelled(scan), tmp_path)


def test_classes_without_voxels(tmp_path):
    scan = series(tmp_path)
    labels = np.zeros(scan.shape, np.uint8)
    path = written(segmentation(scan, labels), tmp_path)
    dataset = check(path, segmentation(scan, labels))
    assert dataset.NumberOfFrames == 3 * 4
    assert [item.SegmentLabel for item in dataset.SegmentSequence] == ["liver", "tumour", "3"]
    labels[2, 1, 3] = 2
    dataset = check(written(segmentation(scan, labels), tmp_path), segmentation(scan, labels))
    assert dataset.NumberOfFrames == 1
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [1, 2, 3]


def test_what_it_says_of_itself(tmp_path):
    dataset = pydicom.dcmread(written(labelled(series(tmp_path)), tmp_path))
    segment = dataset.SegmentSequence[0]
    assert (dataset.Modality, dataset.SegmentationType, dataset.SeriesNumber) == (
        *("SEG", "BINARY"),
        1003,  # the source's is 3
    )
    assert (dataset.Manufacturer, dataset.SoftwareVersions) == ("segapp", segapp.__version__)
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("liver", "AUTOMATIC")
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("segapp", segapp.__version__)
    lab = np.array(segment.RecommendedDisplayCIELabValue) / 65535 * [100, 255, 255] - [0, 128, 128]
    # #E69F00 is L* 70.9, a* 17.7, b* 75.0 by the formulas of CIE 15 (white point D65, sRGB)
    assert lab == pytest.approx([71, 18, 75], abs=2.5)


def test_what_the_source_says_of_its_pixels_and_its_patient(tmp_path):
    tags = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_10918_1",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": ["one", "two"],
    }
    dataset = pydicom.dcmread(written(labelled(series(tmp_path, **tags)), tmp_path))
    assert {keyword: dataset[keyword].value for keyword in tags} == {
        **tags,
        "LossyImageCompressionRatio": 12.5,
    }


def test_names_that_dicom_does_not_take(tmp_path):
    scan = series(tmp_path)
    classes = make_classes(["bg", "a\\b", "é肝" * 40, " "], [0, 1, 2, 3])
    path = written(Segmentation(labelled(scan).labels, scan, classes), tmp_path)
    names = [item.SegmentLabel for item in pydicom.dcmread(path).SegmentSequence]
    assert names == ["a/b", ("é肝" * 40)[:64], "class 3"]


def without_dates(path):
    dataset = pydicom.dcmread(path)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
        del dataset[keyword]
    for item in dataset.ContributingEquipmentSequence:
        del item.ContributionDateTime
    return dataset


def test_the_same_result_has_the_same_uids(tmp_path):
    seg = labelled(series(tmp_path))
    first = without_dates(written(seg, tmp_path / "a"))
    assert without_dates(written(seg, tmp_path / "b")) == first
    other_labels = seg.labels.copy()
    other_labels[2, 3, 1] ^= 1
    renamed = Segmentation(seg.labels, seg.scan, make_classes(list("abcd"), [0, 1, 2, 3]))
    elsewhere = labelled(series(tmp_path / "x", seed="another series"))
    uids = {first.SOPInstanceUID}
    for n, other in enumerate((segmentation(seg.scan, other_labels), renamed, elsewhere)):
        dataset = pydicom.dcmread(written(other, tmp_path / str(n)))
        assert dataset.SeriesInstanceUID != first.SeriesInstanceUID
        uids.add(dataset.SOPInstanceUID)
    assert len(uids) == 4
    assert all(uid.is_valid for uid in uids)


def test_nothing_else_of_the_patient_is_copied(tmp_path):
    dataset = pydicom.dcmread(written(labelled(series(tmp_path)), tmp_path))
    found = {e.keyword for e in dataset.iterall() if e.VR != "SQ" and CANARY in str(e.value)}
    assert found == {
        *("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName"),
        "StudyDescription",
    }


BROKEN = {
    "no patient": {"PatientID": None, "PatientName": None, "PatientBirthDate": None},
    "no study texts": {"StudyID": None, "AccessionNumber": None, "StudyDate": None},
    "wrong dates": {"StudyDate": "31.1.24", "StudyTime": "noon", "PatientBirthDate": "195"},
    "unknown sex": {"PatientSex": "female"},
    "one name": {"PatientName": f"{CANARY} Smith"},
    "two names": {"PatientName": f"{CANARY}\\Smith"},
    "long texts": {"AccessionNumber": CANARY * 20, "StudyDescription": CANARY * 40},
    "no thickness": {"SliceThickness": None},
    "empty thickness": {"SliceThickness": ""},
    "uids in the file's header": {"SOPInstanceUID": None, "SOPClassUID": None},
    "no series number": {"SeriesNumber": None},
    "another alphabet": {"PatientName": "Яма^Иван=山田^太郎"},
    "orientations differ in a digit": {
        "ImageOrientationPatient": lambda k: [1, k * 1e-7, 0, 0, 1, 0],
        "ImagePositionPatient": lambda k: [0, 0, k],
    },
}


@pytest.mark.parametrize("problem", BROKEN)
def test_broken_headers(tmp_path, capfd, caplog, problem):
    caplog.set_level(logging.DEBUG)
    scan = series(tmp_path, **BROKEN[problem])
    seg = labelled(scan)
    capfd.readouterr(), caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = written(seg, tmp_path)
    assert caught == []
    assert (capfd.readouterr(), caplog.text) == (("", ""), "")
    np.testing.assert_array_equal(by_hand(path, scan), seg.labels)
    np.testing.assert_array_equal(volume_of(path, scan), seg.labels)


def test_a_number_that_is_none(tmp_path):
    files = write_series(tmp_path / "s", VOLUME, **PLACE)
    scan = dicom.read_series(files, tmp_path)
    for file in files:
        data = file.read_bytes()
        assert data.count(b"\x11\x00IS\x02\x003 ") == 1  # SeriesNumber
        file.write_bytes(data.replace(b"\x11\x00IS\x02\x003 ", b"\x11\x00IS\x02\x00x "))
    assert check(written(labelled(scan), tmp_path), labelled(scan)).SeriesNumber == 1000


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"StudyInstanceUID": None}, "no StudyInstanceUID"),
        ({"SeriesInstanceUID": ""}, "no SeriesInstanceUID"),
        ({"StudyInstanceUID": lambda k: f"1.2.{k}"}, "differ in StudyInstanceUID"),
        ({"FrameOfReferenceUID": None}, "FrameOfReferenceUID"),
        ({"FrameOfReferenceUID": lambda k: f"1.2.{k}"}, "differ in FrameOfReferenceUID"),
        ({"SOPClassUID": "1.2.3.4"}, "its source's header"),
    ],
)
def test_what_can_not_be_referred_to(tmp_path, tags, message):
    scan = series(tmp_path, **tags)
    with pytest.raises(OutputError, match=message) as caught:
        written(labelled(scan), tmp_path)
    assert CANARY not in str(caught.value)
    assert "use --format nifti" in str(caught.value)
    assert not list((tmp_path).glob("out/*"))


def test_other_sources(tmp_path):
    scan = Scan(np.zeros((1, 5, 6, 4), np.uint8), np.eye(4), Path("x.nii.gz"))
    with pytest.raises(OutputError, match=r"needs a DICOM source, and x\.nii\.gz is none"):
        written(labelled(scan), tmp_path)
    scan = series(tmp_path)
    with pytest.raises(OutputError, match="other than background"):
        written(segmentation(scan, np.zeros(scan.shape, np.uint8), 1), tmp_path)
    with pytest.raises(OutputError, match="fewer than 8 pixels"):
        written(labelled(series(tmp_path / "tiny", VOLUME[:, :2, :3])), tmp_path)
    scan.files[1].unlink()
    with pytest.raises(OutputError, match="source can't be read"):
        written(labelled(scan), tmp_path)


@pytest.mark.parametrize(
    ("modality", "sop_class"),
    [
        ("OT", "1.2.840.10008.5.1.4.1.1.7"),  # secondary capture
        ("US", "1.2.840.10008.5.1.4.1.1.6.1"),
        ("DX", "1.2.840.10008.5.1.4.1.1.1.1"),
        ("XA", "1.2.840.10008.5.1.4.1.1.12.1"),  # allows several frames
    ],
)
@pytest.mark.parametrize("tags", [{}, {"PixelSpacing": [0.5, 0.5]}])
def test_an_image_without_a_place(tmp_path, modality, sop_class, tags):
    pixels = np.zeros((6, 5), np.uint8)
    tags = {"SOPClassUID": sop_class, "Modality": modality, **tags}
    image(tmp_path / "in.dcm", pixels, modality="OT", **tags)
    seg = labelled(dicom.read(tmp_path / "in.dcm", labels=False))
    path = written(seg, tmp_path)
    dataset = pydicom.dcmread(path)
    frames = np.einsum("nrc,n->rc", dataset.pixel_array, [1, 2, 3])
    np.testing.assert_array_equal(frames.T, seg.labels[..., 0])
    assert dataset.PatientOrientation == ""  # there has to be one where no position is
    uid = source_uids(seg.scan)[0]
    item = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert item.ReferencedSOPInstanceUID == uid
    np.testing.assert_array_equal(by_highdicom(path, seg.scan, [uid]), seg.labels)


def test_frames_without_a_place(tmp_path):
    pixels = np.zeros((4, 6, 5), np.uint8)
    options = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "NumberOfFrames": 4, "Rows": 6}
    image(tmp_path / "in.dcm", pixels, modality="US", **options, Columns=5)
    with pytest.raises(OutputError, match=r"needs a source with position .* or png"):
        written(labelled(dicom.read(tmp_path / "in.dcm", labels=False)), tmp_path)


def test_a_ct_image_without_a_place(tmp_path):
    image(tmp_path / "in.dcm", VOLUME[0])
    with pytest.raises(OutputError, match="FrameOfReferenceUID"):
        written(labelled(dicom.read(tmp_path / "in.dcm", labels=False)), tmp_path)


def test_files_in_an_archive(tmp_path):
    files = write_series(tmp_path / "s", VOLUME, **PLACE)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in files:
            archive.write(file, f"ct/{file.name}")
    inside = [tmp_path / "a.zip" / "ct" / file.name for file in files]
    scan = dicom.read_series(inside, tmp_path / "a.zip")
    assert scan.files[0].parent == tmp_path / "a.zip/ct"
    seg = labelled(scan)
    np.testing.assert_array_equal(by_hand(written(seg, tmp_path), scan), seg.labels)


def test_the_builder_says_where_voxels_lie(tmp_path):
    """ITK is the oracle for the files that these and the reader's tests are made of."""
    for name, iop in ORIENTATIONS.items():
        files = write_series(tmp_path / name, VOLUME, iop, step=2.5, **PLACE)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in files])
        found = reader.Execute()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), VOLUME)
        lps = np.eye(4)
        lps[:3, :3] = np.reshape(found.GetDirection(), (3, 3)) * found.GetSpacing()
        lps[:3, 3] = found.GetOrigin()
        expected = dicom_files.affine(iop, step=2.5, **PLACE)
        np.testing.assert_allclose(RAS @ lps, expected, atol=1e-6)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_prediction_is_the_same_in_every_format(tmp_path, name):
    """DICOM series → predict → DICOM SEG, read back, equals the NIfTI prediction."""
    volume = np.random.default_rng(1).integers(0, 255, (5, 24, 20)).astype(np.int16)
    write_series(tmp_path / "in" / "scan", volume, ORIENTATIONS[name], step=2.5, **PLACE)
    entries = list_inputs([tmp_path / "in"])
    for form in ("same", "dicomseg"):
        (outcome,) = outcomes_of(brightness(), entries, tmp_path / form, output_format=form)
        assert (outcome.status, outcome.warnings) == ("ok", ())
        assert outcome.file == tmp_path / "in" / "scan"
    image = nib.load(tmp_path / "same" / "scan.nii.gz")
    labels = np.digitize(np.asarray(image.dataobj), [50, 150])  # values 0, 100, 255
    found = hd.seg.segread(tmp_path / "dicomseg" / "scan.dcm").get_volume(combine_segments=True)
    back = np.zeros_like(labels)
    to_nifti = np.linalg.inv(image.affine) @ RAS @ found.affine  # LPS to RAS
    for at in np.ndindex(found.spatial_shape):
        place = to_nifti @ [*at, 1]
        assert np.abs(place - np.rint(place)).max() < 1e-4
        back[tuple(np.rint(place[:3]).astype(int))] = found.array[at]
    np.testing.assert_array_equal(back, labels)
    assert len(np.unique(labels)) == 3
