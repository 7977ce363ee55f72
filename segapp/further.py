"""Training a model further on kept corrections: whether that can work, and by which command."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from segapp.checkpoint import MODEL_NAME, ModelInfo, read_info
from segapp.errors import ModelFileError, ScanError
from segapp.layout import list_cases

_PATIENTS = 2  # the least of which training can set one aside


def training_command(folder: Path, model: Path | None) -> tuple[str | None, str]:
    """The command that trains `model` further on the kept cases, ready to be pasted, and a note.
    None where it can't work (yet): the note says why, and what to do.

    model: what was loaded to make the results; a run folder or a model file can be trained further,
    of an exported folder the run that it was made of, where that still is where it was.
    """
    try:
        cases = list_cases(folder).cases
    except ScanError:
        cases = ()
    patients = len({c.patient for c in cases})
    if patients < _PATIENTS:
        return None, (
            f"Training needs cases of {_PATIENTS} patients at least, to set some aside for "
            f"validation; so far there are {patients}. Keep more; where scans of several patients "
            "were taken for one's, correct the column patient of cases.csv."
        )
    start, why = _trainable(model)
    if start is None:
        return None, why
    out = Path("runs") / f"{folder.name}-{len(cases)}"
    number = 1
    while out.exists():
        number += 1
        out = out.with_name(f"{folder.name}-{len(cases)}-{number}")
    words = ["segapp", "train", f"data.root={folder.resolve()}", f"model.init_from={start}"]
    return shlex.join([*words, f"train.out={out}"]), (
        f"Trains the model further on {len(cases)} cases of {patients} patients. Few cases can "
        "make it worse on others: compare both with segapp evaluate before you use the new one."
    )


def _trainable(model: Path | None) -> tuple[Path | None, str]:
    """The run folder or file that model.init_from takes, or why there is none."""
    if model is None:
        return None, "The model's file is not known; train with model.init_from=ITS RUN FOLDER."
    if not model.is_dir() or (model / MODEL_NAME).is_file():
        found = model
    else:
        found = _run_of_export(model)
        if found is None:
            return None, (
                "The model is an export, which can't be trained further; train with "
                "model.init_from=THE RUN FOLDER that it was exported from."
            )
    try:
        members = read_info(found).architecture.members
    except ModelFileError as error:
        return None, str(error)
    if members > 1:
        return None, (
            f"The model is an ensemble of {members}; train one of its folds further, with "
            "model.init_from=fold1/model.safetensors."
        )
    return found.resolve(), ""


def _run_of_export(model: Path) -> Path | None:
    """The run folder that an exported folder says it is from, if the same model still is there."""
    with suppress(ModelFileError):
        info = read_info(model)
        places = [model.parent, Path(str(info.settings.get("train", {}).get("out")))]
        for place in places:
            if (place / MODEL_NAME).is_file() and _is_same(read_info(place), info):
                return place
    return None


def _is_same(one: ModelInfo, other: ModelInfo) -> bool:
    return (one.created, one.weights_sha256) == (other.created, other.weights_sha256)
