"""A batch that is stopped or killed, or meets a bad disk: what is done stays, told by content."""

import csv
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_batch import EDITED, files, run, save_png, save_volume
from test_predict import brightness
from web import untrained_model

from segapp import batch, locks
from segapp.batch import list_inputs, predict_batch
from segapp.cases import files_hash
from segapp.errors import DataError, OutputError
from segapp.formats import read_labels
from segapp.locks import alone_in, left_of_a_batch
from segapp.outcomes import Outcome, OutcomeTable
from segapp.rows import read_rows

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def done(tmp_path):
    """A folder of three scans and its results: (scans, out)."""
    for n in range(3):
        save_png(tmp_path / "in" / f"{n}.png", n)
    run([tmp_path / "in"], tmp_path / "out")
    return tmp_path / "in", tmp_path / "out"


def again(scans, out, **options):
    return run([scans], out, skip_existing=True, **options)


def statuses(rows):
    return [row["status"] for row in rows]


# -- what may stay -------------------------------------------------------------------------------


def test_what_is_the_same_stays(done):
    scans, out = done
    before = {name: (out / name).stat().st_mtime_ns for name in ("0.png", "1.png", "2.png")}
    first = list(csv.DictReader((out / "predictions.csv").open()))
    rows = again(scans, out)
    assert statuses(rows) == ["skipped"] * 3
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    for one, other in zip(first, rows, strict=True):
        assert {k: v for k, v in other.items() if k not in ("status", "reason")} == {
            k: v for k, v in one.items() if k not in ("status", "reason")
        }
    assert statuses(again(scans, out)) == ["skipped"] * 3, "a skipped line vouches too"


def test_a_result_of_another_model_is_made_again(done, monkeypatch):
    scans, out = done
    monkeypatch.setattr(batch, "model_key", lambda *_: "another")
    rows = again(scans, out)
    assert statuses(rows) == ["ok"] * 3
    assert "of another model; written again" in rows[0]["warnings"]
    rows = again(scans, out)
    assert statuses(rows) == ["skipped"] * 3
    assert rows[0]["model"] == "another"


def test_a_result_of_a_scan_that_changed_is_made_again(done):
    scans, out = done
    before = (out / "1.png").read_bytes()
    save_png(scans / "1.png", 9)
    rows = again(scans, out)
    assert statuses(rows) == ["skipped", "ok", "skipped"]
    assert rows[1]["warnings"] == "the scan changed since the earlier result; written again"
    assert (out / "1.png").read_bytes() != before


def test_an_edited_result_stays_and_is_told(done):
    scans, out = done
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "0.png")
    edited = (out / "0.png").read_bytes()
    for _ in range(2):  # also after its line was written anew
        rows = again(scans, out)
        assert statuses(rows) == ["skipped"] * 3
        assert rows[0]["warnings"] == EDITED
        assert (out / "0.png").read_bytes() == edited


def test_an_edited_result_stays_where_a_picture_is_missing(done):
    scans, out = done
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "0.png")
    edited = (out / "0.png").read_bytes()
    rows = again(scans, out, overlay=True)
    assert statuses(rows) == ["skipped", "ok", "ok"]
    assert rows[0]["warnings"] == EDITED
    assert (out / "0.png").read_bytes() == edited


def test_an_edited_result_is_not_lost_where_all_are_made_again(done):
    scans, out = done
    good = (out / "0.png").read_bytes()
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "0.png")
    edited = (out / "0.png").read_bytes()
    rows = run([scans], out)
    assert statuses(rows) == ["ok"] * 3
    said = "what was there had changed since it was written; kept as 0.png.bak"
    assert [row["warnings"] for row in rows] == [said, "", ""]
    assert (out / "0.png").read_bytes() == good
    assert (out / "0.png.bak").read_bytes() == edited
    assert [p.name for p in out.glob("*.bak*")] == ["0.png.bak"]


def test_a_value_that_is_no_classs_is_told_of(done):
    scans, out = done
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(out / "0.png")
    rows = again(scans, out)
    assert rows[0]["warnings"] == f"{EDITED}, and holds 77, which is no class's value"
    assert read_labels(out / "0.png").voxels.max() == 77


