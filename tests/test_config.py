"""Settings: what is refused and how it is named, which length of a run counts, the round trip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segapp import config as config_module
from segapp.config import built_in_config, known_keys, load_settings
from segapp.errors import ConfigError
from segapp.policies import POLICIES, resolved
from segapp.settings import DEFAULT_BUDGET_MINUTES, Settings

REPOSITORY = Path(__file__).parents[1]


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(*words: str, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_settings(config, ["data.root=d", *words])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.epoch", "train.epochs"),  # nearly right
        ("epochs", "train.epochs"),  # right, without its section
        ("model.epochs", "train.epochs"),  # right, in another section
        ("trian.epochs", "train.epochs"),  # the section misspelt
        ("optimizer.max_lr", "optim.max_lr"),
        ("optim.lr", "optim.max_lr"),
        ("data.rot", "data.root"),
        ("train.max_epochs", "train.epochs"),
        ("data", "data.root"),
        ("train.budget", "train.budget_minutes"),  # its beginning
        ("train.minutes", "train.budget_minutes"),  # one of its words
        ("minutes", "train.budget_minutes"),
        ("model.minutes", "train.budget_minutes"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(typed: str, meant: str) -> None:
    assert refused(f"{typed}=3") == f"unknown key {typed!r}; did you mean {meant}?"


def test_an_unknown_key_like_no_other_points_to_the_list() -> None:
    assert "--print-config" in refused("xyzzy=3")


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epoch: 3}")
    wanted = f"{path}: unknown key 'train.epoch'; did you mean train.epochs?"
    assert refused(config=path) == wanted
    path = write(tmp_path, "trian: {epochs: 3}")
    assert refused(config=path) == wanted.replace("train.epoch'", "trian.epochs'")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=2.5", "train.epochs"),
        ("train.epochs=many", "train.epochs"),
        ("train.budget_minutes=-1", "train.budget_minutes"),
        ("train.budget_minutes=.inf", "train.budget_minutes"),
        ("train.budget_minutes=.nan", "train.budget_minutes"),
        ("train.precision=fp8", "train.precision"),
        ("train.seed=-1", "train.seed"),
        ("data.val_share=1", "data.val_share"),
        ("data.ignore=none", "data.ignore"),
        ("data.slice_axis=up", "data.slice_axis"),
        ("data.classes=a,b,a", "data.classes"),
        ("data.classes=a,,b", "data.classes"),
        ("preprocess.size=16", "preprocess.size"),
        ("preprocess.spacing_mm=0", "preprocess.spacing_mm"),
        ("preprocess.spacing_mm=half", "preprocess.spacing_mm"),
        ("augment.flip_p=1.5", "augment.flip_p"),
        ("optim.max_lr=0", "optim.max_lr"),
        ("model.architecture=resnet", "model.architecture"),
        ("train.epochs=[1", "train.epochs"),  # no YAML
        ("train.epochs=2024-13-45", "train.epochs"),  # a date that is none
    ],
)
def test_a_wrong_value_names_its_key(word: str, key: str) -> None:
    message = refused(word)
    assert message.startswith(f"{key}: ")
    assert word.partition("=")[2].strip(".") in message or key == "data.classes"


def test_a_wrong_value_says_what_is_allowed() -> None:
    message = refused("train.precision=fp8")
    assert all(word in message for word in ("auto", "fp32", "bf16", "fp16", "'fp8'"))


def test_a_wrong_value_names_the_file_only_if_it_stands_there(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 0}")
    assert refused(config=path).startswith(f"{path}: train.epochs: got 0: ")
    assert refused("train.epochs=-1", config=path).startswith("train.epochs: got -1: ")


def lengths(settings: Settings) -> tuple[int | None, float | None]:
    return settings.train.epochs, settings.train.budget_minutes


def test_the_length_given_last_replaces_the_other(tmp_path: Path) -> None:
    budget = write(tmp_path, "data: {root: d}\ntrain: {budget_minutes: 3}", "b.yaml")
    epochs = write(tmp_path, "data: {root: d}\ntrain: {epochs: 7}", "e.yaml")
    neither = write(tmp_path, "data: {root: d}", "n.yaml")
    assert lengths(load_settings(neither, [])) == (None, DEFAULT_BUDGET_MINUTES)
    assert lengths(load_settings(budget, [])) == (None, 3)
    assert lengths(load_settings(epochs, [])) == (7, None)
    assert lengths(load_settings(budget, ["train.epochs=5"])) == (5, None)
    assert lengths(load_settings(epochs, ["train.budget_minutes=2"])) == (None, 2)
    assert lengths(load_settings(neither, ["train.epochs=2", "train.epochs=4"])) == (4, None)
    # Taking one back is not giving it.
    assert lengths(load_settings(epochs, ["train.budget_minutes="])) == (7, None)
    assert lengths(load_settings(budget, ["train.epochs=null"])) == (None, 3)


def test_both_lengths_at_once_are_refused(tmp_path: Path) -> None:
    both = "train.epochs and train.budget_minutes exclude each other"
    assert both in refused("train.epochs=1", "train.budget_minutes=1")
    path = write(tmp_path, "train: {epochs: 7, budget_minutes: 3}")
    assert refused(config=path).startswith(f"{path}: {both}")
    assert lengths(load_settings(path, ["data.root=d", "train.epochs=5"])) == (5, None)


@pytest.mark.parametrize(
    "text",
    [
        *("", "# nothing\n", "- a\n- b\n", "just words", "data:\n\t- tab", "data: [1", "a: b: c"),
        *("1: 2", "data: 3", "data:\n  root: 2024-13-45\n", "data: {1: 2}", "\x00"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_settings(path, [])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nowhere.yaml", tmp_path, binary):
        assert refused(config=path).startswith(f"{path}: ")


def test_an_empty_section_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  root: d\noptim:\n  # max_lr: 1e-4\n")
    assert load_settings(path, []).optim == Settings().optim


def test_words_that_are_neither_file_nor_setting_are_refused() -> None:
    assert "KEY=VALUE" in refused("runs/brain")


@pytest.mark.parametrize(
    "value", ["background,lesion", "background, lesion", "[background,lesion]"]
)
def test_classes_are_a_list_with_or_without_brackets(value: str) -> None:
    settings = load_settings(None, ["data.root=d", f"data.classes={value}"])
    assert settings.data.classes == ["background", "lesion"]
    assert load_settings(None, ["data.root=d", "data.classes="]).data.classes is None


def test_numbers_may_be_written_as_people_write_them() -> None:
    settings = load_settings(None, ["data.root=d", "optim.max_lr=1e-4", "preprocess.size=256"])
    assert settings.optim.max_lr == 1e-4
    assert settings.preprocess.size == 256


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("none", "none"), ("null", "none"), ("", "none"), ("auto", "auto"), ("1", 1.0), ("0.7", 0.7)],
)
def test_a_spacing_is_none_auto_or_millimetres(typed: str, meant: object) -> None:
    settings = load_settings(None, ["data.root=d", f"preprocess.spacing_mm={typed}"])
    assert settings.preprocess.spacing_mm == meant
    assert Settings().preprocess.spacing_mm == "none"


def test_contradictions_are_refused() -> None:
    wanted = "preprocess.spacing_mm and preprocess.size exclude each other"
    assert wanted in refused("preprocess.spacing_mm=0.5", "preprocess.size=256")
    assert "loss.focal_gamma" in refused("loss.focal_gamma=1")


def test_a_comparison_is_no_training(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {root: d}\ncompare: {vary: {loss.name: [ce, dice_ce]}}")
    message = refused(config=path)
    assert f"{path}: is a comparison; use segapp compare {path}" in message


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.limit=0.1", 0.1),
        ("data.limit=20", 20),
        ("data.limit=liver,tumour", ["liver", "tumour"]),
        ("data.limit=liver", ["liver"]),
        ("train.progressive=0.5,1", [0.5, 1.0]),
        ("train.progressive=[0.5, 0.75, 1]", [0.5, 0.75, 1.0]),
        ("loss.class_weights=1,2.5", [1.0, 2.5]),
        ("loss.class_weights=auto", "auto"),
    ],
)
def test_lists_are_written_with_commas(word: str, value: object) -> None:
    section, name = word.partition("=")[0].split(".")
    settings = load_settings(None, ["data.root=d", word])
    assert getattr(getattr(settings, section), name) == value


@pytest.mark.parametrize(
    "word",
    [
        *("data.limit=0", "data.limit=1.5", "data.limit=-3", "train.progressive=1"),
        *("train.progressive=1,0.5", "train.progressive=0.5,0.75", "train.progressive=0.1,1"),
        *("loss.class_weights=1,0", "loss.class_weights=heavy", "train.folds=1"),
        *("optim.accumulate=0", "optim.ema=1", "model.dropout=1", "augment.policy=wild"),
    ],
)
def test_wrong_lists_and_shares_are_refused_by_name(word: str) -> None:
    assert refused(word).startswith(word.partition("=")[0] + ": got ")


@pytest.mark.parametrize("name", ["2024", "1e3", "2024-01-31", "null", "a: b", "[x]", "007", "on"])
def test_a_folder_may_have_any_name(name: str) -> None:
    settings = load_settings(None, [f"data.root={name}", f"train.out={name}"])
    assert settings.data.root == settings.train.out == Path(name)


@pytest.mark.parametrize("in_file", [False, True])
def test_paths_begin_at_home(tmp_path: Path, monkeypatch, in_file: bool) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["data.root=~/data", "train.out=~/run"]
    for start in ("model.init_from=~/earlier", "model.encoder_weights=~/encoder.pth"):
        if in_file:
            tree: dict[str, dict[str, str]] = {}
            for key, value in (word.split("=") for word in (*words, start)):
                section, name = key.split(".")
                tree.setdefault(section, {})[name] = value
            (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
            s = load_settings(tmp_path / "own.yaml", [])
        else:
            s = load_settings(None, [*words, start])
        assert (s.data.root, s.train.out) == (tmp_path / "data", tmp_path / "run")
        if "init_from" in start:
            assert s.model.init_from == tmp_path / "earlier"
        else:
            assert s.model.encoder_weights == str(tmp_path / "encoder.pth")
    assert load_settings(None, ["data.root=a/~b"]).data.root == Path("a/~b")
    assert load_settings(None, ["data.root=~no_such_user/b"]).data.root == Path("~no_such_user/b")


def test_the_run_is_named_after_the_config_else_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {root: some/folder}", "livers.v2.yaml")
    assert load_settings(path, []).train.out == Path("runs/livers.v2")
    assert load_settings(None, ["data.root=some/folder/"]).train.out == Path("runs/folder")
    assert load_settings(None, ["data.root=d", "train.out=x/y"]).train.out == Path("x/y")


def test_a_tilde_means_a_home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["data.root=~/d", "train.out=~/r", "model.init_from=~/m"]
    settings = load_settings(None, words)
    assert settings.data.root == tmp_path / "d"
    assert settings.train.out == tmp_path / "r"
    assert settings.model.init_from == tmp_path / "m"


def test_data_root_alone_means_the_defaults(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path, "data: {root: other}\ntrain: {epochs: 3}", "configs/brain.yaml")
    defaults = Settings(data={"root": "d"})  # type: ignore[arg-type]
    defaults.train.budget_minutes = DEFAULT_BUDGET_MINUTES
    defaults.train.out = Path("runs/d")
    assert load_settings(None, ["data.root=d"]) == defaults


def test_a_config_without_a_data_set_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        load_settings(write(tmp_path, "train: {epochs: 3}"), [])
    with pytest.raises(ConfigError, match=r"data\.root"):
        load_settings(None, ["data.root="])


def test_neither_config_nor_data_is_the_built_in_config(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None, ["train.epochs=2"])
    assert settings.data.root == Path("data/brain")
    assert settings.train.out == Path("runs/brain")
    assert lengths(settings) == (2, None)


def test_the_built_in_config_of_the_working_directory_goes_first(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert built_in_config() == REPOSITORY / "configs" / "brain.yaml"
    (tmp_path / "configs").mkdir()
    write(tmp_path, "data: {root: mine}", "configs/brain.yaml")
    assert load_settings(None, []).data.root == Path("mine")


def test_the_wheel_brings_its_own_copy(tmp_path: Path, monkeypatch) -> None:
    """In the wheel configs/ lies inside the package."""
    package = tmp_path / "site-packages" / "segapp"
    (package / "configs").mkdir(parents=True)
    write(package, "data: {root: packaged}", "configs/brain.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_module, "__file__", str(package / "config.py"))
    assert load_settings(None, []).data.root == Path("packaged")


# A value other than the default for every key; a new key needs one here.
OTHERS: dict[str, object] = {
    "data.root": Path("données/my data"),
    "train.deterministic": True,
    "data.classes": ["no", "1", "Läsion", "a: b"],
    "data.ignore": 255,
    "data.limit": ["liver", "1"],
    "data.modality": "PT",
    "data.slice_axis": "coronal",
    "data.context_slices": 2,
    "data.val_share": 0.35,
    "data.workers": 3,
    "preprocess.spacing_mm": 0.45,
    "preprocess.size": "native",
    "preprocess.normalisation": "ct",
    "augment.policy": "strong",
    "augment.operations": 4,
    "augment.scale": 0.05,
    "augment.rotate_deg": 3.5,
    "augment.shear_deg": 0.1,
    "augment.hue": 0.01,
    "model.architecture": "unetplusplus",
    "model.encoder": "resnet18",
    "model.encoder_weights": "none",
    "model.init_from": Path("runs/my model"),
    "model.residual": False,
    "model.full_resolution": False,
    "model.encoder_depth": 3,
    "model.separable": True,
    "model.tta": True,
    "loss.name": "ce",
    "loss.weight": 1e-7,
    "loss.class_weights": [0.5, 2.0, 1e-3],
    "optim.schedule": "poly",
    "optim.warm_up": 0.125,
    "optim.batch_size": 2,
    "train.export": "openvino",
    "optim.accumulate": 4,
    "optim.patch": "full",
    "train.out": Path("runs/1e3"),
    "train.steps_per_epoch": 7,
    "train.patience": 4,
    "train.progressive": [0.5, 0.75, 1.0],
    "train.precision": "fp16",
    "train.seed": 12345,
}
# What a key needs beside it to mean something.
COMPANIONS: dict[str, dict[str, object]] = {
    "augment.operations": {"augment.policy": "randaugment"},
    "augment.magnitude": {"augment.policy": "randaugment"},
    **{
        f"augment.{name}": {"augment.colour_p": 0.25}
        for name in ("brightness", "contrast", "saturation", "hue")
    },
    "augment.mixup_alpha": {"augment.mixup_p": 0.5},
    "augment.cutmix_alpha": {"augment.cutmix_p": 0.5},
    "loss.focal_gamma": {"loss.name": "focal_ce"},
    "loss.tversky_beta": {"loss.name": "tversky_ce"},
    "train.fold": {"train.folds": 5},
}


def other_value(key: str) -> object:
    if key in OTHERS:
        return OTHERS[key]
    section, name = key.split(".")
    if section == "augment":  # shares; numbers that every policy leaves to another value
        return 0.3125
    default = getattr(getattr(Settings(), section), name)
    if default == 0:
        return 0.375
    assert default is None or type(default) in (int, float), f"add a value for {key} to OTHERS"
    return 3 if default is None else default / 3


@pytest.mark.parametrize("key", [k for k in known_keys() if k != "train.budget_minutes"])
def test_every_setting_survives_the_yaml_file(tmp_path: Path, key: str) -> None:
    settings = load_settings(None, ["data.root=d", "train.epochs=9"])
    for changed, value in {**COMPANIONS.get(key, {}), key: other_value(key)}.items():
        section, name = changed.split(".")
        assert getattr(getattr(settings, section), name) != value
        setattr(getattr(settings, section), name, value)
    text = settings.to_yaml()
    back = load_settings(write(tmp_path, text), [])
    assert back == settings
    assert back.to_yaml() == text
    section, name = key.split(".")
    assert getattr(getattr(back, section), name) == other_value(key)


def test_a_budget_survives_the_yaml_file(tmp_path: Path) -> None:
    settings = load_settings(None, ["data.root=d", "train.budget_minutes=0.1"])
    assert load_settings(write(tmp_path, settings.to_yaml()), []) == settings


def test_the_yaml_file_names_every_key() -> None:
    tree = yaml.safe_load(Settings().to_yaml())
    assert [f"{s}.{k}" for s, keys in tree.items() for k in keys] == known_keys()


def test_an_assigned_value_is_checked_too() -> None:
    with pytest.raises(ValueError, match="epochs"):
        Settings().train.epochs = 0


def test_settings_need_no_torch() -> None:
    code = "import sys, segapp.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_another_policy_over_a_runs_own_settings_has_a_say(tmp_path: Path) -> None:
    """A run's config.yaml holds the numbers of its policy; one set by hand stays."""
    numbers = {k: v for k, v in POLICIES["standard"].items() if k != "noise_p"}
    held = {"data": {"root": "d"}, "augment": {"policy": "standard", **numbers, "noise_p": 0.77}}
    path = write(tmp_path, yaml.safe_dump(held))
    strong = load_settings(path, ["augment.policy=strong"]).augment
    assert resolved(strong).elastic_p == POLICIES["strong"]["elastic_p"] > 0
    assert strong.noise_p == 0.77
    assert resolved(load_settings(path, []).augment).elastic_p == 0


