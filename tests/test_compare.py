"""Comparisons: what the words mean, what is refused before the first run, what chance explains,
and that a comparison stops, fails and goes on run by run."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_png_dataset
from PIL import Image

from segapp import compare, trial
from segapp.errors import ConfigError, DataError, Interrupted
from segapp.machine import Signals
from segapp.report.comparison import LEGEND, summarise, table_text
from segapp.report.comparison_picture import draw, mean_curve
from segapp.settings import Settings
from segapp.variants import Comparison, read_comparison

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = ["train.epochs=1", "train.steps_per_epoch=1", "optim.batch_size=2", "optim.patch=64"]
TINY += ["model.encoder=resnet18", "model.encoder_weights=none", "data.workers=0"]


def read(
    *words: str, vary: tuple[str, ...] = (), seeds: int | None = None, text: str = "", tmp: Path
) -> Comparison:
    config = None
    if text:
        config = tmp / "my.yaml"
        config.write_text(text, encoding="utf-8")
    else:
        words = ("data.root=d", *words)
    return read_comparison(config, list(words), list(vary), seeds, tmp / "out")


def refused(*words: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        read(*words, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is compared


def test_runs_go_seed_by_seed_each_in_its_own_folder(tmp_path: Path) -> None:
    c = read("train.epochs=2", vary=("loss.name=ce,dice_ce",), seeds=2, tmp=tmp_path)
    assert list(c.runs) == [("ce", 0), ("dice_ce", 0), ("ce", 1), ("dice_ce", 1)]
    assert [s.loss.name for s in c.runs.values()] == ["ce", "dice_ce", "ce", "dice_ce"]
    assert [s.train.seed for s in c.runs.values()] == [0, 0, 1, 1]
    assert c.runs["dice_ce", 1].train.out == tmp_path / "out" / "runs" / "dice_ce-seed1"
    assert {(s.train.epochs, s.train.budget_minutes) for s in c.runs.values()} == {(2, None)}


@pytest.mark.parametrize(
    ("vary", "names"),
    [
        (("loss.name=ce,dice_ce",), ["ce", "dice_ce"]),
        (("model.tta=false,true",), ["tta=false", "tta=true"]),
        (("optim.max_lr=1e-3,2e-3",), ["max_lr=1e-3", "max_lr=2e-3"]),
        (
            ("loss.name=ce,dice_ce", "optim.ema=0,0.9"),
            ["name=ce ema=0", "name=ce ema=0.9", "name=dice_ce ema=0", "name=dice_ce ema=0.9"],
        ),
    ],
)
def test_variants_are_every_combination_named_after_its_values(
    vary: tuple[str, ...], names: list[str], tmp_path: Path
) -> None:
    assert list(read(vary=vary, tmp=tmp_path).variants) == names


FILE = """
compare:
  title: Losses
  seeds: 2
  variants:
    plain: {}
    both, smooth: {loss.name: dice_ce, loss.label_smoothing: 0.1}
    staged: {train.progressive: [0.5, 1]}
