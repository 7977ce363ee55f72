"""The file of those who may use the app."""

from __future__ import annotations

import stat

import pytest

from segapp.errors import ConfigError
from segapp.web import users
from segapp.web.users import Door, read_users, write_user


def header(name: str, password: str) -> str:
    from base64 import b64encode

    return "Basic " + b64encode(f"{name}:{password}".encode()).decode()


def test_who_is_written_is_read_and_let_in(tmp_path):
    path = tmp_path / "users.txt"
    write_user(path, "anna", "correct horse")
    write_user(path, "bert", "battery staple")
    write_user(path, "anna", "another one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "another one" not in path.read_text()
    found = read_users(path)
    assert sorted(found) == ["anna", "bert"]
    door = Door(found)
    assert door.check(header("anna", "correct horse")) is None
    assert door.known(header("anna", "another one")) is None
    assert door.check(header("anna", "another one")) == "anna"
    assert door.known(header("anna", "another one")) == "anna"
    assert door.known(header("bert", "another one")) is None


def test_files_of_htpasswd_are_read(tmp_path, caplog):
    path = tmp_path / "users"
    hashed = "$2y$05$" + "a" * 53
    path.write_text(f"# comment\n\ncarl:{hashed}\n")
    path.chmod(0o644)
    assert read_users(path) == {"carl": hashed.encode()}
    assert "others on this machine can read it" in caplog.text


@pytest.mark.parametrize("line", ["carl:secret", "carl", ":x", "carl:$apr1$abc$def", "carl:{SHA}x"])
def test_other_lines_are_refused_and_not_shown(tmp_path, line):
    path = tmp_path / "users"
    path.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match="line 1: expected NAME:HASH") as raised:
        read_users(path)
    assert "secret" not in str(raised.value)


def test_a_file_of_nobody_is_refused(tmp_path):
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(ConfigError, match="names nobody"):
        read_users(tmp_path / "empty")
    with pytest.raises(ConfigError, match="can't be read"):
        read_users(tmp_path / "missing")


@pytest.mark.parametrize("password", ["short", "x" * 73, "é" * 40])
def test_passwords_that_protect_nothing_are_refused(tmp_path, password):
    with pytest.raises(ConfigError, match="it needs 8 to 72"):
        write_user(tmp_path / "users", "anna", password)
    with pytest.raises(ConfigError, match="neither colon"):
        write_user(tmp_path / "users", "an:na", "long enough")


def test_the_command_asks_twice(tmp_path, monkeypatch, capsys):
    path = tmp_path / "users"
    monkeypatch.setattr("sys.argv", ["users", str(path), "anna"])
    answers = iter(["long enough", "long enough", "one thing", "another thing"])
    monkeypatch.setattr(users.getpass, "getpass", lambda _: next(answers))
    assert users.main() == 0
    assert "anna may use the app" in capsys.readouterr().out
    assert users.main() == 2
    assert "two different ones" in capsys.readouterr().err
