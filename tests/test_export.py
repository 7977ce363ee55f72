"""Exports: what they hold, that they segment as the model does, and what is refused."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
from batches import outcomes_of
from conftest import write_png_dataset
from PIL import Image
from test_predict import brain_crop, nib, torch_model  # noqa: F401

from segapp.batch import list_inputs, predict_batch
from segapp.checkpoint import read_info, read_weights, save_model
from segapp.cli_batch import predict_all
from segapp.cli_text import info_text
from segapp.earlier import file_key, model_key
from segapp.engines import load_engine
from segapp.errors import ConfigError, DataError, ModelFileError, OutputError
from segapp.export import export_beside, export_model, parity, synthetic_scans
from segapp.exported import read_export, write_sums
from segapp.files import sha256
from segapp.predict import Predictor

PARTS = {"network.xml", "network.bin", "info.json", "export.json", "README.md", "SHA256SUMS"}


@pytest.fixture(scope="module")
def run(torch_model, tmp_path_factory):  # noqa: F811
    """A run folder with an export in it, of a model that is computed in fp32."""
    run = tmp_path_factory.mktemp("exported") / "run"
    info = read_info(torch_model).model_copy(update={"settings": {"train": {"precision": "fp32"}}})
    save_model(run / "model.safetensors", read_weights(torch_model), info)
    export_model(run, run / "openvino")
    return run


@pytest.fixture
def export(run, tmp_path):
    return shutil.copytree(run / "openvino", tmp_path / "export")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_png_dataset(tmp_path_factory.mktemp("labelled") / "data", values=(0, 100, 255))


def test_an_export_holds_all_that_prediction_needs(run, export):
    assert {p.name for p in export.iterdir()} == PARTS
    assert read_info(export) == read_info(run)
    key = file_key(read_info(run))
    for model in (run, export):
        assert f"{key}-" in info_text(read_info(model), model), "as predictions.csv has it"
        assert model_key(Predictor.load(model, "cpu")).startswith(f"{key}-")
    record = read_export(export)
    assert (record.engine, record.precision) == ("openvino", "fp32")
    assert record.source == sha256(run / "model.safetensors")
    assert record.parity is not None
    assert record.parity.agreement >= 0.999
    assert record.parity.voxels > 300_000
    assert "grey" in (export / "README.md").read_text()
    assert "openvino" in (export / "README.md").read_text()
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=export)
    assert done.returncode == 0


def test_a_run_folder_is_run_by_its_export_and_segments_the_same(run, tmp_path):
    nib.save(brain_crop(), tmp_path / "scan.nii.gz")
    entries = list_inputs([tmp_path / "scan.nii.gz"])
    labels = {}
    for engine in ("auto", "torch", "openvino"):
        predictor = Predictor.load(run, "cpu", engine)
        name = type(predictor.engine).__name__
        assert name == ("TorchEngine" if engine == "torch" else "OpenVinoEngine")
        (outcome,) = outcomes_of(predictor, entries, tmp_path / engine)
        assert outcome.status == "ok", outcome
        labels[engine] = np.asarray(nib.load(tmp_path / engine / "scan.nii.gz").dataobj)
    assert np.array_equal(labels["auto"], labels["openvino"])
    assert (labels["auto"] == labels["torch"]).mean() > 0.999


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded_and_what_would_take_more_is_refused(run, tmp_path):
    """In a process of its own: the scan that fits is segmented within the limit."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    for name, shape in (("fits", (96, 96, 20)), ("large", (256, 256, 400))):
        voxels = np.zeros(shape, np.int16)
        voxels[20:60, 20:60] = 300
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii")
    code = """if True:
    import sys
    from pathlib import Path
    from segapp.cli_batch import predict_all
    counts = predict_all(
        Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), "cpu", "openvino", 400
    )
    lines = Path("/proc/self/status").read_text().splitlines()  # rusage knows the parent's peak
    peak = next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))
    print(counts["ok"], counts["failed"], peak)
    """
    command = [sys.executable, "-c", code, str(run / "openvino"), str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True)
    ok, failed, peak = map(float, done.stdout.split())
    assert (ok, failed) == (1, 1), done.stderr
    assert peak < 400
    assert (
        "are left for a scan; allow more (--max-memory-mb)"
        in (tmp_path / "out" / "predictions.csv").read_text()
    )
    with pytest.raises(ConfigError, match="before the first scan; allow at least"):
        predict_all(run / "openvino", [tmp_path], tmp_path / "none", "cpu", "auto", 50)


