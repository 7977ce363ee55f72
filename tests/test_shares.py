"""A batch that several processes share: the same results as of one, whatever is killed."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import yaml
from PIL import Image
from test_batch import EDITED, files, run, save_png
from test_predict import brightness
from web import untrained_model

from segapp import ahead, batch, locks, shares
from segapp.batch import list_inputs, predict_batch
from segapp.cli import main
from segapp.errors import OutputError
from segapp.formats import Entry
from segapp.merging import merge_parts
from segapp.naming import Job, job_of, line_of, name_jobs, resolver
from segapp.outcomes import Outcome, Part
from segapp.ranks import Ranks
from segapp.rows import part_rows, read_rows
from segapp.shares import Listed, Seat, read_jobs, take_seat

REPOSITORY = Path(__file__).parents[1]
HEADER = "file,output,status,reason,seconds,mean_confidence,warnings,model,scan_sha256,"
HEADER += "output_sha256\r\n"


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch, tmp_path):
    """Shares do not depend on the folder that a test is given, so that none ever gets too few."""
    takes = Ranks.takes
    here = f"{tmp_path}{os.sep}"
    monkeypatch.setattr(Ranks, "takes", lambda self, name: takes(self, name.removeprefix(here)))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(shares, "_BEAT_S", 0.05)
    monkeypatch.setattr(shares, "_GRACE_S", 1.0)
    monkeypatch.setattr(shares, "PATIENCE_S", 30.0)
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.2)


@pytest.fixture
def scans(tmp_path):
    """24 scans, one of them bad, two of one name."""
    folder = tmp_path / "in"
    for n in range(22):
        save_png(folder / f"s{n % 3}" / f"{n:02}.png", n)
    save_png(folder / "s0" / "00.bmp", 50)
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def share(rank, count, inputs, out, stop_after=10**9, pause=0.0, gate=None, **options):
    """What a process of a shared batch does; it kills itself after so many scans, when `gate` is
    there."""
    left = stop_after

    def on_outcome(_):
        nonlocal left
        left -= 1
        time.sleep(pause)
        if left <= 0:
            wait_for(lambda: gate is None or gate.exists())
            os.kill(os.getpid(), signal.SIGKILL)

    with take_seat(out, Ranks(rank, count), inputs) as seat:
        entries = list_inputs(inputs, exclude=out) if rank == 0 else []
        return predict_batch(
            brightness(), entries, out, on_outcome=on_outcome, seat=seat, **options
        )


def start(*args, **options):
    """`share` in a process of its own: its id."""
    child = os.fork()
    if child:
        return child
    try:
        share(*args, **options)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(2)


def ended(*children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def rows_of(out, also=()):
    """The lines of its table without what differs: the time, the folder."""
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        text = file.read().replace(f"{out}{os.sep}", "")
    rows = list(csv.DictReader(text.splitlines()))
    return [{k: v for k, v in row.items() if k not in ("seconds", *also)} for row in rows]


def assert_same(out, other):
    assert files(out) == files(other), "nothing is left over, nothing is missing"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in other.iterdir())
    for name in files(other):
        if name != "predictions.csv":
            assert (out / name).read_bytes() == (other / name).read_bytes(), name
    assert rows_of(out) == rows_of(other)


def times(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}


def killed(count, inputs, out, stop_after, **options):
    """A batch of which each process is killed after so many scans."""
    gate = out.with_name("gate")
    first = start(0, count, inputs, out, stop_after, gate=gate, **options)
    others = [start(rank, count, inputs, out, stop_after, **options) for rank in range(1, count)]
    assert set(ended(*others)) == {-signal.SIGKILL}
    gate.touch()
    assert ended(first) == [-signal.SIGKILL]


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# -- the list and the parts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        Job(3, Entry("a/b", (Path("x/a/b.png"),)), Path("out/a/b.png")),
        Job(3, Entry("s", (Path("s/1"), Path("s/2")), Path("s"), ("a doubt",)), Path("o/s.nii.gz")),
        Job(3, Entry("a", (Path("a.png"),)), Path("o/a_2.png"), Path("o/a_2_o.png"), ("taken",)),
        Job(3, Entry("n", (Path("n.txt"),)), reason="no\nscan"),
        Job(3, Entry("\udcff", (Path("\udcff\n.png"),)), Path("o/\udcff.png")),
    ],
)
def test_a_job_is_read_as_it_was_written(job):
    line = line_of(job)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert job_of(3, line) == job


def test_paths_are_resolved_as_the_system_does(tmp_path, monkeypatch):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/a").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/b").symlink_to("deep/../a")
    (tmp_path / "real/loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    resolve = resolver()
    names = ("a", "b", "deep", "loop", "new", "deep/..", "deep/../b", "b/..", "", ".", "a/", "x/y")
    for folder in ("real", "link", str(tmp_path / "link"), ".", "", "link/deep/..", "no"):
        for path in (f"{folder}/{name}" if folder else name for name in names):
            if path:
                assert resolve(path) == os.path.realpath(path), path
                assert resolve(Path(path)) == os.path.realpath(Path(path)), path


def test_shares_are_disjoint_and_do_not_depend_on_other_files(scans, tmp_path):
    seat = Seat(tmp_path / "out", Ranks(0, 3), [scans])
    seat.folder.mkdir(parents=True)
    listed = seat.publish({}, name_jobs(list_inputs([scans]), tmp_path / "out", {}))
    parts = [read_jobs(listed, Ranks(rank, 3)) for rank in range(3)]
    assert sorted(job.number for part in parts for job in part) == list(range(24))
    assert all(parts)
    some = [path for n, path in enumerate(sorted(scans.rglob("*.png"))) if n % 2]
    fewer = seat.publish({}, name_jobs(list_inputs(some), tmp_path / "out", {}))
    assert fewer.folder != listed.folder
    assert not listed.folder.exists()
    for rank in range(3):
        before = {job.entry.source for job in parts[rank]}
        assert {job.entry.source for job in read_jobs(fewer, Ranks(rank, 3))} == before & set(some)


def write_part(path, *outcomes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with Part(path, ()) as part:
        for number, outcome in outcomes:
            outcome.number = number
            part.write(outcome)


def failed(name, reason='odd\nthing, "quoted"'):
    return Outcome(Path(name), status="failed", reason=reason)


def test_parts_become_one_table_in_the_order_of_the_list(tmp_path):
    listed = Listed(tmp_path / "digest", 4)
    write_part(listed.part(0), (3, failed("d")), (1, Outcome(Path("b"), Path("o/b"))))
    write_part(listed.part(1), (0, failed("\udcff")), (2, Outcome(Path("c"), Path("o/c"))))
    write_part(listed.part(1), (2, Outcome(Path("c"), Path("o/c"), "review", "anew")))
    table = tmp_path / "predictions.csv"
    counts = merge_parts(listed, 2, HEADER, table)
    assert counts == {"failed": 2, "ok": 1, "review": 1}
    text = table.read_bytes()
    assert text.startswith(HEADER.encode())
    assert b"\n\xff,,failed" in text
    lines = csv.DictReader(text.decode("utf-8", "replace").splitlines(keepends=True))
    assert [(row["status"], row["reason"]) for row in lines] == [
        ("failed", 'odd\nthing, "quoted"'),
        ("ok", ""),
        ("review", "anew"),
        ("failed", 'odd\nthing, "quoted"'),
    ]


def test_a_scan_without_a_line_is_missed(tmp_path):
    listed = Listed(tmp_path / "digest", 3)
    write_part(listed.part(0), (0, failed("a")), (2, failed("c")))
    with pytest.raises(OutputError, match="scan 2 of 3 has no line"):
        merge_parts(listed, 1, HEADER, tmp_path / "predictions.csv")
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.parametrize("cut", [1, 2, 5, 20, 40, 55])
def test_a_part_that_was_cut_off_goes_on_after_its_last_whole_line(tmp_path, cut):
    part = Listed(tmp_path / "digest", 2).part(0)
    write_part(part, (0, Outcome(Path("a"), tmp_path / "a")), (1, failed("b")))
    part.write_bytes(part.read_bytes()[:-cut])
    assert list(part_rows(part)) == [str(tmp_path / "a")]
    write_part(part, (1, Outcome(Path("b"), tmp_path / "b")))
    assert list(part_rows(part)) == [str(tmp_path / "a"), str(tmp_path / "b")]


# -- several are as one --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_write_what_one_does(scans, tmp_path, count):
    run([scans], tmp_path / "one", overlay=True)
    out = tmp_path / "out"
    children = [start(rank, count, [scans], out, overlay=True) for rank in range(1, count)]
    time.sleep(0.3)  # the first one comes last
    counts = share(0, count, [scans], out, overlay=True)
    assert ended(*children) == [0] * (count - 1)
    assert counts == {"ok": 23, "failed": 1}
    assert_same(out, tmp_path / "one")


def test_existing_results_are_skipped_as_by_one_process(scans, tmp_path):
    for name in ("one", "out"):
        run([scans], tmp_path / name)
        Image.new("L", (30, 20), 255).save(tmp_path / name / "s0" / "03.png")  # edited
        (tmp_path / name / "s1" / "01.png").write_bytes(b"damaged")
        (tmp_path / name / "s2" / "02.png").unlink()
        table = tmp_path / name / "predictions.csv"
        table.write_text(table.read_text().replace(",ok,", ",review,", 2))  # of 00 and 01
    before = times(tmp_path / "out")
    predict_batch(brightness(), list_inputs([scans]), tmp_path / "one", skip_existing=True)
    child = start(1, 2, [scans], tmp_path / "out", skip_existing=True)
    counts = share(0, 2, [scans], tmp_path / "out", skip_existing=True)
    assert ended(child) == [0]
    assert counts == {"ok": 2, "skipped": 19, "review_kept": 2, "failed": 1}
    assert_same(tmp_path / "out", tmp_path / "one")
    after = times(tmp_path / "out")
    assert sum(before[path] != after[path] for path in before) == 1  # and one is new
    edited = next(row for row in rows_of(tmp_path / "out") if row["file"].endswith("03.png"))
    assert edited["warnings"] == EDITED


def test_lines_of_other_scans_stay_theirs(scans, tmp_path):
    save_png(tmp_path / "more" / "new.png", 5)
    for name in ("one", "out"):
        run([tmp_path / "more"], tmp_path / name)
    run([scans], tmp_path / "one")
    child = start(1, 2, [scans], tmp_path / "out")
    share(0, 2, [scans], tmp_path / "out")
    assert ended(child) == [0]
    waiting = [(tmp_path / n / ".predictions-earlier.csv").read_text() for n in ("one", "out")]
    assert waiting[0].replace("/one/", "/out/").splitlines()[0] == waiting[1].splitlines()[0]
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) == 24


# -- killed --------------------------------------------------------------------------------------


def test_a_rank_that_was_killed_goes_on_while_the_others_live(scans, tmp_path):
    run([scans], tmp_path / "one")
    out = tmp_path / "out"
    first, killed = start(0, 2, [scans], out), start(1, 2, [scans], out, stop_after=4)
    assert ended(killed) == [-signal.SIGKILL]
    before = times(out)
    assert (out / shares.SHARES).is_dir()
    assert ended(start(1, 2, [scans], out), first) == [0, 0]
    assert_same(out, tmp_path / "one")
    after = times(out)
    changed = [path for path in before if before[path] != after[path]]
    assert len(changed) <= 1, "but for one that has no line"


@pytest.mark.slow
def test_the_first_rank_goes_on_by_the_list_that_the_others_work_by(scans, tmp_path):
    run([scans], tmp_path / "one")
    out = tmp_path / "out"
    first, second = (start(r, 2, [scans], out, 3 - 3 * r or 99, 0.15) for r in (0, 1))
    assert ended(first) == [-signal.SIGKILL]
    save_png(scans / "late.png", 7)  # no part of this batch
    assert ended(start(0, 2, [scans], out), second) == [0, 0]
    (scans / "late.png").unlink()
    assert_same(out, tmp_path / "one")


@pytest.mark.slow
def test_the_first_rank_does_not_wait_for_those_that_ended_well(scans, tmp_path):
    run([scans], tmp_path / "one")
    out = tmp_path / "out"
    first, second = start(0, 2, [scans], out, 5, 0.2), start(1, 2, [scans], out)
    assert ended(second, first) == [0, -signal.SIGKILL]
    share(0, 2, [scans], out)
    assert_same(out, tmp_path / "one")


@pytest.mark.parametrize("again", [0, 1, 2, 3, 5])
def test_a_batch_that_was_killed_goes_on_with_any_number(scans, tmp_path, again):
    """0: one process, that is told to skip what there is."""
    run([scans], tmp_path / "one")
    out = tmp_path / "out"
    killed(3, [scans], out, 3)
    before = times(out)
    assert len(before) >= 7
    (out / "s0" / ".partial-0123456789abcdef.png").touch()
    if again < 2:
        rows = run([scans], out, skip_existing=not again)
        assert len(rows) == 24
    else:
        children = [start(rank, again, [scans], out) for rank in range(1, again)]
        assert share(0, again, [scans], out) == {"ok": 23, "failed": 1}
        assert set(ended(*children)) == {0}
    assert_same(out, tmp_path / "one")
    after = times(out)
    assert sum(before[path] != after[path] for path in before) <= 3, "but for those without a line"


def test_a_batch_of_other_scans_that_was_stopped_is_left_alone(scans, tmp_path):
    """Who comes before the first rank does not begin with the old list."""
    for n in range(8):
        save_png(tmp_path / "old" / f"x{n}.png", n)
    out = tmp_path / "out"
    killed(2, [tmp_path / "old"], out, 1)
    before = files(out)
    child = start(1, 2, [scans], out)
    time.sleep(0.5)
    assert [name for name in files(out) if name.endswith("png")] == [
        name for name in before if name.endswith("png")
    ]
    share(0, 2, [scans], out)
    assert ended(child) == [0]
    assert len(rows_of(out)) == 24
    assert not (out / shares.SHARES).exists()
    written = {name for name in before if name.endswith("png")}
    assert len(written) >= 2
    rows = read_rows(out / "predictions.csv")
    assert len(rows) == 23 + len([n for n in written if str(out / n) in rows])


def test_scans_that_came_since_are_in_the_list_of_the_next_start(scans, tmp_path):
    out = tmp_path / "out"
    killed(2, [scans], out, 3)
    save_png(scans / "s0" / "late.png", 7)
    run([scans], tmp_path / "one")
    child = start(1, 2, [scans], out)
    time.sleep(0.3)
    share(0, 2, [scans], out)
    assert ended(child) == [0]
    assert_same(out, tmp_path / "one")


def test_a_list_that_changed_is_started_over(scans, tmp_path):
    """Where there are no locks, another first rank may have come."""
    out = tmp_path / "out"
    first = Seat(out, Ranks(0, 2), [scans])
    first.take()
    seat = Seat(out, Ranks(1, 2), [scans])
    seat.take()
    first.publish({}, name_jobs(list_inputs([scans / "s0"]), out, {}))
    lists = []

    def do(_, listed):
        lists.append(listed)
        if len(lists) == 1:
            first.publish({}, name_jobs(list_inputs([scans]), out, {}))
            raise OutputError("its part is gone")

    batch._share_until_done(seat, {}, do)
    assert len(lists) == 2
    assert lists[1].total == 24
    assert lists[1].done(1).read_text() == seat.token
    first.leave()


# -- those that do not come, or are of another mind ----------------------------------------------


def test_a_first_rank_that_does_not_come_is_waited_for_in_vain(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "PATIENCE_S", 0.4)
    with pytest.raises(OutputError, match="rank 0 has given no sign of life"):
        share(1, 2, [scans], tmp_path / "out")


def test_a_rank_that_does_not_come_ends_the_first_and_nothing_is_lost(scans, tmp_path, monkeypatch):
    run([scans], tmp_path / "one")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shares, "PATIENCE_S", 0.4)
        with pytest.raises(OutputError, match=r"rank 1 has given no sign of life.*goes on"):
            share(0, 2, [scans], out)
    before = times(out)
    run([scans], out)
    assert_same(out, tmp_path / "one")
    assert all(times(out)[path] == before[path] for path in before)


def test_a_first_rank_that_fails_is_not_waited_for(scans, tmp_path):
    child = start(1, 2, [tmp_path / "none"], tmp_path / "out")
    time.sleep(0.2)
    with pytest.raises(Exception, match="no such file or folder"):
        share(0, 2, [tmp_path / "none"], tmp_path / "out")
    began = time.monotonic()
    assert ended(child) == [2]
    assert time.monotonic() - began < 5


def test_another_command_on_one_rank_is_refused(scans, tmp_path):
    out = tmp_path / "out"
    first = start(0, 2, [scans], out)
    with pytest.raises(OutputError, match=r"rank 0 was started otherwise \(overlay: False there"):
        share(1, 2, [scans], out, overlay=True)
    assert ended(start(1, 2, [scans], out), first) == [0, 0]


def test_another_batch_in_the_folder_is_refused_while_one_is_at_work(scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    children = [start(rank, 2, [scans], out, pause=0.3) for rank in (0, 1)]
    wait_for(lambda: list(out.glob(f"{shares.SHARES}/*/rank-1.csv")))
    with pytest.raises(OutputError, match="processes that share a batch are at work"):
        run([scans], out)
    os.kill(children[0], signal.SIGKILL)
    assert ended(children[0]) == [-signal.SIGKILL]
    with pytest.raises(OutputError, match="processes that share a batch are at work"):
        run([scans], out)
    with pytest.raises(OutputError, match="processes are at work in it on another batch"):
        share(0, 2, [scans / "s0"], out)
    os.kill(children[1], signal.SIGKILL)
    assert ended(children[1]) == [-signal.SIGKILL]
    assert len(run([scans], out)) == 24
    assert not (out / shares.SHARES).exists()


def test_three_unwritten_results_in_a_row_end_the_rank(scans, tmp_path, monkeypatch):
    def fail(*_):
        full = OSError(28, "No space left on device")
        raise OutputError(f"x.png: can't be written ({full.strerror})") from full

    first = start(0, 2, [scans], tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "write_segmentation", fail)
        with pytest.raises(OutputError, match="3 times in a row"):
            share(1, 2, [scans], tmp_path / "out")
    assert not list(tmp_path.glob(f"out/{shares.SHARES}/*/rank-1.done"))
    assert ended(start(1, 2, [scans], tmp_path / "out"), first) == [0, 0]


# -- what a machine's processes share ------------------------------------------------------------


def test_processes_of_one_machine_share_its_processors_and_gpus(monkeypatch):
    import torch

    from segapp.engines.torch import choose_device

    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert ahead.processors() == 16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    for name, value in (("RANK", 7), ("WORLD_SIZE", 12), ("LOCAL_RANK", 3)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "6")
    assert ahead.processors() == 2
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")


# -- the command ---------------------------------------------------------------------------------


def commands(model, scans, out, *words):
    """The command of a rank, and the variables that a launcher sets."""
    command = [sys.executable, "-m", "segapp.cli", "predict", str(model), str(scans)]
    return [*command, "--device", "cpu", "--out", str(out), *words]


def variables(rank, count):
    here = {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "RANK": rank, "WORLD_SIZE": count}
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **{k: str(v) for k, v in here.items()}}


def begin(rank, count, *args):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(commands(*args), env=variables(rank, count), cwd=REPOSITORY, **pipes)


@pytest.mark.parametrize(
    "words", [["check", "x"], ["info", "x"], ["export", "x"], ["app"], ["train", "--find-lr"]]
)
def test_the_work_of_one_process_is_refused_to_several(words, monkeypatch, capsys):
    for name, value in variables(1, 2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["segapp", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "rank 1: segapp: segapp " in (said := capsys.readouterr().err)
    assert "works in one process, but a launcher started 2" in said
    monkeypatch.setattr(sys, "argv", ["segapp", words[0], "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.mark.slow
def test_two_commands_are_as_one_and_a_killed_one_goes_on(scans, tmp_path):
    model = untrained_model(tmp_path / "model")
    one = begin(0, 1, model, scans, tmp_path / "one", "--overlay")
    assert "23 ok, 1 failed" in one.communicate(timeout=300)[0]
    out = tmp_path / "out"
    args = (model, scans, out, "--overlay", "--json")
    ranks = [begin(rank, 2, *args) for rank in (0, 1)]
    until = time.monotonic() + 200
    while not list(out.rglob(".shares/*/rank-1.csv")) and time.monotonic() < until:
        time.sleep(0.01)
    ranks[1].kill()
    ranks[1].wait()
    again = begin(1, 2, *args)
    said, complained = again.communicate(timeout=300)
    first, _ = ranks[0].communicate(timeout=300)
    assert (again.returncode, ranks[0].returncode) == (0, 1), complained
    assert said == ""
    assert json.loads(first) == {
        **{"ok": 23, "review": 0, "failed": 1, "skipped": 0, "review_kept": 0, "left_out": 0},
        "csv": str(out / "predictions.csv"),
    }
    assert all(line.startswith("rank 1: ") for line in complained.splitlines())
    assert_same(out, tmp_path / "one")


@pytest.mark.slow
def test_torchrun_starts_them_and_sigterm_stops_them(scans, tmp_path):
    model = untrained_model(tmp_path / "model")
    run_ = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [*run_, *commands(model, scans, tmp_path / "out")]
    kept = {"env": environment, "cwd": REPOSITORY, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **kept)
    until = time.monotonic() + 200
    while not list(tmp_path.glob("out/.shares/*/rank-*.csv")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert b"Traceback" not in process.communicate(timeout=100)[1].split(b"torch/distributed")[0]
    (scans / "bad.png").unlink()  # one that fails ends the launcher with 1
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, **kept)
    assert done.returncode == 0
    assert done.stdout.decode().startswith("23 scans: 23 ok; see ")
    assert not (tmp_path / "out" / ".shares").exists()
    assert len(rows_of(tmp_path / "out")) == 23


# -- the document --------------------------------------------------------------------------------


def document_block(language):
    text = (REPOSITORY / "docs/scaling.md").read_text("utf-8")
    return re.search(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)[1]


@pytest.mark.slow
def test_the_job_of_slurm(scans, tmp_path):
    """By an srun that starts two tasks on this machine."""
    untrained_model(tmp_path / "runs/brain")
    scans.rename(tmp_path / "scans")
    srun = 'shift\nexport SLURM_NTASKS=2\nfor n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" &'
    program = f'exec "{sys.executable}" -m segapp.cli "$@"'
    for name, text in (("srun", f"{srun} done\nwait"), ("segapp", program)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(document_block("bash"))
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path}
    kept = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "job"], check=False, **kept)
    assert done.stdout == "24 scans: 23 ok, 1 failed; see results/predictions.csv\n", done.stderr
    assert not (tmp_path / "results/.shares").exists()


def test_the_job_of_kubernetes():
    job = yaml.safe_load(document_block("yaml"))["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(container["env"][0]["value"])
    assert container["env"][0]["name"] == "WORLD_SIZE"
    assert container["command"][2].startswith("RANK=$JOB_COMPLETION_INDEX exec segapp predict ")
