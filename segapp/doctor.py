"""`segapp check`: everything that can be wrong with a data set, and what training would make of it.

Files are read once, by the pass that training makes as well (check.py). What follows here is
judged over all cases; most of it does not keep anybody from training, and says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.cases import image_hash, list_cases, with_val_split
from segapp.check import survey
from segapp.decide import judge, steps_of_epoch
from segapp.errors import ScanError
from segapp.estimate import training_cost
from segapp.evidence import explained, flipped, picture_hash
from segapp.files import writable_folder
from segapp.finding import Finding, finding_of
from segapp.fingerprint import CaseFacts, with_every_class
from segapp.layout import SPLITS, Case, Dataset
from segapp.leakage import (
    Print,
    declared_in_two_splits,
    guessed_in_two_splits,
    names_alike,
    near_images,
    patients_by_name,
    patients_from,
    same_images,
)
from segapp.patches import network_size
from segapp.preprocess import Preprocessing
from segapp.progress import track
from segapp.report.findings import facts_text, findings_text, report_of, write_report
from segapp.report.sheet import write_sheet
from segapp.scan import Scan, SegClass
from segapp.settings import Settings
from segapp.verdicts import (
    empty_cases,
    few_patients,
    few_to_measure,
    frequencies,
    mixed_cases,
    never_without,
    unnamed,
)

_NO_TEST = (
    "no test split: figures will be of val, which training also chooses by; for figures on new "
    "scans say test in the split column of a cases.csv, or put some patients below test/"
)


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a data set (errors first) and what it is like.

    facts: what report.json holds; classes: () where they can't be told.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    classes: tuple[SegClass, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def report_on(root: Path, out: Path, as_json: bool = False) -> tuple[list[str], int]:
    """`check_data` for the command line: lines for stdout, and 2 where there are errors, else 0.

    As JSON also what is no data set is an object; as text it raises ScanError.
    """
    try:
        result = check_data(root, out, lambda cases: track(cases, "reading the data"))
    except ScanError as error:
        if not as_json:
            raise
        return [json.dumps(report_of([finding_of(error)], {}, None))], 2
    findings, sheet = result.findings, out / "sheet.png"
    code = 2 if any(f.level == "error" for f in findings) else 0
    if as_json:
        return [json.dumps(report_of(findings, result.facts, sheet))], code
    where = f"pictures: {sheet}   this list: {out / 'findings.csv'}"
    return [*facts_text(result.facts), "", *findings_text(findings, out), where], code


def check_data(
    root: Path,
    out: Path,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> Diagnosis:
    """`diagnose`, and write out/findings.csv, out/report.json and out/sheet.png.

    Raises ScanError where there is no data set of a known layout, OutputError.
    """
    with writable_folder(out):
        diagnosis = diagnose(root, progress)
        findings, facts, sheet = diagnosis.findings, diagnosis.facts, out / "sheet.png"
        shares = [row["share"] for row in facts.get("classes", [])]
        shares = shares or [None] * len(diagnosis.classes)
        write_sheet(diagnosis.dataset, findings, diagnosis.classes, shares, sheet)
        write_report(report_of(findings, facts, sheet), out)
    return diagnosis


def diagnose(root: Path, progress: Callable[[Iterable[Case]], Iterable[Case]] = iter) -> Diagnosis:
    """Read the whole data set and judge it, with training's default settings.

    Raises ScanError where there is no data set of a known layout.
    """
    dataset = list_cases(root)
    findings = list(dataset.problems)
    settings = Settings()
    known = all(f.kind != "split" for f in findings)  # else some have a split, but not known which
    set_aside = known and not dataset.split("val")
    if known:
        try:
            dataset = with_val_split(dataset, settings.data.val_share, settings.train.seed)
        except ScanError as error:
            cases = tuple(replace(c, split=c.split or "train") for c in dataset.cases)
            dataset = replace(dataset, cases=cases)
            findings += [finding_of(error)] if dataset.split("train") else []
    prints: list[Print] = []
    fits: list[dict[str, float]] = []

    def look(case: Case, scan: Scan, mask: Scan) -> None:
        # black slices are alike, and no harm
        if case.split and scan.voxels.min() < scan.voxels.max():
            prints.append(Print(case, image_hash(case), picture_hash(scan)))
        fits.append(explained(scan, mask))

    facts, found = survey(dataset, progress, dataset.ignore, look)
    findings += found
    if set_aside:
        dataset, facts = with_every_class(dataset, facts, settings.train.seed)
    findings += _flipped_masks(dataset.root, facts, fits)
    findings += empty_cases(facts, dataset.ignore)
    same, told = same_images(prints, set_aside)
    findings += same
    findings += declared_in_two_splits(dataset.cases, told)
    findings += guessed_in_two_splits(dataset)
    findings += names_alike(dataset)
    findings += near_images(prints, {f.path for f in same})
    findings += mixed_cases(facts)
    findings += few_patients(dataset, set_aside)
    verdict = judge(dataset, facts, settings)
    findings += verdict.findings
    described = _describe(dataset, facts)
    if verdict.in_code:
        described["classes"] = frequencies(verdict.in_code, verdict.classes)
        described["notes"] += unnamed(dataset, verdict.classes)
        described["notes"] += never_without(verdict.in_code, verdict.classes)
    if verdict.decided:
        resolved, preprocessing, described["preprocessing"] = verdict.decided
        described["training"] = _cost(verdict.in_code, resolved, preprocessing)
    constant = {f.path for f in findings if f.kind == "constant-image"}  # readers say so as well
    findings = [f for f in findings if f.kind != "reader" or f.path not in constant]
    ordered = sorted(findings, key=lambda f: (f.level != "error", f.kind, str(f.path)))
    return Diagnosis(dataset, tuple(dict.fromkeys(ordered)), verdict.classes, described)


def _flipped_masks(
    root: Path, facts: Sequence[CaseFacts], fits: Sequence[dict[str, float]]
) -> list[Finding]:
    flips, is_sure = flipped(fits)
    if flips and not is_sure:
        ways = Counter(flips.values()).most_common(3)
        said = ", ".join(f"{count} {how}" for how, count in ways)
        fit = "fit their images better when flipped"
        fit = "fits its image better when flipped" if len(flips) == 1 else fit
        problem = f"{len(flips)} of {len(fits)} masks {fit} ({said}"
        problem += f"; such as {facts[min(flips)].case.mask}), the others do not"
        remedy = "look at some of both, and export all as the images lie"
        return [Finding("warning", "flipped-mask", root, problem, remedy)]
    found = []
    for n, how in sorted(flips.items()):
        case, now, then = facts[n].case, fits[n][""], max(fits[n].values())
        problem = f"fits {case.images[0].name} much better when flipped {how}"
        problem += f": it explains {then:.0%} of the image's variance then, {now:.0%} as it is"
        remedy = "look at both, and export the mask as the image lies"
        found.append(Finding("error", "flipped-mask", case.mask, problem, remedy))
    return found


def _cost(
    facts: Sequence[CaseFacts], settings: Settings, preprocessing: Preprocessing
) -> dict[str, float]:
    training = [f for f in facts if f.case.split == "train"]
    sizes = [(f, network_size(f, preprocessing)) for f in training]
    axis = preprocessing.slice_axis
    slices = [(int(np.prod(f.shape) / np.prod(f.slice_sizes[axis])), *size) for f, size in sizes]
    batch, patch = int(settings.optim.batch_size), int(settings.optim.patch)
    steps = steps_of_epoch(sum(count for count, _, _ in slices), settings)
    return training_cost(slices, preprocessing.channels, batch, patch, steps)


def _describe(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    splits = Counter(c.split for c in dataset.cases)
    notes = [*dataset.notes, *([] if splits["test"] else [_NO_TEST]), *few_to_measure(dataset)]
    described: dict[str, Any] = {
        "cases": {s: splits[s] for s in SPLITS},
        "patients": len({c.patient for c in dataset.cases}),
        "patients_declared": all(c.declared for c in dataset.cases),
        "patients_from": patients_from(dataset.cases),
        "patients_by_name": len(patients_by_name(dataset)) or None,
        "notes": notes,
    }
    if not facts:
        return described
    sizes = Counter("×".join(str(n) for n in f.shape if n > 1) for f in facts)
    known = [f.spacing_mm for f in facts if f.spacing_mm]
    ranges = np.array([pair for f in facts for pair in f.percentiles])
    return described | {
        "sizes": dict(sizes.most_common()),
        "spacing_mm": [np.min(known, 0).tolist(), np.max(known, 0).tolist()] if known else None,
        "channels": dict(Counter(str(f.channels) for f in facts).most_common()),
        "dtypes": dict(Counter(f.dtype for f in facts).most_common()),
        "intensities": {
            "minimum": min(f.minimum for f in facts),
            "maximum": max(f.maximum for f in facts),
            "percentile_0.5": float(np.median(ranges[:, 0])),
            "percentile_99.5": float(np.median(ranges[:, 1])),
            "zero_share": float(np.mean([f.zero_share for f in facts])),
        },
    }
