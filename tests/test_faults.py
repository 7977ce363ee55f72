"""System calls that fail while train and predict write (see faults.py), and whether faults.py would
see it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fault_checks import READERS, badly_said, unreadable
from fault_runs import Ended, Fault, build, start
from faults import KINDS, chosen, places, write_scans

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    try:
        if sys.platform != "linux":
            raise FileNotFoundError("LD_PRELOAD and /proc are Linux's")
        return build(tmp_path_factory.mktemp("shim"))
    except FileNotFoundError as error:
        if os.environ.get("SEGAPP_REQUIRE_FAULTS") == "1":
            raise
        pytest.skip(str(error))


# Less than a minute each on an idle machine; all calls of train take an hour (see faults.py).
@pytest.mark.slow
@pytest.mark.parametrize(("command", "most"), [("train", 8), ("predict", 16)])
def test_a_write_that_fails_spoils_nothing(shim, command, most):
    done = start([command, str(most)], shim, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the shim ------------------------------------------------------------------------------------

ARMED = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, "tests")
from fault_runs import load
folder, nth, error, lasting = json.loads(sys.argv[1])
shim, said = load(), {}
os.chdir(folder)

def attempt(name, act):
    try:
        said[name] = act()
    except OSError as failed:
        said[name] = failed.errno

shim.fault_arm(os.fsencode(folder), nth, error, lasting)
file = os.open("a.part", os.O_CREAT | os.O_WRONLY)
attempt("first", lambda: os.write(file, b"12345678"))
attempt("second", lambda: os.write(file, b"12345678"))
attempt("flush", lambda: os.fsync(file))
attempt("rename", lambda: os.replace("a.part", Path(folder) / "a"))
attempt("folder", lambda: os.mkdir("b"))
attempt("elsewhere", lambda: Path(folder + "-not", "c").write_text("1"))
print(json.dumps([said, shim.fault_count(), shim.fault_log().decode()]))
"""


def armed(shim, folder, nth, error, lasting=False):
    """What came of each call, and the calls that were counted: open, write, write, fsync, rename,
    mkdir."""
    for place in (folder, Path(f"{folder}-not")):
        place.mkdir()
    words = [sys.executable, "-c", ARMED, json.dumps([str(folder), nth, error, lasting])]
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    printed = subprocess.run(words, check=True, capture_output=True, env=environment, cwd=ROOT)
    said, count, log = json.loads(printed.stdout)
    assert [line.partition(" ")[0].removesuffix("64") for line in log.splitlines()] == [
        *("open", "write", "write", "fsync", "rename", "mkdir")
    ]
    assert count == 6
    return said


GOOD = {"first": 8, "second": 8, "flush": None, "rename": None, "folder": None, "elsewhere": 1}


def test_the_shim_counts(shim, tmp_path):
    assert armed(shim, tmp_path / "f", 0, 0) == GOOD


@pytest.mark.parametrize(
    ("nth", "failed"), [(2, "first"), (3, "second"), (4, "flush"), (5, "rename"), (6, "folder")]
)
def test_one_call_fails(shim, tmp_path, nth, failed):
    assert armed(shim, tmp_path / "f", nth, errno.EIO) == {**GOOD, failed: errno.EIO}


def test_all_calls_fail_from_one_on(shim, tmp_path):
    after = dict.fromkeys(("second", "flush", "rename", "folder"), errno.EIO)
    assert armed(shim, tmp_path / "f", 3, errno.EIO, True) == {**GOOD, **after}


def test_a_disk_gets_full_within_a_write(shim, tmp_path):
    said = armed(shim, tmp_path / "f", 2, errno.ENOSPC)
    assert said == {**GOOD, "first": 4, "second": errno.ENOSPC}
    assert (tmp_path / "f" / "a").read_bytes() == b"1234"


# -- what faults.py sees ---------------------------------------------------------------------------


def write_each_kind(folder):
    from safetensors.numpy import save_file

    write_scans(folder)
    save_file({"a": np.zeros(100)}, folder / "a.safetensors")
    texts = {"csv": "a,b\n1,2\n", "json": '{"a": 1}', "jsonl": '{"a": 1}\n', "yaml": "a: {b: 1}"}
    texts["html"] = "<html></html>\n"
    for suffix, text in texts.items():
        (folder / f"a.{suffix}").write_text(text)
    return sorted(folder.iterdir())


def test_whole_files_are_readable_and_cut_ones_are_not(tmp_path):
    files = write_each_kind(tmp_path / "f")
    assert {"".join(p.suffixes) for p in files} == set(READERS) - {".nii"}
    assert list(unreadable(tmp_path)) == []
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        assert [what.partition(":")[0] for what in unreadable(tmp_path)] == [f"f/{path.name}"]
        path.write_bytes(content)
    (tmp_path / "f" / ".tmp4Gew").touch()
    assert list(unreadable(tmp_path)) == ["f/.tmp4Gew: is left over"]


@pytest.mark.parametrize(
    ("code", "stderr", "wrong"),
    [
        (2, "epoch 1\nsegapp: run/a.csv: can't be written (Input/output error)\n", 0),
        (2, "segapp: run: can't be written (Input/output error); go on\n", 0),
        (2, "segapp: can't be written (Input/output error); go on with --resume run\n", 1),
        (2, "segapp: run/a.csv: can't be written\n", 1),
        (2, "OSError: run/a.csv: Input/output error\n", 1),
        (2, "Traceback (most recent call last):\n  …\nsegapp: run: Input/output error\n", 1),
        (0, "error: curves.png could not be made\n", 0),
        (0, "Exception ignored in: …\nTraceback (most recent call last):\n", 1),
    ],
)
def test_what_a_failed_command_says_is_judged(code, stderr, wrong):
    said = badly_said(Ended(code, "", stderr, []), Fault(1, errno.EIO, False), "run")
    assert len(list(said)) == wrong


CALLS = ["write /x/clean/run/.partial-1a.png", "write /x/clean/run/.partial-2b.png"]
CALLS += ["fsync /x/clean/run", "open64 /x/clean/run/.tmpAbC"]


def test_places_and_samples():
    assert places(CALLS) == [
        ("write ./run/.partial-….png", [1, 2]),
        ("fsync ./run", [3]),
        ("open64 ./run/(temporary)", [4]),
    ]
    assert len(chosen(CALLS, None)) == len(set(chosen(CALLS, None))) == 4 * len(KINDS)
    assert [fault.nth for fault in chosen(CALLS, 2)] == [1, 4]
    assert [fault.nth for fault in chosen(CALLS, 9)] == [1, 3, 4]
