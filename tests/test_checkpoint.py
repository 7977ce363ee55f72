import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from segapp.checkpoint import (
    Architecture,
    DataRecord,
    ModelInfo,
    model_path,
    read_info,
    read_weights,
    save_model,
    weights_digest,
)
from segapp.errors import ModelFileError, OutputError
from segapp.likeness import TrainingRange
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes

WEIGHTS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.count": np.array([7], np.int64),
    "half": np.ones((2, 2), np.float16),
}


KNOWN = TrainingRange(
    dtypes=("int16",),
    pixel_mm=(0.45, 0.55),
    slice_mm=None,
    thickest=("coronal",),
    intensities=((-1024.0, 3071.0),),
    narrowest=(1000.0,),
    highest_low=(0.0,),
)


def make_info(**changes):
    fields = {
        "architecture": Architecture(
            name="unet", encoder="resnet18", in_channels=1, classes=2, residual=True
        ),
        "preprocessing": Preprocessing(channels=1, size=256, nonzero=True, slice_axis="coronal"),
        "classes": make_classes(["background", "Läsion"], [0, 255]),
        "ignore": 128,
        "settings": {"data": {"root": "data/x"}, "train": {"epochs": None, "seed": 3}},
        "metrics": {"miou": 0.5, "classes": {"Läsion": {"iou": None}}},
        "starting_weights": "none",
        "data": DataRecord(root="data/x", images={"train": ["00ff"]}),
        "training": KNOWN,
        "temperature": 1.5,
    }
    return ModelInfo(**{**fields, **changes})


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    save_model(path, WEIGHTS, make_info())
    return path


def refused(path, match):
    with pytest.raises(ModelFileError, match=match) as caught:
        read_info(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_model_comes_back_as_it_was(model):
    info = make_info()
    for place in (model, model.parent):
        assert model_path(place) == model
        found = read_info(place)
        as_made = {"created": info.created, "weights_sha256": ""}
        assert found.model_copy(update=as_made) == info
        assert isinstance(found.preprocessing, Preprocessing)
        assert found.classes[1].name == "Läsion"
        weights = read_weights(place)
        assert weights.keys() == WEIGHTS.keys()
        for name, array in weights.items():
            assert array.dtype == WEIGHTS[name].dtype
            assert np.array_equal(array, WEIGHTS[name])


def with_another_bit(model):
    """A copy of the model file with another bit in its weights."""
    content = model.read_bytes()
    path = model.parent / "edited.safetensors"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return path


def test_edited_weights_are_refused(model):
    path = with_another_bit(model)
    assert read_info(path).weights_sha256 == read_info(model).weights_sha256 != ""
    with pytest.raises(ModelFileError, match=r"edited\.safetensors.*not those that were written"):
        read_weights(path)


def test_the_checksum_is_of_names_types_shapes_and_bytes():
    array = np.arange(6, dtype=np.float32)
    digest = weights_digest({"a": array, "b": array})
    assert digest == weights_digest({"b": array, "a": array.copy()})
    others = [
        {"a": array, "c": array},
        {"a": array, "b": array.reshape(2, 3)},
        {"a": array, "b": array.view(np.int32)},
        {"a": array, "b": array[::-1]},
        {"a": array},
    ]
    assert len({weights_digest(other) for other in [*others, {}]} | {digest}) == 7
    assert weights_digest({}, "a") != weights_digest({}, "b")
    assert weights_digest({"a": np.float32(1), "b": np.zeros((0, 2))})  # no dimensions, no bytes


def test_saving_replaces_and_leaves_nothing_else(model):
    save_model(model, {"b": np.zeros(2, np.float32)}, make_info(temperature=2))
    assert read_info(model).temperature == 2
    assert [p.name for p in model.parent.iterdir()] == ["model.safetensors"]


def test_metrics_that_are_no_number_survive(tmp_path):
    save_model(tmp_path / "m", WEIGHTS, make_info(metrics={"miou": float("nan")}))
    assert read_info(tmp_path / "m").metrics["miou"] in (None, "NaN")


def test_a_model_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_model(tmp_path / "file" / "m.safetensors", WEIGHTS, make_info())


def test_no_model_there(tmp_path):
    refused(tmp_path / "nowhere", "no such file; expected a run folder or a model file")
    refused(tmp_path, r"holds no model\.safetensors")
    (tmp_path / "config.yaml").write_text("train: {}\n")
    refused(tmp_path, rf"no model yet; go on with: segapp train --resume {tmp_path}")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -20])
def test_a_truncated_file(model, keep):
    content = model.read_bytes()
    model.write_bytes(content[:keep])
    refused(model, "not a readable safetensors file")
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        read_weights(model)


@pytest.mark.parametrize(
    "content",
    [
        b"not a model at all",
        np.random.default_rng(0).bytes(5000),
        b"\0" * 64,
        b"\xff" * 64,
        b"PK\x03\x04" * 9,
    ],
    ids=["text", "noise", "zeros", "ones", "zips"],
)
def test_a_file_of_another_kind(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    refused(tmp_path / "m.safetensors", "not a readable safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_someone_else(tmp_path, metadata):
    path = tmp_path / "m.safetensors"
    save_file(WEIGHTS, path, metadata=metadata)
    refused(path, "not written by segapp")


def rewrite(path, text):
    save_file(WEIGHTS, path, metadata={"segapp": text})


def edited(path, **changes):
    rewrite(path, json.dumps({**make_info().model_dump(mode="json"), **changes}))


@pytest.mark.parametrize("number", [0, 2, "1.0", None])
def test_another_format_number(model, number):
    edited(model, format=number)
    refused(model, "model format .*, this segapp reads 1; use the segapp version that wrote it")


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '"x"', "[" * 100_000, '{"format": 1}', '{"format": 1, ']
)
def test_metadata_that_is_no_record(model, text):
    rewrite(model, text)
    refused(model, "damaged metadata|model format None")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"preprocessing": {"channels": "many"}}, "preprocessing.channels"),
        ({"preprocessing": {}}, "preprocessing.channels"),
        ({"preprocessing": {"channels": 1, "surprise": 2}}, "preprocessing.surprise"),
        ({"preprocessing": {"channels": 3}}, "differ in channels"),
        ({"classes": []}, "2 outputs, 0 classes"),
        ({"classes": [{"name": "a"}]}, "classes.0"),
        ({"architecture": None}, "architecture"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"from_the_future": 1}, "from_the_future"),
        ({"training": {"dtypes": 3}}, "training.dtypes"),
        ({"training": KNOWN.model_dump() | {"narrowest": []}}, "differ in channels"),
    ],
)
def test_edited_metadata_names_the_key(model, changes, match):
    edited(model, **changes)
    refused(model, f"damaged metadata: .*{match}")


def test_a_file_of_before_the_training_scans_were_recorded(model):
    tree = make_info().model_dump(mode="json")
    del tree["training"], tree["preprocessing"]["spacing_mm"]
    rewrite(model, json.dumps(tree))
    assert read_info(model).training is None
    assert read_info(model).preprocessing == make_info().preprocessing


def test_the_file_says_what_made_it(model):
    info = read_info(model)
    assert {"segapp", "python", "torch", "numpy"} <= info.versions.keys()
    assert "licence" in info.licence_notes
    assert info.created.endswith("+00:00")


def test_others_may_read_a_model_file_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        save_model(tmp_path / "model.safetensors", WEIGHTS, make_info())
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
