"""The command line: exit codes, one clear line for each error, nothing left behind."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_png_dataset
from PIL import Image

import segapp.cli
from segapp.checkpoint import ModelInfo
from segapp.cli_text import info_text

REPOSITORY = Path(__file__).parents[1]
QUICK = ["train.epochs=1", "train.steps_per_epoch=1", "optim.batch_size=2", "optim.patch=64"]
QUICK += ["model.encoder=resnet18", "model.encoder_weights=none", "data.workers=0"]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; before it come log lines only."""
        *before, last = self.err.splitlines()
        assert last.startswith("segapp: "), self.err
        assert not any(line.startswith("segapp: ") for line in before), self.err
        assert "Traceback" not in self.err
        return last.removeprefix("segapp: ")


def run(*words: object) -> Result:
    """The command in this process, which saves importing torch each time."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, logger = sys.argv, logging.getLogger("segapp")
    before = (list(logger.handlers), logger.level, logger.propagate)
    sys.argv = ["segapp", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            segapp.cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
        logger.handlers, logger.level, logger.propagate = before
    return Result(code, out.getvalue(), err.getvalue())


def test_every_path_of_a_command_may_begin_with_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell leaves it in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_png_dataset(tmp_path / "home" / "data", 12)
    found = run("check", "~/data", "--out=~/checked")
    assert found.code == 0, found.err
    assert (tmp_path / "home" / "checked" / "findings.csv").is_file()
    (tmp_path / "home" / "own.yaml").write_text("data:\n  root: ~/data\n")
    found = run("train", "~/own.yaml", "train.out=~/run", "--print-config")
    assert f"root: {tmp_path / 'home' / 'data'}" in found.out
    for words in (
        *(("predict", "~/m", "~/a.png", "--out=~/o"), ("evaluate", "~/m", "~/data", "--out=~/o")),
        *(("info", "~/m"), ("export", "~/m"), ("prune", "~/m", "--data=~/data", "--out=~/o")),
        *(("app", "~/m"), ("train", "--resume=~/m")),
    ):
        found = run(*words)
        assert found.code == 2
        assert f"{tmp_path / 'home' / 'm'}: " in found.err, words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"], "nothing is in a folder named ~"


def process(*words: object, code: str = "", cwd: Path = REPOSITORY) -> Result:
    """The command as users start it."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "segapp.cli"]), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another are slow where other tests use the cores as well."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """(run folder, data set, what the command said)"""
    folder = tmp_path_factory.mktemp("trained")
    data = write_png_dataset(folder / "data")
    result = run("train", f"data.root={data}", f"train.out={folder / 'run'}", *QUICK)
    assert result.code == 0, result.err
    return folder / "run", data, result


# Help and usage


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['segapp', *sys.argv[1:]]\n"
        "from segapp.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('LOADED', *sys.modules)"
    )
    for words in (["--help"], ["train", "--help"]):
        began = time.perf_counter()
        result = process(*words, code=code)
        assert result.code == 0
        assert time.perf_counter() - began < 5  # 0.3 s on an idle machine
        text, _, loaded = result.out.partition("LOADED")
        assert "Usage: " in text
        heavy = {"torch", "numpy", "cv2", "matplotlib", "gradio", "yaml", "segapp.config"}
        heavy |= {"albumentations", "nibabel"} | ({"pydantic"} if len(words) == 1 else set())
        assert not heavy & set(loaded.split())


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.code == 0
    for word in ("train", "predict", "evaluate", "info", "app", "Exit codes"):
        assert word in result.out
    for command in ("train", "predict", "evaluate", "info", "app"):
        assert run(command, "--help").code == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trane"],
        ["train", "--bogus"],
        ["predict"],
        ["predict", "model", "--out", "o"],
        ["predict", "model", "scan.png"],
        ["evaluate", "model", "data", "--out", "o", "--split", "bogus"],
        ["train", "--resume", "run", "train.epochs=3"],
        ["train", "--resume", "run", "--find-lr"],
        ["compare", "data.root=d", "--vary", "loss.name=ce,dice_ce"],
        ["compare", "--out", "o", "--seeds", "0"],
    ],
)
def test_usage_errors_exit_with_2(words: list[str]) -> None:
    result = run(*words)
    assert result.code == 2
    assert "Usage: " in result.err
    assert result.out == ""


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.code, result.out) == (0, f"segapp {segapp.__version__}\n")


