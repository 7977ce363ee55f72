"""Read mutated scans: whatever the bytes, a scan or a ScanError comes out, soon and in bounds.

python tests/fuzz_readers.py --count 20000 [--kind dicom]

Each kind has a few small seed files; a mutation flips, inserts, removes, repeats or overwrites
bytes, mostly in the header. Work goes on in child processes of bounded memory, so that a crash
(of a decoder in C) or a hang is counted and named, and the file that did it is kept.
"""

import argparse
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
from dicom_files import enhanced, image, lossless_jpeg
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from segapp.errors import ScanError
from segapp.formats import read_labels, read_scan

LIMIT_BYTES = 2 << 30  # over what the process has at its start
LIMIT_SECONDS = 30
KINDS = ("nifti", "raster", "tiff", "dicom", "nrrd", "metaimage", "zip")
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 36), np.uint8)
VOLUME = np.stack([PIXELS, PIXELS[::-1]], 2).astype(np.int16)


def seeds(kind, folder):
    """Paths of small good files."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        for name in ("a.nii", "b.nii.gz"):
            nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), folder / name)
        nib.save(nib.Nifti2Image(VOLUME.astype(np.float32), np.eye(4)), folder / "c.nii")
    elif kind == "raster":
        for name, mode in (("a.png", "L"), ("b.png", "P"), ("c.jpg", "RGB"), ("d.bmp", "RGB")):
            Image.fromarray(PIXELS).convert(mode).save(folder / name)
        Image.fromarray(PIXELS.astype(np.uint16)).save(folder / "e.png")
    elif kind == "tiff":
        tifffile.imwrite(folder / "a.tif", PIXELS)
        tifffile.imwrite(folder / "b.tif", PIXELS, compression="zlib", predictor=True)
        tifffile.imwrite(
            folder / "c.tif", np.stack([PIXELS] * 3), imagej=True, metadata={"axes": "ZYX"}
        )
        Image.fromarray(PIXELS).save(folder / "d.tif", compression="tiff_lzw")
        Image.fromarray(PIXELS).save(folder / "e.tif", compression="packbits")
    elif kind == "dicom":
        syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
        for n, syntax in enumerate((*syntaxes, JPEG2000Lossless, JPEGLSLossless, RLELossless)):
            image(folder / f"{n}.dcm", PIXELS.astype(np.uint16), syntax=syntax)
        enhanced(folder / "e.dcm", VOLUME.transpose(2, 0, 1))
        image(folder / "f.dcm", np.dstack([PIXELS] * 3), modality="US")
        for name, bits in (("g", 8), ("h", 12), ("i", 16)):
            lossless_jpeg(
                folder / f"{name}.dcm", (PIXELS.astype(np.uint16) << 8) >> (16 - bits), bits
            )
    elif kind in ("nrrd", "metaimage"):
        from segapp.formats import write_segmentation
        from segapp.scan import Scan, Segmentation, make_classes

        scan = Scan(VOLUME[None], np.eye(4), folder / "x")
        labels = (VOLUME > 100).astype(np.uint8)
        result = Segmentation(labels, scan, make_classes(["a", "b"], [0, 1]))
        suffix = {"nrrd": ".nrrd", "metaimage": ".mha"}[kind]
        write_segmentation(result, folder / f"a{suffix}")
        data = labels.tobytes(order="F")
        if kind == "nrrd":
            header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 40 36 2\nencoding: raw\n"
            (folder / "b.nrrd").write_bytes(header + b"spacings: 1 1 2\n\n" + data)
        else:
            header = b"ObjectType = Image\nNDims = 3\nDimSize = 40 36 2\nElementType = MET_UCHAR\n"
            (folder / "b.mha").write_bytes(header + b"ElementDataFile = LOCAL\n" + data)
    elif kind == "zip":
        import zipfile

        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, format="PNG")
        for name, method in (("a.zip", zipfile.ZIP_DEFLATED), ("b.zip", zipfile.ZIP_STORED)):
            with zipfile.ZipFile(folder / name, "w", method) as archive:
                archive.writestr("a.png", stream.getvalue())
    return sorted(folder.iterdir())


def mutated(data, rng):
    """`data` after one to four changes, half of them in its first 600 bytes."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        end = max(1, min(len(data), 600) if rng.random() < 0.5 else len(data))
        at, length = int(rng.integers(0, end)), int(rng.integers(1, 9))
        what = rng.integers(-4, 7)
        if what <= 0:
            data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(0, 8)))]) if data else b""
        elif what == 1:
            data[at : at + length] = rng.bytes(length)
        elif what == 2:
            data[at:at] = rng.bytes(length)
        elif what == 3:
            del data[at : at + length]
        elif what == 4:
            data[at:at] = data[at : at + 10 * length]
        elif what == 5:
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"9999"])
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def work(kind, first, last, folder, report):
    """Read mutations first … last; `report` gets (index, "scan" | "refused" | problem, seconds)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libjpeg write there
    paths = seeds(kind, folder / "seeds")
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        read_scan(path)  # imports, which take memory of their own
    report.send((first, "ready", 0.0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    for index in range(first, last):
        rng = np.random.default_rng((KINDS.index(kind), index))
        seed = int(rng.integers(len(paths)))
        target = folder / f"mutant{index}{paths[seed].suffix}"
        target.write_bytes(mutated(contents[seed], rng))
        report.send((index, "begun", 0.0))
        signal.alarm(LIMIT_SECONDS)
        began, said = time.monotonic(), "scan"
        try:
            (read_labels if rng.random() < 0.2 else read_scan)(target)
        except ScanError as error:
            said = "refused" if "\n" not in str(error) else "a message of several lines"
            if "memory" in str(error):
                said = "out of memory"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        report.send((index, said, time.monotonic() - began))
        if said in ("scan", "refused"):
            target.unlink()
    report.send((last, "done", 0.0))


def fuzz(kind, count, folder):
    """{"scan": n, "refused": n, "slowest": seconds, "problems": {index: problem}}"""
    context = multiprocessing.get_context("fork")
    result = {"scan": 0, "refused": 0, "slowest": 0.0, "problems": {}}
    first = 0
    while first < count:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(kind, first, count, folder, send))
        child.start()
        send.close()
        begun = None
        try:
            while True:
                index, said, seconds = receive.recv()
                result["slowest"] = max(result["slowest"], seconds)
                if said == "begun":
                    begun = index
                elif said in ("scan", "refused"):
                    result[said] += 1
                elif said not in ("done", "ready"):
                    result["problems"][index] = said
                if said == "done":
                    first = count
        except EOFError:
            child.join()
        if begun is None and first < count:
            raise RuntimeError(f"the seeds of {kind} can't be read")
        if first < count:
            result["problems"][begun] = f"the process ended ({child.exitcode})"
            first = begun + 1
        child.join()
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000, help="files of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append")
    chosen = parser.parse_args()
    failed = False
    for kind in chosen.kind or KINDS:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
        began = time.monotonic()
        result = fuzz(kind, chosen.count, folder)
        failed |= bool(result["problems"])
        print(
            f"{kind:10} {chosen.count} files in {time.monotonic() - began:.0f} s: {result['scan']} "
            f"read, {result['refused']} refused, {len(result['problems'])} problems, slowest "
            f"{result['slowest']:.2f} s"
        )
        for index, problem in list(result["problems"].items())[:20]:
            print(f"    {folder}/mutant{index}*: {problem}")
    sys.exit(failed)
