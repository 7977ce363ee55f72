"""Python warnings switched off around a library's call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_FILTERS = RLock()  # all threads share them; what one restores would undo another's


@contextmanager
def without_warnings(module: str = "") -> Iterator[None]:
    """Ignore warnings that modules raise whose name begins with the pattern `module`; by one
    thread at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=module)
        yield
