"""Every block of code in the documents works: commands run, on a small data set and for one epoch,
and what can't run here (docker, make, pip) is held against what it names."""

from __future__ import annotations

import ast
import configparser
import contextlib
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import write_png_dataset
from packaging.requirements import Requirement
from test_cli import Result
from test_cli import run as in_process

from segapp.cases import find_cases
from segapp.checkpoint import ModelInfo
from segapp.variants import read_comparison

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data/brain/README.md"])
# By tests/test_web_api.py and tests/test_shares.py, as they stand.
RUN_ELSEWHERE = {"docs/app.md": ("python", "bash"), "docs/scaling.md": ("bash", "yaml")}
NOT_HERE = {
    "python3 -m venv .venv && . .venv/bin/activate": "the tests have an environment already",
    "git clone URL segapp && cd segapp": "this is the clone",
    "pip download --no-deps nilearn==0.14.1": "needs the network",
    "python data/brain/make_brain.py nilearn-0.14.1-py3-none-any.whl": "needs what that brings",
    "segapp app                                  # no model": "test_web_flow.py does that",
    "segapp compare configs/compare-ablation.yaml": "takes hours; test_configurations reads it",
}


FEW = "model.encoder=resnet18 model.encoder_weights=none data.limit=24 train.steps_per_epoch=4"


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """The fenced blocks, and the indented ones that hold a command."""
    name, text = document.relative_to(ROOT).as_posix(), document.read_text("utf-8")
    found = [
        Block(name, text[: m.start()].count("\n") + 2, m[1], m[2])
        for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]
    bare = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    found += [
        Block(name, bare[: m.start()].count("\n") + 2, "", m[1])
        for m in re.finditer(r"^\n    (\w.*\n)", bare, re.M)
    ]
    return [b for b in found if b.language not in RUN_ELSEWHERE.get(name, ())]


ALL = [block for document in DOCUMENTS for block in blocks(document)]


def commands(block: Block) -> list[str]:
    """A block's lines without comments, continued ones joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if not any(line.startswith(known) for known in NOT_HERE)]
    return [line for line in (re.sub(r"\s+#.*|^#.*", "", each) for each in lines) if line.strip()]


def of(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


def test_no_block_is_of_an_unknown_kind() -> None:
    assert {b.language for b in ALL} <= {"", "python", "csv", "nginx", "ini"}
    assert len(ALL) >= 15
    for known in NOT_HERE:
        assert any(known in b.text for b in ALL), f"{known}: no document has it any more"


@pytest.fixture(scope="module")
def started() -> set[str]:
    """The apps that ran already."""
    return set()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documents suppose it: data in DIR and mine, scans in SCANS, runs/brain."""
    root = tmp_path_factory.mktemp("documents")
    for name in ("DIR", "mine"):
        write_png_dataset(root / name, count=8)
    for name in ("SCANS", "scans", "new-scans"):
        shutil.copytree(root / "DIR/images", root / name)
    for name in ("data", "configs", "benchmarks"):
        (root / name).symlink_to(ROOT / name)
    run(f"segapp train data.root=data/brain train.out=runs/brain train.epochs=1 {FEW}", root)
    shutil.copytree(root / "runs/brain", root / "runs/hands")
    return root


def run(command: str, cwd: Path, typed: str = "", code: int = 0) -> None:
    words = [os.path.expandvars(word) for word in shlex.split(command)]
    if words[0] == "segapp":
        with contextlib.chdir(cwd):
            done = serve(*words[1:]) if words[1] == "app" else in_process(*words[1:])
        assert done.code == code, f"{command}\n{done.out}{done.err}"
        return
    folder = Path(sys.executable).parent
    program = {"python": sys.executable} | {n: f"{folder}/{n}" for n in ("segapp", "torchrun")}
    words = [program.get(word, word) for word in words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes |= {"cwd": cwd, "env": environment, "input": typed, "start_new_session": True}
    done = subprocess.run(words, **pipes)
    assert done.returncode == code, f"{command}\n{done.stdout}"


def serve(*words: str) -> Result:
    """The app in this process: it is asked for its page, and stopped."""
    from segapp.web import app

    begin, answers = app.start, []

    def start(*args: Any) -> app.Service:
        service = begin(*args)
        answers.append(httpx.get(service.url.replace("0.0.0.0", "127.0.0.1")).status_code)
        service.server.should_exit = True
        return service

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "start", start)
        patch.setattr(app, "limit_memory", lambda *_: None)  # of this process, also afterwards
        done = in_process(*words, "--port", "0")
    assert done.code or answers == [401 if "--auth-file" in words else 200]
    assert done.code or "segapp is at http" in done.out
    return done


