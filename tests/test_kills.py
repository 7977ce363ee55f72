"""Some of what `python tests/kills.py` does a hundred times."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trainings_that_are_killed_end_as_if_nobody_had():
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run([sys.executable, script, "4", "2"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stdout.endswith(b"6 kills in all\n")
