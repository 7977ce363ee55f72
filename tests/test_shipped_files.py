"""Every file that pydicom and nibabel ship as test data: segmented, or refused with a reason.

shipped_files.csv is what came of each. To write it anew, after reading what changed:
python tests/test_shipped_files.py
"""

import csv
import io
import tempfile
import time
from pathlib import Path

import nibabel
import pydicom
from batches import outcomes_of
from test_predict import brightness

from segapp.batch import list_inputs

TABLE = Path(__file__).with_name("shipped_files.csv")
COLUMNS = ["file", "status", "reason", "warnings"]


def shipped():
    """name → path"""
    for package in (pydicom, nibabel):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            is_data = {"test_files", "charset_files", "palettes", "data"} & set(inside.parts)
            if path.is_file() and is_data and not path.name.endswith((".py", ".pyc")):
                yield f"{package.__name__}/{inside.as_posix()}", path


def outcomes(out):
    predictor = brightness()
    for name, path in shipped():
        began = time.monotonic()
        (outcome,) = outcomes_of(predictor, list_inputs([path]), out / name.replace("/", "_"))
        assert time.monotonic() - began < 30, name
        row = {"file": name, "status": outcome.status, "reason": outcome.reason}
        yield {**row, "warnings": "; ".join(outcome.warnings)}


def test_shipped_files(tmp_path, caplog):
    with TABLE.open(newline="", encoding="utf-8") as file:
        expected = {row["file"]: row for row in csv.DictReader(file)}
    found = {row["file"]: row for row in outcomes(tmp_path)}
    assert len(expected) > 250
    assert len(expected.keys() & found.keys()) > 200  # other releases ship a few others
    for name, row in found.items():
        assert row["status"] in ("ok", "review", "failed"), row
        assert (row["status"] == "ok") == (not row["reason"]), row
        assert "unexpected" not in row["reason"], row
        assert row == expected.get(name, row)
    assert "Traceback" not in caplog.text


if __name__ == "__main__":
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    with tempfile.TemporaryDirectory() as folder:
        writer.writerows(outcomes(Path(folder)))
    TABLE.write_text(text.getvalue(), encoding="utf-8")