def test_many_at_once_give_what_each_gives_alone(run, tmp_path):
    rng = np.random.default_rng(0)
    engine = Predictor.load(run / "openvino").engine
    slices = rng.normal(size=(12, 1, 64, 96)).astype(np.float32)
    alone = engine(slices[:1])
    assert alone.dtype == np.float32
    assert alone.shape == (1, 3, 64, 96)
    from segapp.ahead import in_order

    together = list(in_order(lambda n: engine(slices[n : n + 1]), range(12), 4))
    for n in range(12):
        assert np.array_equal(together[n], engine(slices[n : n + 1]))
    assert np.array_equal(together[0], alone), "no result is another's memory"


def test_one_changed_byte_is_refused(export):
    for part in sorted(PARTS):
        path = export / part
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ModelFileError):
            Predictor.load(export)
        path.write_bytes(whole)
        path.rename(export / "away")
        with pytest.raises(ModelFileError):
            Predictor.load(export)
        (export / "away").rename(path)
    assert Predictor.load(export)


def other_weights(model, to):
    """The same network with other weights in its last layer."""
    weights = read_weights(model)
    head = [name for name in weights if name.startswith("segmentation_head")]
    assert head
    weights |= {name: np.roll(weights[name], 1, axis=0) for name in head}
    save_model(to / "model.safetensors", weights, read_info(model))
    return to


@pytest.mark.slow
def test_how_an_export_compares_is_said_once(run, tmp_path, capfd):
    assert (
        subprocess.run(
            [sys.executable, "-m", "segapp.cli", "export", str(run), "--out", str(tmp_path / "x")],
        ).returncode
        == 0
    )
    said = capfd.readouterr()
    assert (said.out + said.err).count("parity:") == 1
    assert "times as fast as PyTorch here" in said.out


def test_what_lies_beside_an_export_is_not_deleted(run, export, monkeypatch):
    known = read_export(export).parity
    monkeypatch.setattr("segapp.export.parity", lambda *_: known)
    (export / "results.csv").write_text("a year's work")
    with pytest.raises(OutputError, match="is not just an export"):
        export_model(run, export)
    assert (export / "results.csv").is_file()
    (export / "results.csv").unlink()
    (export / "network.bin").write_bytes(b"damaged")
    export_model(run, export)
    assert Predictor.load(export)


def test_an_export_is_written_once_and_again_where_it_is_damaged(run, tmp_path, monkeypatch):
    known = read_export(run / "openvino").parity
    monkeypatch.setattr("segapp.export.parity", lambda *_: known)
    own = shutil.copytree(run, tmp_path / "run")
    written = (own / "openvino" / "network.xml").stat().st_mtime_ns
    assert export_beside(own) == own / "openvino"
    assert (own / "openvino" / "network.xml").stat().st_mtime_ns == written
    (own / "openvino" / "network.bin").write_bytes(b"damaged")
    assert type(Predictor.load(own, "cpu").engine).__name__ == "TorchEngine"
    export_beside(own)
    assert type(Predictor.load(own, "cpu").engine).__name__ == "OpenVinoEngine"