def test_a_data_set_given_as_an_option_is_answered_with_the_setting() -> None:
    result = run("train", "--data", "study")
    assert result.code == 2
    assert "data.root=study" in result.err


# Settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.root=d", "train.epoch=3"], "unknown key 'train.epoch'; did you mean train.epochs?"),
        (["data.root=d", "epochs=3"], "unknown key 'epochs'; did you mean train.epochs?"),
        (["data.root=d", "train.epochs=0"], "train.epochs: got 0: "),
        (["data.root=d", "train.epochs=1", "train.budget_minutes=1"], "exclude each other"),
        (["nowhere.yaml"], "nowhere.yaml: the config file can't be read"),
        (["nowhere.yaml", "more.yaml"], "'more.yaml' is neither a config file nor KEY=VALUE"),
        (["--resume", "nowhere"], "nowhere: holds no config.yaml"),
        ([os.curdir], ".: is a folder, no config file; did you mean data.root=.?"),
    ],
)
def test_wrong_settings_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", *words)
    assert result.code == 2
    assert said in result.error
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_print_config_prints_settings_that_can_be_read_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", "--print-config", "data.root=d", "train.epochs=3")
    assert (result.code, result.err) == (0, "")
    (tmp_path / "again.yaml").write_text(result.out)
    assert run("train", "--print-config", "again.yaml").out == result.out
    assert "root: data/brain" in run("train", "--print-config").out  # the built-in one
    assert not (tmp_path / "runs").exists()


# Data that can't be trained on: each ends in one line, before any training


def no_mask(data: Path) -> str:
    (data / "masks" / "case2.png").unlink()
    return f"{data}/images/case2.png: its mask is missing"


def other_size(data: Path) -> str:
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(data / "masks" / "case2.png")
    return f"{data}/masks/case2.png: is 10×10 but its image case2.png is 64×48"


def flipped(data: Path) -> str:
    for part, sign in (("images", 1), ("masks", -1)):
        image = nib.Nifti1Image(np.ones((8, 8, 4), np.uint8), np.diag([sign, 1, 1, 1]))
        nib.save(image, data / part / "volume.nii.gz")
    return f"{data}/masks/volume.nii.gz: lies elsewhere in space"


def odd_value(data: Path) -> str:
    (data / "classes.txt").write_text("background\ndisc\nsquare\n")
    mask = np.array(Image.open(data / "masks" / "case2.png"))
    mask[3, 3] = 9
    Image.fromarray(mask).save(data / "masks" / "case2.png")
    return f"{data}/masks/case2.png: mask value 9 is outside the classes"


def damaged(data: Path) -> str:
    path = data / "images" / "case2.png"
    path.write_bytes(path.read_bytes()[:200])
    return f"{path}: "


def damaged_mask(data: Path) -> str:
    (data / "masks" / "case2.png").write_bytes(b"no picture")
    return f"{data}/masks/case2.png: "


def emptied(data: Path) -> str:
    shutil.rmtree(data)
    data.mkdir()
    return f"{data}: images/ is missing"


def without_files(data: Path) -> str:
    for path in [*data.glob("*/*.png")]:
        path.unlink()
    return f"{data}: holds no images"


def gone(data: Path) -> str:
    shutil.rmtree(data)
    return f"{data}: no such folder"


