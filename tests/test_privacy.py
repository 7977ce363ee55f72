"""What a header says about a patient turns up nowhere but in a DICOM segmentation."""

import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import image, write_series
from pydicom.datadict import DicomDictionary, dictionary_VR
from test_predict import brightness

from segapp.web.reader import Keeper, _kept, _measured, _written, meta_of
from segapp.web.session import Session, private_root
from segapp.web.view import choices, reader_html

CANARY = "XQZCANARY"
TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}
NEEDED = {"Modality", "PhotometricInterpretation", "SpecificCharacterSet", "ImageType"}
NEEDED |= {"RescaleType", "PixelPresentation", "VolumetricProperties"}
VOLUME = np.random.default_rng(0).integers(0, 255, (4, 40, 36)).astype(np.int16)


def text_tags():
    """Every text attribute of the dictionary with a canary of its own."""
    found = {}
    for n, (tag, entry) in enumerate(DicomDictionary.items()):
        keyword = entry[4]
        repeats = 0x5000 <= tag >> 16 <= 0x60FF
        if not keyword or keyword in NEEDED or repeats or tag >> 16 <= 0x0004:
            continue
        if dictionary_VR(tag) in TEXT and "Retired" not in entry[3]:
            found[keyword] = f"{CANARY}{n}"
    return found


def write_scans(folder):
    """A good series, and files whose damage makes readers want to quote the header."""
    tags = text_tags()
    assert len(tags) > 1300
    write_series(folder / "good", VOLUME, seed="good", **tags)
    write_series(folder / "gap", VOLUME, seed="gap", **tags)[2].unlink()
    for keyword in ("RescaleIntercept", "PixelSpacing", "SeriesNumber"):
        (path,) = write_series(
            folder / keyword, VOLUME[:1], seed=keyword, **tags, **{keyword: number_of(keyword)}
        )
        data = path.read_bytes()
        assert data.count(b"1234567890") >= 1
        path.write_bytes(data.replace(b"1234567890", CANARY.encode() + b"!"))
    path = folder / "cut.dcm"
    image(path, VOLUME[0], seed="cut", **tags)
    path.write_bytes(path.read_bytes()[:-500])
    image(folder / "no pixels.dcm", VOLUME[0], seed="none", **tags, PixelData=None)
    image(folder / "report.dcm", VOLUME[0], seed="sr", **tags, Modality="SR", PixelData=None)
    image(folder / "colour.dcm", np.dstack([VOLUME[0].astype(np.uint8)] * 3), modality="US", **tags)
    return folder


def number_of(keyword):
    return ["1234567890", "1234567890"] if keyword == "PixelSpacing" else "1234567890"


def leaks(folder):
    """Files below `folder` that hold a canary, also inside gzip and zip."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        texts = [data]
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                texts += [archive.read(name) for name in archive.namelist()]
        if any(CANARY.encode() in text for text in texts) or CANARY in path.name:
            found.append(path)
    return found


PREDICT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_predict import brightness
from segapp.predict import Predictor
import segapp.checkpoint, segapp.cli
Predictor.load = classmethod(lambda *_: brightness())
segapp.checkpoint.read_info = lambda _: brightness()
sys.argv = ["segapp", "predict", "model", *sys.argv[2:]]
segapp.cli.main()
"""


@pytest.mark.parametrize("output_format", ["same", "dicomseg"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_predict_tells_nothing(tmp_path, form, output_format):
    scans = write_scans(tmp_path / "scans")
    assert leaks(scans)
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
            for path in scans.rglob("*.dcm"):
                archive.write(path, path.relative_to(scans))
        scans = tmp_path / "scans.zip"
    for name in ("tmp", "home", "cwd"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "home")}
    options = [scans, "--out", tmp_path / "out", "--overlay", "--allow-gaps", "--json"]
    options += ["--format", output_format]
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(Path(__file__).parent), *map(str, options)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path / "cwd",
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["ok"], counts["failed"]) == (4, 4)
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    for name in ("tmp", "home", "cwd"):
        assert leaks(tmp_path / name) == []
    leaking = leaks(tmp_path / "out")
    if output_format == "same":
        assert leaking == []
        return
    assert {path.suffix for path in leaking} == {".dcm"}
    seg = pydicom.dcmread(tmp_path / "out" / "good.dcm")
    carried = {e.keyword for e in seg.iterall() if CANARY in str(e.value) and e.VR != "SQ"}
    assert "PatientID" in carried
    assert not carried & {"InstitutionName", "OperatorsName", "ImageComments", "ProtocolName"}


def test_the_app_tells_nothing(tmp_path, capsys, caplog):
    scans = write_scans(tmp_path / "scans")
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        for path in scans.rglob("*.dcm"):
            archive.write(path, path.relative_to(scans))
    session = Session(private_root())
    predictor = brightness()
    entries = session.gather([tmp_path / "up.zip"], 1)
    said = []
    report = lambda share, text: said.append(text)  # noqa: E731
    session.segment(predictor, "model", entries, report, session.begin("read"))
    keeper = Keeper(tmp_path / "kept", "model")
    pages = [*said, str(choices(session)), json.dumps([r.summary(0) for r in session.results])]
    pages += [reader_html(session, n) for n in range(len(session.results))]
    for result in session.results:
        if result.ok:
            pages += [json.dumps(meta_of(result, keeper)), json.dumps(_measured(result))]
            pages += [json.dumps(_kept(result, keeper))]
            for download in result.downloads:
                if download.kind != "dicomseg":  # that one is of the patient, on purpose
                    _written(session, result, download.kind)
    assert leaks(tmp_path / "kept") == []
    assert sum(r.ok for r in session.results) == 3
    assert len(session.results) == 8
    # What a series is called, which the page shows to tell scans apart, is in the label alone
    series = re.compile(rf"{text_tags()['SeriesDescription']}(?!\d)")
    assert series.search("".join(pages))
    assert CANARY not in series.sub("", "".join(pages))
    assert CANARY not in caplog.text + "".join(capsys.readouterr())
    shown = [path for path in leaks(session.folder) if "uploads1" not in path.parts]
    named = (".csv", ".html", ".zip")
    assert [path for path in shown if not path.name.endswith(named)] == []
    for path in shown:
        if path.suffix != ".zip":
            assert CANARY not in series.sub("", path.read_text())
    assert CANARY not in "".join(str(path) for path in session.folder.rglob("*"))
    session.close()
