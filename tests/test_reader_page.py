"""The reader's page in a real browser: what it shows, and how it is moved through."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from browser import open_page
from PIL import Image
from reader_page import (
    REFUSE,
    Fake,
    View,
    is_from,
    near,
    reader,
    served,
    set_opacity,
    settle,
    two_classes,
)

from segapp.preprocess import ordering, to_slices

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]


@pytest.mark.slow
def test_slices_scroll_by_wheel_keys_and_slider():
    image = np.zeros((9, 12, 16), np.uint8)
    image[:] = 20 * np.arange(9)[:, None, None]
    with reader(Fake(image)) as page:
        view = View(page, "axial", 12, 16)
        assert view.slice == 4
        assert near(view.colour(3, 3), (80, 80, 80))
        page.mouse.move(*view.at(3, 3))
        page.mouse.wheel(0, 100)
        assert view.slice == 5
        assert near(view.colour(3, 3), (100, 100, 100))
        page.mouse.wheel(0, -100)
        for key, expected in (
            *(("ArrowDown", 5), ("PageDown", 6), ("ArrowUp", 5), ("PageUp", 4)),
            *(("End", 8), ("ArrowDown", 8), ("Home", 0)),
        ):
            page.keyboard.press(key)
            assert view.slice == expected, key
        page.locator("#slider").fill("7")
        assert view.slice == 7
        assert page.locator("#slice-number").inner_text() == "8 / 9"
        coronal = View(page, "coronal", 9, 16)
        page.mouse.move(*coronal.at(4, 4))
        page.keyboard.press("Home")
        assert (coronal.slice, view.slice) == (0, 7)
        # Head up: the first row of a coronal picture is the last slice.
        assert near(coronal.colour(0, 8), (160, 160, 160))
        assert near(coronal.colour(8, 8), (0, 0, 0))


def test_a_click_moves_the_other_planes_and_a_double_click_enlarges():
    image = np.arange(6 * 12 * 16, dtype=np.uint16).reshape(6, 12, 16)
    with reader(Fake(image, window=[0, 1151])) as page:
        views = {
            "axial": View(page, "axial", 12, 16),
            "coronal": View(page, "coronal", 6, 16),
            "sagittal": View(page, "sagittal", 6, 12),
        }
        page.mouse.click(*views["axial"].at(2, 13))
        assert [v.slice for v in views.values()] == [3, 2, 13]
        page.mouse.click(*views["sagittal"].at(0, 7))
        assert [v.slice for v in views.values()] == [5, 7, 13]
        page.mouse.dblclick(*views["sagittal"].at(1, 7))
        assert View(page, "sagittal", 6, 12).box["width"] > 1.5 * views["sagittal"].box["width"]
        assert page.locator("#slider-label").inner_text() == "Sagittal"
        page.get_by_role("button", name="Enlarge axial").click()
        assert View(page, "axial", 12, 16).box == views["axial"].box


def test_pixels_have_the_true_proportions():
    image = np.zeros((1, 10, 10), np.uint8)
    image[0, :, 4:6] = 200
    with reader(Fake(image, spacing_mm=[1, 1, 3])) as page:
        view = View(page, "axial", 10, 10, down=1, across=3)
        assert math.isclose(view.across, 3 * view.down)
        assert near(view.colour(5, 4.5), (200, 200, 200))
        assert near(view.colour(5, 3), (0, 0, 0), 60)
        assert page.locator("canvas[data-plane]").count() == 1
        assert page.locator("#slices").is_hidden()


def test_presets_and_numbers_set_the_window():
    image = np.full((1, 8, 8), 40, np.int16)
    image[0, :, :4] = -160
    with reader(Fake(image, ct=True, window=[-160, 40])) as page:
        view = View(page, "axial", 8, 8)
        assert page.locator("#width").input_value() == "400"  # CT: soft tissue at first
        assert near(view.colour(4, 6), (128, 128, 128))
        assert near(view.colour(4, 1), (0, 0, 0))
        page.keyboard.press("0")
        assert near(view.colour(4, 6), (255, 255, 255))
        page.locator("#preset").select_option(label="CT: bone")
        assert page.locator("#centre").input_value() == "480"
        page.locator("#width").fill("1000")
        page.locator("#width").blur()
        expected = 255 * (40 + 20) / 1000
        assert near(view.colour(4, 6), (expected,) * 3)
        assert page.locator("#preset").input_value() == "own"
        page.mouse.move(*view.at(4, 4))
        page.mouse.down(button="right")
        x, y = view.at(4, 4)
        page.mouse.move(x + 100, y)
        page.mouse.up(button="right")
        assert float(page.locator("#width").input_value()) == pytest.approx(
            1000 + 100 * math.sqrt(200 * 1000) / 400, abs=0.01
        )


def test_zoom_keeps_the_voxel_under_the_pointer_and_reset_fits_again():
    image = np.arange(12 * 16, dtype=np.int16).reshape(1, 12, 16)
    with reader(Fake(image)) as page:
        view = View(page, "axial", 12, 16)
        told = view.hover(3, 12)
        page.keyboard.down("Control")
        for _ in range(6):
            page.mouse.wheel(0, -100)
        page.keyboard.up("Control")
        assert view.hover(3, 12) == told
        assert view.hover(11, 0)["voxel"] != "0,11,0"  # much further away now
        assert page.locator("canvas[data-plane=axial]").get_attribute("data-slice") == "0"
        page.keyboard.press("r")
        assert view.hover(11, 0)["voxel"] == "0,11,0"
        page.keyboard.down("Shift")
        page.mouse.down()
        page.mouse.move(*view.at(9, 2))
        page.mouse.up()
        page.keyboard.up("Shift")
        assert view.hover(9, 2)["voxel"] == "0,11,0"  # moved along with the pointer


def test_in_a_frame_keys_work_where_the_pointer_is():
    fake = two_classes()
    with served(fake) as address, open_page(is_from(address)) as page:
        page.goto(address.replace("/reader/t/0/", "/frame"))
        page.mouse.click(20, 20)
        frame = page.frames[1]
        frame.wait_for_selector("html[data-complete=true]", state="attached")
        canvas = frame.locator("canvas[data-plane=axial]")
        canvas.hover()
        page.keyboard.press("Home")
        frame.wait_for_selector("canvas[data-plane=axial][data-slice='0']")


def test_classes_are_drawn_hidden_and_recoloured():
    fake = two_classes()
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        set_opacity(page, 50)
        assert near(view.colour(3, 3), (178, 50, 50))
        assert near(view.colour(3, 9), (50, 178, 50))
        assert near(view.colour(8, 8), (100, 100, 100))
        page.get_by_label("Show bone").uncheck()
        assert near(view.colour(3, 3), (100, 100, 100))
        page.get_by_label("Show bone").check()
        page.get_by_label("Colour of bone").fill("#0000ff")
        assert near(view.colour(3, 3), (50, 50, 178))
        page.mouse.move(*view.at(8, 8))
        page.keyboard.press("Space")
        assert near(view.colour(3, 3), (100, 100, 100))
        page.keyboard.press("Space")
        page.keyboard.press("o")  # outline only
        assert near(view.colour(3, 3), (100, 100, 100))
        assert near(view.colour(3, 1.5), (0, 0, 255), 90)  # on the border of columns 1 and 2
        rows = page.locator("#class-list li").all_inner_texts()
        assert rows[0].split("\n") == ["bone", "1.50 ml", rows[0].split("\n")[2]]
        assert "1.00–2.00 ml" in rows[0]
        assert "3 pieces" in rows[0]
        assert "16 voxels" in rows[0]
        kept = page.evaluate("JSON.stringify(localStorage)")
        assert json.loads(json.loads(kept)["reader"]) == {"opacity": 0.5, "style": "outline"}


def test_unsure_voxels_light_up():
    fake = two_classes()
    fake.confidence[3, 3, 3] = 128
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        set_opacity(page, 100)
        page.mouse.move(*view.at(8, 8))
        page.keyboard.press("c")
        assert near(view.colour(3, 3), (253, 231, 37), 6)  # half unsure: the scale's bright end
        assert near(view.colour(3, 4), (100, 100, 100))
        assert page.locator("#heat-legend").is_visible()
        assert "not drawn while" in page.locator("#overlay-note").inner_text()
        assert page.locator("#style").is_disabled()
        assert page.get_by_label("Show bone").is_disabled()
        page.keyboard.press("c")
        assert page.locator("#style").is_enabled()
        assert page.get_by_label("Show bone").is_enabled()
        assert page.locator("#overlay-note").is_hidden()


def test_the_readout_tells_what_the_file_holds_at_that_voxel():
    """An oblique scan with its axes permuted and flipped."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 3000, (7, 9, 11)).astype(np.int16)
    axes = np.array([[0, 0, -3.0], [1.5, 0, 0], [0, -2.0, 0]])  # i forwards, j down, k to the left
    angle = 0.2
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    affine = np.eye(4)
    affine[:3, :3] = np.vstack([turn, [0, 0, 1]]) @ axes
    affine[:3, 3] = 10, -20, 30
    display = to_slices(voxels[None], affine, "axial")[:, 0]
    order, flips = ordering(affine, "axial")
    to_voxel = np.zeros((4, 4))
    to_voxel[3, 3] = 1
    for n, axis in enumerate(order):
        to_voxel[axis, n] = -1 if n in flips else 1
        to_voxel[axis, 3] = voxels.shape[axis] - 1 if n in flips else 0
    steps = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
    geometry = {"spacing_mm": steps.tolist(), "to_voxel": to_voxel.tolist()}
    with reader(Fake(display, affine=affine.tolist(), **geometry)) as page:
        k, h, w = display.shape
        for plane, rows, cols, down, across in (
            *(("axial", h, w, 1, 2), ("coronal", k, w, 0, 2), ("sagittal", k, h, 0, 1)),
        ):
            view = View(page, plane, rows, cols, steps[down], steps[across])
            seen = set()
            for row, col in ((0, 0), (rows - 1, cols - 1), (2, 5), (4, 1)):
                told = view.hover(row, col)
                at = tuple(map(int, told["voxel"].split(",")))
                seen.add(at)
                assert int(told["value"]) == voxels[at]
            assert len(seen) == 4
        position = page.locator("#readout").inner_text()
        x, y, z = nib.affines.apply_affine(affine, at)
        for (plus, minus), mm in zip(("RL", "AP", "SI"), (x, y, z), strict=True):
            assert f"{plus if mm >= 0 else minus} {abs(mm):.1f}" in position


