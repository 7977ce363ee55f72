"""How quickly the app answers, as somebody at a browser sees it: from a drop to the overlay, and
from a turn of the wheel to the changed pixels.

    python benchmarks/app.py [RUN] [--repeats 9]

RUN, runs/brain unless told, is exported to OpenVINO in a temporary folder and served by `segapp
app`; a headless Chromium that the system has (pip install "segapp[test]") drops a PNG of 256 × 256
pixels again and again, then volumes of 256 × 256 × 128 and 256³ voxels. The page's own clock is
read: from the file's choice to the frame after which the overlay is on the screen; from a wheel's
event, as the browser stamps it, to the canvas that shows the other slice.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from measure import BRAIN, exported, machine, table, write_slices

from segapp.resample import resize

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WHEELS = 200
# Waits for the overlay of the scan of that name; answers with the page's clock at that time.
READY = """(name) => new Promise((found) => {
  const look = () => {
    const page = document.querySelector("iframe.sa-reader")?.contentDocument;
    const there = page?.documentElement?.dataset.state === "ready";
    if (there && page.querySelector("#name")?.textContent === name) {
      requestAnimationFrame(() => setTimeout(() => found(performance.now())));
    } else setTimeout(look, 2);
  };
  look();
})"""
# Notes for each turn of the wheel how long it took until its slice was drawn: the reader notes the
# slice on its canvas when the pixels are there.
WATCH = """() => {
  window.waits = [];
  let turned = 0;
  addEventListener("wheel", (event) => { turned = event.timeStamp; }, {capture: true});
  new MutationObserver(() => window.waits.push(performance.now() - turned))
    .observe(document.querySelector("#pane-axial"), {attributeFilter: ["data-slice"]});
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser_path is None:
        sys.exit("no Chromium here: install one, e.g. apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with exported(args.run) as model, tempfile.TemporaryDirectory() as folder:
        scans = Path(folder)
        write_slices(scans, args.repeats)
        for name, depth in (("short", 128), ("cube", 256)):
            write_volume(scans / f"{name}.nii", depth)
        command = [sys.executable, "-m", "segapp.cli", "app", str(model), "--port", "0"]
        app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert app.stdout
        url = app.stdout.readline().split()[3]
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                page.set_default_timeout(300_000)
                page.goto(url)
                page.locator("#scans input[type=file]").wait_for(state="attached")
                report(page, scans, args.repeats)
                browser.close()
        finally:
            app.terminate()
            app.wait()


def report(page: Any, scans: Path, repeats: int) -> None:
    slices = [drop(page, scans / f"slice{n:05}.png") for n in range(repeats)]
    volumes = {"256 × 256 × 128": scans / "short.nii", "256³": scans / "cube.nii"}
    rows = [("PNG, 256 × 256, the first", f"{slices[0]:.2f}", "", "")]
    rest = slices[1:] or slices
    middle, least, most = statistics.median(rest), min(rest), max(rest)
    rows.append(("the others", f"{middle:.2f}", f"{least:.2f}", f"{most:.2f}"))
    for name, path in volumes.items():
        page.reload()  # a scan that takes its time does not push another one away
        page.locator("#scans input[type=file]").wait_for(state="attached")
        rows.append((f"volume, {name}", f"{drop(page, path):.2f}", "", ""))
    print(f"Seconds from a file's choice to its overlay, {machine()}:\n")
    print(table(("", "median s", "least", "most"), rows))
    waits, asked = scroll(page)
    middle, late = statistics.median(waits), sorted(waits)[int(0.95 * len(waits))]
    print(
        f"\nFrom a turn of the wheel to the changed pixels, {len(waits)} slices of the 256³ "
        f"volume, three planes: median {middle:.0f} ms, 95 % below {late:.0f} ms, at most "
        f"{max(waits):.0f} ms; requests meanwhile: {asked}."
    )


def drop(page: Any, path: Path) -> float:
    """Seconds until a file's overlay can be seen."""
    began = page.evaluate("performance.now()")
    page.set_input_files("#scans input[type=file]", [path])
    return (page.evaluate(READY, path.name) - began) / 1000


def scroll(page: Any) -> tuple[list[float], int]:
    """Milliseconds of each turn of the wheel, and how many requests the page made meanwhile."""
    frame = next(f for f in page.frames if "/reader/" in f.url)
    frame.locator("html[data-complete=true]").wait_for(state="attached")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    frame.locator("#pane-axial").hover()
    page.keyboard.press("Home")
    time.sleep(0.5)
    frame.evaluate(WATCH)
    for _ in range(WHEELS):
        page.mouse.wheel(0, 100)
        time.sleep(0.06)
    time.sleep(0.5)
    kept_alive = [url for url in asked if "heartbeat" not in url]
    return frame.evaluate("window.waits"), len(kept_alive)


def write_volume(path: Path, depth: int) -> None:
    """The T1 volume of data/brain on 256 × 256 × `depth` voxels, as int16."""
    voxels = np.asarray(nib.load(BRAIN / "t1.nii.gz").dataobj, np.float32)  # type: ignore[attr-defined]
    flat = resize(voxels[:, None], (256, 256))[:, 0]  # along j and k
    cube = resize(np.moveaxis(flat, 0, -1)[:, None], (256, 256))[:, 0]  # along k and i
    cube = np.moveaxis(cube, -1, 0)  # (i, j, k)
    step = 256 // depth
    affine = np.diag([0.77, 0.91, 0.74 * step, 1.0])
    nib.save(nib.Nifti1Image(cube[:, :, ::step].astype(np.int16), affine), path)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
