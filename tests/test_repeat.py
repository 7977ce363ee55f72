"""Equal runs make equal model files, and a model file can be checked."""

import contextlib
import json
import re

import numpy as np
import pytest
import torch
from conftest import without_pictures, write_png_dataset
from test_cli import run as command
from test_train import run

from segapp.checkpoint import read_info, read_weights, save_model

WORDS = ("train.deterministic=true", "optim.ema=0.9", "model.dropout=0.1", "augment.mixup_p=0.5")


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """Two runs of one recipe in folders of different names, the second from another working
    directory, and the data."""
    folder = tmp_path_factory.mktemp("repeat")
    data = write_png_dataset(folder / "data")
    with without_pictures():
        one = run(data, folder / "one", *WORDS)
        with contextlib.chdir(folder):
            other = run(data, folder / "a" / "longer name", *WORDS)
    return one, other, data


def test_two_deterministic_runs_make_one_file(repeated):
    one, other, _ = repeated
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_the_model_file_says_what_it_takes_to_make_it_again(repeated):
    info = read_info(repeated[0])
    assert info.created == ""
    assert info.machine["threads"] == torch.get_num_threads()
    assert info.machine["processor"]
    assert {"torch", "numpy", "albumentations", "opencv-python-headless"} <= info.versions.keys()
    assert info.settings["train"]["seed"] == 0
    assert info.data.images["train"]
    shown = command("info", repeated[0])
    assert shown.code == 0
    assert re.search("repeatable: +bit for bit", shown.out)
    assert re.search("created: +not recorded", shown.out)
    assert command("info", repeated[0], "--card").code == 0


def test_other_runs_are_not_called_repeatable(png_dataset, tmp_path):
    out = run(png_dataset, tmp_path / "run", "train.epochs=1")
    assert read_info(out).created
    assert "train.deterministic=true" in command("info", out).out


def test_verify_confirms_a_model_and_refuses_one_whose_weights_were_edited(repeated, tmp_path):
    one, _, _ = repeated
    found = command("info", one, "--verify")
    assert found.code == 0
    assert "verified" in found.out
    assert "weights: as they were written" in found.out
    told = json.loads(command("info", one, "--verify", "--json").out)
    assert told["verified"]
    assert abs(told["difference"]) < 1e-6  # the recorded one has six digits
    content = bytearray((one / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    edited = tmp_path / "edited.safetensors"
    edited.write_bytes(content)
    refused = command("info", edited, "--verify")
    assert refused.code == 2
    assert "edited.safetensors: its weights are not those that were written" in refused.error
    for words in (("predict", edited, one, "--out", tmp_path / "o"), ("info", edited, "--verify")):
        assert command(*words).code == 2
    assert not (tmp_path / "o").exists()


def test_verify_refuses_weights_that_were_edited_with_their_checksum(repeated, tmp_path):
    """By what they score: every output channel but the first is switched off."""
    one, _, _ = repeated
    weights = read_weights(one)
    last = max(name for name in weights if "segmentation_head" in name and name.endswith("bias"))
    weights[last] = np.array([50, *[-50] * (len(weights[last]) - 1)], np.float32)
    save_model(tmp_path / "model.safetensors", weights, read_info(one))
    found = command("info", tmp_path, "--verify")
    assert found.code == 2
    assert "NOT VERIFIED" in found.out


def test_a_budget_can_not_be_deterministic(png_dataset, tmp_path):
    words = (f"data.root={png_dataset}", f"train.out={tmp_path / 'run'}")
    refused = command("train", *words, "train.deterministic=true")
    assert refused.code == 2
    assert "train.deterministic needs train.epochs" in refused.error
    assert not (tmp_path / "run").exists()