def test_rgb_and_float32_are_told_as_stored():
    image = np.zeros((1, 6, 8, 3), np.uint8)
    image[0, 1:4, 2:5] = 10, 200, 30
    with reader(Fake(image, affine=None, spacing_mm=None)) as page:
        view = View(page, "axial", 6, 8)
        assert view.hover(2, 3)["value"] == "10,200,30"
        assert near(view.colour(2, 3), (10, 200, 30))
        assert "Position" not in page.locator("#readout").inner_text()
    image = np.full((1, 6, 8), np.float32(0.1))
    image[0, 0, 0] = np.nan
    with reader(Fake(image, window=[0, 0.2])) as page:
        view = View(page, "axial", 6, 8)
        assert view.hover(3, 3)["value"] == "0.1"
        assert view.hover(0, 0)["value"] == "NaN"
        assert near(view.colour(3, 3), (128, 128, 128))


def test_nothing_is_asked_for_after_loading():
    fake = two_classes()
    with reader(fake) as page:
        assert sorted(fake.asked) == sorted({*fake.asked})  # each thing once
        before = list(fake.asked)
        view = View(page, "axial", 12, 16)
        page.mouse.move(*view.at(5, 5))
        for key in [*"012345+-ooocxxrcben", "End", "Home"]:
            page.keyboard.press(key)
        page.mouse.wheel(0, 100)
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("Escape")
        assert fake.asked == before


