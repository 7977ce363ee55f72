"""The reader's page in a real browser: correcting a result and comparing it with a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reader_page import (
    AGREEMENT,
    BONE,
    REFUSE,
    SKIN,
    Fake,
    View,
    near,
    reader,
    set_opacity,
    two_classes,
)

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]


def save(page: Any, fake: Fake) -> bytes:
    count = len(fake.posted)
    with page.expect_response(lambda answer: answer.url.endswith("/labels")):
        page.get_by_role("button", name="Save correction").click()
    page.wait_for_selector("#dirty:not(.marked)")
    assert len(fake.posted) == count + 1
    assert fake.posted[-1][0] == "POST labels"
    return fake.posted[-1][1]


def test_brush_and_eraser_change_exactly_the_voxels_within_their_radius():
    fake = two_classes()
    before = fake.labels.copy()
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        page.mouse.move(*view.at(8, 8))
        page.keyboard.press("b")
        page.locator("#radius").fill("1.5")
        page.locator("#brush-class").select_option(label="<b>skin</b>")
        page.mouse.click(*view.at(8, 4))
        rows, cols = np.mgrid[:12, :16]
        painted = before.copy()
        painted[3][(rows - 8) ** 2 + (cols - 4) ** 2 <= 1.5**2] = SKIN
        page.mouse.move(*view.at(8, 9))
        page.mouse.down()
        page.mouse.move(*view.at(8, 12))
        page.mouse.up()
        along = np.clip(cols, 9, 12)
        painted[3][(rows - 8) ** 2 + (cols - along) ** 2 <= 1.5**2] = SKIN
        assert "not saved" in page.locator("#dirty").inner_text()
        page.keyboard.press("e")
        page.mouse.click(*view.at(3, 3))
        erased = painted.copy()
        erased[3][(rows - 3) ** 2 + (cols - 3) ** 2 <= 1.5**2] = 0
        assert save(page, fake) == erased.tobytes()
        assert page.locator("#dirty").inner_text().startswith("Saved until this page closes")
        page.keyboard.press("Control+z")
        assert save(page, fake) == painted.tobytes()
        page.keyboard.press("Control+z")
        page.keyboard.press("Control+z")
        assert page.locator("#undo").is_disabled()
        assert save(page, fake) == before.tobytes()
        page.keyboard.press("Control+Shift+z")
        page.get_by_role("button", name="Redo").click()
        page.get_by_role("button", name="Redo").click()
        assert save(page, fake) == erased.tobytes()


def test_the_brush_is_round_in_millimetres_in_any_plane():
    image = np.zeros((8, 10, 12), np.int16)
    labels = np.zeros(image.shape, np.uint8)
    fake = Fake(image, labels, spacing_mm=[2, 1, 1])
    with reader(fake) as page:
        view = View(page, "coronal", 8, 12, down=2)
        page.mouse.move(*view.at(3, 6))
        page.keyboard.press("b")
        page.locator("#radius").fill("2.5")
        page.mouse.click(*view.at(3, 6))
        k, w = np.mgrid[:8, :12]
        expected = labels.copy()
        expected[:, 5][(2 * (k - 4)) ** 2 + (w - 6) ** 2 <= 2.5**2] = BONE
        assert save(page, fake) == expected.tobytes()


def test_two_fingers_zoom_and_paint_nothing():
    fake = two_classes()
    before = fake.labels.copy()
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        page.get_by_role("button", name="Brush").click()
        touch = page.context.new_cdp_session(page)

        def fingers(kind: str, *cols: tuple[int, float]) -> None:
            points = [dict(zip("xy", view.at(6, col), strict=True), id=n) for n, col in cols]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        fingers("touchStart", (0, 6))
        fingers("touchStart", (0, 6), (1, 9))
        for step in range(1, 4):
            fingers("touchMove", (0, 6 - step), (1, 9 + step))
        fingers("touchEnd")
        # Three columns apart have become nine: what lay at 6 and 9 is now at 3 and 12.
        assert view.hover(6, 3)["voxel"] == "3,6,6"
        assert view.hover(6, 12)["voxel"] == "3,6,9"
        assert page.locator("#undo").is_disabled()
        page.mouse.click(*view.at(11, 3))
        assert save(page, fake) != before.tobytes()  # the brush itself works


def test_unsaved_changes_are_not_left_without_asking():
    with reader(two_classes()) as page:
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
        page.reload()
        page.wait_for_selector("html[data-complete=true]", state="attached")
        assert asked == []
        view = View(page, "axial", 12, 16)
        page.mouse.move(*view.at(8, 8))
        page.keyboard.press("b")
        page.mouse.click(*view.at(8, 8))
        page.reload()
        assert asked == ["beforeunload"]


def test_a_correction_that_is_only_saved_is_not_left_without_asking():
    """Until its mask is taken away; the table alone does not hold it."""
    fake = two_classes()
    kinds = ("same", "csv")
    fake.meta["downloads"] = [{"kind": kind, "label": kind} for kind in kinds]
    with reader(fake) as page:
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))

        def correct(*taken: str) -> None:
            view = View(page, "axial", 12, 16)
            page.mouse.move(*view.at(8, 8))
            page.keyboard.press("b")
            page.mouse.click(*view.at(8, 8))
            save(page, fake)
            for kind in taken:
                page.evaluate("document.addEventListener('click', (e) => e.preventDefault())")
                page.locator("#downloads a", has_text=kind).click()

        correct("csv")
        assert "until this page closes" in page.locator("#dirty").inner_text()
        page.reload()
        assert asked == ["beforeunload"]
        page.wait_for_selector("html[data-complete=true]", state="attached")
        fake.labels = np.zeros(fake.image.shape, np.uint8)
        page.reload()
        page.wait_for_selector("html[data-complete=true]", state="attached")
        correct("csv", "same")
        assert page.locator("#dirty").inner_text() == "Saved, and downloaded or kept."
        page.reload()
        assert asked == ["beforeunload"]


def test_after_saving_the_models_judgement_is_told_to_be_of_its_own_result():
    fake = two_classes()
    fake.meta["facts"] = [["Mean confidence", "97 %"]]
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        page.mouse.move(*view.at(8, 8))
        page.keyboard.press("b")
        page.mouse.click(*view.at(8, 8))
        fake.meta |= {"facts": [["Model's own mean confidence", "97 %"]]}
        fake.meta |= {"status": "review", "reason": "Of the model's own result: <b>odd</b>"}
        save(page, fake)
        page.wait_for_selector("#review:visible")
        assert "Of the model's own result: <b>odd</b>" in page.locator("#review").inner_text()
        assert page.locator("#facts dt").all_inner_texts() == ["Model's own mean confidence"]


def test_a_correction_is_discarded_kept_and_refused_in_words():
    fake = two_classes()
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        page.mouse.move(*view.at(8, 8))
        page.keyboard.press("b")
        page.mouse.click(*view.at(8, 8))
        page.evaluate(REFUSE % ("labels", "<b>They do not fit.</b>", 422))
        page.get_by_role("button", name="Save correction").click()
        page.wait_for_selector("#problem:visible")
        assert "<b>They do not fit.</b>" in page.locator("#problem").inner_text()
        assert "not saved yet" in page.locator("#dirty").inner_text()
        page.evaluate("restore()")
        page.get_by_role("button", name="Discard…").click()
        page.get_by_role("button", name="Discard", exact=True).click()
        page.locator("#dirty", has_text="The model's own result.").wait_for()
        assert fake.posted[-1][0] == "DELETE labels"
        assert view.hover(8, 8)["class"] == "background"
        page.mouse.click(*view.at(9, 9))
        page.get_by_role("button", name="Keep as training case").click()
        page.wait_for_selector("#kept code")
        assert [name for name, _ in fake.posted[-2:]] == ["POST labels", "POST case"]
        assert "3 cases" in page.locator("#kept").inner_text()
        assert page.locator("#kept code").inner_text().startswith("segapp train")


def test_a_result_that_nobody_corrected_is_kept_only_where_it_is_said_to_be_right():
    fake = two_classes()
    with reader(fake) as page:
        page.get_by_text("Correct", exact=True).click()
        keep = page.get_by_role("button", name="Keep as training case")
        keep.click()
        assert "Nothing was corrected" in page.locator("#ask-text").inner_text()
        page.keyboard.press("Enter")  # on Cancel
        page.wait_for_selector("#keep:enabled")
        assert fake.posted == []
        keep.click()
        page.get_by_role("button", name="It is right: keep it").click()
        page.wait_for_selector("#kept code")
        assert fake.posted == [("POST case", b"")]


def test_a_mask_is_compared_voxel_by_voxel():
    fake = two_classes()
    fake.reference[3, 4:8, 2:6] = BONE
    fake.reference[3, 2:6, 8:12] = SKIN
    fake.reference[3, 0, 0] = 255
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        set_opacity(page, 100)
        page.get_by_text("Compare", exact=True).click()
        mask = {"name": "a b&c.png", "mimeType": "image/png", "buffer": b"mask"}
        page.locator("#reference").set_input_files(mask)
        page.wait_for_selector("#comparison:visible")
        assert fake.posted == [("POST reference?name=a%20b%26c.png", b"mask")]
        assert near(view.colour(4, 3), AGREEMENT)
        assert near(view.colour(6, 2), (230, 97, 0))  # missed, on a stripe
        assert near(view.colour(2, 2), (86, 180, 233))  # extra, on a dot
        assert near(view.colour(3, 9), AGREEMENT)
        assert near(view.colour(0, 0), (100, 100, 100))
        page.locator("#compare-class").select_option(label="bone")
        assert near(view.colour(3, 9), (100, 100, 100))
        note = page.locator("#overlay-note")
        assert "in place of the classes" in note.inner_text()
        assert page.get_by_label("Show bone").is_disabled()
        page.keyboard.press("c")  # where it is unsure, instead
        assert not page.get_by_label("Show the comparison").is_checked()
        assert "not drawn while" in note.inner_text()
        page.get_by_label("Show the comparison").check()
        assert not page.locator("#heat").is_checked()
        assert near(view.colour(3, 9), (100, 100, 100))
        dice = page.locator("#dice tr").all_inner_texts()
        assert [row.split("\t") for row in dice] == [
            ["bone", "0.500"],
            ["<b>skin</b>", "in neither"],
        ]
        page.get_by_label("Show the comparison").uncheck()
        assert near(view.colour(3, 3), (255, 0, 0))
        assert note.is_hidden()


def test_whoever_paints_sees_it():
    """The overlay, the brush's class and the labels are shown, whatever hid them."""
    fake = two_classes()
    with reader(fake) as page:
        view = View(page, "axial", 12, 16)
        set_opacity(page, 100)
        for label, key in ((BONE, " "), (SKIN, "c"), (BONE, "")):
            page.mouse.move(*view.at(9, 2 + label))
            page.keyboard.press("b")
            page.locator("#brush-class").select_option(str(label))
            if key:
                page.mouse.move(*view.at(9, 2 + label))
                page.keyboard.press(key)
            else:
                page.locator(f"#show-{label}").uncheck()
            page.locator("#radius").fill("0.5")
            page.mouse.click(*view.at(9, 4 * label))
            colour = (255, 0, 0) if label == BONE else (0, 255, 0)
            assert near(view.colour(9, 4 * label), colour)
        assert page.locator("#overlay").is_checked()
        assert page.locator("#show-1").is_checked()
        assert not page.locator("#heat").is_checked()