def test_another_schedule_or_architecture_brings_its_own_auto(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "data: {root: d}\noptim: {schedule: onecycle, warm_up: 0.3}\n"
        "model: {architecture: unet, residual: true, full_resolution: true, encoder_depth: 4}",
    )
    settings = load_settings(path, ["optim.schedule=cosine", "model.architecture=fpn"])
    assert (settings.optim.warm_up, settings.model.residual) == ("auto", "auto")
    assert (settings.model.full_resolution, settings.model.encoder_depth) == ("auto", "auto")
    kept = load_settings(path, [])
    assert (kept.optim.warm_up, kept.model.residual) == (0.3, True)
    other = load_settings(path, ["model.encoder=vgg11_bn"]).model
    assert (other.encoder_depth, other.residual) == ("auto", True)


@pytest.mark.parametrize("word", ["optim.max_lr=true", "train.epochs=yes", "augment.flip_p=on"])
def test_a_truth_value_is_no_number(word: str) -> None:
    assert "expected no true or false" in refused(word)


def test_a_limit_may_be_a_share_a_number_or_names() -> None:
    for word, meant in (("0.1", 0.1), ("1e-1", 0.1), ("20", 20), ("a,b", ["a", "b"])):
        assert load_settings(None, ["data.root=d", f"data.limit={word}"]).data.limit == meant
    for word in ("0", "1.5", "-3"):
        assert "data.limit" in refused(f"data.limit={word}")