def shorter(command: str) -> str:
    """The same on less: one epoch, few variants."""
    command = re.sub(r"train\.budget_minutes=\d+", "train.epochs=1", command)
    command = command.replace("SCANS...", "SCANS").replace("/data/scans", "scans")
    command = command.replace("--resume RUN", "--resume runs/brain")
    if re.search("segapp (train|compare)", command) and "--resume" not in command:
        command += f" {FEW}"
    command = command.replace("ce,dice_ce,focal_ce", "ce,dice_ce")
    if command.startswith("segapp compare"):
        command += " --seeds 1"
    if command.startswith("segapp prune"):
        command += " --amounts 0.5 --minutes 0.02"
    return command.replace(".venv/bin/", "")


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted({b.document for b in of("")}))
def test_commands(place: Path, started: set[str], document: str) -> None:
    for block in of(""):
        for command in commands(block) if block.document == document else ():
            words = shlex.split(command)
            program = Path(words[0]).name
            if program == "segapp" and words[1] == "app":  # the same in several documents
                if shorter(command) in started:
                    continue
                started.add(shorter(command))
            if "train" in words:  # a document trains the same thing in several ways
                shutil.rmtree(place / "runs/DIR", ignore_errors=True)
            if program in ("segapp", "torchrun"):
                run(shorter(command), place)
            elif words[1:3] == ["-m", "segapp.web.users"]:
                run(command, place, typed="a long enough password\n" * 2)
            elif program == "python":
                run(f"{words[0]} {words[1]} --help", place)
            else:
                CHECKS[program](words)


def check_make(words: list[str]) -> None:
    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        if "[" in word:
            name = re.sub(r"^\.|^segapp-[\d.]+-py3-none-any\.whl", "segapp", word)
            assert Requirement(name).extras <= set(project["optional-dependencies"])


def check_docker(words: list[str]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    if words[1] == "build":
        assert words[words.index("--target") + 1] in stages
    else:
        assert words[1] == "run"
        image = words.index("segapp")  # what follows is a command of segapp
        assert words[image + 1] == "predict"


CHECKS = {"make": check_make, "pip": check_pip, "docker": check_docker}


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted({b.document for b in of("python")}))
def test_python(place: Path, document: str) -> None:
    """A document's blocks are one program: later ones go on with the names of earlier ones."""
    program = shorter("\n".join(b.text for b in of("python") if b.document == document))
    quoted = ", ".join(f'"{word}"' for word in ("train.epochs=1", *FEW.split()))
    (place / "program.py").write_text(program.replace('"train.epochs=1"', quoted))
    run("python program.py", place)


@pytest.mark.parametrize("block", of("csv"), ids=str)
def test_tables(tmp_path: Path, block: Block) -> None:
    rows = list(csv.DictReader(block.text.splitlines()))
    for row in rows:
        for name in (row["image"], row["mask"]):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    (tmp_path / "cases.csv").write_text(block.text)
    assert len(find_cases(tmp_path).cases) == len(rows)


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/compare-*.yaml")), ids=str)
def test_configurations(config: Path, tmp_path: Path) -> None:
    comparison = read_comparison(config, [f"data.root={ROOT / 'data/brain'}"], [], None, tmp_path)
    assert len(comparison.variants) > 1


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_services(block: Block) -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(block.text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[1] == "app"
    assert Path(words[0]).name == "segapp"


@pytest.mark.parametrize("block", of("nginx"), ids=str)
def test_proxies(block: Block) -> None:
    lines = [line.strip() for line in block.text.splitlines()]
    assert all(line.endswith((";", "{", "}")) for line in lines if line)
    assert block.text.count("{") == block.text.count("}")
    assert "proxy_set_header Host $http_host;" in lines


def test_every_message_is_one_that_segapp_says() -> None:
    """The parts of messages in docs/troubleshooting.md stand in the code, f-strings' words too."""
    said = "\n".join(
        node.value
        for path in (ROOT / "segapp").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    text = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    assert len(cells) > 30
    for quoted in re.findall(r"`([^`]+)`", "\n".join(cells)):
        assert quoted in said, quoted


def test_the_model_files_page_names_every_key() -> None:
    text = (ROOT / "docs/model-file.md").read_text("utf-8")
    listed = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in row.split(", ")}
    assert {name.strip("`") for name in listed} == set(ModelInfo.model_fields)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / target).exists(), target