def test_alone_or_among_others_a_file_gets_the_same_bytes(run, tmp_path):
    """One stream with all threads for one slice, many with one each for many."""
    slices = np.asarray(brain_crop().dataobj)
    (tmp_path / "scans").mkdir()
    for k in range(slices.shape[2]):
        Image.fromarray(slices[:, :, k]).save(tmp_path / "scans" / f"{k}.png")
    entries = list_inputs([tmp_path / "scans"])
    many = Predictor.load(run / "openvino")
    predict_batch(many, entries, tmp_path / "together")
    alone = Predictor.load(run / "openvino", single=True)
    assert alone.engine.calls_at_once == 1
    for entry in entries:
        predict_batch(alone, [entry], tmp_path / "alone")
        name = f"{entry.name}.png"
        assert sha256(tmp_path / "alone" / name) == sha256(tmp_path / "together" / name)


@pytest.mark.slow
def test_a_swapped_network_fails_parity(run, export, tmp_path):
    other = other_weights(run, tmp_path)
    found = parity(other, export, read_export(export), (), None)
    assert found.agreement < 0.9
    write_sums(export, read_export(export), "whoever swaps it can also write the checksums")
    assert parity(other, export, read_export(export), (), None).agreement < 0.9


def test_an_export_of_other_weights_is_not_used(run, tmp_path, caplog):
    other = other_weights(run, tmp_path)
    shutil.copytree(run / "openvino", other / "openvino")
    assert type(Predictor.load(other, "cpu").engine).__name__ == "TorchEngine"
    assert "of another model file; export the model again. It is not used" in caplog.text
    with pytest.raises(ModelFileError, match="another model file"):
        Predictor.load(other, "cpu", "openvino")


@pytest.mark.slow
def test_what_differs_is_not_written(run, tmp_path, monkeypatch):
    import segapp.export

    real = segapp.export.load_network
    calls = []

    def another_first(model, info):
        calls.append(model)
        return real(other if len(calls) == 1 else run, info)

    other = other_weights(run, tmp_path / "other")
    monkeypatch.setattr(segapp.export, "load_network", another_first)
    with pytest.raises(ModelFileError, match=r"segments differently.*Nothing was written"):
        export_model(run, tmp_path / "new")
    assert not list(tmp_path.glob("new*"))
    assert not list(tmp_path.glob(".export-*"))
    calls.clear()
    export_model(run, tmp_path / "new", unequal=True)
    assert read_export(tmp_path / "new").parity.agreement < 0.9


@pytest.mark.slow
def test_eight_bits(run, labelled, tmp_path):
    handler = logging.NullHandler()  # of somebody who also looks at NNCF's log
    logging.getLogger("nncf").addHandler(handler)
    record = export_model(run, tmp_path / "int8", int8=True, calibrate=labelled, unequal=True)
    assert record.precision == "int8"
    assert record.parity.miou is not None
    assert "6 cases of data" in record.parity.scans
    assert record.parity.agreement > 0.9
    size = (tmp_path / "int8" / "network.bin").stat().st_size
    assert size < 0.5 * (run / "openvino" / "network.bin").stat().st_size
    assert type(Predictor.load(tmp_path / "int8").engine).__name__ == "OpenVinoEngine"
    assert handler.level == logging.NOTSET


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_onnx(run, labelled, tmp_path, int8):
    out = tmp_path / "onnx"
    record = export_model(run, out, "onnx", int8, labelled if int8 else None, unequal=int8)
    assert record.engine == "onnx"
    assert record.parity.agreement >= (0.9 if int8 else 0.999)
    assert type(Predictor.load(out).engine).__name__ == "OnnxEngine"
    with pytest.raises(ConfigError, match="exported for onnx"):
        Predictor.load(out, engine="openvino")


def test_what_an_export_can_not_do(run, export, labelled, tmp_path):
    with pytest.raises(ConfigError, match="--calibrate"):
        export_model(run, tmp_path / "new", int8=True)
    (tmp_path / "full").mkdir()
    for name in ("README.md", "thesis.txt"):  # a project's own README is no export
        (tmp_path / "full" / name).touch()
        with pytest.raises(OutputError, match="is not just an export"):
            export_model(run, tmp_path / "full")
        assert (tmp_path / "full" / name).exists()
    with pytest.raises(ConfigError, match="run on the CPU"):
        Predictor.load(export, "cuda")
    with pytest.raises(ConfigError, match="exported for openvino"):
        Predictor.load(export, engine="torch")
    with pytest.raises(ConfigError, match="export the model first"):
        Predictor.load(run, engine="onnx")
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        export_model(export, tmp_path / "new")
    (labelled.parent / "empty").mkdir()
    with pytest.raises(DataError):
        export_model(run, tmp_path / "new", int8=True, calibrate=labelled.parent / "empty")
    assert not (tmp_path / "new").exists()


