"""The web app: its handlers, its API over a socket, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import nibabel as nib
import numpy as np
import pytest
from browser import open_page
from dicom_files import write_series
from PIL import Image

from segapp.errors import ConfigError, ScanError
from segapp.formats import Entry, read_scan
from segapp.outcomes import Outcome
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes
from segapp.web.app import build_app, launch, serve
from segapp.web.handlers import Handlers
from segapp.web.inputs import find_examples, group_uploads
from segapp.web.session import Result, Session, SessionClosed, private_root
from segapp.web.view import display_size, draw, facts_html, failures_html

REPO = Path(__file__).parents[1]
CLASSES = make_classes(["background", "bone", "skin"], [0, 100, 200])


class Bands:
    """An engine to reckon with: below 50 background, below 150 bone, above it skin."""

    batch_size, calls_at_once, precision = 4, 1, "fp32"

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        band = np.digitize(batch[:, 0], (50, 150))
        return 10 * np.eye(3, dtype=np.float32)[band].transpose(0, 3, 1, 2)


@pytest.fixture
def bands() -> Predictor:
    as_it_is = Preprocessing(
        channels=1, stride=1, normalisation="imagenet", shift=(0.0,), scale=(1.0,)
    )
    return Predictor(Bands(), as_it_is, CLASSES)


def write_scans(folder: Path) -> tuple[Path, Path, Path]:
    """A PNG of 8 × 6 with 4 pixels of bone and 2 of skin, a volume, and a text named like a PNG.

    The volume has 8 × 6 × 5 voxels of 10 × 10 × 20 mm = 2 ml: 6 of skin on slice 4, 1 on slice 2.
    """
    folder.mkdir(exist_ok=True)
    pixels = np.zeros((6, 8), np.uint8)
    pixels[1, :4], pixels[4, 2:4] = 100, 200
    Image.fromarray(pixels).save(folder / "hand.png")
    voxels = np.zeros((8, 6, 5), np.uint8)
    voxels[1:4, 2:4, 3], voxels[0, 0, 1] = 200, 200
    nib.save(nib.Nifti1Image(voxels, np.diag([-10.0, -10, 20, 1])), folder / "head.nii.gz")
    (folder / "notes.png").write_text("not an image")
    return folder / "hand.png", folder / "head.nii.gz", folder / "notes.png"


def request(tab: str) -> gr.Request:
    return SimpleNamespace(session_hash=tab)  # type: ignore[return-value]


def quiet(*_: object, **__: object) -> None:
    pass


def test_a_result_to_review_says_so_first(tmp_path):
    outcome = Outcome(
        tmp_path / "a.nii",
        tmp_path / "o.nii",
        status="review",
        reason="2.1 times as unlike <the> training scans",
        sizes={
            **{"background_voxels": 9, "bone_voxels": 4, "bone_voxels_low": 2.5},
            **{"bone_voxels_high": 6.0, "skin_voxels": 0},
        },
        estimated_dice=0.412,
        unlikeness=2.1,
        range_coverage=2 / 3,
    )
    shown = facts_html(Result("a.nii", outcome, tmp_path, shape=(2, 2, 1)), CLASSES)
    assert shown.index("Review this result") < shown.index("<table")
    assert "unlike &lt;the&gt; training" in shown
    assert "2.50–6.00" in shown
    assert shown.count("<small>") == 1
    assert "Small: a range that holds the true size in about 67%" in shown
    assert "<dt>Estimated Dice</dt><dd>0.41</dd>" in shown
    plain = Outcome(tmp_path / "a.nii", tmp_path / "o.nii", sizes={"bone_voxels": 4})
    shown = facts_html(Result("a.nii", plain, tmp_path, shape=(2, 2, 1)), CLASSES)
    assert "Review" not in shown
    assert "<small>" not in shown


def test_exactly_the_documented_endpoints_are_public(bands):
    info = build_app(bands, "hands").get_api_info()["named_endpoints"]
    assert set(info) == {"/segment", "/slice"}
    names = [p["parameter_name"] for p in info["/slice"]["parameters"]]
    assert names == ["result", "slice", "opacity"]


def test_a_bad_file_is_named_and_the_others_go_on(bands, tmp_path):
    handlers = Handlers(bands, [])
    files = [str(path) for path in write_scans(tmp_path)]
    outputs, summary, session = handlers.segment(files, None, request("tab"), quiet)

    assert [Path(o).name for o in outputs] == ["hand.png", "head.nii.gz"]
    hand, head, notes = summary["results"]
    assert (hand["status"], hand["slices"], hand["spacing_mm"]) == ("ok", 1, None)
    assert hand["sizes"] == {"background_voxels": 42, "bone_voxels": 4, "skin_voxels": 2}
    assert np.array_equal(np.unique(Image.open(outputs[0])), [0, 100, 200])
    assert (head["slices"], head["busiest_slice"]) == (5, 4)
    assert head["sizes"]["skin_ml"] == pytest.approx(14)
    assert notes["status"] == "failed"
    assert str(tmp_path) not in str(summary)

    failures = failures_html(session.results)
    assert "notes.png" in failures
    assert "hand.png" not in failures
    assert session.zip is not None
    assert zipfile.ZipFile(session.zip).namelist() == ["hand.png", "head.nii.gz"]
    session.close()


def test_facts_name_classes_sizes_and_what_is_unknown(bands, tmp_path):
    session = Session(private_root())
    hand, head, _ = write_scans(tmp_path)
    session.segment(bands, session.gather([hand, head], 1), quiet)
    flat, volume = (facts_html(result, CLASSES) for result in session.results)
    assert "Spacing unknown" in flat
    assert "ml" not in flat.replace("html", "")
    assert "14.0 ml" in volume
    assert "10 × 10 × 20 mm" in volume
    assert "bone" in volume
    session.close()


def test_a_picture_has_square_pixels_and_shows_the_image_at_opacity_0(bands, tmp_path):
    session = Session(private_root())
    _, head, _ = write_scans(tmp_path)
    session.segment(bands, session.gather([head], 1), quiet)
    result = session.results[0]
    plain, half, whole = (draw(result, CLASSES, 4, opacity) for opacity in (0, 0.5, 1))
    assert plain.shape == (576, 768, 3)  # 6 × 8 voxels
    assert (plain == plain[..., :1]).all()  # grey
    colours = {tuple(colour) for colour in whole.reshape(-1, 3)[::7]}
    assert CLASSES[2].colour in colours
    assert not np.array_equal(half, plain)
    assert not draw(result, CLASSES, 3, 1).any()  # nothing on slice 3
    session.close()


@pytest.mark.parametrize(
    ("rows", "columns", "aspect", "size"),
    [
        (100, 50, 1.0, (768, 384)),
        (100, 100, 3.0, (768, 256)),  # thick slices, seen from the side
        (100, 100, 0.5, (384, 768)),
        (1000, 800, 1.0, (1000, 800)),
        (5000, 2500, 1.0, (1536, 768)),
    ],
)
def test_display_size(rows, columns, aspect, size):
    assert display_size(rows, columns, aspect) == size


def test_a_session_is_private_and_goes_with_its_tab(bands, tmp_path):
    handlers = Handlers(bands, [])
    hand, head, _ = write_scans(tmp_path)
    _, _, first = handlers.segment([str(hand)], None, request("a"), quiet)
    _, _, other = handlers.segment([str(head)], None, request("b"), quiet)
    for folder in (private_root(), first.folder, other.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    _, _, second = handlers.segment([str(head)], first, request("a"), quiet)
    assert not first.folder.exists()  # new scans replace the old ones
    handlers.unload(request("a"))
    assert not second.folder.exists()
    assert other.folder.exists()
    with pytest.raises(gr.Error, match="no longer kept"):
        handlers.view(second, 0, 1, 50)
    other.close()
    assert hand.exists()  # only uploads are ours to delete


def test_uploads_go_with_the_session_unless_they_came_again(bands):
    folder = private_root() / "upload"
    hand, head, _ = write_scans(folder)
    time.sleep(0.05)
    session = Session(private_root())
    session.segment(bands, session.gather([hand, head], 1), quiet)
    time.sleep(0.05)
    os.utime(head)  # somebody uploaded the same file, and waits in the queue
    session.close()
    assert not hand.exists()
    assert head.exists()
    shutil.rmtree(folder)


def test_closing_the_tab_stops_its_prediction(bands, tmp_path):
    session = Session(private_root())
    _, head, _ = write_scans(tmp_path)
    with pytest.raises(SessionClosed):
        session.segment(bands, session.gather([head], 1), lambda *_: session.close())
    assert not session.folder.exists()


def test_a_bug_fails_one_file_and_logs_no_names(bands, tmp_path, caplog):
    hand = write_scans(tmp_path)[0]

    class Broken(Bands):
        def __call__(self, batch):
            raise KeyError(hand.name)

    session = Session(private_root())
    broken = Predictor(Broken(), bands.preprocessing, CLASSES)
    session.segment(broken, session.gather([hand], 1), quiet)
    assert "unexpected KeyError" in session.results[0].outcome.reason
    assert "KeyError" in caplog.text
    assert "hand.png" not in caplog.text
    session.close()


def test_uploads_of_one_name_do_not_overwrite_each_other(bands, tmp_path):
    one, two = write_scans(tmp_path / "1")[0], write_scans(tmp_path / "2")[0]
    session = Session(private_root())
    session.segment(bands, session.gather([one, two], 1), quiet)
    assert [path.name for path in session.outputs] == ["hand.png", "hand_2.png"]
    session.close()


def test_uploads_become_scans(tmp_path):
    names = ["x/p_0001.png", "y/p_0000.png", "z/q_0000.png", "r.png", "notes.txt"]
    paths = [tmp_path / "up" / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path) if path.suffix == ".png" else path.write_text("hello")
    one = group_uploads(paths, tmp_path / "1", 1)
    assert [entry.name for entry in one] == ["p_0001", "p_0000", "q_0000", "r", "notes.txt"]
    two = group_uploads(paths, tmp_path / "2", 2)
    found = [(entry.name, [path.name for path in entry.paths]) for entry in two]
    assert found == [
        ("p", ["p_0000.png", "p_0001.png"]),
        ("q", ["q_0000.png", "q_0001.png"]),
        ("r", ["r.png"]),
        ("notes.txt", ["notes.txt"]),
    ]
    with pytest.raises(ScanError, match="is no scan of a known format"):
        read_scan(two[3].paths)


def test_voxels_of_a_header_are_no_upload_of_their_own(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(24))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mhd").write_text(header + "ElementDataFile = a.raw\n")
    (entry,) = group_uploads([tmp_path / "a.raw", tmp_path / "a.mhd"], tmp_path / "1", 1)
    assert read_scan(entry.paths).shape == (2, 3, 4)


def test_dicom_uploads_are_grouped_into_series(bands, tmp_path):
    volume = np.full((3, 6, 8), 100, np.int16)
    slices = write_series(tmp_path / "a", volume, seed="a")
    for n, path in enumerate(write_series(tmp_path / "b", volume, seed="b", SeriesNumber=8)):
        slices.append(path.rename(tmp_path / "b" / f"{n}"))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for path in write_series(tmp_path / "c", volume, seed="c"):
            archive.write(path, f"study/{path.name}")
    session = Session(private_root())
    entries = session.gather([*slices, tmp_path / "c.zip"], 1)
    assert [entry.name for entry in entries] == ["scan_series3", "scan_series8", "study"]
    session.segment(bands, entries, quiet)
    assert [result.shape for result in session.results] == [(8, 6, 3)] * 3
    assert [path.name for path in session.outputs] == [f"{entry.name}.nii.gz" for entry in entries]
    assert [result.name for result in session.results] == [entry.name for entry in entries]
    session.close()


def test_examples_come_from_the_models_own_data(bands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_examples(bands) == []
    bands.info = SimpleNamespace(data=SimpleNamespace(root=str(tmp_path / "set")))
    for n in range(12):
        path = tmp_path / f"set/test/images/{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    shutil.copy(write_scans(tmp_path / "scans")[1], tmp_path / "set")
    assert [e.name for e in find_examples(bands)] == ["02", "06", "10", "head"]
    assert find_examples(bands, own_data=False) == []


def test_launch_takes_one_model():
    with pytest.raises(ConfigError, match="exactly one model, got 2"):
        launch([Path("a"), Path("b")], "127.0.0.1", 0)


def test_a_port_in_use_is_a_clear_error(bands):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: can't listen"):
            serve(build_app(bands, "hands"), "127.0.0.1", port, block=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A run folder with an untrained network."""
    import torch

    from segapp.checkpoint import Architecture, DataRecord, ModelInfo, save_model
    from segapp.model import build_network

    torch.manual_seed(0)
    architecture = Architecture(
        name="unet", encoder="resnet18", in_channels=1, classes=3, residual=True
    )
    network = build_network(**architecture.model_dump())
    run = tmp_path_factory.mktemp("model") / "hands"
    info = ModelInfo(
        architecture=architecture,
        preprocessing=Preprocessing(channels=1, normalisation="zscore"),
        classes=CLASSES,
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="none"),
    )
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    save_model(run / "model.safetensors", weights, info)
    return run


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> tuple[Path, Path]:
    """A PNG and a volume, of noise: an untrained network finds every class in it somewhere."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 48), np.uint8)).save(folder / "slice.png")
    voxels = rng.integers(0, 255, (48, 64, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 3, 1])), folder / "volume.nii.gz")
    return folder / "slice.png", folder / "volume.nii.gz"


@pytest.fixture(scope="module")
def url(model, scans) -> Iterator[str]:
    app = build_app(Predictor.load(model, "cpu"), "hands", [Entry("slice", (scans[0],))])
    yield serve(app, "127.0.0.1", None, block=False)
    app.close()


@pytest.fixture(scope="module")
def from_command_line(model, scans, tmp_path_factory) -> Path:
    """What `segapp predict` writes for the same scans."""
    out = tmp_path_factory.mktemp("predicted")
    command = [sys.executable, "-m", "segapp.cli", "predict", str(model)]
    command += [*map(str, scans), "--out", str(out), "--device", "cpu"]
    subprocess.run(command, check=True, cwd=REPO, capture_output=True)
    return out


def sessions() -> set[Path]:
    """Open sessions' folders (Gradio keeps uploads beside them, named by longer hashes)."""
    return {p for p in private_root().iterdir() if p.is_dir() and len(p.name) == 32}


