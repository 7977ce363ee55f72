"""Slices of several scans in one batch."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Condition, Thread

import numpy as np

from segapp.engines import Engine, slices_at_once


class SharedBatches:
    """Lets many threads share an engine that runs one batch at a time and fills each up, as a GPU
    does: slices of one size that wait at the same moment go through it together.

    What a call raises is raised for all that were in its batch.
    """

    calls_at_once = 2  # one batch is gathered while another one runs

    def __init__(self, engine: Engine):
        self.engine = engine
        self.batch_size, self.precision = engine.batch_size, engine.precision
        self._waiting: list[tuple[np.ndarray, Future[np.ndarray]]] = []
        self._changed = Condition()
        Thread(target=self._run, daemon=True, name="segapp-engine").start()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32 → logits (n, classes, H, W) float32, once they are there."""
        result: Future[np.ndarray] = Future()
        with self._changed:
            self._waiting.append((batch, result))
            self._changed.notify()
        return result.result()

    def _run(self) -> None:
        while True:
            taken = self._take()
            try:
                logits = self.engine(np.concatenate([batch for batch, _ in taken]))
                ends = np.cumsum([len(batch) for batch, _ in taken])[:-1]
                parts = np.split(logits, ends)
            except BaseException as error:
                for _, result in taken:
                    result.set_exception(error)
            else:
                for (_, result), own in zip(taken, parts, strict=True):
                    result.set_result(own)

    def _take(self) -> list[tuple[np.ndarray, Future[np.ndarray]]]:
        """What goes through the engine next: the call that waits longest, and others like it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            shape = self._waiting[0][0].shape[1:]
            room = slices_at_once(self.engine, *shape[1:])
            taken, left = [], []
            for call in self._waiting:
                fits = call[0].shape[1:] == shape and (len(call[0]) <= room or not taken)
                (taken if fits else left).append(call)
                room -= len(call[0]) if fits else 0
            self._waiting = left
            return taken
