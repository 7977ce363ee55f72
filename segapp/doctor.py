"""`segapp check`: everything that can be wrong with a data set, and what training would make of it.

Files are read once, by the pass that training makes as well (check.py). What follows here is
judged over all cases; most of it does not keep anybody from training, and says so.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.cases import image_hash, list_cases, with_val_split
from segapp.check import nothing_counted, other_channels, survey
from segapp.config import Settings
from segapp.errors import DataError, ScanError
from segapp.estimate import training_cost
from segapp.evidence import explained, flipped, picture_hash
from segapp.files import require_writable
from segapp.finding import Finding, finding_of, sinking
from segapp.fingerprint import CaseFacts
from segapp.formats.listing import file_kind
from segapp.layout import SPLITS, Case, Dataset
from segapp.leakage import Print, near_images, patients_in_two_splits, same_images
from segapp.plan import decide, network_size
from segapp.progress import track
from segapp.report.findings import facts_text, findings_text, to_json, write_findings
from segapp.report.sheet import write_sheet
from segapp.scan import Scan, SegClass
from segapp.verdicts import (
    empty_cases,
    few_patients,
    frequencies,
    judge_classes,
    mixed_cases,
    rare_classes,
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

    As JSON also what is no data set is an object; as text it raises DataError.
    """
    try:
        result = check_data(root, out, lambda cases: track(cases, "reading the data"))
    except DataError as error:
        if not as_json:
            raise
        is_file = isinstance(error, ScanError)
        found = finding_of(error) if is_file else _of_folder("layout", root, error)
        return [to_json([found], {}, None)], 2
    findings, sheet = result.findings, out / "sheet.png"
    code = 2 if any(f.level == "error" for f in findings) else 0
    if as_json:
        return [to_json(findings, result.facts, sheet)], code
    where = f"pictures: {sheet}   this list: {out / 'findings.csv'}"
    return [*facts_text(result.facts), "", *findings_text(findings, out), where], code


