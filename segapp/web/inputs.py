"""Which scans the app is given: uploads as scans, and the examples it offers to try."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from segapp.errors import ScanError
from segapp.formats import Entry, find_scans, is_scan_file, stem
from segapp.predict import Predictor


def shown_name(entry: Entry) -> str:
    """The uploaded file's name; the common one where a scan is a file per channel."""
    return entry.paths[0].name if len(entry.paths) == 1 else entry.name


def group_uploads(paths: Sequence[Path], channel_files: int) -> list[Entry]:
    """Uploaded files as scans: one each, or NAME_0000 NAME_0001 … together as the model's channels.

    Of an incomplete group the missing files are listed too, so that reading it names them.
    """
    endings = [f"_{channel:04d}" for channel in range(channel_files)]
    groups: dict[str, dict[str, Path]] = {}
    entries: list[Entry] = []
    for path in paths:
        base = stem(path)
        if channel_files > 1 and base[-5:] in endings:
            groups.setdefault(base[:-5], {})[base[-5:]] = path
        else:
            entries.append(Entry(base, (path,)))
    for base, found in groups.items():
        some = next(iter(found.values()))
        suffix = some.name[len(stem(some)) :]
        missing = (some.with_name(f"{base}{ending}{suffix}") for ending in endings)
        files = (found.get(e, gone) for e, gone in zip(endings, missing, strict=True))
        entries.append(Entry(base, tuple(files)))
    return entries


def find_examples(predictor: Predictor, own_data: bool = True) -> list[Entry]:
    """A few scans of the model's data, if they are here: three of the test images, the volumes.

    `own_data` allows those the model was trained on, wherever they are; they may show patients, so
    only to whoever sits at this machine. data/brain, if it is what the model knows, is free.
    """
    roots = [Path(predictor.info.data.root)] if own_data and predictor.info else []
    brain = Path("data/brain")
    with suppress(OSError):
        if (brain / "classes.txt").read_text("utf-8").split() == [
            c.name for c in predictor.classes
        ]:
            roots.append(brain)
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        return []
    count = predictor.preprocessing.channel_files
    folders = ("test/images", "test/imagesTs", "imagesTs", "images", "imagesTr", "train/images")
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    try:
        scans = find_scans(folder, count) if folder else []
        alone = [Entry(stem(p), (p,)) for p in sorted(root.iterdir()) if is_scan_file(p)]
    except (ScanError, OSError):
        return []
    spread = [scans[i] for i in sorted({len(scans) // 6, len(scans) // 2, len(scans) * 5 // 6})]
    return (spread if scans else []) + (alone[:2] if count == 1 else [])
