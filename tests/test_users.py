"""The users' file: what is read from it, what is written to it, and who gets in."""

from __future__ import annotations

import asyncio
import base64
import logging
import stat
import subprocess
import sys
import time
from pathlib import Path

import bcrypt
import pytest

from segapp.errors import ConfigError
from segapp.web import users
from segapp.web.users import Users, main, read_hashes, write_user


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def line(name: str, password: str, cost: int = 4) -> str:
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text("# radiology\n\n" + line("anna", "correct horse") + line("jörg", "größer ß"))
    path.chmod(0o600)
    return path


def admits(known: Users, *headers: str) -> list[bool]:
    async def ask() -> list[bool]:
        return [await known.admits(header) for header in headers]

    return asyncio.run(ask())


def test_the_right_password_gets_in_and_nothing_else(file):
    known = Users(file, failure_seconds=0)
    right = [basic("anna", "correct horse"), basic("jörg", "größer ß")]
    wrong = ["", "Basic", "Basic !!", basic("anna", "correct"), basic("anna", "größer ß")]
    wrong += [basic("", "correct horse"), basic("bert", "correct horse"), basic("anna", "")]
    wrong += ["Bearer " + right[0].split()[1], "Basic " + base64.b64encode(b"anna").decode()]
    wrong += [basic("anna", "correct horse" + "x" * 80), basic("anna", "correct horse\0")]
    wrong += ["Basic " + base64.b64encode(b"anna:\xff\xfe").decode()]
    assert admits(known, *right) == [True, True]
    assert admits(Users(file, failure_seconds=0), *wrong) == [False] * len(wrong)
    assert admits(known, right[0].replace("Basic", "bAsIc"), *wrong[:4]) == [True] + [False] * 4


def test_hashes_of_apache_are_read(tmp_path):
    path = tmp_path / "users"
    path.write_text(line("anna", "correct horse").replace("$2b$", "$2y$"))
    assert admits(Users(path), basic("anna", "correct horse")) == [True]


def test_a_header_that_was_right_is_checked_once(file, monkeypatch):
    known = Users(file)
    asked = []
    check = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *given: asked.append(1) or check(*given))
    assert admits(known, *[basic("anna", "correct horse")] * 5) == [True] * 5
    assert len(asked) == 1
    assert b"correct horse" not in repr(vars(known)).encode()


def test_an_unknown_name_costs_as_much_as_a_wrong_password(file, monkeypatch):
    asked = []
    check = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda p, h: asked.append(h[:7]) or check(p, h))
    known = Users(file, failure_seconds=0)
    admits(known, basic("nobody", "correct horse"), basic("anna", "wrong horse"))
    assert asked == [b"$2b$04$", b"$2b$04$"]


def test_a_failure_is_slow_and_logged_without_the_name(file, caplog):
    began = time.monotonic()
    with caplog.at_level(logging.INFO):
        assert admits(Users(file, failure_seconds=0.3), basic("anna", "wrong horse")) == [False]
    assert time.monotonic() - began >= 0.3
    assert "a login failed" in caplog.text
    assert "anna" not in caplog.text
    assert "horse" not in caplog.text


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("anna:secret-in-clear\n", "line 1"),
        ("# x\nanna:$apr1$r31...$HqJZimcKQFAMYayBlzkrA/\n", "line 2"),
        ("anna:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n", "line 1"),
        (line("anna", "correct horse").replace("$04$", "$31$"), "line 1"),
        ("$2b$04$" + "a" * 53 + "\n", "line 1"),
        (":$2b$04$" + "a" * 53 + "\n", "line 1"),
        (2 * line("anna", "correct horse"), "line 2"),
        ("\n# nobody\n", "no user"),
    ],
    ids=["clear", "md5", "sha", "cost", "no-name", "empty-name", "twice", "nobody"],
)
def test_a_file_that_is_not_of_hashes_is_refused_without_quoting_it(tmp_path, text, place):
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(ConfigError, match=place) as caught:
        read_hashes(path)
    assert str(path) in str(caught.value)
    for secret in ("anna", "secret-in-clear", "$2b$", "$apr1$", "{SHA}"):
        assert secret not in str(caught.value)


def test_a_file_that_cant_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_hashes(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_hashes(tmp_path / "binary")


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes there")
def test_a_file_that_others_can_read_is_warned_of(file, caplog):
    read_hashes(file)
    assert not caplog.text
    file.chmod(0o644)
    read_hashes(file)
    assert "chmod 600" in caplog.text


@pytest.fixture
def quick(monkeypatch):
    """Hashes of the least cost."""
    salt = bcrypt.gensalt
    monkeypatch.setattr(bcrypt, "gensalt", lambda *_: salt(4))


def test_users_are_added_and_replaced(tmp_path, quick):
    path = tmp_path / "users"
    write_user(path, "anna", "correct horse")
    assert sys.platform == "win32" or stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# ours\n" + path.read_text())
    write_user(path, "jörg", "ß" * 36)
    before = path.read_text().splitlines()
    write_user(path, "anna", "battery staple")
    after = path.read_text().splitlines()
    assert (after[0], after[2]) == (before[0], before[2])
    assert list(read_hashes(path)) == ["anna", "jörg"]
    known = Users(path, failure_seconds=0)
    given = [basic("anna", "battery staple"), basic("anna", "correct horse")]
    assert admits(known, *given, basic("jörg", "ß" * 36)) == [True, False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["users"]


@pytest.mark.parametrize(
    ("name", "password", "why"),
    [
        ("anna", "1234567", "too short"),
        ("anna", "ß" * 37, "72 bytes"),
        ("anna", "12345678\0", "NUL"),
        ("an:na", "correct horse", "colon"),
        ("an\nna", "correct horse", "line break"),
        ("#anna", "correct horse", "#"),
        ("", "correct horse", "empty"),
    ],
)
def test_names_and_passwords_that_dont_do(tmp_path, name, password, why):
    with pytest.raises(ConfigError, match=why):
        write_user(tmp_path / "users", name, password)
    assert not list(tmp_path.iterdir())


def test_the_old_file_stays_where_writing_fails(file, quick, monkeypatch):
    before = file.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(users.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_user(file, "anna", "battery staple")
    assert file.read_text() == before
    assert [p.name for p in file.parent.iterdir()] == ["users"]


def test_the_command_asks_twice(tmp_path, quick, monkeypatch, capsys):
    path = tmp_path / "users"
    answers = iter(["correct horse", "correct horse", "battery", "staple", "short", "short"])
    monkeypatch.setattr(users.getpass, "getpass", lambda _: next(answers))
    assert main([str(path), "anna"]) == 0
    assert main([str(path), "anna"]) == 2
    assert "not the same" in capsys.readouterr().err
    assert main([str(path), "anna"]) == 2
    assert "too short" in capsys.readouterr().err
    assert admits(Users(path), basic("anna", "correct horse")) == [True]


def test_the_command_has_help():
    command = [sys.executable, "-m", "segapp.web.users", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "FILE" in done.stdout