def check_data(
    root: Path,
    out: Path,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> Diagnosis:
    """`diagnose`, and write out/findings.csv, out/report.json and out/sheet.png.

    Raises DataError where there is no data set of a known layout, OutputError.
    """
    diagnosis = diagnose(root, progress)
    require_writable(out)
    findings, facts, sheet = diagnosis.findings, diagnosis.facts, out / "sheet.png"
    shares = [row["share"] for row in facts.get("classes", [])]
    write_sheet(diagnosis.dataset, findings, diagnosis.classes, shares, sheet)
    write_findings(findings, facts, sheet, out)
    return diagnosis


def diagnose(root: Path, progress: Callable[[Iterable[Case]], Iterable[Case]] = iter) -> Diagnosis:
    """Read the whole data set and judge it, with training's default settings.

    Raises DataError where there is no data set of a known layout.
    """
    dataset = list_cases(root)
    findings = list(dataset.problems)
    settings = Settings()
    set_aside = not any(c.split == "val" for c in dataset.cases)
    try:
        dataset = with_val_split(dataset, settings.data.val_share, settings.train.seed)
    except DataError as error:
        findings.append(_of_folder("val-split", root, error))
        cases = (replace(c, split=c.split or "train") for c in dataset.cases)
        dataset = replace(dataset, cases=tuple(cases))
    prints: list[Print] = []
    fits: list[dict[str, float]] = []
    salt = secrets.token_bytes(16)  # a hash of a short name could be guessed without it

    def look(case: Case, scan: Scan, mask: Scan) -> None:
        is_plain = scan.voxels.min() == scan.voxels.max()  # black slices are alike, and no harm
        content = "" if is_plain else image_hash(case)
        prints.append(Print(case, content, picture_hash(scan), _patient(case, salt)))
        fits.append(explained(scan, mask))

    facts, found = survey(dataset, progress, dataset.ignore, look)
    findings += found
    findings += _flipped_masks(facts, fits)
    findings += empty_cases(facts, dataset.ignore)
    findings += patients_in_two_splits(dataset, prints)
    findings += same_images(prints, set_aside)
    findings += near_images(prints)
    classes, in_code, found = judge_classes(dataset, facts)
    findings += found
    findings += mixed_cases(facts)
    if set_aside:
        findings += few_patients(dataset)
    described = _describe(dataset, facts)
    if facts and classes:
        described["classes"] = frequencies(in_code, classes)
        findings += rare_classes(in_code, classes, root)
        made, found = _prepare(dataset, facts, in_code, classes, settings)
        described |= made
        findings += found
    constant = {f.path for f in findings if f.kind == "constant-image"}  # readers say so as well
    findings = [f for f in findings if f.kind != "reader" or f.path not in constant]
    ordered = sorted(findings, key=lambda f: (f.level != "error", f.kind, str(f.path)))
    return Diagnosis(dataset, tuple(dict.fromkeys(ordered)), classes, described)


def _flipped_masks(facts: Sequence[CaseFacts], fits: Sequence[dict[str, float]]) -> list[Finding]:
    found = []
    for n, how in sorted(flipped(fits).items()):
        case, now, then = facts[n].case, fits[n][""], max(fits[n].values())
        problem = f"fits {case.images[0].name} much better when flipped {how}"
        problem += f": it explains {then:.0%} of the image's variance then, {now:.0%} as it is"
        remedy = "look at both, and export the mask as the image lies"
        found.append(Finding("error", "flipped-mask", case.mask, problem, remedy))
    return found


def _of_folder(kind: str, root: Path, error: DataError) -> Finding:
    problem, _, remedy = str(error).removeprefix(f"{root}: ").partition("; ")
    return sinking(kind, root, problem, remedy)


def _patient(case: Case, salt: bytes) -> str:
    """A hash of whom a DICOM header names, good for this process only; "" for anything else."""
    try:
        if file_kind(case.images[0]) != "dicom":
            return ""
        from segapp.formats.dicomfile import read_header

        header = read_header(case.images[0], ["PatientID", "IssuerOfPatientID"])
    except (ScanError, OSError):
        return ""
    name = str(header.get("PatientID") or "").strip()
    owner = f"{name}\0{header.get('IssuerOfPatientID', '')}"
    return hashlib.sha256(salt + owner.encode()).hexdigest() if name else ""


def _prepare(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    in_code: Sequence[CaseFacts],
    classes: tuple[SegClass, ...],
    settings: Settings,
) -> tuple[dict[str, Any], list[Finding]]:
    """What training would decide and cost, and the cases that do not go with it."""
    root = dataset.root
    training = [f for f in in_code if f.case.split == "train"]
    if not training:
        return {}, [sinking("no-training-cases", root, "no case is in the split train")]
    found = nothing_counted(facts, dataset.ignore, root)
    try:
        resolved, preprocessing, reasons = decide(
            in_code, classes, dataset.ignore, settings, dataset
        )
    except ScanError as error:
        return {}, [*found, replace(finding_of(error), kind="preprocessing", remedy="")]
    found += other_channels(facts, preprocessing.channels, preprocessing.channel_files)
    sizes = [(f, network_size(f, preprocessing)) for f in training]
    axis = preprocessing.slice_axis
    slices = [(int(np.prod(f.shape) / np.prod(f.slice_sizes[axis])), *size) for f, size in sizes]
    batch, patch = int(resolved.optim.batch_size), int(resolved.optim.patch)
    cost = training_cost(slices, preprocessing.channels, batch, patch)
    return {"preprocessing": reasons, "training": cost}, found


def _describe(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    splits = Counter(c.split for c in dataset.cases)
    described: dict[str, Any] = {
        "cases": {s: splits[s] for s in SPLITS},
        "patients": len({c.patient for c in dataset.cases}),
        "patients_declared": all(c.declared for c in dataset.cases),
        "notes": list(dataset.notes),
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
