"""What programs get from the app: the endpoints, and the examples of docs/app.md as they stand."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from web import bands, noise_scans, serving, untrained_model, write_scans

from segapp.predict import Predictor
from segapp.web.app import Service

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> Iterator[Service]:
    """An app whose model is called as in the examples."""
    with serving({"brain": bands()}) as service:
        yield service


def example(kind: str, service: Service) -> str:
    """A block of docs/app.md, for this app's address."""
    text = (REPO / "docs" / "app.md").read_text("utf-8")
    (block,) = re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    return block.replace("http://127.0.0.1:7860", service.url.rstrip("/"))


def test_the_python_example_where_a_scan_fails(brain, tmp_path):
    *_, bad = write_scans(tmp_path)
    code = example("python", brain).replace("scans = [", f"scans = [handle_file({str(bad)!r}), ")
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, check=True, timeout=100
    )
    failed, first, second = done.stdout.strip().splitlines()[-3:]
    assert failed.startswith("notes.png failed")
    assert failed.endswith(" None")
    for line, name in ((first, "z026.png"), (second, "t1.nii.gz")):
        assert line.startswith(f"{name} ok")
        assert line.endswith(f"/{name}"), "each scan has its own file"


def test_the_python_example(brain):
    done = subprocess.run(
        [sys.executable, "-c", example("python", brain) + "\nprint('picture', picture)"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    first, second, picture = done.stdout.strip().splitlines()[-3:]
    assert first.startswith("z026.png ok")
    assert second.startswith("t1.nii.gz ok")
    assert "bone_ml" in second
    assert Image.open(picture.removeprefix("picture ")).size[0] > 500


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_the_curl_example(brain):
    command = ["bash", "-euo", "pipefail", "-c", example("bash", brain)]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, check=True, timeout=100
    )
    assert "z026.png" in done.stdout
    assert "bone_voxels" in done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model") / "hands")


@pytest.mark.slow
def test_the_api_answers_with_what_predict_writes(model, tmp_path):
    from gradio_client import Client, handle_file

    scans = noise_scans(tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "segapp.cli", "predict", str(model), *map(str, scans)]
    subprocess.run(
        [*command, "--out", str(out), "--device", "cpu"], check=True, cwd=REPO, capture_output=True
    )
    with serving({"hands": Predictor.load(model, "cpu")}) as service:
        client = Client(service.url, verbose=False)
        outputs, summary = client.predict([handle_file(s) for s in scans], api_name="/segment")
        for output, scan in zip(outputs, scans, strict=True):
            assert Path(output).name == scan.name
            assert Path(output).read_bytes() == (out / scan.name).read_bytes()
        assert [r["status"] for r in summary["results"]] == ["ok", "ok"]
        assert summary["results"][1]["slices"] == 9

        picture = client.predict(1, 5, 0.5, api_name="/slice")
        assert Image.open(picture).size == (576, 768)
        with pytest.raises(Exception, match="slice is 1 to 9"):
            client.predict(1, 10, 0.5, api_name="/slice")
        stranger = Client(service.url, verbose=False)
        with pytest.raises(Exception, match="no longer kept"):
            stranger.predict(0, 1, 0.5, api_name="/slice")
        stranger.close()
        client.close()


def test_a_batch_of_a_folder(tmp_path):
    from gradio_client import Client

    write_scans(tmp_path / "study")
    with serving({"hands": bands()}, roots=[tmp_path]) as service:
        client = Client(service.url, verbose=False)
        packed, summary = client.predict([], str(tmp_path / "study"), api_name="/batch")
        assert summary == {"scans": 3, "ok": 2, "failed": 1}
        with zipfile.ZipFile(packed[0]) as archive:
            labels = Image.open(archive.open("hand.png"))
            assert np.array_equal(np.unique(np.asarray(labels)), [0, 100, 200])
            rows = list(csv.DictReader(io.TextIOWrapper(archive.open("predictions.csv"))))
            assert [r["file"] for r in rows] == ["hand.png", "head.nii.gz", "notes.png"]
        _, again = client.predict([], "study", api_name="/batch")  # below the root
        assert again == summary
        assert sorted(p.name for p in (tmp_path / "study").iterdir()) == [r["file"] for r in rows]
        assert httpx.get(service.url).status_code == 200
        with pytest.raises(Exception, match="is not below"):
            client.predict([], "/etc", api_name="/batch")
        client.close()