def test_what_a_file_says_is_shown_as_text():
    fake = two_classes()
    fake.meta |= {"status": "review", "reason": "<img src=x>", "model": "<b>m</b>"}
    with reader(fake) as page:
        assert page.locator("h1").inner_text() == "<i>scan</i>.nii.gz"
        assert page.locator("#review").inner_text() == "Review this result. <img src=x>"
        assert "<u>Careful</u>" in page.locator("#warnings").inner_text()
        assert page.locator("main :is(i, u, img, s)").count() == 0
        assert page.locator("#class-list").inner_text().count("<b>skin</b>") == 1
        link = page.get_by_role("link", name="Measurements (CSV)")
        assert link.get_attribute("href") == "download/csv"
        assert page.title() == "Reader"


def test_downloads_say_what_they_are_and_are_one_click_away():
    fake = two_classes()
    note = "Values: 0 background, 100 <b>bone</b>"
    mask = {"kind": "same", "name": "scan.nii.gz", "label": "Mask (NIfTI)", "note": note}
    fake.meta["downloads"] = [mask, {"kind": "csv", "name": "s.csv", "label": "CSV", "note": ""}]
    fake.meta["warnings"] = ["long " * 200]
    with reader(fake, width=1100, height=740) as page:
        link = page.get_by_role("link", name="Mask (NIfTI)")
        assert link.get_attribute("download") == "scan.nii.gz"
        assert page.locator("#about-same").inner_text() == note
        assert page.locator("#downloads p").count() == 1
        side = page.locator("#side").bounding_box()
        bottom = side["y"] + side["height"]
        assert link.bounding_box()["y"] > bottom
        button = page.get_by_role("button", name="Download").bounding_box()
        assert button["y"] + button["height"] < bottom
        page.locator("#download").evaluate("d => d.open = false")
        page.get_by_role("button", name="Download").click()
        settle(page)
        assert link.bounding_box()["y"] < bottom
        assert link.evaluate("e => e === document.activeElement")


