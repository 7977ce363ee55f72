"""A batch and what became of each scan."""

from typing import Any

from segapp.batch import predict_batch
from segapp.outcomes import Outcome


def outcomes_of(*args: Any, **kwargs: Any) -> list[Outcome]:
    """`predict_batch`, and the outcomes in the order in which it tells them."""
    found: list[Outcome] = []
    counts = predict_batch(*args, **kwargs, on_outcome=found.append)
    assert counts.total() == len(found)
    return found