def test_the_api_answers_with_what_predict_writes(url, scans, from_command_line):
    from gradio_client import Client, handle_file

    before = sessions()
    client = Client(url, verbose=False)
    try:
        outputs, summary = client.predict([handle_file(s) for s in scans], api_name="/segment")
        for output, scan in zip(outputs, scans, strict=True):
            assert Path(output).name == scan.name
            assert Path(output).read_bytes() == (from_command_line / scan.name).read_bytes()
        assert [r["status"] for r in summary["results"]] == ["ok", "ok"]
        assert summary["results"][1]["slices"] == 9

        picture = client.predict(1, 5, 0.5, api_name="/slice")
        assert Image.open(picture).size == (576, 768)
        with pytest.raises(Exception, match="slice is 1 to 9"):
            client.predict(1, 10, 0.5, api_name="/slice")
        assert len(sessions() - before) == 1
        stranger = Client(url, verbose=False)
        with pytest.raises(Exception, match="no longer kept"):
            stranger.predict(0, 1, 0.5, api_name="/slice")
        stranger.close()
    finally:
        client.close()


@pytest.fixture
def page(url):
    """The app in Chromium; fails on any request to another host and on any console error."""
    with open_page(is_local) as page:
        page.goto(url)
        yield page


def is_local(address: str) -> bool:
    return address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def shown_picture(page) -> np.ndarray:
    source = page.locator("#view img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))), np.int16)


def colourful(picture: np.ndarray) -> bool:
    return bool((np.ptp(picture, axis=2) > 40).mean() > 0.01)


def wait_for_caption(page, text: str) -> None:
    page.locator("#view figcaption", has_text=text).wait_for()


def take_picture_of(page, name: str) -> None:
    if folder := os.environ.get("SEGAPP_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.browser
def test_a_reader_drops_a_volume_scrolls_and_downloads(page, scans, from_command_line):
    image, volume = scans
    take_picture_of(page, "app-empty")
    page.set_input_files("#scans input[type=file]", [image, volume])
    wait_for_caption(page, "slice.png")
    page.locator("#facts", has_text="Spacing unknown").wait_for()
    assert not page.locator("#slice").is_visible()
    assert colourful(shown_picture(page))
    take_picture_of(page, "app-image")

    page.get_by_role("radio", name="volume.nii.gz").check()
    wait_for_caption(page, "volume.nii.gz, slice")
    facts = page.locator("#facts").inner_text()
    assert "bone" in facts
    assert "ml" in facts
    assert "1 × 1 × 3 mm" in facts

    slider = page.locator("#slice input[type=range]")
    start = int(slider.input_value())
    step, key = (1, "ArrowRight") if start < 9 else (-1, "ArrowLeft")
    first = shown_picture(page)
    slider.press(key)
    wait_for_caption(page, f"slice {start + step} of 9")
    moved = shown_picture(page)
    assert not np.array_equal(moved, first)
    page.locator("#view img").hover()
    page.mouse.wheel(0, -100 * step)  # back again
    wait_for_caption(page, f"slice {start} of 9")

    source = page.locator("#view img").get_attribute("src")
    page.locator("#opacity input[type=range]").press("Home")
    page.wait_for_function("s => document.querySelector('#view img').src != s", arg=source)
    plain = shown_picture(page)
    assert not colourful(plain)
    assert colourful(moved)
    take_picture_of(page, "app-volume")

    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == volume.name
    expected = (from_command_line / volume.name).read_bytes()
    assert download.value.path().read_bytes() == expected
    with page.expect_download() as download:
        page.locator("#download-all").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.read(image.name) == (from_command_line / image.name).read_bytes()


@pytest.mark.browser
def test_a_bad_file_gets_a_line_and_an_example_a_click(page, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    page.set_input_files("#scans input[type=file]", [tmp_path / "notes.png"])
    page.locator("#failures", has_text="notes.png").wait_for()
    assert str(private_root()) not in page.content()
    assert not page.locator("#download").is_visible()
    before = sessions()
    page.locator("#examples").get_by_text("slice.png").click()
    wait_for_caption(page, "slice.png")
    assert "notes.png" not in page.locator("#failures").inner_text()
    take_picture_of(page, "app-example")

    mine = sessions() - before
    assert len(mine) == 1
    page.goto("about:blank")
    deadline = time.monotonic() + 30
    while mine & sessions() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not mine & sessions()