def test_figures_are_explained_where_they_stand():
    fake = two_classes()
    fake.meta["facts"] = [["Size", "6"], ["Model's own estimated Dice", "0.9"]]
    edge = "bone reaches the edge"
    fake.measures = lambda own=fake.measures: own() | {"edge_note": edge}  # type: ignore
    with reader(fake) as page:
        meanings = page.locator("#meanings")
        meanings.locator("summary").focus()
        page.keyboard.press("Enter")
        assert meanings.locator("dt").all_inner_texts() == ["Model's own estimated Dice"]
        assert "expert" in meanings.locator("dd").inner_text()
        assert page.locator("#edge-note").inner_text() == edge
        page.locator("#classes .help summary").click()
        assert "do not touch" in page.locator("#classes .help dd").first.inner_text()


@pytest.mark.parametrize(("count", "said"), [(1, ""), (2, "Model: brain")])
def test_the_model_is_named_where_there_are_several(count, said):
    fake = two_classes()
    fake.meta["models"] = count
    with reader(fake) as page:
        assert page.locator("#model").inner_text() == said


@pytest.mark.slow
def test_the_picture_is_named_for_the_scan_and_its_plane(tmp_path):
    with reader(two_classes()) as page:
        with page.expect_download() as caught:
            page.get_by_role("button", name="Picture of this view (PNG)").click()
        assert caught.value.suggested_filename == "scan_axial-4_research-use.png"
        picture = Image.open(io.BytesIO(Path(caught.value.path()).read_bytes()))
        box = page.locator("canvas[data-plane=axial]").bounding_box()
        assert picture.size == (round(box["width"]), round(box["height"]))
        legend = np.asarray(picture.convert("RGB"))[42:60, 8:40].reshape(-1, 3).astype(int)
        assert (np.abs(legend - (255, 0, 0)).max(1) < 40).any(), "bone, in its colour"


def test_without_a_model_there_is_nothing_to_correct():
    with reader(Fake(np.zeros((4, 6, 8), np.uint8), model=None)) as page:
        for part in ("#classes", "#correct", "#compare", "button[data-tool=brush]"):
            assert page.locator(part).is_hidden()
        page.keyboard.press("b")
        assert page.locator("button[data-tool=navigate]").get_attribute("aria-pressed") == "true"


def test_a_result_that_is_no_longer_kept_says_so():
    fake = Fake(np.zeros((1, 2, 2), np.uint8))
    with served(fake) as address, open_page(is_from(address)) as page:
        page.add_init_script(REFUSE % ("meta.json", "unknown", 404))
        page.goto(address)
        page.wait_for_selector("html[data-state=gone]", state="attached")
        said = page.locator("#gone").inner_text()
        assert said == "This result is no longer kept. Drop the scan again."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    fake = two_classes()
    fake.meta |= {"status": "review", "reason": "Unlike the training scans."}
    with reader(fake) as page:
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        # axe is a script of its own, which the page's policy rightly refuses.
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (950, 720), (768, 1024)])
def test_the_panes_need_no_scrolling(width, height):
    with reader(two_classes(), width=width, height=height) as page:
        for plane in ("axial", "coronal", "sagittal"):
            box = page.locator(f"canvas[data-plane={plane}]").bounding_box()
            assert box["y"] + box["height"] <= height
            assert box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_window_that_cannot_be_shows_the_one_that_is_used():
    image = np.full((1, 8, 8), 40, np.int16)
    with reader(Fake(image, window=[-160, 40])) as page:
        for typed in ("0", "-5", ""):
            page.locator("#width").fill(typed)
            page.locator("#width").blur()
            assert page.locator("#width").input_value() == "200"
        for name in ("width", "centre"):
            page.locator(f"#{name}").fill("-1234.56")
            cut = "e => e.scrollWidth > e.clientWidth"
            assert not page.locator(f"#{name}").evaluate(cut), "the number must be there whole"