def black_masks(data: Path) -> str:
    for path in (data / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    return f"{data}: the masks hold one value only"


def one_case(data: Path) -> str:
    for path in [*data.glob("*/case[1-5].png")]:
        path.unlink()
    return f"{data}: 1 patient in train"


SPOILERS = [no_mask, other_size, flipped, odd_value, damaged, damaged_mask]
SPOILERS += [emptied, without_files, gone, black_masks, one_case]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_unusable_data_is_one_line(spoil: Callable[[Path], str], png_dataset: Path) -> None:
    said = spoil(png_dataset)
    out = png_dataset.parent / "runs" / "r"
    result = run("train", f"data.root={png_dataset}", f"train.out={out}", *QUICK)
    assert result.code == 2
    assert result.error.startswith(said)
    assert result.out == ""
    assert len(result.err.splitlines()) == 1  # nothing was decided, nothing trained
    assert not out.exists()


def test_a_run_folder_that_was_there_stays(png_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    no_mask(png_dataset)
    assert run("train", f"data.root={png_dataset}", f"train.out={tmp_path / 'run'}").code == 2
    assert list((tmp_path / "run").iterdir()) == []


def test_an_occupied_run_folder_is_refused_and_left_alone(
    png_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    result = run("train", f"data.root={png_dataset}", f"train.out={tmp_path / 'run'}")
    assert result.code == 2
    assert "not empty" in result.error
    assert "--resume" in result.error
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def unwritable(folder: Path) -> list[Path]:
    """Places where nobody may write; permissions stop everybody but root."""
    (folder / "file").write_text("a file is no folder")
    places = [folder / "file" / "out"]
    if not IS_ROOT:
        (folder / "locked").mkdir(mode=0o500)
        places.append(folder / "locked" / "out")
    return places


def test_a_place_that_can_not_be_written_is_one_line(png_dataset: Path, tmp_path: Path) -> None:
    for out in unwritable(tmp_path):
        result = run("train", f"data.root={png_dataset}", f"train.out={out}", *QUICK)
        assert result.code == 2
        assert result.error.startswith(f"{out}: no file can be written there")
        assert len(result.err.splitlines()) == 1


def test_ctrl_c_is_one_line(png_dataset: Path, monkeypatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segapp.doctor.report_on", stopped)
    result = run("check", png_dataset)
    assert (result.code, result.error) == (130, "stopped")
    assert json.loads(run("check", png_dataset, "--json").out) == {"error": "stopped"}


def test_torch_and_torchvision_of_different_builds_are_one_line(
    png_dataset: Path, monkeypatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("segapp.doctor.report_on", broken)
    result = run("check", png_dataset)
    assert result.code == 2
    assert result.error.startswith("torch and torchvision are of different builds (operator torch")
    assert "pip install --force-reinstall torch torchvision" in result.error


def test_a_real_process_ends_the_same_way(png_dataset: Path, tmp_path: Path) -> None:
    said = other_size(png_dataset)
    result = process("train", f"data.root={png_dataset}", *QUICK, cwd=tmp_path)
    assert result.code == 2
    assert result.error.startswith(said)
    assert len(result.err.splitlines()) == 1
    assert not list((tmp_path / "runs").glob("*"))


# A run that ends well


def test_training_says_where_the_model_is_and_what_comes_next(trained) -> None:
    out, data, result = trained
    assert result.out.splitlines() == [
        f"model: {out / 'model.safetensors'}",
        f"report: {out / 'report.html'}",
        f"next:  segapp evaluate {out} {data} --out {out / 'evaluation'}",
    ]
    assert (out / "model.safetensors").is_file()
    assert "\x1b" not in result.err  # no colours, no bars in a pipe


def test_a_finished_run_says_so(trained) -> None:
    out, _, _ = trained
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    result = run("train", "--resume", out)
    assert result.code == 0
    assert "finished" in result.err
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*")) == before


def test_find_lr_prints_a_suggestion_and_trains_nothing(png_dataset: Path, monkeypatch) -> None:
    import segapp.train

    monkeypatch.setattr(segapp.train, "find_rate", lambda s: (0.00213, s.train.out / "lr.png"))
    out = png_dataset.parent / "run"
    result = run("train", "--find-lr", f"data.root={png_dataset}", f"train.out={out}")
    assert result.code == 0
    assert result.out == f"suggested optim.max_lr: 2.1e-03\nplot: {out / 'lr.png'}\n"
    assert not out.exists()


# compare


@pytest.mark.slow
def test_compare_trains_each_run_in_a_process_and_goes_on_after_a_failed_one(
    png_dataset: Path, tmp_path: Path
) -> None:
    words = [f"data.root={png_dataset}", *(w for w in QUICK if "encoder=" not in w)]
    words += ["--vary", "model.encoder=resnet18,resnet99", "--seeds", "1", "--out", "o"]
    result = process("compare", *words, "--json", cwd=tmp_path)
    assert result.code == 1
    figures = json.loads(result.out)
    assert [r["status"] for r in figures["runs"]] == ["ok", "failed"]
    assert "model.encoder='resnet99'" in figures["runs"][1]["reason"]
    said = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert said[0].startswith("2 runs (2 variants × 1 seed)")
    assert said[1] == "run 1 of 2: resnet18, seed 0"
    assert said[2].startswith("  val mIoU 0.")
    assert said[3].startswith("run 2 of 2: resnet99, seed 0, about ")
    assert said[4].startswith("error: resnet99, seed 0: model.encoder='resnet99'")
    assert len(said) == 5
    assert "no pair of runs yet" in (tmp_path / "o" / "comparison.md").read_text()


def test_a_wrong_comparison_is_one_line(png_dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"compare: {{vary: {{loss.name: [ce, cee]}}}}\ndata: {{root: {png_dataset}}}")
    for words, said in (
        (["compare", config, "--out", tmp_path / "o"], "variant cee: "),
        (["compare", f"data.root={png_dataset}", "--out", tmp_path / "o"], "0 variants given"),
        (["train", config], f"{config}: is a comparison; use segapp compare"),
    ):
        result = run(*words)
        assert result.code == 2
        assert result.error.startswith(said)
        assert not (tmp_path / "o").exists()


# predict


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_writes_every_scan(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    result = run("predict", model, data / "images", "--out", tmp_path / "o", "--json")
    assert result.code == 0
    table = tmp_path / "o" / "predictions.csv"
    counts = json.loads(result.out)
    assert counts.pop("ok") + counts.pop("review") == 6
    assert counts == {
        **{"failed": 0, "skipped": 0, "review_kept": 0, "left_out": 0},
        "csv": str(table),
    }
    assert len(result.out.splitlines()) == 1
    assert sorted(p.name for p in (tmp_path / "o").glob("*.png")) == [
        f"case{n}.png" for n in range(6)
    ]
    said = f"6 scans: 6 skipped (results were there, {{}} of them to review); see {table}\n"
    again = run("predict", model, data / "images", "--out", tmp_path / "o", "--skip-existing")
    assert (again.code, again.out) == (0, said.format(6))
    text = table.read_text().replace(",review,", ",skipped,", 2)
    table.write_text(text)  # as if the model had doubted only four of them
    words = ["predict", model, data / "images", "--out", tmp_path / "o", "--skip-existing"]
    assert run(*words).out == said.format(4)
    counts = json.loads(run(*words, "--json").out)
    assert (counts["skipped"], counts["review"], counts["review_kept"]) == (6, 0, 4)


def test_one_more_scan_is_one(trained, tmp_path: Path) -> None:
    model, data, _ = trained  # which marks all six for review, and names five
    result = run("predict", model, data / "images", "--out", tmp_path / "o")
    assert "1 more scan to review, see predictions.csv" in result.err


def test_one_bad_scan_among_good_ones_exits_with_1(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    scans = shutil.copytree(data / "images", tmp_path / "scans")
    (scans / "case2.png").write_bytes(b"no picture")
    (scans / "case4.png").write_bytes(b"")
    result = run("predict", model / "model.safetensors", scans, "--out", tmp_path / "o")
    assert result.code == 1
    assert "6 scans: 4 review, 2 failed; see " in result.out, (
        "one validation case is no ground to say ok"
    )
    assert "Traceback" not in result.err
    for name in ("case2.png", "case4.png"):
        assert any(str(scans / name) in line for line in result.err.splitlines())
        assert not (tmp_path / "o" / name).exists()
    status = {Path(r["file"]).stem: r["status"] for r in rows(tmp_path / "o" / "predictions.csv")}
    assert status == {f"case{n}": "failed" if n in (2, 4) else "review" for n in range(6)}


def test_files_that_are_no_scans_are_named(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    scans = shutil.copytree(data / "images", tmp_path / "scans")
    (scans / "sub").mkdir()
    for name in ("sub/a.txt", "b.pdf", *(f"c{n}.log" for n in range(5))):
        (scans / name).write_text("no scan")
    result = run("predict", model, scans, "--out", tmp_path / "o")
    assert f"{scans}: left out files that are no scans: 7 of another format" in result.err
    assert f"{scans / 'b.pdf'}: no scan (of another format), left out" in result.err
    table = tmp_path / "o" / "left-out.csv"
    assert result.out.endswith(f"\nleft out: 7 files, no scans; see {table}\n")
    left_out = sorted(Path(row["file"]).relative_to(scans).as_posix() for row in rows(table))
    assert left_out == ["b.pdf", *(f"c{n}.log" for n in range(5)), "sub/a.txt"]
    assert {row["reason"] for row in rows(table)} == {"of another format"}
    words = ["predict", model, scans / "case0.png", "--out", tmp_path / "o", "--json"]
    assert json.loads(run(*words).out)["left_out"] == 0
    assert not table.exists(), "this batch left out nothing"


def test_errors_are_json_too(trained, tmp_path: Path, monkeypatch) -> None:
    model, data, _ = trained
    words = ["predict", model, tmp_path / "nowhere", "--out", tmp_path / "o"]
    result = run(*words, "--json")
    said = f"{tmp_path / 'nowhere'}: no such file or folder"
    assert (result.code, result.error, json.loads(result.out)) == (2, said, {"error": said})
    assert run(*words).out == ""
    result = run("predict", "--json", "--no-such-option")
    assert result.code == 2
    said = json.loads(result.out)["error"]  # each version of the parser words it its own way
    assert "No such option" in said
    assert "--no-such-option" in said
    checked = run("check", tmp_path, "--out", tmp_path / "c", "--json")
    assert checked.code == 2
    assert len(checked.out.splitlines()) == 1, "findings are no error of the command"

    def broken(*_: object, **__: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("segapp.cli_batch.predict_all", broken)
    result = run("predict", model, data, "--out", tmp_path / "o", "--json")
    assert json.loads(result.out) == {"error": "unexpected KeyError: 'odd'"}
    assert "Traceback" in result.err


def test_inputs_that_do_not_exist_stop_before_any_work(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    (tmp_path / "empty").mkdir()
    for wrong, said in (("nowhere", "no such file or folder"), ("empty", "holds no scans")):
        given = [data / "images"] if wrong == "nowhere" else []
        result = run("predict", model, *given, tmp_path / wrong, "--out", tmp_path / "o")
        assert result.code == 2
        assert result.error.startswith(f"{tmp_path / wrong}: {said}")
        assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("screen", ["full", "closed"])
def test_a_screen_that_can_not_be_written_ends_nothing(trained, tmp_path: Path, screen) -> None:
    model, data, _ = trained
    scans = shutil.copytree(data / "images", tmp_path / "scans")
    (scans / "case2.png").write_bytes(b"no picture")
    (scans / "notes.txt").write_text("no scan")
    words = ["predict", str(model), str(scans), "--out", str(tmp_path / "o")]
    command = [sys.executable, "-m", "segapp.cli", *words]
    if screen == "full":
        lost = os.open("/dev/full", os.O_WRONLY)
    else:
        read, lost = os.pipe()
        os.close(read)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=lost, cwd=REPOSITORY)
    os.close(lost)
    assert done.returncode == 1, "as one scan failed"
    assert b"5 review, 1 failed" in done.stdout, "nothing vouches for a model of seconds"
    assert len(rows(tmp_path / "o" / "predictions.csv")) == 6


def test_outputs_that_can_not_be_written_are_one_line(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    for out in unwritable(tmp_path):
        for words in (["predict", model, data / "images"], ["evaluate", model, data]):
            result = run(*words, "--out", out)
            assert result.code == 2
            assert result.error.startswith(str(out))


def truncated(model: Path, to: Path) -> Path:
    content = (model / "model.safetensors").read_bytes()
    to.write_bytes(content[: len(content) // 2])
    return to


def garbage(_: Path, to: Path) -> Path:
    to.write_bytes(b"this is no model")
    return to


def foreign(_: Path, to: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, to)
    return to


def of_the_future(model: Path, to: Path) -> Path:
    from segapp.checkpoint import read_info, read_weights, save_model

    save_model(to, read_weights(model), read_info(model).model_copy(update={"format": 99}))
    return to


def of_other_weights(model: Path, to: Path) -> Path:
    from segapp.checkpoint import read_info, save_model

    save_model(to, {"weight": np.zeros(3, np.float32)}, read_info(model))
    return to


def missing(_: Path, to: Path) -> Path:
    return to


def folder_without_model(_: Path, to: Path) -> Path:
    to.mkdir()
    return to


BROKEN = [truncated, garbage, foreign, of_the_future, of_other_weights]
BROKEN += [missing, folder_without_model]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_model_that_can_not_be_used_is_one_line(trained, broken, tmp_path: Path) -> None:
    model, data, _ = trained
    path = broken(model, tmp_path / "broken.safetensors")
    commands = [["predict", path, data / "images", "--out", tmp_path / "o"]]
    commands += [["evaluate", path, data, "--out", tmp_path / "o"]]
    commands += [["info", path]] if broken is not of_other_weights else []
    for words in commands:
        result = run(*words)
        assert result.code == 2, words
        assert result.error.startswith(str(path))
        assert result.out == ""
        assert not (tmp_path / "o" / "predictions.csv").exists()


def test_a_device_that_is_not_there_is_one_line(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    result = run(
        "predict", model, data / "images", "--out", tmp_path / "o", "--device", "no-such-device"
    )
    assert result.code == 2
    assert "--device no-such-device" in result.error


# evaluate and info


def test_evaluate_prints_figures_and_warns_about_training_cases(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    result = run("evaluate", model, data, "--out", tmp_path, "--json", "--split", "all")
    assert result.code == 0
    figures = json.loads(result.out)
    assert figures == json.loads((tmp_path / "summary.json").read_text())
    assert (figures["split"], figures["n"], figures["n_failed"]) == ("all", 6, 0)
    assert "all 6 cases were used to train or choose this model" in result.err
    table = run("evaluate", model, data, "--out", tmp_path, "--split", "all").out
    assert f"{figures['miou']:.4f}" in table
    assert "class_2" in table


def test_evaluate_goes_on_after_a_bad_case(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    spoilt = shutil.copytree(data, tmp_path / "data")
    damaged(spoilt)
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(spoilt / "masks" / "case4.png")
    result = run("evaluate", model, spoilt, "--out", tmp_path / "o", "--json")
    assert result.code == 1
    assert json.loads(result.out)["n_failed"] == 2
    assert str(spoilt / "images" / "case2.png") in result.err
    assert f"{spoilt / 'masks' / 'case4.png'}: mask value 9 is outside" in result.err
    status = {r["case"]: r["status"] for r in rows(tmp_path / "o" / "cases.csv")}
    bad = (2, 4)
    assert status == {f"case{n}": "failed" if n in bad else "review" for n in range(6)}


@pytest.mark.parametrize("spoil", [no_mask, emptied, without_files, gone])
def test_data_that_can_not_be_evaluated_is_one_line(trained, spoil, tmp_path: Path) -> None:
    model, data, _ = trained
    said = spoil(shutil.copytree(data, tmp_path / "data"))
    result = run("evaluate", model, tmp_path / "data", "--out", tmp_path / "o")
    assert result.code == 2
    assert result.error.startswith(said)
    assert not (tmp_path / "o" / "summary.json").exists()


def test_a_split_that_is_not_there_is_one_line(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    result = run("evaluate", model, data, "--out", tmp_path / "o", "--split", "test")
    assert result.code == 2
    assert "no case is in the split test" in result.error


def test_info_tells_what_the_model_is(trained, tmp_path: Path) -> None:
    model, data, _ = trained
    text = run("info", model).out
    for word in ("unet", "resnet18", "class_2 (mask value 2)", str(data), "5 train, 1 val"):
        assert word in text
    record = json.loads(run("info", model, "--json").out)
    run("predict", model, data / "images", "--out", tmp_path)
    (key,) = {r["model"] for r in rows(tmp_path / "predictions.csv")}
    assert f"{key.partition('-')[0]}-" in text
    assert [c["name"] for c in record["classes"]] == ["background", "class_1", "class_2"]
    assert max(len(line) for line in text.splitlines()) > 100  # never cut to a width
    assert "measured on" not in text
    record["metrics"]["every"] = 3
    assert "1 in 3 of its slices" in info_text(ModelInfo.model_validate(record), model)
