"""Run the steps of the Dockerfile in a clean root, for machines without a container engine.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm ROOT
    python release/image.py ROOT [STAGE]        as root; STAGE is cpu unless told
    VOLUMES="FOLDER …" python release/image.py ROOT --run predict /model /scans --out /results

ENV, ARG, RUN, WORKDIR, COPY and USER are done with chroot. What differs from an image: its
Python is the root's own, in a virtual environment; nothing is layered or cached; EXPOSE and
HEALTHCHECK are only read. --run does what the container would, as its user: with a root that is
read-only but for /tmp and for VOLUMES, each mounted under its own name, and without a network.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
STATE = "etc/segapp-image.json"  # in ROOT: what --run needs to know
# What a container engine passes on to a build as well.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def steps(text: str, stage: str) -> list[tuple[str, str]]:
    """(instruction, words) of a stage and of those it starts from, in order."""
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, words = line.split(maxsplit=1)
        if instruction == "FROM":
            origin, _, name = words.split()
            stages[name] = list(stages.get(origin, []))
        else:
            stages[name].append((instruction, words))
    return stages[stage]


def in_root(root: Path, command: list[str], env: dict[str, str], cwd: str, user: str = "") -> None:
    who = [f"--userspec={user}"] if user else []
    inside = ["/bin/sh", "-c", f"cd {shlex.quote(cwd)} && exec {shlex.join(command)}"]
    subprocess.run(["chroot", *who, str(root), *inside], env=env, check=True)


def build(root: Path, stage: str) -> None:
    env = {"PATH": "/opt/python/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    in_root(root, ["python3", "-m", "venv", "/opt/python"], env, "/")
    shutil.copy("/etc/resolv.conf", root / "etc")
    configuration = Path("/etc/pip.conf")
    if configuration.is_file():  # this machine's mirror, if it has one
        shutil.copy(configuration, root / "etc")
    cwd, user, entry = "/", "", []
    for instruction, words in steps((REPOSITORY / "Dockerfile").read_text(), stage):
        print(f"{instruction} {words}", flush=True)
        if instruction == "ENV":
            env |= dict(word.split("=", 1) for word in shlex.split(words))
        elif instruction == "ARG":
            name, value = shlex.split(words)[0].split("=", 1)
            env.setdefault(name, os.environ.get(name, value))
        elif instruction == "WORKDIR":
            cwd = words
            (root / cwd.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
            kept = [line[1:] for line in ignored if line.startswith("!")]  # of "*"
            archive = ["git", "-C", str(REPOSITORY), "archive", "HEAD", *kept]
            with subprocess.Popen(archive, stdout=subprocess.PIPE) as tar:
                target = root / cwd.lstrip("/")
                subprocess.run(["tar", "-x", "-C", str(target)], stdin=tar.stdout, check=True)
        elif instruction == "RUN":
            in_root(root, ["/bin/sh", "-c", words], env, cwd, user)
        elif instruction == "USER":
            user = words
        elif instruction == "ENTRYPOINT":
            entry = json.loads(words)
    state = {"env": env, "cwd": cwd, "user": user, "entry": entry}
    (root / STATE).write_text(json.dumps(state))


def run(root: Path, command: list[str], volumes: list[Path]) -> int:
    """As `docker run --read-only --tmpfs /tmp --network none -v VOLUME:/NAME …` would."""
    state = json.loads((root / STATE).read_text())
    mounts = [
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        *(f"mount --bind {volume} {root}/{volume.name}" for volume in volumes),
        f"mount -t tmpfs tmpfs {root}/tmp",
        f"mount -o remount,bind,ro {root}",
    ]
    inside = f"cd {state['cwd']} && exec {shlex.join([*state['entry'], *command])}"
    chroot = ["chroot", f"--userspec={state['user']}", str(root), "/bin/sh", "-c", inside]
    whole = " && ".join([*mounts, f"exec {shlex.join(chroot)}"])
    unshared = ["unshare", "--mount", "--net", "/bin/sh", "-c", whole]
    return subprocess.run(unshared, env=state["env"]).returncode


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]).resolve(), sys.argv[2:]
    if words[:1] == ["--run"]:
        mounted = [Path(name).resolve() for name in os.environ.get("VOLUMES", "").split()]
        for each in mounted:
            (folder / each.name).mkdir(exist_ok=True)
        sys.exit(run(folder, words[1:], mounted))
    build(folder, *words or ["cpu"])
