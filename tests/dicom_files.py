"""Small DICOM series and multi-frame files, written from arrays, for tests."""

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    generate_uid,
)

# ImageOrientationPatient: the direction along a row (towards larger columns), then down a column.
AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
_C, _S = np.cos(0.3), np.sin(0.3)
OBLIQUE = (_C, _S, 0, -_S * _C, _C * _C, _S)
ORIENTATIONS = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL, "oblique": OBLIQUE}

CANARY = "CANARY"  # part of every text that may identify a patient, and of nothing else
STORAGE = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "OT": SecondaryCaptureImageStorage,
    "US": UltrasoundImageStorage,
}
ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}
_UNCOMPRESSED = (
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian),
    *(ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
)


def normal(iop):
    """The unit vector from which slices of this orientation are seen: rows × columns."""
    return np.cross(iop[:3], iop[3:])


def step_vector(iop, step):
    """`step` in mm along the normal, or as it is where it is a vector (a tilted gantry)."""
    return normal(iop) * step if np.ndim(step) == 0 else np.asarray(step, float)


def affine(iop=AXIAL, ipp0=(0, 0, 0), spacing=(1, 1), step=1.0):
    """(4, 4) voxel (column, row, slice) → RAS+ mm, by PS3.3 C.7.6.2.1.1 with x and y negated."""
    matrix = np.eye(4)
    matrix[:3, 0] = np.asarray(iop[:3]) * spacing[1]
    matrix[:3, 1] = np.asarray(iop[3:]) * spacing[0]
    matrix[:3, 2] = step_vector(iop, step)
    matrix[:3, 3] = ipp0
    return np.diag([-1, -1, 1, 1]) @ matrix


def uid(*parts):
    """The same UID for the same parts."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def write_series(
    folder, volume, iop=AXIAL, ipp0=(0, 0, 0), spacing=(1, 1), step=1.0, seed="series", **options
):
    """Write `volume` (K, rows, columns[, 3]) as K files 0000.dcm …; their paths in that order.

    spacing: (between rows, between columns) in mm. step: from slice to slice, in mm along the
    normal or as a vector (LPS). options: see `image`; a callable value is called with k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k:04d}.dcm" for k in range(len(volume))]
    for k, (path, pixels) in enumerate(zip(paths, volume, strict=True)):
        chosen = {n: v(k) if callable(v) else v for n, v in options.items()}
        position = np.asarray(ipp0, float) + k * step_vector(iop, step)
        geometry = {
            "ImagePositionPatient": decimals(position),
            "ImageOrientationPatient": decimals(iop),
            "PixelSpacing": decimals(spacing),
            "SliceThickness": decimals([np.linalg.norm(step_vector(iop, step))])[0],
            "FrameOfReferenceUID": uid(seed, "frame of reference"),
            "PositionReferenceIndicator": "",
            "InstanceNumber": k + 1,
        }
        image(path, pixels, seed=seed, number=k, **{**geometry, **chosen})
    return paths


def image(
    path, pixels, seed="series", number=0, modality="CT", syntax=ExplicitVRLittleEndian, **tags
):
    """Write one file of `pixels` (rows, columns[, 3]), without geometry; returns the Dataset.

    tags: keyword=value on top of sensible defaults; None leaves an attribute out.
    """
    dataset = _common(pixels, seed, number, modality)
    dataset.SOPClassUID = STORAGE[modality]
    return _write(path, dataset, pixels, syntax, tags)


def lossless_jpeg(path, pixels, bits, lossless=True):
    """One file of unsigned `pixels` of `bits` bits, as lossless (or 12-bit lossy) JPEG."""
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    dataset = image(path, pixels, BitsStored=bits, HighBit=bits - 1, modality="OT")
    frame = imagecodecs.jpeg8_encode(pixels, lossless=lossless, bitspersample=bits, level=95)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1 if lossless else JPEGExtended12Bit
    dataset.save_as(path, enforce_file_format=False)
    return dataset


