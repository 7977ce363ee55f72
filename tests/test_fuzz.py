"""Mutated files of every kind: see fuzz_readers.py, which takes larger counts."""

import pytest
from fuzz_readers import KINDS, fuzz


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(tmp_path, kind):
    result = fuzz(kind, 10_000, tmp_path)
    assert result["problems"] == {}
    assert result["scan"] + result["refused"] == 10_000
    assert result["scan"] > 200
    assert result["slowest"] < 30
