"""Try a wheel as somebody without the repository: train, evaluate, predict, export, ask the app.

    python release/wheel.py dist/segapp-0.1.0-py3-none-any.whl [what pip installs first ...]

Makes an empty venv in a temporary folder (some GB), installs the wheel with the extra openvino, and
works there on PNGs that it draws. The words after the wheel go to pip before, as TORCH of the
Makefile does. Exit code 1 where a step fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

DRAW = """
import numpy as np
from pathlib import Path
from PIL import Image
for n in range(12):
    rng = np.random.default_rng(n)
    rows, columns = np.mgrid[:96, :128]
    row, column = rng.integers(24, 72), rng.integers(24, 104)
    disc = (rows - row) ** 2 + (columns - column) ** 2 < 300
    image = np.clip(rng.normal(60, 10, disc.shape) + 120 * disc, 0, 255).astype(np.uint8)
    for part, pixels in (("images", image), ("masks", disc.astype(np.uint8) * 255)):
        folder = Path("mine") / part
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"p{n}.png")
"""


def try_segapp(program: list[str], python: list[str], folder: Path, environment: dict[str, str]):
    """The whole way in `folder`, which is empty. program: what runs segapp; python: what runs
    Python with it. Raises AssertionError, CalledProcessError, each with what was printed."""

    def call(*words: str) -> str:
        print("  " + " ".join(word for word in words if "\n" not in word), flush=True)
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(*python, "-c", DRAW)
    where = call(*python, "-c", "import segapp; print(segapp.__file__)").strip()
    assert where.startswith(str(folder.parent)), f"not the wheel's: {where}"
    few = ["train.epochs=4", "model.encoder_weights=none", "model.encoder=resnet18"]
    call(*program, "check", "mine")
    call(*program, "train", "data.root=mine", *few)
    call(*program, "evaluate", "runs/mine", "mine", "--out", "report")
    figures = json.loads((folder / "report/summary.json").read_text())
    assert figures["miou"] > 0.4, figures
    assert "<html" in (folder / "report/report.html").read_text("utf-8")
    call(*program, "predict", "runs/mine", "mine/images", "--out", "results", "--overlay")
    assert len(list((folder / "results").rglob("p*.png"))) == 24
    call(*program, "export", "runs/mine", "--to", "openvino", "--out", "exported")
    call(*program, "predict", "exported", "mine/images/p0.png", "--out", "quick")
    assert (folder / "quick/p0.png").is_file()
    _ask_the_app([*program, "app", "runs/mine", "--port", "0"], folder, environment)


def _ask_the_app(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    print("  " + " ".join(command), flush=True)
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as app:
        try:
            assert app.stdout
            url = next(line.split()[3] for line in app.stdout if line.startswith("segapp is at"))
            for path in ("/", "/reader/static/page.js"):
                with urllib.request.urlopen(f"{url.rstrip('/')}{path}", timeout=60) as answer:
                    assert answer.status == 200, path
        finally:
            app.terminate()
        assert app.wait(60) == 0


def main(wheel: Path, first: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-") as temporary:
        home = Path(temporary).resolve()
        venv.create(home / "venv", with_pip=True)
        programs = home / "venv/bin"
        for words in ([first] if first else []) + [[f"{wheel.resolve()}[openvino]"]]:
            subprocess.run([programs / "pip", "install", "-q", *words], cwd=home, check=True)
        (home / "work").mkdir()
        lasting = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment = {**lasting, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        try_segapp([f"{programs}/segapp"], [f"{programs}/python"], home / "work", environment)
    print(f"{wheel.name}: train, evaluate, predict, export and app work outside the repository")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except AssertionError as error:
        sys.exit(str(error))
