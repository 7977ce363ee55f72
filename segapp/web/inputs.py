"""Which scans the app is given: uploads as scans, and the examples it offers to try."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segapp.errors import ScanError
from segapp.formats import Entry, find_scans, stem
from segapp.formats.listing import detached, file_kind, known_suffix
from segapp.layout import table_rows
from segapp.predict import Predictor
from segapp.scan import Scan

# How page.js writes the folders of a dropped file into its name: browsers send names alone, and
# Gradio takes slashes out of them.
FOLDER_SIGN = "∕"
_RUBBISH = {"thumbs.db", "desktop.ini", ".ds_store"}  # what systems leave in folders
_MODALITY = re.compile(r"[A-Z]{2,16}")
_LONGEST = 80  # characters of a header that a label takes
_FEW, _TELLING = 8, 1000  # values of a mask; voxels from which on so few are odd
_ROOT = "scan"  # below it lie the links to what was uploaded


@dataclass(frozen=True)
class Upload(Entry):
    """An uploaded scan. name: what its files are called by, never after what a header says.
    label: what it is called on the page and in reports."""

    label: str = ""


def shown_name(entry: Entry) -> str:
    """What a scan is called for people: its label, else its file's name; the common name where it
    is several files."""
    if isinstance(entry, Upload) and entry.label:
        return entry.label
    return entry.paths[0].name if len(entry.paths) == 1 else entry.name


def distinct(entry: Entry, labels: set[str], names: set[str]) -> Upload:
    """The same scan under a label and a name that are not in `labels` and `names` (lower case),
    which get them."""
    label = _free(shown_name(entry), "{} ({})", labels)
    name = _free(entry.name, "{}_{}", names)
    return Upload(name, entry.paths, entry.folder, entry.doubts, label)


def _free(wanted: str, numbered: str, taken: set[str]) -> str:
    found, number = wanted, 1
    while found.lower() in taken:
        number += 1
        found = numbered.format(wanted, number)
    taken.add(found.lower())
    return found


def group_uploads(paths: Sequence[Path], folder: Path, channel_files: int) -> list[Upload]:
    """Uploaded files as scans, in their order: see `find_scans`.

    Each lies in a folder of its own, and its name may hold the folders that it came from (see
    FOLDER_SIGN); in `folder` links bring them together as they were, and files of one name apart.
    A file that is no scan is an Upload too, so that reading it says so; those of a dropped folder
    are passed over, as in an archive.
    """
    links: list[Path] = []
    files: set[Path] = set()
    folders: set[Path] = set()
    for path in paths:
        parts = [part for part in path.name.split(FOLDER_SIGN) if part.strip(".")]
        if not parts or parts[-1].lower() in _RUBBISH:
            continue
        link, number = folder / _ROOT / Path(*parts), 1
        while link in files or link in folders or not files.isdisjoint(link.parents):
            number += 1
            link = folder / f"{_ROOT}-{number}" / Path(*parts)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
        links.append(link)
        files.add(link)
        folders.update(link.parents)
    found = find_scans(folder, channel_files) if links else []
    used = {place for e in found for path in e.paths for place in (path, *path.parents)}
    alone = [link for link in links if link.parent.parent == folder]
    rest = [link for link in alone if link not in used | detached(links)]
    order = {link: n for n, link in enumerate(links)}

    def first_upload(entry: Entry) -> int:
        places = (place for path in entry.paths for place in (path, *path.parents))
        return min(order[place] for place in places if place in order)

    uploads = [_labelled(entry) for entry in found]
    uploads += [Upload(stem(link), (link,), label=link.name) for link in rest]
    return sorted(uploads, key=first_upload)


def uploads_base(entry: Entry) -> Path:
    """The folder that the names of uploads are shown from."""
    source = entry.source
    return next((p for p in source.parents if p.name == _ROOT), source.parent)


def _labelled(entry: Entry) -> Upload:
    """An entry of `find_scans` in the links, called by the folders and archives that hold it and,
    where it is DICOM, by what its series is.

    Neither patient nor date is in it: labels go into reports and onto screens that others see, and
    tell scans apart without. What the header says of the series is in no file's name.
    """
    parts: list[str] = []
    for part in Path(entry.name).parts[1:]:  # below _ROOT
        if [part] != parts[-1:]:
            parts.append(part)
    one = len(entry.paths) == 1
    kind, number, said = _series(entry.paths)
    if not kind:
        label = "/".join([*parts[:-1], entry.paths[0].name] if one else parts)
        return Upload(parts[-1], entry.paths, entry.folder, entry.doubts, label)
    whole = ["series" if number is None else f"series{number}"]  # slices that came without a folder
    name = parts[-1] if one else "_".join(parts or whole)
    place = "/".join([*parts[:-1], entry.paths[0].name] if one else parts or ["DICOM slices"])
    return Upload(name, entry.paths, entry.folder, entry.doubts, f"{place} ({said})")


def _series(paths: Sequence[Path]) -> tuple[bool, int | None, str]:
    """Of a DICOM scan: True, the number of its series, and what kind of images it is made of, as
    in "MR T1 axial, series 3, 40 slices"; False for any other, and where nothing can be read."""
    try:
        if file_kind(paths[0]) != "dicom":
            return False, None, ""
        from segapp.formats.dicomfile import read_header, sober

        tags = ["Modality", "SeriesDescription", "SeriesNumber", "NumberOfFrames"]
        header = read_header(paths[0], tags)
        with sober(paths[0]):
            modality, described = (str(header.get(tag) or "") for tag in tags[:2])
            number = header.get("SeriesNumber")
            frames = len(paths) if len(paths) > 1 else int(header.get("NumberOfFrames") or 1)
    except (ScanError, OSError):
        return False, None, ""
    number = number if isinstance(number, int) else None
    words = f"{modality if _MODALITY.fullmatch(modality) else ''} {described}"
    kind = " ".join("".join(c if c.isprintable() else " " for c in words).split())[:_LONGEST]
    series = "" if number is None else f"series {number}"
    slices = f"{frames} {'slice' if frames == 1 else 'slices'}"
    return True, number, ", ".join(part for part in (kind, series, slices) if part)


def like_a_mask(scan: Scan) -> str:
    """A warning about a scan of two to eight whole numbers, which may be a mask that was dropped
    in a scan's place; "" for any other, and for one so small that this says nothing."""
    voxels = scan.voxels.ravel(order="K")
    if scan.channels > 1 or voxels.size < _TELLING:
        return ""
    if len(np.unique(voxels[:: max(1, voxels.size // 10_000)])) > _FEW:
        return ""
    values = np.unique(voxels)
    if not 1 < len(values) <= _FEW or (values != np.rint(values)).any():
        return ""
    told = ", ".join(f"{value:g}" for value in values.tolist())
    return f"looks like a mask, not a scan: it holds only the values {told}"


def find_examples(predictor: Predictor, own_data: bool = True) -> list[Entry]:
    """A few scans of the model's data, if they are here: three of the test images, the volumes;
    none where these lie elsewhere or can't be looked at.

    `own_data` allows those the model was trained on, wherever they are; they may show patients, so
    only to whoever sits at this machine. data/brain, if it is what the model knows, is free.
    """
    roots = [Path(predictor.info.data.root)] if own_data and predictor.info else []
    brain = Path("data/brain")
    with suppress(OSError, UnicodeDecodeError):
        if (brain / "classes.txt").read_text("utf-8").split() == [
            c.name for c in predictor.classes
        ]:
            roots.append(brain)
    count = predictor.preprocessing.channel_files
    folders = ("test/images", "test/imagesTs", "imagesTs", "images", "imagesTr", "train/images")
    try:
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            return []
        if (root / "cases.csv").is_file():
            scans, alone = _listed(root / "cases.csv"), []
        else:
            folder = next((root / name for name in folders if (root / name).is_dir()), None)
            scans = find_scans(folder, count) if folder else []
            alone = [Entry(stem(p), (p,)) for p in sorted(root.iterdir()) if known_suffix(p)]
    except (ScanError, OSError):
        return []
    chosen = sorted({len(scans) // 6, len(scans) // 2, len(scans) * 5 // 6}) if scans else []
    return [scans[i] for i in chosen] + (alone[:2] if count == 1 else [])


def _listed(table: Path) -> list[Entry]:
    """The test images of a cases.csv, all where it names no test split, wherever they lie."""
    rows = [row for _, row in table_rows(table) if row["image"]]
    rows = [row for row in rows if row.get("split") == "test"] or rows
    return [Entry(stem(row["image"]), (table.parent / row["image"],)) for row in rows]