@pytest.mark.parametrize("what", ["results", "scans", "both", "working directory"])
def test_what_was_moved_is_known_by_its_checksums(tmp_path, monkeypatch, caplog, what):
    """Also what somebody edited; and a new scan of the same name gets a name of its own."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    scans, out = Path("in"), Path("sub/out")
    for n in range(4):
        save_png(scans / f"{n % 2}" / f"{n}.png", n)
    run([scans], out)
    edited = out / "0" / "0.png"
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(edited)
    kept = edited.read_bytes()
    if what in ("results", "both"):
        out = out.rename("other")
    if what in ("scans", "both"):
        scans = scans.rename("there")
    if what == "working directory":
        monkeypatch.chdir(tmp_path)
        scans, out = "work" / scans, "work" / out
    save_png(scans / "1" / "1.png", 9)
    caplog.clear()
    rows = again(scans, out)
    moved = what != "results"
    assert statuses(rows) == ["skipped", "skipped", "ok", "skipped"]
    assert [Path(row["output"]).name for row in rows] == [
        *("0.png", "2.png", "1_2.png" if moved else "1.png", "3.png")
    ]
    assert (out / "0" / "0.png").read_bytes() == kept
    assert rows[0]["warnings"] == EDITED
    assert not list(out.rglob("*.bak*"))
    assert "no predictions.csv tells" not in caplog.text
    assert statuses(again(scans, out)) == ["skipped"] * 4


def test_results_that_no_line_tells_of_any_longer_are_said_to_be_there(done, caplog):
    scans, out = done
    for n in range(3):  # none is as its line says, so nothing tells what the folder was called
        Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / f"{n}.png")
    moved = out.rename(out.with_name("moved"))
    assert statuses(again(scans, moved)) == ["ok"] * 3
    assert "3 results are there that no predictions.csv tells of by this name" in caplog.text
    assert len(list(moved.glob("*.bak"))) == 3


@pytest.mark.parametrize("size", [(20, 30), (30, 20)], ids=["cut off", "of another size"])
def test_a_damaged_result_is_made_again(done, size):
    scans, out = done
    good = (out / "0.png").read_bytes()
    if size == (20, 30):
        (out / "0.png").write_bytes(good[: len(good) // 2])
    else:
        Image.fromarray(np.zeros(size, np.uint8)).save(out / "0.png")
    damaged = (out / "0.png").read_bytes()
    rows = again(scans, out)
    assert statuses(rows) == ["ok", "skipped", "skipped"]
    assert rows[0]["warnings"].startswith("the earlier result was damaged; written again; what")
    assert (out / "0.png").read_bytes() == good
    assert (out / "0.png.bak").read_bytes() == damaged, "it may be somebody's work"


@pytest.mark.parametrize("other", ["model", "scan"])
def test_an_edited_result_stays_whatever_else_is_new(done, monkeypatch, other):
    scans, out = done
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "0.png")
    edited = (out / "0.png").read_bytes()
    if other == "model":
        monkeypatch.setattr(batch, "model_key", lambda *_: "another")
    else:
        save_png(scans / "0.png", 9)
    for status in ("ok" if other == "model" else "skipped", "skipped"):
        rows = again(scans, out)
        assert statuses(rows) == ["skipped", status, status]
        assert rows[0]["warnings"].startswith("0.png changed since it was written, and ")
        assert (out / "0.png").read_bytes() == edited
    assert not list(out.glob("*.bak*"))


@pytest.mark.parametrize("taken", [0, 2])
def test_results_of_a_table_that_is_gone_are_not_lost(done, caplog, taken):
    scans, out = done
    (out / "predictions.csv").unlink()
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "0.png")
    edited = (out / "0.png").read_bytes()
    names = ["0.png.bak", "0.png.bak2", "0.png.bak3"]
    for name in names[:taken]:
        (out / name).touch()
    rows = again(scans, out)
    assert "3 results are there that no predictions.csv tells of" in caplog.text
    assert statuses(rows) == ["ok"] * 3
    said = f"what was there was not of the earlier batch; kept as {names[taken]}"
    assert [row["warnings"] for row in rows] == [said, "", ""]
    assert (out / names[taken]).read_bytes() == edited
    assert sorted(p.name for p in out.glob("*.bak*")) == names[: taken + 1]
    with pytest.raises(DataError, match="only results"):
        list_inputs([out], exclude=out)


def test_a_result_that_no_line_vouches_for_is_made_again(done):
    """A killed batch may have written it, or anybody else."""
    scans, out = done
    (out / "predictions.csv").unlink()
    (out / "2.png").unlink()
    rows = again(scans, out)
    assert statuses(rows) == ["ok"] * 3
    assert [row["warnings"] for row in rows] == [""] * 3


def test_a_missing_picture_is_reason_enough(done):
    scans, out = done
    assert statuses(again(scans, out, overlay=True)) == ["ok"] * 3
    assert statuses(again(scans, out, overlay=True)) == ["skipped"] * 3
    (out / "1_overlay.png").unlink()
    assert statuses(again(scans, out, overlay=True)) == ["skipped", "ok", "skipped"]


def test_a_table_of_before_checksums_vouches_for_nothing(done):
    scans, out = done
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    with (out / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0])[:-3], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert statuses(again(scans, out)) == ["ok"] * 3


# -- the table -----------------------------------------------------------------------------------


def interrupted_at(scans, out, name, **options):
    def stop(outcome):
        if outcome.file.name == name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_batch(brightness(), list_inputs([scans]), out, on_outcome=stop, **options)


@pytest.mark.parametrize("options", [{}, {"skip_existing": True}])
def test_a_rerun_that_is_stopped_loses_no_earlier_line(done, options):
    scans, out = done
    first = read_rows(out / "predictions.csv")
    interrupted_at(scans, out, "0.png", **options)
    assert len((out / "predictions.csv").read_text().splitlines()) == 2, "this run's lines alone"
    assert read_rows(out / "predictions.csv").keys() == first.keys()
    interrupted_at(scans, out, "0.png", **options)  # and again
    rows = again(scans, out)
    assert statuses(rows) == ["skipped"] * 3
    assert [row["bright_voxels"] for row in rows] == [r["bright_voxels"] for r in first.values()]
    assert files(out) == ["0.png", "1.png", "2.png", "predictions.csv"]


def test_each_line_of_a_batch_that_is_stopped_was_told_of(tmp_path):
    """Also those of scans that several threads finished meanwhile."""
    for n in range(12):
        save_png(tmp_path / "in" / f"{n:02}.png", n)
    told = []

    def stop(outcome):
        told.append(outcome.file.name)
        if len(told) == 1:
            raise KeyboardInterrupt

    entries = list_inputs([tmp_path / "in"])
    with pytest.raises(KeyboardInterrupt):
        predict_batch(brightness(2, 3), entries, tmp_path / "out", on_outcome=stop)
    lines = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert sorted(told) == sorted(Path(line["file"]).name for line in lines)
    assert len(told) > 1, "or nothing was to be seen here"


@pytest.mark.parametrize("cut", [2, 10, 70, 150])
def test_a_line_that_was_cut_off_vouches_for_nothing(done, cut):
    scans, out = done
    table = out / "predictions.csv"
    table.write_bytes(table.read_bytes()[:-cut])
    assert statuses(again(scans, out)) == ["skipped", "skipped", "ok"]


def test_a_rerun_that_is_killed_loses_no_earlier_line(done):
    scans, out = done
    first = read_rows(out / "predictions.csv")

    def die(outcome):
        if outcome.file.name == "1.png":
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            predict_batch(brightness(), list_inputs([scans]), out, on_outcome=die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert lines_of(out / "predictions.csv") == 2, "this run's lines alone"
    assert read_rows(out / "predictions.csv").keys() == first.keys()
    assert statuses(again(scans, out)) == ["skipped"] * 3
    assert files(out) == ["0.png", "1.png", "2.png", "predictions.csv"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0\0\0", b"\0\0\n", b'"', b"file,output\n,x.png\nx.png,\n"),
        *(b"file,output\n\0,x.png\n", b"file,output\nx.png,\0\n\0\0\0\n"),
    ],
)
def test_a_table_that_is_none_is_as_none(done, content):
    scans, out = done
    (out / "predictions.csv").write_bytes(content)
    assert statuses(again(scans, out)) == ["ok"] * 3


@pytest.mark.parametrize(
    "content",
    [
        *(b"a,b\n1\n1,2,3\n", b"output\nx.png\n", b"file,file\nx.png,x.png\n"),
        *(b"file;output;status\na.png;b.png;ok\n", b"\xff\xfef\0i\0l\0e\0\n\0"),
        b"file,output\n" + b"x" * 200_000 + b",x.png\n",
    ],
)
@pytest.mark.parametrize("options", [{}, {"skip_existing": True}])
def test_a_table_that_another_program_saved_is_an_error(done, content, options):
    scans, out = done
    (out / "predictions.csv").write_bytes(content)
    with pytest.raises(OutputError, match=r"predictions.csv: can't be understood"):
        run([scans], out, **options)
    assert (out / "predictions.csv").read_bytes() == content


def test_a_mark_of_utf8_before_the_table_does_no_harm(done):
    scans, out = done
    table = out / "predictions.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())  # as Excel saves it
    assert statuses(again(scans, out)) == ["skipped"] * 3


def table_in(folder):
    return OutcomeTable(folder / "predictions.csv", (), {})


def test_a_line_is_written_as_a_whole_or_not(tmp_path, monkeypatch):
    """A disk that gets full takes a part of it."""
    with pytest.raises(OutputError, match="No space left"), table_in(tmp_path) as table:  # noqa: PT012
        table.write(Outcome(Path("a.png")))
        before = (tmp_path / "predictions.csv").read_bytes()
        real, room = table.file.write, 10

        class Full:
            def __getattr__(self, name):
                return getattr(table_file, name)

            def write(self, data):
                nonlocal room
                if not room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                taken, room = real(data[:room]), 0
                return taken

        table_file, table.file = table.file, Full()
        table.write(Outcome(Path("b.png")))
    assert (tmp_path / "predictions.csv").read_bytes() == before


def test_two_batches_where_there_are_no_locks_leave_whole_lines(tmp_path):
    """The second one empties the table of the first, which goes on."""
    with table_in(tmp_path) as one:
        one.write(Outcome(Path("a.png"), tmp_path / "a.png"))
        with table_in(tmp_path) as other:
            one.write(Outcome(Path("b.png"), tmp_path / "b.png"))
            other.write(Outcome(Path("c.png"), tmp_path / "c.png"))
    rows = csv.DictReader((tmp_path / "predictions.csv").open())
    assert [row["file"] for row in rows] == ["b.png", "c.png"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_table_that_was_taken_away_is_missed(tmp_path, whole):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="no longer there"), table_in(out) as table:  # noqa: PT012
        table.write(Outcome(Path("a.png")))
        shutil.rmtree(out)
        if whole:  # another disk is there now
            out.mkdir()
            (out / "predictions.csv").touch()
        table.write(Outcome(Path("b.png")))
    assert not whole or not (out / "predictions.csv").read_bytes()


# -- the disk ------------------------------------------------------------------------------------


def fail_to_write(monkeypatch, numbers):
    real, count = batch.write_segmentation, 0

    def write(segmentation, output):
        nonlocal count
        count += 1
        if count in numbers:
            full = OSError(errno.ENOSPC, "No space left on device")
            raise OutputError(f"{output}: can't be written ({full.strerror})") from full
        real(segmentation, output)

    monkeypatch.setattr(batch, "write_segmentation", write)


def test_one_result_that_can_not_be_written_is_one_scans_failure(done, monkeypatch):
    scans, out = done
    shutil.rmtree(out)
    fail_to_write(monkeypatch, {1, 3})
    rows = run([scans], out)
    assert statuses(rows) == ["failed", "ok", "failed"]
    assert "No space left" in rows[0]["reason"]
    assert statuses(again(scans, out)) == ["ok", "skipped", "ok"]


def test_three_in_a_row_end_the_batch(tmp_path, monkeypatch):
    for n in range(9):
        save_png(tmp_path / "in" / f"{n}.png", n)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_to_write(patch, range(4, 99))
        with pytest.raises(OutputError, match=r"No space left.*3 times in a row.*--skip-existing"):
            run([tmp_path / "in"], out)
    lines = list(csv.DictReader((out / "predictions.csv").open()))
    assert statuses(lines) == ["ok"] * 3 + ["failed"] * 3
    assert statuses(again(tmp_path / "in", out)) == ["skipped"] * 3 + ["ok"] * 6


def test_results_that_the_format_can_not_hold_end_no_batch(tmp_path):
    for n in range(4):
        save_volume(tmp_path / "in" / f"{n}.nii")
    save_png(tmp_path / "in" / "z.png")
    rows = run([tmp_path / "in"], tmp_path / "out", output_format="png")
    assert statuses(rows) == ["failed"] * 4 + ["ok"]
    assert "is no image; write it as NIfTI" in rows[0]["reason"]


def test_a_picture_that_can_not_be_written_is_a_warning(done, monkeypatch):
    scans, out = done

    def fail(*_):
        raise OutputError("x_overlay.png: can't be written (No space left on device)")

    monkeypatch.setattr(batch, "write_overlay", fail)
    rows = run([scans], out, overlay=True)
    assert statuses(rows) == ["ok"] * 3
    assert "no picture: x_overlay.png: can't be written" in rows[0]["warnings"]
    assert statuses(again(scans, out)) == ["skipped"] * 3


# -- killed --------------------------------------------------------------------------------------


HOLD = "import sys, pathlib; from segapp.locks import alone_in\n"
HOLD += "with alone_in(pathlib.Path(sys.argv[1]), lambda _: ()): print('in', flush=True)"
HOLD += "; sys.stdin.read()"


def test_one_batch_at_a_time_which_sweeps_what_killed_ones_left(done):
    scans, out = done
    left, of_another = (out / name / ".partial-0123456789abcdef.png" for name in ("deep", "sub"))
    for path in (left, of_another):
        path.parent.mkdir()
        path.touch()
    (out / "sub" / "predictions.csv").touch()
    before = (out / "predictions.csv").read_bytes()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": REPOSITORY}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], **pipes)
    assert other.stdout
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(OutputError, match="another process is at work in it"):
        again(scans, out)
    assert left.exists(), "the other process may be writing it"
    assert (out / "predictions.csv").read_bytes() == before
    other.kill()
    other.wait()
    assert statuses(again(scans, out)) == ["skipped"] * 3
    assert not left.exists()
    assert of_another.exists(), "a batch in that folder may be writing it"


def test_results_of_other_scans_stay_theirs(tmp_path):
    """Also in the second batch after theirs."""
    save_png(tmp_path / "one" / "a.png", 1)
    save_png(tmp_path / "two" / "a.png", 2)
    out = tmp_path / "out"
    run([tmp_path / "one"], out)
    before = (out / "a.png").read_bytes()
    for status in ("ok", "skipped", "skipped"):
        rows = again(tmp_path / "two", out)
        assert [(row["status"], row["output"]) for row in rows] == [(status, str(out / "a_2.png"))]
        assert (out / "a.png").read_bytes() == before
    assert statuses(again(tmp_path / "one", out)) == ["skipped"]


def test_a_batch_of_another_model_that_is_killed_leaves_nothing_that_seems_edited(
    done, monkeypatch
):
    """A result of the other model, that has no line yet, is not the first model's."""
    scans, out = done
    with monkeypatch.context() as patch:
        patch.setattr(batch, "model_key", lambda *_: "another")
        interrupted_at(scans, out, "0.png")
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "1.png")  # the other's
    rows = again(scans, out)
    assert statuses(rows) == ["ok", "ok", "skipped"]
    assert "changed since" not in "".join(row["warnings"] for row in rows)
    assert "may be of another model's stopped batch" in rows[1]["warnings"]
    assert statuses(again(scans, out)) == ["skipped"] * 3


