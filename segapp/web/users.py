"""Who may use the app: names and bcrypt hashes in a file, as `htpasswd -B` writes them."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import hmac
import logging
import re
import secrets
import stat
import sys
import threading
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path

import bcrypt

from segapp.errors import ConfigError
from segapp.files import atomic_path

log = logging.getLogger("segapp")

_HASH = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")
_LEAST, _MOST = 8, 72  # bytes of a password; bcrypt ignores what lies beyond 72


def read_users(path: Path) -> dict[str, bytes]:
    """Name → hash of each line NAME:HASH; empty lines and those with # are left out.

    Raises ConfigError where the file can't be read, holds nobody, or a line is none of these; it
    names the line, never what stands there.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--auth-file {path}: can't be read ({error})") from error
    users: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, hashed = line.strip().partition(":")
        if not name or not _HASH.fullmatch(hashed):
            raise ConfigError(
                f"--auth-file {path}, line {number}: expected NAME:HASH with a bcrypt hash; make "
                f"one with python -m segapp.web.users FILE NAME, or with htpasswd -B"
            )
        users[name] = hashed.encode()
    if not users:
        raise ConfigError(f"--auth-file {path}: names nobody; python -m segapp.web.users adds one")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s: others on this machine can read it (chmod 600 stops that)", path)
    return users


class Door:
    """Checks names and passwords. bcrypt takes a quarter of a second on purpose: a pair that was
    right once is remembered, as a hash with a key that only this process has."""

    def __init__(self, users: Mapping[str, bytes]):
        self._users = dict(users)
        self._nobody = bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt())
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, str] = {}
        self._lock = threading.Lock()  # one at a time, so that guessing doesn't take all processors

    def known(self, authorization: str) -> str | None:
        """The name of a header that was let in before."""
        return self._known.get(self._digest(authorization))

    def check(self, authorization: str) -> str | None:
        """The name in an Authorization header (RFC 7617, UTF-8) where its password is right. Takes
        a while; for an unknown name as long as for a wrong password."""
        name, password = _credentials(authorization)
        with self._lock:
            hashed = self._users.get(name, self._nobody)
            right = bcrypt.checkpw(password[:_MOST], hashed) and name in self._users
            if right and len(password) <= _MOST:
                self._known[self._digest(authorization)] = name
                return name
        log.warning("somebody was not let in: unknown name or wrong password")
        return None

    def _digest(self, authorization: str) -> bytes:
        return hmac.digest(self._key, authorization.encode("utf-8", "replace"), hashlib.sha256)


def _credentials(authorization: str) -> tuple[str, bytes]:
    scheme, _, coded = authorization.partition(" ")
    try:
        name, _, password = b64decode(coded, validate=True).partition(b":")
        if scheme.lower() == "basic":
            return name.decode("utf-8"), password
    except ValueError:  # neither base64 nor UTF-8
        pass
    return "", b""


def write_user(path: Path, name: str, password: str) -> None:
    """Add or replace a line. The file is readable by its owner alone. Raises ConfigError for a name
    or password that can't be used, OutputError."""
    if not name or re.search(r"[:\s#]", name):
        raise ConfigError(f"{name!r}: a name has neither colon nor blank nor #")
    size = len(password.encode())
    if not _LEAST <= size <= _MOST:
        raise ConfigError(f"the password has {size} bytes; it needs {_LEAST} to {_MOST}")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    lines = [line for line in lines if not line.startswith(f"{name}:")]
    lines.append(f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt()).decode()}")
    with atomic_path(path, mode=0o600) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> int:
    """python -m segapp.web.users FILE NAME"""
    parser = argparse.ArgumentParser(
        prog="python -m segapp.web.users",
        description="Add somebody to the file that `segapp app --auth-file` takes, or give them a "
        "new password. It is asked for twice, and kept as a bcrypt hash.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("name", metavar="NAME")
    given = parser.parse_args()
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("Again: "):
        print("These were two different ones; nothing was changed.", file=sys.stderr)
        return 2
    try:
        write_user(given.file, given.name, password)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.file}: {given.name} may use the app")
    return 0


if __name__ == "__main__":
    sys.exit(main())
