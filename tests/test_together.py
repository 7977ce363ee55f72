"""Several processes that train and measure together: what one process alone would give."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import write_png_dataset

from segapp.assemble import _refuse_unequal_shares
from segapp.boundary import Boundary
from segapp.cases import find_cases
from segapp.checkpoint import read_weights
from segapp.config import load_settings
from segapp.errors import ConfigError
from segapp.exchange import gather, gather_facts
from segapp.figures import CaseResult, Evaluation
from segapp.launch import open_together
from segapp.losses import IGNORE, make_loss
from segapp.plan import make_plan
from segapp.ranks import Ranks, refuse_several, this_process
from segapp.report.scans import ScanFacts
from segapp.scan import Assessment, SegClass
from segapp.settings import LossSettings
from segapp.together import ALONE, Together, joined, launch_name, lost, restarted

ROOT = Path(__file__).parent.parent
QUICK = (
    "model.encoder=resnet18",
    "model.encoder_weights=none",
    "optim.patch=64",
    "optim.batch_size=4",
    "train.precision=fp32",
    "train.steps_per_epoch=3",
)


# -- which process this is -----------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher; none are left from elsewhere."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)

    def launch(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


def test_one_process_without_a_launcher(launched):
    launched(SLURM_PROCID="3", SLURM_NTASKS="4")  # a batch script has these too
    assert this_process() == Ranks(0, 1, 0, 1)


def test_what_a_launcher_says(launched):
    launched(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    assert this_process() == Ranks(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two', expected a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "ranks go from 0"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "ranks go from 0"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "ranks go from 0"),
    ],
)
def test_variables_that_make_no_sense(launched, variables, said):
    launched(**variables)
    with pytest.raises(ConfigError, match=said):
        this_process()


def test_each_name_is_one_processs_whatever_else_there_is():
    names = [f"patient{n}/scan.nii.gz" for n in range(3000)] + ["caf\udce9"]
    takers = [[r for r in range(3) if Ranks(r, 3).takes(name)] for name in names]
    assert all(len(of_name) == 1 for of_name in takers)
    shares = np.bincount([of_name[0] for of_name in takers])
    assert shares.min() > 900
    assert Ranks().takes("anything")
    # a stopped batch may go on with a later version: SHA-256 of d begins with 18ac3e7343f01689
    assert [name for name in "abcde" if Ranks(0x89 % 4, 4).takes(name)] == ["d"]


def test_what_one_process_does_is_refused_to_several(launched):
    refuse_several("prune")
    launched(RANK="1", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="segapp prune works in one process"):
        refuse_several("prune")


def test_where_to_meet_must_be_known(launched):
    launched(RANK="1", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.* not set.*torchrun"), joined():
        pass


# -- the loss of a batch in shares ---------------------------------------------------------------

LOSSES = [
    LossSettings(name="dice_ce", label_smoothing=0.1),
    LossSettings(name="ce", class_weights=[0.5, 1.0, 3.0]),
    LossSettings(name="focal_ce", class_weights=[0.5, 1.0, 3.0], label_smoothing=0.2),
    LossSettings(name="tversky_ce", tversky_beta=0.7),
]


@pytest.mark.parametrize("settings", LOSSES, ids=lambda s: s.name)
def test_shares_have_the_loss_and_together_the_slope_of_the_batch(settings):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(4, 3, 5, 6)), requires_grad=True)
    target = torch.tensor(rng.choice([0, 1, 2, IGNORE], size=(4, 5, 6)))
    target[1:][target[1:] == 2] = 0  # only the first share holds class 2
    whole = make_loss(settings, 3)(logits, target)
    whole.backward()
    slope, logits.grad = logits.grad, None

    sums = []
    for part in (slice(0, 1), slice(1, 4)):  # what each process would tell the others

        def note(own):
            sums.append(own.detach())
            return own

        make_loss(settings, 3, note)(logits[part], target[part])
    for part in (slice(0, 1), slice(1, 4)):

        def total(own):  # the sum's value, with the own part's slope
            return own + (sum(sums) - own.detach())

        value = make_loss(settings, 3, total)(logits[part], target[part])
        assert value.item() == pytest.approx(whole.item(), rel=1e-12)
        value.backward()
    assert torch.allclose(logits.grad, slope, rtol=1e-10, atol=1e-14)


def test_unequal_shares_are_refused():
    settings = load_settings(None, ["data.root=x", "optim.batch_size=8"])
    for count in (1, 2, 4, 8):
        _refuse_unequal_shares(settings, count)
    with pytest.raises(ConfigError, match=r"batch_size is 8, which 3 processes .* set it to 9"):
        _refuse_unequal_shares(settings, 3)
    settings.augment.mixup_p = 0.5  # needs a partner in the same process
    _refuse_unequal_shares(settings, 4)
    with pytest.raises(ConfigError, match=r"two images or more .* set it to 16"):
        _refuse_unequal_shares(settings, 8)


def test_a_batch_size_of_its_own_is_one_that_can_be_shared(launched, png_dataset):
    settings = load_settings(None, [f"data.root={png_dataset}"])
    launched(RANK="0", WORLD_SIZE="3")
    assert make_plan(settings).settings.optim.batch_size == 9
    launched(WORLD_SIZE="6")
    assert make_plan(settings).settings.optim.batch_size == 12


# -- what processes tell each other --------------------------------------------------------------


class Two:
    """Two processes of a test: what each tells is told to both."""

    first = True

    def __init__(self):
        self.told = []

    def texts(self, own):
        self.told.append(own)
        return self.told


def test_results_arrive_to_the_last_bit(png_dataset):
    cases = find_cases(png_dataset).cases[:3]
    classes = (SegClass("a", 0, (0, 0, 0)), SegClass("b", 1, (1, 1, 1)))
    judged = Assessment(0.1 + 0.2, None, ("odd",), (None, (1.5, 2 / 3)), 0.9)
    full = CaseResult(
        *(cases[0], np.array([[5, 1], [0, 2**40]]), "", ("one", "caf\udce9")),
        boundary=(Boundary(np.nan, np.nan, np.nan), Boundary(1 / 3, 0.0, 1.0)),
        distance_unit="mm",
        voxel=0.1,
        size_unit="ml",
        soft=np.array([[1 / 3, 0], [1e-300, 7], [0, 0.1]]),
        assessment=judged,
        ignored=3,
        nll=1 / 7,
        counted=2**33,
    )
    others = [CaseResult(c, np.zeros((2, 2), np.int64), "why") for c in cases[1:]]
    two = Two()
    gather(Evaluation(classes, [full, others[1]]), cases, two)
    whole = gather(Evaluation(classes, [others[0]], tolerance=2.0), cases, two)
    assert repr(whole.cases) == repr([full, *others])
    assert whole.cases[0].matrix.dtype == np.int64
    assert (whole.nll, whole.counted, whole.tolerance) == (1 / 7, 2**33, 2.0)
    alone = Evaluation(classes, [full, *others])
    assert gather(alone, cases, ALONE) is alone


def test_facts_about_scans_arrive():
    one = {"a": ScanFacts((4, 5, 6), (0.1, 1 / 3, 2.0), "int16", ((1.0, 2.5), (0.0, 3.0)))}
    other = {"b": ScanFacts((4, 5, 1), None, "uint8", ((0.0, 255.0),))}
    two = Two()
    gather_facts(one, two)
    assert gather_facts(other, two) == one | other


def test_one_process_needs_nobody():
    assert ALONE.texts("x") == ["x"]
    assert ALONE.most(True, False) == (True, False)
    assert ALONE.of_first(2.5, 3) == (2.5, 3)
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    values = torch.ones(2)
    assert ALONE.total(values) is values
    ALONE.require_same("x", "y")
    ALONE.wait()
    shares = [Together(Ranks(n, 3)).share(list(range(7))) for n in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_lost_process_is_named_with_what_to_do():
    said = str(lost(RuntimeError("Connection closed by peer [127.0.0.1]:4711\nframe #0: x")))
    assert "Connection closed by peer [127.0.0.1]:4711" in said
    assert "--resume" in said
    assert "frame" not in said


# -- a launch that starts its processes anew -----------------------------------------------------


class Several(Together):
    """The first of several, the others of which agree."""

    def of_first(self, *numbers):
        return numbers

    def require_same(self, what, own):
        pass


def test_only_the_run_that_this_launch_began_goes_on(launched, png_dataset, tmp_path, monkeypatch):
    first = Several(Ranks(0, 2))

    def settings(*words):
        words = [f"data.root={png_dataset}", f"train.out={tmp_path / 'run'}", *words]
        return load_settings(None, words)

    def started_by(launch, count):
        launched(TORCHELASTIC_RUN_ID="night", TORCHELASTIC_RESTART_COUNT=count)
        monkeypatch.setattr("segapp.launch.launch_name", lambda: launch)

    with pytest.raises(ConfigError, match="folds are trained by one process each"):
        open_together(settings("train.folds=3"), False, first)
    assert not (tmp_path / "run").exists()
    started_by("one", "0")
    assert not restarted()
    assert open_together(settings(), False, first).fresh
    assert (tmp_path / "run" / ".launch").read_text() == "one"
    with pytest.raises(ConfigError, match="not empty"):  # it is no restart
        open_together(settings(), False, first)
    started_by("one", "1")
    assert restarted()
    assert open_together(settings(), False, first).fresh  # it had not begun yet
    (tmp_path / "run" / "config.yaml").write_text(settings().to_yaml())
    assert not open_together(settings(), False, first).fresh
    started_by("another of the same name", "1")
    with pytest.raises(ConfigError, match="not empty"):
        open_together(settings(), False, first)
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="not empty"):
        open_together(settings(), False, first)
    started_by("one", "1")
    assert open_together(settings(), False, first) is None  # a process was lost at the very end


def test_a_launch_is_called_by_the_process_that_started_it(launched):
    launched(TORCHELASTIC_RUN_ID="night")  # users may give one name to several
    assert f"-{os.getppid()}-" in launch_name()
    assert launch_name() == launch_name()


# -- two processes on two addresses --------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(*words, cwd, nodes=1, restarts=0):
    """Two processes: both of one launcher, or of two with an address and a processor each, as on
    two machines. The launchers."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "GLOO_SOCKET_IFNAME": "lo"}
    port = str(free_port())
    launchers, cores = [], sorted(os.sched_getaffinity(0))
    for node in range(nodes):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
        command += ["--nproc-per-node", str(2 // nodes), "--node-rank", str(node)]
        command += ["--master-addr", "127.0.0.1", "--master-port", port]
        command += ["--local-addr", f"127.0.0.{node + 1}", "--max-restarts", str(restarts)]
        log = (cwd / f"launcher{node}.txt").open("w")
        launchers.append(
            subprocess.Popen([*command, *words], cwd=cwd, env=env, stdout=log, stderr=log)
        )
        own = cores[node::nodes] or cores
        os.sched_setaffinity(launchers[-1].pid, own)
    return launchers


def ended(launchers):
    """Their exit codes; those of a test that fails must not outlive it."""
    try:
        return [launcher.wait(500) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()  # ends its processes too


def finish(launchers, cwd):
    codes = ended(launchers)
    said = "\n".join(path.read_text() for path in sorted(cwd.glob("launcher*.txt")))
    assert set(codes) == {0}, said
    return said


def segapp(*words, cwd):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "segapp.cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


SMALL = tuple(word for word in QUICK if not word.startswith("optim.batch_size"))
STEPS = {  # float64 is slow; mixing takes two slices a process
    "dice": ("optim.batch_size=2", "optim.accumulate=2", "data.ignore=2"),
    "tversky, encoder frozen": ("optim.batch_size=2", "loss.name=tversky_ce", "frozen"),
    "focal, mixup": (
        *("optim.batch_size=4", "loss.name=focal_ce", "loss.label_smoothing=0.1"),
        *("augment.mixup_p=0.5", "model.full_resolution=false"),
    ),
}


@pytest.fixture(scope="module")
def fifty_steps(tmp_path_factory):
    """By case the losses and the weights' norm of one process, and of two."""
    root = tmp_path_factory.mktemp("steps")
    data = write_png_dataset(root / "data", 9)
    cases = json.dumps({name: [*SMALL, *words] for name, words in STEPS.items()})
    words = (str(ROOT / "tests" / "rank_steps.py"), str(data), str(root), cases)
    finish(torchrun(*words, cwd=root, nodes=2), root)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    subprocess.run([sys.executable, *words], cwd=root, env=env, check=True)
    told = [json.loads((root / f"losses-{n}.json").read_text()) for n in (1, 2)]
    return {case: [of[case] for of in told] for case in STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("case", STEPS)
def test_fifty_steps_have_the_losses_of_one_process(fifty_steps, case):
    (alone, alone_norm), (shared, shared_norm) = fifty_steps[case]
    losses = np.array([alone, shared])
    assert losses.shape == (2, 50)
    if "mixup" in case:  # mixed within each process's share: close, not equal
        assert losses[:, -1].max() < losses[:, 0].min()
        return
    assert losses[0, -1] < 0.5 * losses[0, 0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert shared_norm == pytest.approx(alone_norm, rel=1e-6)


@pytest.mark.slow
def test_trained_and_measured_by_two_a_rank_killed_in_the_middle(tmp_path):
    data = write_png_dataset(tmp_path / "data", 12)
    words = ("-m", "segapp.cli", "train", f"data.root={data}", *QUICK, "train.save_minutes=0")
    words += ("train.epochs=4", "model.dropout=0.1")
    finish(torchrun(*words, "train.out=whole", cwd=tmp_path), tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"

    launchers = torchrun(*words, "train.out=run", cwd=tmp_path, restarts=1)
    until = time.monotonic() + 240
    while not list(run.glob("last/step-00000000[4-9].safetensors")):
        assert time.monotonic() < until
        assert launchers[0].poll() is None
        time.sleep(0.05)
    (second,) = [
        p for p in psutil.Process(launchers[0].pid).children() if p.environ().get("RANK") == "1"
    ]
    second.kill()
    said = finish(launchers, tmp_path)
    assert "resuming" in said
    assert said.count("model: run/model.safetensors") == 1  # one speaks for both
    weights = [read_weights(folder) for folder in (whole, run)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (run / ".cache").exists()

    words = ("evaluate", str(run), str(data), "--split", "all", "--against", str(whole))
    segapp(*words, "--out", "alone", cwd=tmp_path)
    said = finish(
        torchrun("-m", "segapp.cli", *words, "--out", "two", cwd=tmp_path, nodes=2), tmp_path
    )
    assert said.count("each case:") == 1
    for name in ("summary.json", "cases.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (tmp_path / "two" / "report.html").is_file()


@pytest.mark.slow
def test_data_that_differ_are_told_and_a_lost_process_ends_the_others(tmp_path):
    for name in ("one", "two"):
        write_png_dataset(tmp_path / name, 6 if name == "one" else 7)
    code = f"""
import os, sys
from segapp.cli import main
root = ["one", "two"][int(os.environ["RANK"])] if sys.argv[1] == "differ" else "one"
if sys.argv[1] == "lose" and os.environ["RANK"] == "1":
    import segapp.launch
    segapp.launch.open_together = lambda *_: os._exit(9)
sys.argv = ["segapp", "train", f"data.root={{root}}", "train.out=run", *{QUICK!r}]
main()
"""
    (tmp_path / "script.py").write_text(code)
    for what, message in (
        ("differ", "the data, or a setting, of process 1 differs from that of process 0"),
        ("lose", "another process of this job ended or can't be reached"),
    ):
        launchers = torchrun(str(tmp_path / "script.py"), what, cwd=tmp_path, nodes=2)
        assert ended(launchers) == [1, 1]
        said = "\n".join(path.read_text() for path in sorted(tmp_path.glob("launcher*.txt")))
        assert message in said
        assert 'Traceback (most recent call last):\n  File "' + str(ROOT / "segapp") not in said
        assert not (tmp_path / "run" / "config.yaml").exists()
        assert not (tmp_path / "run").exists()
