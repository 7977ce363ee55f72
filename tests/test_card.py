import numpy as np

from segapp.card import card_text, model_card
from segapp.checkpoint import Architecture, DataRecord, ModelInfo
from segapp.preprocess import Preprocessing
from segapp.quality import Judged, fit_quality
from segapp.scan import make_classes


def info(names=("background", "lesion"), **more):
    classes = make_classes(list(names), list(range(len(names))))
    network = {"name": "unet", "encoder": "resnet18", "in_channels": 1, "residual": True}
    of_lesion = {"iou": 0.5, "dice": 2 / 3}
    known = {
        "architecture": Architecture(classes=len(classes), **network),
        "preprocessing": Preprocessing(channels=1, normalisation="zscore"),
        "classes": classes,
        "settings": {},
        "metrics": {"miou": 0.7, "dice": 2 / 3, "n": 3, "classes": {"lesion": of_lesion}},
        "starting_weights": "none",
        "data": DataRecord(root="data/lesions", images={"train": ["1", "2"], "val": ["3"]}),
    }
    return ModelInfo(**{**known, **more})


def test_the_card_says_what_a_reader_must_know():
    text = card_text(info())
    for said in (
        "# Segmentation of lesion",
        "| lesion | 1 | 0.5000 | 0.6667 |",
        "mIoU 0.7000, Dice 0.6667, over 3 cases",
        "on which this state was also chosen",
        "data/lesions; cases: 2 to learn from, 1 to choose by",
        "**Starting weights:** none.",
        "not a medical device",
        "## Intended use",
        "**Not for:** diagnosis",
        "## Limits",
        "**Not measured:** background",
        "their licences apply",
    ):
        assert said in text
    assert "\n\n\n" not in text


def test_the_card_says_what_an_earlier_model_learned_from():
    images = {"train": ["1"], "val": ["2"], "test": ["3", "4"]}
    text = card_text(info(data=DataRecord(root="d", images=images, earlier=["3", "9"])))
    assert "1 to learn from, 1 to choose by, 2 kept apart as test; and 2 that the model it" in text
    assert "1 of which are among those to choose by or kept apart here" in text


def test_a_model_without_figures_claims_none():
    text = card_text(info(metrics={}))
    assert "holds no validation figures" in text
    assert "| lesion | 1 | – | – |" in text
    assert "Not measured" not in text


def test_the_card_says_how_results_are_judged():
    assert "It does not: every result has the status ok." in card_text(info())
    soft = np.array([[60.0, 40], [60, 40], [59, 39]])
    cases = [Judged(str(n), soft[0], soft[0], 0.9, soft) for n in range(3)]
    text = card_text(info(quality=fit_quality(cases, 2, None, False), temperature=1.25))
    assert "1.25 divides its logits" in text
    assert (
        "from 3 validation cases of 3 patients, each case counted as a patient of its own." in text
    )
    assert "always: this model reached a mean Dice of 0.90 in validation, on 3 cases, too" in text
    assert (
        "hold a class's true size in 75% of scans like those of validation, as few patients" in text
    )
    enough = [Judged(str(n), soft[0], soft[0], 0.9, soft) for n in range(5)]
    text = card_text(info(quality=fit_quality(enough, 2, None, False)))
    assert "where its estimated Dice is below 0.95, or nothing is found in it." in text
    assert "none: too few" in card_text(info(quality=fit_quality(cases[:1], 2, None, True)))


def test_many_classes_are_not_all_in_the_title():
    names = ["background", *(f"c{n}" for n in range(30))]
    assert model_card(info(names)).title == (
        "Segmentation of c0, c1, c2, c3, c4, c5, c6, c7, 22 others"
    )


def test_a_name_breaks_no_table():
    assert "| a\\|b | 1 |" in card_text(info(("background", "a|b")))
