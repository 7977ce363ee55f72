"""What a run takes over from the model it goes on from, and what it refuses to guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_png_dataset
from PIL import Image

from segapp.checkpoint import Architecture, DataRecord, ModelInfo, save_model
from segapp.config import load_settings
from segapp.errors import ConfigError, ModelFileError
from segapp.formats import read_scan
from segapp.plan import Plan, make_plan
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes
from segapp.settings import Settings


def model_file(
    path: Path, members: int = 1, data: DataRecord | None = None, **preprocessing: Any
) -> Path:
    info = ModelInfo(
        architecture=Architecture(
            name="fpn",
            encoder="resnet18",
            in_channels=1,
            classes=2,
            residual=False,
            members=members,
        ),
        preprocessing=Preprocessing(channels=1, size=77, typical=((5.0, 3.0),), **preprocessing),
        classes=make_classes(["background", "thing"], [0, 1]),
        settings={},
        metrics={},
        starting_weights="none",
        data=data or DataRecord(root="elsewhere"),
    )
    save_model(path, {"weight": np.zeros(1, np.float32)}, info)
    return path


def plan_of(data: Path, model: Path, *words: str) -> Plan:
    return make_plan(load_settings(None, [f"data.root={data}", f"model.init_from={model}", *words]))


def test_network_and_preprocessing_are_those_of_the_model(
    png_dataset: Path, tmp_path: Path
) -> None:
    plan = plan_of(png_dataset, model_file(tmp_path / "m.safetensors"))
    model = plan.settings.model
    assert (model.architecture, model.encoder, model.residual) == ("fpn", "resnet18", False)
    assert plan.preprocessing.size == 77
    assert plan.preprocessing.typical != ((5.0, 3.0),), "of this data, whose values may be others"
    assert plan.settings.preprocess.size == 77
    assert "preprocessing: that of the model it goes on from" in plan.reasons
    assert [c.name for c in plan.classes] == ["background", "class_1", "class_2"], "the data's own"


def test_a_model_of_8_bits_goes_on_with_16(png_dataset: Path, tmp_path: Path) -> None:
    """An image that is nearly black must not be normalised by the old data's range."""
    name = sorted((png_dataset / "images").iterdir())[0].name
    for path in (png_dataset / "images").iterdir():
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 256).save(path)
    faint = np.zeros_like(grey, np.uint16)
    faint[1, 1] = 60_000
    Image.fromarray(faint).save(png_dataset / "images" / name)
    start = model_file(tmp_path / "m.safetensors", over="slice", nonzero=True)
    preprocessing = plan_of(png_dataset, start).preprocessing
    slices = preprocessing.prepare(read_scan(png_dataset / "images" / name)).normalised(0, 1)
    assert np.abs(slices).max() < 10


def test_the_decided_settings_decide_the_same_again(png_dataset: Path, tmp_path: Path) -> None:
    """As a resumed run reads them."""
    once = plan_of(png_dataset, model_file(tmp_path / "m.safetensors"))
    settings = Settings.model_validate(yaml.safe_load(once.settings.to_yaml()))
    again = make_plan(settings)
    assert again.settings == once.settings
    assert again.preprocessing == once.preprocessing


@pytest.mark.parametrize("word", ["preprocess.size=64", "preprocess.normalisation=percentile"])
def test_what_a_user_asks_for_goes_before_the_models(
    png_dataset: Path, tmp_path: Path, word: str
) -> None:
    plan = plan_of(png_dataset, model_file(tmp_path / "m.safetensors"), word)
    assert plan.preprocessing.typical != ((5.0, 3.0),), "fitted on this data"
    key, value = word.removeprefix("preprocess.").split("=")
    assert str(getattr(plan.preprocessing, key)) == value


def test_images_of_other_channels_get_a_preprocessing_of_their_own(
    tmp_path: Path,
) -> None:
    data = write_png_dataset(tmp_path / "data")
    from PIL import Image

    for path in (data / "images").iterdir():
        Image.open(path).convert("RGB").save(path)
    plan = plan_of(data, model_file(tmp_path / "m.safetensors"))
    assert plan.preprocessing.channels == 3
    assert plan.settings.model.architecture == "fpn"


def test_another_network_than_the_models_is_refused(png_dataset: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match=r"model\.encoder=resnet34, but .* has resnet18"):
        plan_of(png_dataset, model, "model.encoder=resnet34")
    assert plan_of(png_dataset, model, "model.encoder=resnet18").settings.model.architecture == (
        "fpn"
    )


def test_an_ensemble_is_not_gone_on_from(png_dataset: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.safetensors", members=3)
    with pytest.raises(ConfigError, match=r"an ensemble of 3 models; name one of its folds"):
        plan_of(png_dataset, model)


def test_a_model_that_is_not_there_is_named(png_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere: no such file"):
        plan_of(png_dataset, tmp_path / "nowhere")


def test_images_the_model_was_trained_on_are_no_new_ones(png_dataset: Path, tmp_path: Path) -> None:
    first = make_plan(load_settings(None, [f"data.root={png_dataset}"]))
    model = model_file(tmp_path / "m.safetensors", data=first.record)
    same = plan_of(png_dataset, model)
    assert not any("was trained on" in w for w in same.warnings), "the same cases are set aside"
    assert same.record.earlier == sorted(first.record.images["train"])
    other = plan_of(png_dataset, model, "train.seed=1")
    assert any("was trained on 1 of the val and test images" in w for w in other.warnings)
