"""The licences of everything that `pip install ".[openvino]"` and the optional extras bring.

    python release/licences.py            print docs/licences.md for what is installed here
    python release/licences.py --check    exit code 1 where a licence, or the list, is not right

Reads what the installed packages say of themselves (core metadata, PEP 639 before classifiers).
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIST = Path(__file__).parent.parent / "docs" / "licences.md"
DEFAULT = ("openvino",)  # what the README installs
EXTRAS = ("onnx", "prune")
COPYLEFT = re.compile(r"(?<!L)GPL|GNU (Affero )?General Public|AGPL|EUPL|OSL-|SSPL|CC-BY-NC", re.I)
# What NVIDIA's packages of PyPI's torch for Linux say: to be used and passed on, not to be changed.
NVIDIA = "NVIDIA (proprietary, redistributable)"
# No licence in the metadata: what the sources of that release say.
BY_HAND = {"cuda-toolkit": NVIDIA}

HEAD = """# Licences

Everything that an installation brings along, and the licence that each package states, printed by
`python release/licences.py`. No package of the default installation is under the GPL or the AGPL.
certifi, orjson and tqdm are in part under the MPL 2.0, which asks to pass on changes to their own
files. On Linux, PyPI's PyTorch brings NVIDIA's CUDA libraries, under NVIDIA's terms; PyTorch for a
CPU has none of them.

Compiled packages contain libraries of others, whose licences lie beside them:
opencv-python-headless FFmpeg, under the LGPL 2.1; numpy and scipy the runtime of GCC's Fortran,
under the GPL 3 with the exception that lets programs of any licence contain it.
"""


def brought(extras: tuple[str, ...]) -> set[str]:
    """Names of the distributions that segapp with `extras` needs on this machine, without it."""
    asked: dict[str, set[str]] = {}
    todo = [("segapp", {"", *extras})]
    while todo:
        name, wanted = todo.pop()
        if wanted <= asked.get(name, set()):
            continue
        asked.setdefault(name, set()).update(wanted)
        for text in metadata.distribution(name).requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in wanted):
                todo.append((canonicalize_name(needed.name), {"", *needed.extras}))
    return set(asked) - {"segapp"}


def licence(name: str) -> str:
    """What an installed distribution says of its licence, "?" if nothing."""
    stated = metadata.metadata(name)

    def field(key: str) -> str:
        return (stated.get_all(key) or [""])[0]

    classifiers = [
        text.split("::")[-1].strip()
        for text in stated.get_all("Classifier") or ()
        if text.startswith("License ::") and not text.endswith("OSI Approved")
    ]
    text = field("License-Expression") or ", ".join(classifiers)
    text = text or field("License").strip().split("\n")[0][:80]
    return BY_HAND.get(name) or (NVIDIA if name.startswith("nvidia-") else text or "?")


def table(names: set[str]) -> str:
    rows = [f"| {name} | {licence(name)} |" for name in sorted(names)]
    return "\n".join(["| package | licence |", "|---|---|", *rows]) + "\n"


def page() -> str:
    default = brought(DEFAULT)
    more = brought(DEFAULT + EXTRAS) - default
    return (
        f"{HEAD}\n## The default installation\n\n{table(default)}"
        f"\n## The extras onnx and prune, on top\n\n{table(more)}"
    )


def complaints() -> list[str]:
    """Of the packages installed here: unknown or copyleft licences, and what LIST does not say."""
    listed = LIST.read_text("utf-8")
    found = []
    for name in sorted(brought(DEFAULT + EXTRAS)):
        text = licence(name)
        if text == "?" or COPYLEFT.search(text):
            found.append(f"{name}: its licence is {text}")
        elif f"| {name} | {text} |" not in listed:
            found.append(f"{name} ({text}) is not what {LIST.name} says: make licences")
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        print("\n".join(complaints()) or "every licence is known, none is copyleft, all are listed")
        sys.exit(bool(complaints()))
    sys.stdout.write(page())