def test_a_batch_of_another_model_leaves_other_scans_lines_as_they_are(done, monkeypatch):
    scans, out = done
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(out / "0.png")
    save_png(scans.parent / "more" / "new.png", 5)
    with monkeypatch.context() as patch:
        patch.setattr(batch, "model_key", lambda *_: "another")
        again(scans.parent / "more", out)
    rows = again(scans, out)
    assert statuses(rows) == ["skipped"] * 3
    assert rows[0]["warnings"] == EDITED


@pytest.mark.parametrize("options", [{}, {"skip_existing": True}])
def test_results_of_scans_that_are_gone_or_fail_now_are_told(done, caplog, options):
    scans, out = done
    (scans / "0.png").unlink()
    (scans / "1.png").write_bytes(b"no picture")
    for _ in range(2):
        caplog.clear()
        rows = run([scans], out, **options)
        assert sorted(statuses(rows)) == sorted(["failed", "skipped" if options else "ok"])
        assert (
            "1 earlier results are of scans that are no longer there; they stay: 0.png"
            in caplog.text
        )
        assert (
            "1 earlier results are of scans that failed this time; they stay: 1.png" in caplog.text
        )
    for name in ("0.png", "1.png"):
        (out / name).unlink()
    caplog.clear()
    run([scans], out, **options)
    assert "earlier results" not in caplog.text