def test_a_ruler_measures_in_mm_on_its_slice_and_escape_clears_it():
    fake = two_classes()
    fake.meta["spacing_mm"] = [3, 2, 0.5]
    with reader(fake) as page:
        view = View(page, "axial", 12, 16, down=2, across=0.5)
        before = marks(page, "axial")
        page.keyboard.press("m")
        page.mouse.move(*view.at(2, 4))
        page.mouse.down()
        page.mouse.move(*view.at(4, 10))
        page.mouse.up()
        readout = page.locator("#readout")
        assert "Distance 5.0 mm" in readout.inner_text()  # 4 mm down, 3 mm across
        drawn = marks(page, "axial")
        assert drawn != before
        page.keyboard.press("ArrowUp")
        elsewhere = marks(page, "axial")
        page.keyboard.press("ArrowDown")
        assert marks(page, "axial") == drawn != elsewhere
        assert not fake.posted
        page.keyboard.press("Escape")
        assert "Distance" not in readout.inner_text()
        page.mouse.click(*view.at(3, 3))
        assert "Distance" not in readout.inner_text()


def marks(page: Any, plane: str) -> str:
    """What is drawn above a pane, with the pointer out of it."""
    page.mouse.move(2, 2)
    settle(page)
    return page.locator(f".pane:has([data-plane={plane}]) .marks").evaluate("c => c.toDataURL()")


@pytest.mark.parametrize("spacing", [[1, 1, 1], None])
def test_a_bar_tells_the_scale_where_it_is_known(spacing):
    """As long as its number of millimetres: 5 of the 16 that a pane of 16 columns is wide."""
    image = np.zeros((1, 8, 16), np.int16)
    with reader(Fake(image, spacing_mm=spacing, affine=None)) as page:
        page.keyboard.press("x")
        view = View(page, "axial", 8, 16)
        marks(page, "axial")
        script = """c => {
            const [x, y] = [10, c.height / devicePixelRatio - 8].map((n) => n * devicePixelRatio);
            const row = c.getContext('2d').getImageData(0, Math.round(y), c.width, 1).data;
            return [...Array(c.width).keys()].filter((n) => row[4 * n] > 200).length;
        }"""
        long = page.locator(".marks").first.evaluate(script)
        assert abs(long - 5 * view.across) < 4 if spacing else long == 0


def test_what_is_below_the_pointer_is_read_again_after_a_zoom():
    image = np.arange(12 * 16, dtype=np.int16).reshape(1, 12, 16)
    with reader(Fake(image)) as page:
        view = View(page, "axial", 12, 16)
        assert view.hover(2, 3)["voxel"] == "0,2,3"
        for key in ("+", "+", "+"):
            page.keyboard.press(key)
        settle(page)
        after = page.locator("#readout").get_attribute("data-voxel")
        assert after != "0,2,3"
        assert view.hover(2, 3)["voxel"] == after
        page.keyboard.press("r")
        settle(page)
        assert page.locator("#readout").get_attribute("data-voxel") == "0,2,3"


def test_a_doubt_is_said_above_the_pictures_where_the_panel_is_below_them():
    fake = two_classes()
    fake.meta |= {"status": "review", "reason": "unlike <b>all</b> " * 20}
    with reader(fake, width=740, height=600) as page:
        banner = page.locator("#banner")
        assert banner.inner_text().startswith("Review this result. unlike <b>all</b>")
        box = banner.bounding_box()
        assert box["y"] + box["height"] <= page.locator("#panes").bounding_box()["y"]
        assert box["height"] < 45
        page.set_viewport_size({"width": 1280, "height": 800})
        assert banner.is_hidden()
        assert page.locator("#review").is_visible()