def enhanced(
    path,
    volume,
    iop=AXIAL,
    ipp0=(0, 0, 0),
    spacing=(1, 1),
    step=1.0,
    seed="enhanced",
    modality="CT",
    order=None,
    syntax=ExplicitVRLittleEndian,
    **tags,
):
    """Write `volume` (K, rows, columns) as one multi-frame file; returns the Dataset.

    order: the k of each stored frame; default 0 … K-1.
    """
    order = list(range(len(volume)) if order is None else order)
    dataset = _common(volume[0], seed, 0, modality)
    dataset.SOPClassUID = ENHANCED[modality]
    dataset.NumberOfFrames = len(order)
    dataset.FrameOfReferenceUID = uid(seed, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    measures, orientation, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = decimals(spacing)
    measures.SliceThickness = decimals([np.linalg.norm(step_vector(iop, step))])[0]
    orientation.ImageOrientationPatient = decimals(iop)
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "0", "US"
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        position, content, frame = Dataset(), Dataset(), Dataset()
        place = np.asarray(ipp0, float) + k * step_vector(iop, step)
        position.ImagePositionPatient = decimals(place)
        content.StackID, content.InStackPositionNumber = "1", k + 1
        content.DimensionIndexValues = [1, k + 1]
        frame.PlanePositionSequence = [position]
        frame.FrameContentSequence = [content]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    organisation = Dataset()
    organisation.DimensionOrganizationUID = uid(seed, "dimensions")
    dataset.DimensionOrganizationSequence = [organisation]
    dataset.DimensionIndexSequence = []
    for pointer in (0x00209056, 0x00209057):  # StackID, InStackPositionNumber
        index = Dataset()
        index.DimensionOrganizationUID = organisation.DimensionOrganizationUID
        index.DimensionIndexPointer = pointer
        index.FunctionalGroupPointer = 0x00209111  # FrameContentSequence
        dataset.DimensionIndexSequence.append(index)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    return _write(path, dataset, np.asarray(volume)[order], syntax, tags)


def body_start(path):
    """Where the data set begins, behind the file meta information."""
    with path.open("rb") as file:
        read_preamble(file, force=True)
        read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        return file.tell()


def decimals(values):
    """Numbers as decimal strings (DS), at most 16 characters each."""
    return [f"{float(value):.10g}"[:16] for value in values]


def _common(pixels, seed, number, modality):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPInstanceUID = uid(seed, "image", number)
    dataset.StudyInstanceUID = uid(seed, "study")
    dataset.SeriesInstanceUID = uid(seed, "series")
    dataset.Modality = modality
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20240131"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "101500"
    dataset.AccessionNumber = f"{CANARY}-ACC"
    dataset.Manufacturer = "Test"
    dataset.ManufacturerModelName = "Model"
    dataset.InstitutionName = f"{CANARY} Hospital"
    dataset.ReferringPhysicianName = f"{CANARY}^Referring"
    dataset.OperatorsName = f"{CANARY}^Operator"
    dataset.StudyDescription = f"{CANARY} study"
    dataset.SeriesDescription = f"{CANARY} series"
    dataset.ProtocolName = f"{CANARY} protocol"
    dataset.PatientName = f"{CANARY}^Patient"
    dataset.PatientID = f"{CANARY}-ID"
    dataset.PatientBirthDate = "19500102"
    dataset.PatientSex = "O"
    dataset.ImageComments = f"{CANARY} comment"
    dataset.StudyID = "1"
    dataset.SeriesNumber = 3
    block = dataset.private_block(0x0011, f"{CANARY} PRIVATE", create=True)
    block.add_new(0x01, "LO", f"{CANARY} private text")
    if modality == "CT":
        dataset.KVP = "120"
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "0", "HU"
    elif modality in ("MR", "OT", "US"):
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    return dataset


def _write(path, dataset, pixels, syntax, tags):
    pixels = np.ascontiguousarray(pixels)
    bits = 8 * pixels.dtype.itemsize
    is_colour = pixels.shape[-1] == 3 and pixels.ndim - ("NumberOfFrames" in dataset) == 3
    dataset.SamplesPerPixel = 3 if is_colour else 1
    dataset.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    data = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset.add_new("PixelData", "OW" if bits > 8 else "OB", data + bytes(len(data) % 2))
    meta = dataset.file_meta
    meta.TransferSyntaxUID = syntax if syntax in _UNCOMPRESSED else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID") or dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID") or dataset.SOPInstanceUID
    for keyword, value in tags.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            del dataset[keyword]
    if syntax not in _UNCOMPRESSED:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.preamble = bytes(128)
    dataset.save_as(path, enforce_file_format=False)
    return dataset
