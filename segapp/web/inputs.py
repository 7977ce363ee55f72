"""Which scans the app is given: uploads as scans, and the examples it offers to try."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from segapp.errors import ScanError
from segapp.formats import Entry, find_scans, stem
from segapp.formats.listing import detached, known_suffix
from segapp.layout import table_rows
from segapp.predict import Predictor


def shown_name(entry: Entry) -> str:
    """The uploaded file's name; the common one where a scan is several files."""
    return entry.paths[0].name if len(entry.paths) == 1 else entry.name


def group_uploads(paths: Sequence[Path], folder: Path, channel_files: int) -> list[Entry]:
    """Uploaded files as scans, in their order: see `find_scans`.

    Browsers send files without their folders, and each lies in a folder of its own; in `folder`
    links bring them together, and files of one name apart. A file that is no scan is an Entry too,
    so that reading it says so.
    """
    links: list[Path] = []
    for path in paths:
        number = 1
        while (link := folder / ("scan" if number == 1 else f"scan-{number}") / path.name) in links:
            number += 1
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
        links.append(link)
    found = find_scans(folder, channel_files) if links else []
    used = {place for e in found for path in e.paths for place in (path, *path.parents)}
    rest = [link for link in links if link not in used | detached(links)]
    found += [Entry(stem(link), (link,)) for link in rest]
    order = {link: n for n, link in enumerate(links)}

    def first_upload(entry: Entry) -> int:
        places = (place for path in entry.paths for place in (path, *path.parents))
        return min(order[place] for place in places if place in order)

    found.sort(key=first_upload)
    return [replace(entry, name=Path(entry.name).name) for entry in found]


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
