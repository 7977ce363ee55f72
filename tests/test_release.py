"""What a release rests on: bounds, licences, the wheel, the image, what is said of the version."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import segapp
from release import licences
from release.wheel import try_segapp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [Requirement(text) for text in PROJECT["dependencies"]]


def test_every_dependency_has_a_lower_bound() -> None:
    extras = (text for texts in PROJECT["optional-dependencies"].values() for text in texts)
    for needed in [*DEPENDENCIES, *map(Requirement, extras)]:
        operators = {part.operator for part in needed.specifier}
        assert needed.name == "segapp" or operators & {">=", "=="}, (
            f"{needed}: which is the oldest?"
        )


def test_licences_are_known_and_none_is_copyleft() -> None:
    names = licences.brought(("openvino", "onnx", "prune"))
    assert {"torch", "gradio", "openvino", "onnx", "torch-pruning", "pillow"} <= names
    found = {name: licences.licence(name) for name in names}
    assert "?" not in found.values(), found
    assert not [f"{n}: {text}" for n, text in found.items() if licences.COPYLEFT.search(text)]


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v2 (GPLv2)", True),
        ("AGPL-3.0", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-2.1", False),
        ("Apache-2.0 AND MIT", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", False),
    ],
)
def test_what_copyleft_is(text: str, copyleft: bool) -> None:
    assert bool(licences.COPYLEFT.search(text)) == copyleft


def test_the_list_holds_every_dependency_of_ours() -> None:
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \|", licences.LIST.read_text(), re.M))
    extras = (PROJECT["optional-dependencies"][name] for name in ("openvino", "onnx", "prune"))
    ours = DEPENDENCIES + [Requirement(text) for texts in extras for text in texts]
    assert {licences.canonicalize_name(needed.name) for needed in ours} <= listed


def test_the_version_is_said_alike() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"] == segapp.__version__
    assert cited["license"] == PROJECT["license"]
    assert f"segapp-{segapp.__version__}-py3" in (ROOT / "docs/deploying.md").read_text()


def test_the_image_names_what_there_is() -> None:
    """Each stage starts from one before it, ends as a user without rights, and its command is one
    of segapp's."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := re.match(r"FROM (\S+) AS (\w+)", line):
            assert found[1] in stages or found[1].startswith("python:3.")
            stages[found[2]] = [*stages.get(found[1], []), line]
        elif stages and line and not line.startswith("#"):
            stages[list(stages)[-1]].append(line)
    assert {"cpu", "cuda"} <= set(stages)
    for name in ("cpu", "cuda"):
        users = [line for line in stages[name] if line.startswith("USER")]
        assert users[-1] == "USER segapp" == stages[name][-1]
        assert 'ENTRYPOINT ["segapp"]' in stages[name]
    known = r"(FROM|ENV|RUN|WORKDIR|EXPOSE|HEALTHCHECK|ENTRYPOINT|CMD|ARG|COPY|USER|#) ?"
    assert all(re.match(known, line) for line in text.splitlines() if line)


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(tmp_path: Path) -> None:
    """Built as `python -m build` builds it, and used from elsewhere: settings and the page's files
    are in it. `make wheel` does the same in an empty venv."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site-packages", tmp_path / "work"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    python = [sys.executable, "-P"]
    program = [*python, "-c", "from segapp.cli import main; main()"]
    try_segapp(program, python, work, environment)