def test_detached_voxels_are_part_of_a_scan(tmp_path):
    import nrrd

    nrrd.write(str(tmp_path / "a.nhdr"), np.zeros((4, 5, 6), np.uint8), detached_header=True)
    before = files_hash([tmp_path / "a.nhdr"])
    (raw,) = (path for path in tmp_path.iterdir() if path.suffix != ".nhdr")
    raw.write_bytes(raw.read_bytes()[:-1] + b"x")
    assert files_hash([tmp_path / "a.nhdr"]) != before


@pytest.mark.parametrize("system", ["Windows", "a network file system"])
def test_nothing_is_swept_where_there_are_no_locks(tmp_path, monkeypatch, system):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if system == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    of_somebody = tmp_path / ".partial-0123456789abcdef.png"
    of_somebody.touch()
    with alone_in(tmp_path, left_of_a_batch):
        assert of_somebody.exists()


BAD = {
    "cut.png": lambda content: content[: len(content) // 2],
    "head.png": lambda content: content[:20],
    "empty.png": lambda _: b"",
    "text.png": lambda _: b"not an image",
    "text.nii": lambda _: b"\0" * 400,
}


def write_thousand(folder, count):
    """count scans, of which each tenth is bad in one of five ways; the names of the bad ones."""
    bad = []
    for n in range(count):
        picture = folder / f"series{n % 7}" / f"{n:04}.png"
        save_png(picture, n, (40, 48))
        if n % 10 == 3:
            name = list(BAD)[n // 10 % len(BAD)]
            content = picture.read_bytes()
            picture.unlink()
            picture = picture.with_suffix(Path(name).suffix)
            picture.write_bytes(BAD[name](content))
            bad.append(picture.name)
    return bad


def lines_of(table):
    return table.read_bytes().count(b"\n") - 1 if table.exists() else 0


@pytest.mark.slow
def test_sigterm_stops_a_batch_as_ctrl_c_does_and_sigusr1_does_nothing(tmp_path):
    """As a scheduler sends them: clean-up runs, the exit code is that of a stop."""
    model = untrained_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for n in range(400):
        save_png(tmp_path / "in" / f"{n:03}.png", n)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "segapp.cli", "predict", str(model), str(tmp_path / "in")]
    command += ["--device", "cpu", "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": REPOSITORY}
    process = subprocess.Popen(command, **quiet)
    while lines_of(out / "predictions.csv") < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR1)
    there = lines_of(out / "predictions.csv")
    while lines_of(out / "predictions.csv") < there + 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, said
    assert said.strip().endswith("segapp: stopped")
    assert " of 400 done; go on with the same command and --skip-existing\n" in said
    assert "Traceback" not in said
    with (out / "predictions.csv").open(newline="") as file:
        written = {row["output"] for row in csv.DictReader(file)}
    assert 6 <= len(written) < 400
    assert {str(path) for path in out.glob("*.png")} == written, "each result has its line"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_scans_killed_three_times_end_as_if_nobody_had(tmp_path):
    model = untrained_model(tmp_path / "model")
    bad = write_thousand(tmp_path / "in", 1000)
    command = [sys.executable, "-m", "segapp.cli", "predict", str(model), str(tmp_path / "in")]
    command += ["--device", "cpu", "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": REPOSITORY}
    assert subprocess.run([*command, str(tmp_path / "clean")], check=False, **quiet).returncode == 1
    out, rng = tmp_path / "out", random.Random(0)
    table, killed_at = out / "predictions.csv", []
    for part in range(3):
        enough = rng.randint(1000 * part // 4 + 50, 1000 * (part + 1) // 4)
        extra = ["--skip-existing"] if part else []
        process = subprocess.Popen([*command, str(out), *extra], **quiet)
        while lines_of(table) < enough and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))  # anywhere between two lines
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(lines_of(table))
    print(f"killed at lines {killed_at} of 1000")
    ended = subprocess.run(
        [*command, str(out), "--skip-existing"], check=False, capture_output=True, cwd=REPOSITORY
    )
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    clean = files(tmp_path / "clean")
    assert len(clean) == 901
    assert files(out) == clean, "no half file, no second result, no list of earlier lines"
    for name in clean:
        if name != "predictions.csv":
            assert (out / name).read_bytes() == (tmp_path / "clean" / name).read_bytes(), name
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len({row["file"] for row in rows}) == len(rows) == 1000
    failed = [row for row in rows if row["status"] == "failed"]
    assert sorted(Path(row["file"]).name for row in failed) == sorted(bad)
    assert not any("unexpected" in row["reason"] or not row["reason"] for row in failed)
    assert sum(row["status"] == "skipped" for row in rows) >= killed_at[-1] * 0.8


def test_warnings_do_not_grow_with_each_rerun(tmp_path):
    Image.fromarray(np.full((6, 6, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (first,) = run([tmp_path], tmp_path)
    assert first["warnings"].count("; ") == 3, "that the name is taken holds one itself"
    for _ in range(3):
        (row,) = again(tmp_path, tmp_path)
        assert (row["status"], row["warnings"]) == ("skipped", first["warnings"])
