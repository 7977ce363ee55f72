"""Commands run in forks of a process that fault_shim.c was loaded into."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE_S = 60
TRAIN = "train data.root=../data train.out=run train.epochs=2 train.steps_per_epoch=2"
TRAIN += " optim.batch_size=2 optim.patch=64 model.encoder=resnet18 model.encoder_depth=3"
TRAIN += " model.encoder_weights=none train.save_minutes=0 train.deterministic=true"
PREDICT = "predict ../model ../scans --out out --overlay --device cpu"


@dataclass(frozen=True)
class Fault:
    """The nth call fails, or all from it on (lasting), with an error number."""

    nth: int
    error: int
    lasting: bool

    def __str__(self) -> str:
        return f"{errno.errorcode[self.error]} {'from' if self.lasting else 'at'} call {self.nth}"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, and its calls, name and path each."""

    code: int
    stdout: str
    stderr: str
    calls: list[str]


def build(folder: Path) -> Path:
    """The shim, compiled into `folder`. Raises FileNotFoundError where there is no compiler."""
    shim = folder / "fault_shim.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("cc: no C compiler")
    flags = ["-shared", "-fPIC", "-O1", "-o", str(shim)]
    subprocess.run([compiler, *flags, str(HERE / "fault_shim.c"), "-ldl"], check=True)
    return shim


def start(words: Sequence[str], shim: Path, **how: bool) -> subprocess.CompletedProcess[str]:
    """faults.py as a command with the shim loaded. how: of subprocess.run."""
    own = {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "faults.py"), *words]
    return subprocess.run(command, check=False, text=True, env={**os.environ, **own}, **how)


def load() -> ctypes.CDLL:
    """The shim that this process was started with."""
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    shim.fault_count.restype = ctypes.c_long
    shim.fault_log.restype = ctypes.c_char_p
    return shim


def run(words: str, place: Path, fault: Fault | None = None) -> Ended:
    """The command in a fork, in and on the folder `place`; what it prints goes to files beside it.
    After a minute it is killed (code -14)."""
    said = [place.with_name(f"{place.name}.{name}") for name in ("stdout", "stderr", "calls")]
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _run_here(words.split(), place, said, fault)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    printed = [path.read_text(errors="replace") if path.exists() else "" for path in said]
    return Ended(code, printed[0], printed[1], printed[2].splitlines())


def _run_here(words: list[str], place: Path, said: list[Path], fault: Fault | None) -> None:
    """In the fork; never returns."""
    code = 70
    try:
        signal.alarm(PATIENCE_S)
        for descriptor, path in enumerate(said[:2], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(place)
        sys.argv = ["segapp", *words]
        shim, fault = load(), fault or Fault(0, 0, False)
        shim.fault_arm(os.fsencode(place), fault.nth, fault.error, fault.lasting)
        import segapp.cli

        try:
            segapp.cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        gc.collect()  # files that nobody closed are closed now, as at the end of a process
        said[2].write_bytes(shim.fault_log())
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