def test_without_openvino(run, export, monkeypatch):
    import segapp.engines

    monkeypatch.setattr(segapp.engines, "find_spec", lambda _: None)
    assert type(Predictor.load(run, "cpu").engine).__name__ == "TorchEngine"
    with pytest.raises(ConfigError, match=r"pip install \"segapp\[openvino\]\""):
        load_engine(export, read_info(export))


def test_synthetic_scans_are_like_the_training_scans(run):
    from test_checkpoint import KNOWN, make_info

    scans = list(synthetic_scans(make_info(training=KNOWN)))
    assert {s.voxels.dtype for s in scans} == {np.dtype(np.int16)}
    assert min(s.voxels.min() for s in scans) >= -3000
    assert max(s.voxels.max() for s in scans) <= 5000
    assert len({s.shape for s in scans}) == len(scans) > 3
    again = list(synthetic_scans(make_info(training=KNOWN)))
    assert all(np.array_equal(a.voxels, b.voxels) for a, b in zip(scans, again, strict=True))
    unknown = next(iter(synthetic_scans(make_info(training=None))))
    assert unknown.voxels.dtype == np.uint8
    assert unknown.voxels.std() > 10


WITHOUT_TORCH = """
import sys
from pathlib import Path
from segapp.cli import main
sys.argv = ["segapp", "predict", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = {"torch", "segmentation_models_pytorch", "albumentations", "gradio", "matplotlib"}
loaded |= {"openvino_telemetry"}
assert not {name for name in loaded if sys.modules.get(name)}, loaded & set(sys.modules)
"""


FIRST_CALLS = """
import sys
from pathlib import Path
import numpy as np
from segapp.ahead import in_order
from segapp.engines.openvino import OpenVinoEngine
engine = OpenVinoEngine.load(Path(sys.argv[1]), streams=2)
batch = np.zeros((1, 1, 64, 64), np.float32)
assert len(list(in_order(lambda _: engine(batch), range(8), 4))) == 8
"""


@pytest.mark.slow
def test_the_first_calls_of_threads_do_not_wait_for_each_other(run):
    """Without care this hung once in some ten times."""
    network = str(run / "openvino" / "network.xml")
    for _ in range(12):
        subprocess.run([sys.executable, "-c", FIRST_CALLS, network], check=True, timeout=60)


SIGNALS = """
import signal, subprocess, sys, threading
from pathlib import Path
import numpy as np
from segapp.engines.openvino import OpenVinoEngine
signal.signal(signal.SIGCHLD, lambda *_: None)
held = [OpenVinoEngine.load(Path(sys.argv[1]))]
held[0](np.zeros((1, 1, 64, 64), np.float32))
let_go = threading.Thread(target=held.clear)
let_go.start()
let_go.join()
np.zeros(1 << 22)
subprocess.run(["true"], check=True)
"""


def test_signals_come_through_when_an_engine_is_gone(run):
    """OpenVINO's CPU plugin took the stack that they need along."""
    network = str(run / "openvino" / "network.xml")
    subprocess.run([sys.executable, "-c", SIGNALS, network], check=True, timeout=60)


def test_an_export_predicts_without_torch(run, tmp_path):
    nib.save(brain_crop(), tmp_path / "scan.nii.gz")
    words = [run, tmp_path / "scan.nii.gz", "--out", tmp_path / "out", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] == 1
    assert (tmp_path / "out" / "scan.nii.gz").is_file()
