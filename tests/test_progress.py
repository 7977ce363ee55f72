"""What is told while a batch goes on."""

import logging
import re

import pytest

from segapp import progress


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_lines_tell_the_progress_where_there_is_no_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "segapp")
    monkeypatch.setattr(progress, "_LINE_S", 0.0)
    monkeypatch.setattr(progress, "_FIRST_S", 0.0)
    with progress.batch_bar(3) as step:
        step(0)
        step(1)
        step(1)
    first, second = told(caplog)  # the end is told by the command
    assert re.fullmatch(r"1 of 3 done, [\d.e+]+/s, 0:00 left", first)
    assert re.fullmatch(r"2 of 3 done, [\d.e+]+/s, 0:00 left, 1 failed", second)


def test_lines_are_rare(caplog):
    caplog.set_level(logging.INFO, "segapp")
    with progress.batch_bar(1000) as step:
        for _ in range(1000):
            step(0)
    assert told(caplog) == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_who_stops_a_batch_is_told_how_to_go_on(monkeypatch, caplog, ranks):
    caplog.set_level(logging.INFO, "segapp")
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(KeyboardInterrupt), progress.batch_bar(2014) as step:  # noqa: PT012
        step(0)
        raise KeyboardInterrupt
    how = "the same command" if ranks > 1 else "the same command and --skip-existing"
    assert told(caplog) == [f"1 of 2014 done; go on with {how}"]
