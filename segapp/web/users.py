"""Users and their passwords: a file of bcrypt hashes, and `python -m segapp.web.users` to fill it.

The file is what Apache's `htpasswd -B` writes: a line `name:$2y$…` for each user, comments (#) and
blank lines. Neither names nor passwords are ever logged.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import bcrypt

from segapp.errors import ConfigError, OutputError
from segapp.files import atomic_path
from segapp.parsing import at_home
from segapp.web.browsers import credentials

log = logging.getLogger("segapp")

MIN_CHARACTERS, MAX_BYTES = 8, 72  # bcrypt reads no more than 72 bytes
FAILURE_SECONDS = 1.0
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}")
_REMEMBERED = 1000


class Users:
    """The users of an auth file, as read at the start.

    Raises ConfigError where the file can't be read, has no user, or a line is not `name:hash`.
    """

    def __init__(self, path: Path, failure_seconds: float = FAILURE_SECONDS):
        self._hashes = read_hashes(path)
        self._failure_seconds = failure_seconds
        rounds = max(int(known[4:6]) for known in self._hashes.values())
        # what an unknown name is compared with, so that it takes as long as a known one
        self._nobody = bcrypt.hashpw(secrets.token_hex(16).encode(), bcrypt.gensalt(rounds))
        self._key = secrets.token_bytes(32)
        self._verified: set[bytes] = set()
        self._one_at_a_time = asyncio.Lock()

    async def admits(self, authorization: str) -> bool:
        """Whether an Authorization header names a user and their password.

        A header that was right is remembered as a keyed hash, in memory only; the next request
        with it costs nothing. A wrong one is answered after `failure_seconds`; none at all, at
        once, as browsers ask for the password only then.
        """
        if not authorization:
            return False
        mark = hmac.digest(self._key, authorization.encode("utf-8", "replace"), hashlib.sha256)
        if mark in self._verified:
            return True
        if (given := credentials(authorization)) is not None:
            async with self._one_at_a_time:
                right = mark in self._verified or await asyncio.to_thread(self._verify, *given)
            if right:
                if len(self._verified) >= _REMEMBERED:
                    self._verified.clear()
                self._verified.add(mark)
                return True
        log.warning("a login failed: wrong name or password")
        await asyncio.sleep(self._failure_seconds)
        return False

    def _verify(self, name: str, password: str) -> bool:
        secret = password.encode("utf-8")
        known = self._hashes.get(name, self._nobody)
        try:
            same = bcrypt.checkpw(secret[:MAX_BYTES], known)
        except ValueError:  # a password with a NUL
            return False
        return same and name in self._hashes and len(secret) <= MAX_BYTES


def read_hashes(path: Path) -> dict[str, bytes]:
    """Name → bcrypt hash of an auth file.

    Raises ConfigError naming the file and the line, never what stands there: an unreadable file,
    one without a user, a line that is not `name:bcrypt hash`, a name given twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: can't read the users' passwords: {why}") from error
    if os.name == "posix" and mode & 0o044:
        log.warning("%s: other accounts of this machine can read it; chmod 600 it", path)
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, known = line.strip().partition(":")
        if not name or not _HASH.fullmatch(known):
            raise ConfigError(
                f"{path}, line {number}: expected a name, a colon and a bcrypt hash of cost 4 to "
                f"16; make the line with: python -m segapp.web.users {path} NAME"
            )
        if name in hashes:
            raise ConfigError(f"{path}, line {number}: this user has a line above; remove one")
        hashes[name] = known.encode()
    if not hashes:
        raise ConfigError(f"{path}: no user in it; add: python -m segapp.web.users {path} NAME")
    return hashes


def write_user(path: Path, name: str, password: str) -> None:
    """Add a user to an auth file, or replace their password. A new file is made, mode 0600.

    The file is replaced as a whole, so a crash leaves the old one. Raises ConfigError for a
    password below 8 characters or above 72 bytes, a name that can't stand in the file, and a file
    that can't be read or written.
    """
    if not name or name != name.strip() or name.startswith("#") or re.search(r"[:\x00-\x1f]", name):
        raise ConfigError("a name must not be empty, start with # or hold a colon or line break")
    if len(password) < MIN_CHARACTERS:
        raise ConfigError(f"the password is too short; at least {MIN_CHARACTERS} characters")
    secret = password.encode("utf-8")
    if len(secret) > MAX_BYTES or b"\0" in secret:
        raise ConfigError(f"the password is too long; at most {MAX_BYTES} bytes, without a NUL")
    try:
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as text") from error
    new = f"{name}:{bcrypt.hashpw(secret, bcrypt.gensalt()).decode()}"
    at = [i for i, line in enumerate(old) if line.strip().partition(":")[0] == name]
    lines = [new if i in at[:1] else line for i, line in enumerate(old) if i not in at[1:]]
    _replace(path, "\n".join([*lines, *([] if at else [new]), ""]))


def _replace(path: Path, text: str) -> None:
    try:
        with atomic_path(path, mode=0o600) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OutputError as error:
        raise ConfigError(str(error)) from error


def _path(word: str) -> Path:
    return Path(at_home(word))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m segapp.web.users FILE NAME`. Returns its exit code, 0 or 2."""
    parser = argparse.ArgumentParser(
        prog="python -m segapp.web.users",
        description="Add a user of the app to a password file, or change their password.",
    )
    parser.add_argument(
        "file", type=_path, metavar="FILE", help="what segapp app --auth-file takes"
    )
    parser.add_argument("name", metavar="NAME", help="the user's name, without a colon")
    given = parser.parse_args(arguments)
    password = getpass.getpass("Password: ")
    if getpass.getpass("The same again: ") != password:
        print("the two are not the same; nothing was changed", file=sys.stderr)
        return 2
    try:
        write_user(given.file, given.name, password)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.file}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
