"""Kill a short training at random moments and resume it: it must end as if nobody had.

    python tests/kills.py [FORKED] [COMMANDS]     (85 kills of forked processes, 15 of commands)

A process is killed by SIGKILL after a random time, or as soon as it is seen to write a file, and
what is left is resumed, until it ends. The model file must be that of the uninterrupted training,
byte for byte, and so must the losses; no half-written file and no worker may be left.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from conftest import write_png_dataset

REPOSITORY = Path(__file__).parents[1]
SHORT = "train.epochs=3 train.steps_per_epoch=3 optim.batch_size=2 optim.patch=64"
SHORT += " model.encoder=resnet18 model.encoder_weights=none train.deterministic=true"
RICH = "optim.ema=0.9 model.dropout=0.2 augment.mixup_p=0.5 optim.accumulate=2"
RICH += " train.progressive=0.5,1"
VARIANTS = {
    "each step saved": "train.save_minutes=0",
    "each step saved, workers": "train.save_minutes=0 data.workers=2 train.patience=1",
    "often saved, rich": f"train.save_minutes=0.01 {RICH}",
    "often saved, rich, workers": f"train.save_minutes=0.01 data.workers=2 {RICH}",
}
Start = Callable[[list[str], Path], int]


def fork(words: list[str], said: Path) -> int:
    """The command in a fork of this process, which has everything imported; its process id. said:
    the file that takes its output."""
    if process := os.fork():
        return process
    os.setpgid(0, 0)
    code = 2
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import segapp.cli

        sys.argv = ["segapp", *words]
        segapp.cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def command(words: list[str], said: Path) -> int:
    """The command as users start it; its process id."""
    words = [sys.executable, "-m", "segapp.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with said.open("ab") as output:
        both = {"stdout": output, "stderr": output}
        return subprocess.Popen(words, start_new_session=True, env=environment, **both).pid


def require_success(status: int, said: Path) -> None:
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"exit code {code}: {said.read_text(errors='replace')[-2000:]}"


def kill(process: int, run: Path, said: Path, after: float, while_writing: bool) -> bool:
    """Kill it in `after` seconds, or then as soon as it writes a file; False where it ended."""
    until = time.monotonic() + after
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            require_success(status, said)
            return False
        if time.monotonic() >= until and (not while_writing or any(run.rglob(".partial-*"))):
            os.kill(process, signal.SIGKILL)  # its workers must notice by themselves
            os.waitpid(process, 0)
            return True
        time.sleep(0.0005)


def losses(run: Path) -> list[tuple[str, ...]]:
    names = ("epoch", "step", "lr", "train_loss", "val_loss", "val_miou")
    with (run / "history.csv").open() as file:
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]


class Whole:
    """The training that nobody killed, by variant."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, write_png_dataset(folder / "data")
        self.seconds: dict[str, float] = {}

    def words(self, variant: str, run: Path) -> list[str]:
        words = f"train data.root={self.data} train.out={run} {SHORT} {VARIANTS[variant]}"
        return words.split()

    def of(self, variant: str) -> Path:
        run = self.folder / f"whole {variant}".replace(" ", "-")
        if variant not in self.seconds:
            began = time.monotonic()
            said = self.folder / f"{run.name}.txt"
            require_success(os.waitpid(fork(self.words(variant, run), said), 0)[1], said)
            self.seconds[variant] = time.monotonic() - began
        return run


def killed_training(
    whole: Whole, variant: str, kills: int, start: Start, extra: float, rng: random.Random
) -> tuple[int, list[int]]:
    """Kill a training so many times and let it end; how often it was killed, and the number of
    steps that were saved each time. extra: seconds that a start costs beyond a fork."""
    run, done, saved = whole.folder / f"killed{rng.randrange(10**9)}", 0, []
    said, expected = whole.folder / f"{run.name}.txt", whole.of(variant)
    while True:
        resume = (run / "config.yaml").is_file()
        words = ["train", "--resume", str(run)] if resume else whole.words(variant, run)
        process, began = start(words, said), time.monotonic()
        if done == kills:
            require_success(os.waitpid(process, 0)[1], said)
            break
        wait = rng.uniform(0, extra + whole.seconds[variant] / (1 + done))
        if not kill(process, run, said, wait, while_writing=rng.random() < 0.5):
            if not done and start is fork:  # the machine was busier when this was measured
                seconds = time.monotonic() - began
                whole.seconds[variant] = min(whole.seconds[variant], seconds)
            break
        done += 1
        states = sorted((run / "last").glob("step-*"))
        saved.append(int(states[-1].stem.removeprefix("step-")) if states else 0)
    model = "model.safetensors"
    assert (run / model).read_bytes() == (expected / model).read_bytes(), f"{run}: other weights"
    assert losses(run) == losses(expected), f"{run}: another history"
    assert not [*run.rglob(".*")], f"{run}: leftovers"
    names = sorted(path.name for path in (run / "last").iterdir())
    assert 1 <= len(names) <= 2, f"{run}: not the newest two states, but {names}"
    return done, saved


def run_kills(folder: Path, forked: int, commands: int, seed: int = 0) -> int:
    """So many kills of each kind, in trainings of each variant in turn; prints them. Returns how
    many there were, and raises AssertionError for the first training that ends otherwise."""
    import segapp.cli
    import segapp.train  # noqa: F401  here, so that forks needn't

    rng, whole, total = random.Random(seed), Whole(folder), 0
    for start, wanted, extra in ((fork, forked, 0.0), (command, commands, 4.0)):
        kills, number = 0, 0
        while kills < wanted:
            variant = list(VARIANTS)[number % len(VARIANTS)]
            most = min(rng.randint(1, 3), wanted - kills)
            done, saved = killed_training(whole, variant, most, start, extra, rng)
            kills, number = kills + done, number + 1
            print(f"{start.__name__}: {variant}: killed at steps {saved}, equal", flush=True)
        total += kills
        print(f"{start.__name__}: {kills} kills in {number} trainings, all end equal", flush=True)
    return total


if __name__ == "__main__":
    forked, commands = (int(word) for word in (sys.argv[1:] + ["85", "15"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as place:
        print(f"{run_kills(Path(place), forked, commands)} kills in all")