data: {root: d}
loss: {name: ce}
"""


def test_a_file_names_variants_and_the_first_is_the_baseline(tmp_path: Path) -> None:
    c = read(text=FILE, tmp=tmp_path)
    assert (c.title, c.seeds, list(c.variants)) == (
        "Losses",
        2,
        ["plain", "both, smooth", "staged"],
    )
    losses = [c.runs[name, 0].loss for name in c.variants]
    assert [(s.name, s.label_smoothing) for s in losses] == [("ce", 0), ("dice_ce", 0.1), ("ce", 0)]
    assert c.runs["staged", 1].train.progressive == [0.5, 1.0]
    assert c.runs["both, smooth", 1].train.out == tmp_path / "out/runs/both-smooth-seed1"


def test_the_command_line_replaces_what_the_file_varies(tmp_path: Path) -> None:
    c = read(text=FILE, vary=("optim.ema=0,0.9",), seeds=1, tmp=tmp_path)
    assert list(c.runs) == [("ema=0", 0), ("ema=0.9", 0)]
    assert c.runs["ema=0", 0].loss.name == "ce"


def test_the_definition_is_a_config_file_of_the_same_comparison(tmp_path: Path) -> None:
    text = FILE + "train: {budget_minutes: 3}\n"
    c = read("train.epochs=4", "data.classes=a,b", text=text, tmp=tmp_path)
    again = read(text=c.to_yaml(), tmp=tmp_path)
    assert again.runs == c.runs
    assert again.to_yaml() == c.to_yaml()
    assert c.runs["plain", 0].train.epochs == 4


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ((), "0 variants given, and comparing takes 2 or more"),
        (("loss.name=ce",), "1 variants given"),
        (("loss.name",), "--vary loss.name: expected KEY=V1,V2"),
        (("loss.name=ce,ce",), "the variant ce is given twice"),
        (("loss.name=ce,dice_ce", "loss.name=ce,focal_ce"), "--vary loss.name is given twice"),
        (("loss.name=ce,dicce",), "variant dicce: loss.name: got 'dicce'"),
        (("loss.nme=ce,dice_ce",), "variant ce: unknown key 'loss.nme'; did you mean loss.name?"),
        (("loss.focal_gamma=1,2",), "variant focal_gamma=1: loss.focal_gamma does nothing with"),
        (("train.seed=1,2",), "variant seed=1: train.seed is set by the comparison itself"),
        (("train.out=a,b",), "train.out is set by the comparison itself"),
        (("loss.weight=1,1.0",), "variants weight=1 and weight=1.0 have the same settings"),
        (("model.encoder=a/b,a:b",), "variants a/b and a:b would share a folder"),
        (("train.folds=3,4",), "variant folds=3: train.folds without train.fold"),
    ],
)
def test_a_wrong_variant_is_refused_by_name(
    vary: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    assert said in refused(vary=vary, tmp=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("sedes: 3", "compare.sedes: got 3: Extra inputs"),
        ("seeds: 0", "compare.seeds: got 0: "),
        ("vary: {loss.name: ce}", "compare.vary.loss.name: got 'ce': Input should be a valid list"),
        ("[1]", "compare: got [1]: "),
        (
            "vary: {loss.name: [ce, dice_ce]}, variants: {a: {}, b: {}}",
            "compare.vary and compare.variants exclude each other",
        ),
        ("variants: {a: {}, b: {loss.nme: ce}}", "variant b: unknown key 'loss.nme'"),
    ],
)
def test_a_wrong_section_is_refused_by_key(section: str, said: str, tmp_path: Path) -> None:
    section = section if section.startswith("[") else "{" + section + "}"
    assert said in refused(text=f"compare: {section}\ndata: {{root: d}}", tmp=tmp_path)


def test_words_for_all_runs_can_not_set_what_the_comparison_sets(tmp_path: Path) -> None:
    assert "use --seeds and --out" in refused(
        "train.seed=3", vary=("loss.name=ce,dice_ce",), tmp=tmp_path
    )


# What chance explains


def rows_of(**scores: list[float]) -> list[dict[str, Any]]:
    """A finished run for each score, its seed the place in the list."""
    keys = ("seconds_per_epoch", "images_per_second", "peak_memory_mb", "best_epoch", "epochs")
    return [
        {"variant": name, "seed": seed, "status": "ok", "val_miou": score, "test_miou": None}
        | {"train_miou": score + 0.1, "gap": 0.1, "reason": "", **dict.fromkeys(keys, 2)}
        for name, values in scores.items()
        for seed, score in enumerate(values)
    ]


def verdict(base: list[float], other: list[float]) -> tuple[float | None, float | None, str]:
    line = summarise(rows_of(base=base, other=other), ["base", "other"])[1]
    return line["difference"], line["difference_sd"], line["verdict"]


def test_a_difference_larger_than_every_spread_is_better_or_worse() -> None:
    # Differences 0.10, 0.11, 0.12; the base spreads by 0.01, the other by 0.
    assert verdict([0.52, 0.51, 0.50], [0.62] * 3) == (
        pytest.approx(0.11),
        pytest.approx(0.01),
        "better",
    )
    assert verdict([0.62] * 3, [0.52, 0.51, 0.50])[2] == "worse"


def test_a_difference_within_the_spread_of_the_pairs_says_nothing() -> None:
    # Differences +0.3 and -0.1: mean 0.1, sd 0.28.
    assert verdict([0.5, 0.5], [0.8, 0.4])[2] == "within the seeds' spread"


def test_equal_differences_within_the_spread_of_the_seeds_say_nothing() -> None:
    # Each pair differs by 0.02, but the seeds by 0.1.
    assert verdict([0.5, 0.6, 0.7], [0.52, 0.62, 0.72])[2] == "within the seeds' spread"


def test_one_seed_knows_no_spread() -> None:
    assert verdict([0.5], [0.9]) == (pytest.approx(0.4), None, "one seed: no spread known")
    # Only seed 0 is there twice, so only it makes a pair.
    assert verdict([0.5, 0.6], [0.9])[2] == "one seed: no spread known"
    assert verdict([0.5], []) == (None, None, "no pair of runs yet")


def test_runs_measured_on_other_cases_are_not_compared() -> None:
    rows = rows_of(base=[0.5, 0.5], other=[0.9, 0.9])
    for row in rows:
        row["measured_on"] = "these" if row["variant"] == "base" else "those"
    line = summarise(rows, ["base", "other"])[1]
    assert (line["difference"], line["verdict"]) == (None, "measured on other cases or classes")


@pytest.mark.parametrize(("seeds", "one_in"), [(2, 4), (3, 6), (5, 17)])
def test_the_legend_says_how_often_nothing_is_called_something(seeds: int, one_in: int) -> None:
    """Scores of variants that change nothing, drawn 2,000 times."""
    rng = np.random.default_rng(0)
    verdicts = [verdict(*rng.normal(0.7, 0.01, (2, seeds)).tolist())[2] for _ in range(2000)]
    called = sum(v in ("better", "worse") for v in verdicts) / len(verdicts)
    assert called == pytest.approx(1 / one_in, rel=0.2)
    assert f"1 in\n  {one_in} with {seeds}" in LEGEND or f"1 in {one_in}" in LEGEND


def test_a_line_has_mean_and_spread_and_counts_failures() -> None:
    rows = rows_of(base=[0.5, 0.7], other=[0.6])
    rows.append({"variant": "other", "seed": 1, "status": "failed", "reason": "no memory"})
    base, other = summarise(rows, ["base", "other"])
    assert base["val_miou"] == pytest.approx(0.6)
    assert base["val_miou_sd"] == pytest.approx(0.02**0.5)  # of 0.5 and 0.7, n - 1
    assert (base["verdict"], base["difference"]) == ("the baseline", None)
    assert (other["runs"], other["failed"], other["val_miou_sd"]) == (1, 1, None)
    text = table_text([base, other])
    assert "0.6000 ± 0.1414" in text
    assert "1 (1 failed)" in text
    assert "test mIoU" not in text  # no test split
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_mean_curve_covers_the_time_that_all_runs_have() -> None:
    times, scores = mean_curve([([0, 10], [0.0, 1.0]), ([5, 20], [0.5, 0.5])])  # type: ignore[misc]
    assert (times[0], times[-1]) == (5, 10)
    assert (scores[0], scores[-1]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert mean_curve([([1], [0.2]), ([3], [0.4])]) == ([2], [pytest.approx(0.3)])
    assert mean_curve([([], [])]) is None


@pytest.mark.pictures
@pytest.mark.parametrize("count", [2, 14])
def test_the_picture_is_drawn_with_and_without_finished_runs(count: int, tmp_path: Path) -> None:
    names = [f"variant {n}" for n in range(count)]
    todo = [{"variant": n, "seed": 0, "status": "to do", "reason": ""} for n in names]
    draw(todo, {}, names, tmp_path / "empty.png")
    rows = rows_of(**{n: [0.5 + i / 50, 0.6] for i, n in enumerate(names[:-1])}) + todo[-1:]
    curves = {n: [([1.0, 2.0], [0.1, 0.5])] for n in names[:-1]}
    draw(rows, curves, names, tmp_path / "full.png")
    heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("empty", "full")]
    assert heights[0] == heights[1] >= 33 * count


# The course of a comparison; the runs are made up


class Runner:
    """Stands for `trial.run_in_own_process`: writes what a run leaves, fails or is stopped."""

    def __init__(self, failing: str = "", stop_at: str = ""):
        self.failing, self.stop_at = failing, stop_at
        self.done: list[str] = []

    def __call__(self, settings: Settings, signals: Signals) -> str | None:
        run = settings.train.out
        assert run
        if run.name == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
            return None
        self.done.append(run.name)
        if run.name == self.failing:
            return "out of memory with batches of 8"
        run.mkdir(parents=True)
        score = 0.5 + 0.1 * (settings.loss.name == "dice_ce") + 0.01 * settings.train.seed
        result = {"val": {"miou": score}, "train": {"miou": 0.75}, "wall_seconds": 30.0}
        (run / "comparison.json").write_text(json.dumps(result))
        figures = {"best_epoch": 2, "epochs": 3, "seconds": 9.0, "starting_weights": "none"}
        (run / "metrics.json").write_text(json.dumps(figures))
        history = ["epoch,val_miou,seconds,images_per_second,peak_memory_mb", "1,0.2,2,50,900"]
        history += ["2,,3,60,1000", "3,0.4,7,70,1000"]
        (run / "history.csv").write_text("\n".join(history) + "\n")
        return ""


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    data = write_png_dataset(tmp_path / "data")
    vary = ("loss.name=ce,dice_ce,focal_ce",)
    return read(f"data.root={data}", "train.budget_minutes=2", vary=vary, seeds=2, tmp=tmp_path)


def use(monkeypatch: pytest.MonkeyPatch, **options: str) -> Runner:
    runner = Runner(**options)
    monkeypatch.setattr(compare, "run_in_own_process", runner)
    return runner


@pytest.mark.pictures
def test_a_comparison_writes_table_rows_and_picture(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, out = use(monkeypatch), tmp_path / "out"
    result = compare.run_comparison(comparison, out)
    assert runner.done == [f"{v}-seed{s}" for s in (0, 1) for v in ("ce", "dice_ce", "focal_ce")]
    assert result["n_failed"] == 0
    with (out / "comparison.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[1]
    assert (row["variant"], row["seed"], row["status"]) == ("dice_ce", "0", "ok")
    figures = {k: float(row[k]) for k in ("val_miou", "train_miou", "gap", "best_epoch")}
    assert figures == pytest.approx(
        {"val_miou": 0.6, "train_miou": 0.75, "gap": 0.15, "best_epoch": 2}
    )
    assert row["seconds_per_epoch"] == "3"  # the median of 2, 3 and 7
    assert (row["images_per_second"], row["peak_memory_mb"]) == ("60", "1000")
    page = (out / "comparison.md").read_text()
    assert table_text(result["variants"]) in page
    assert "2 minutes of training for each; 2 seeds a variant" in page
    assert "- dice_ce: `loss.name=dice_ce`" in page
    assert "still to do" not in page
    assert Image.open(out / "comparison.png").size[0] > 1000
    json.dumps(result)


def test_the_val_curve_runs_over_the_seconds_and_skips_epochs_without_validation(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch)
    compare.run_comparison(comparison, tmp_path / "out")
    _, curve = trial.run_figures(comparison.runs["ce", 0])
    assert curve == ([2.0, 12.0], [0.2, 0.4])


def test_a_failed_run_is_told_the_others_go_on_and_the_next_call_tries_it_again(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, out = use(monkeypatch, failing="dice_ce-seed0"), tmp_path / "out"
    result = compare.run_comparison(comparison, out)
    assert len(runner.done) == 6
    assert result["n_failed"] == 1
    assert result["variants"][1]["failed"] == 1
    page = (out / "comparison.md").read_text()
    assert "- dice_ce, seed 0: out of memory with batches of 8" in page
    again = use(monkeypatch)
    assert compare.run_comparison(comparison, out)["n_failed"] == 0
    assert again.done == ["dice_ce-seed0"]
    assert "Failed runs" not in (out / "comparison.md").read_text()


def test_a_stopped_comparison_keeps_its_table_and_goes_on_with_the_runs_that_are_left(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, out = use(monkeypatch, stop_at="ce-seed1"), tmp_path / "out"
    with pytest.raises(Interrupted) as stopped:
        compare.run_comparison(comparison, out)
    assert f"segapp compare {out / 'comparison.yaml'} --out {out}" in str(stopped.value)
    assert len(runner.done) == 3
    assert "3 of 6 runs are still to do" in (out / "comparison.md").read_text()
    again = use(monkeypatch)
    compare.run_comparison(read_comparison(out / "comparison.yaml", [], [], None, out), out)
    assert again.done == ["ce-seed1", "dice_ce-seed1", "focal_ce-seed1"]
    last = use(monkeypatch)
    compare.run_comparison(comparison, out)
    assert last.done == []


def test_another_comparison_in_the_same_place_is_refused_but_more_seeds_are_not(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch)
    out = tmp_path / "out"
    compare.run_comparison(comparison, out)
    words = [f"data.root={tmp_path / 'data'}", "train.budget_minutes=2"]
    vary = ["loss.name=ce,dice_ce,focal_ce"]
    for other in (
        read_comparison(None, words, ["loss.name=ce,dice_ce"], 2, out),
        read_comparison(None, [*words, "optim.ema=0.9"], vary, 2, out),
        read_comparison(None, words, vary, 1, out),
    ):
        with pytest.raises(ConfigError, match="holds a different comparison"):
            compare.run_comparison(other, out)
    more = use(monkeypatch)
    compare.run_comparison(read_comparison(None, words, vary, 3, out), out)
    assert more.done == ["ce-seed2", "dice_ce-seed2", "focal_ce-seed2"]


def test_a_folder_with_something_else_in_it_is_left_alone(
    comparison: Comparison, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no comparison"):
        compare.run_comparison(comparison, out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_faults_of_the_data_are_found_before_the_first_run(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = use(monkeypatch)
    (tmp_path / "data" / "masks" / "case2.png").unlink()
    with pytest.raises(DataError, match=r"^variant ce: .*case2\.png: its mask is missing"):
        compare.run_comparison(comparison, tmp_path / "out")
    assert runner.done == []
    assert not (tmp_path / "out").exists()


def test_what_one_variant_makes_of_the_data_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, runner = write_png_dataset(tmp_path / "data"), use(monkeypatch)
    text = (
        "compare: {variants: {plain: {}, weighted: {loss.class_weights: [1, 2]}}}\n"
        f"data: {{root: {data}}}"
    )
    with pytest.raises(ConfigError, match=r"^variant weighted: loss.class_weights: got 2 numbers"):
        compare.run_comparison(read(text=text, tmp=tmp_path), tmp_path / "out")
    assert runner.done == []


# Runs as processes


def killed(settings_text: str, failure: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashing(settings_text: str, failure: str) -> None:
    os._exit(3)


def refusing(settings_text: str, failure: str) -> None:
    Path(failure).parent.mkdir(parents=True, exist_ok=True)
    Path(failure).write_text(f"seed {yaml.safe_load(settings_text)['train']['seed']}: no\n")
    os._exit(1)


def waiting(settings_text: str, failure: str) -> None:
    """Ends by SIGTERM alone."""
    time.sleep(60)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (killed, "the run ended by signal 9; out of memory?"),
        (crashing, "the run ended by exit code 3; a bug of segapp"),
        (refusing, "seed 0: no"),
    ],
)
def test_a_run_that_dies_is_told_in_a_line(
    target: Any, said: str, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_run_child", target)
    told = trial.run_in_own_process(comparison.runs["ce", 0], Signals())
    assert told is not None
    assert told.startswith(said)
    assert "\n" not in told


def test_sigterm_is_handed_on_to_the_run(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_run_child", waiting)
    began = time.monotonic()
    assert trial.run_in_own_process(comparison.runs["ce", 0], Signals(stop=True)) is None
    assert time.monotonic() - began < 30


def test_a_run_is_trained_measured_and_measured_again_if_only_that_is_missing(
    tmp_path: Path,
) -> None:
    import torch

    torch.set_num_threads(1)
    data = write_png_dataset(tmp_path / "data", count=7)
    words = [f"data.root={data}", *TINY]
    c = read_comparison(None, words, ["loss.name=ce,dice_ce"], 1, tmp_path / "out")
    settings = c.runs["ce", 0]
    run = tmp_path / "out" / "runs" / "ce-seed0"
    trial.train_and_measure(settings.model_copy(deep=True))
    result = json.loads((run / "comparison.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(result) == {"seed", "measured_on", "val", "train", "wall_seconds"}  # no test split
    assert 0 < result["train"]["n"] <= result["val"]["n"]
    assert result["val"]["miou"] == pytest.approx(metrics["val"]["miou"], abs=0.02)  # bf16 there
    row, curve = trial.run_figures(settings)
    assert row["epochs"] == len(curve[0]) == 1
    written = (run / "model.safetensors").stat().st_mtime_ns
    (run / "comparison.json").unlink()
    trial.train_and_measure(settings)
    again = json.loads((run / "comparison.json").read_text())
    assert again["val"] == result["val"]
    assert again["train"] == result["train"]
    assert (run / "model.safetensors").stat().st_mtime_ns == written
