"""Passwords in a storage's address reach no file, no message and no study."""

import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from command_line import Cli
from postgres import PASSWORD, Server

import clusterprune.files.credentials
from clusterprune.files.credentials import hide_in_argument, hide_passwords, without_password, without_passwords
from clusterprune.methods.acp_search import StructureFitness

QUICK = ("--keep-macs", 0.6, "--epochs", 1, "--augment", "none")
SETTINGS = ("fitness=merge", "samples=64", "min_samples=2", "particles=2", "cycles=1")
HUNTER = "hunter-two/%40"


def acp(tiny: str, weights: Path, *more: object) -> list[object]:
    command = ["compress", "--model", tiny, "--weights", weights, "--data", "digits", "--method", "acp", "--out", "run"]
    return [*command, *QUICK, *(part for text in SETTINGS for part in ("--set", text)), *more]


def assert_nowhere(secrets: list[str], folder: Path, said: str) -> None:
    """Assert that a text stands in no file below a folder, and was not said."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "result.json"} <= {path.name for path in files} or "Error" in said or "Stopped" in said
    for secret in secrets:
        assert secret not in said
        for file in files:
            assert secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("form", ["--storage", "--set"])
def test_a_password_reaches_no_file(
    form: str, tiny: str, trained: Path, trust: tuple[str, str], cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    address = f"sqlite:///search.db?timeout=30&password={quote(HUNTER, safe='')}"
    given = (form, address) if form == "--storage" else (form, f"storage={address}")
    command = acp(tiny, trained, *given)
    monkeypatch.setattr(sys, "argv", ["clusterprune", *(str(part) for part in command)])
    done = cli(*command)

    assert done.exit_code == 0, done.output
    secrets = [HUNTER, quote(HUNTER, safe=""), "hunter-two"]
    assert_nowhere(secrets, cli.folder, done.output)
    assert "sqlite:///" in Path("run/config.yaml").read_text()
    assert "password=***" in Path("run/result.json").read_text()
    # Without the password, and with it once more, these are the same options.
    again = cli("compress", "--out", "run", "--resume", *(given if form == "--storage" else ()), *trust)
    assert again.exit_code == 0, again.output
    assert "was finished before" in again.stdout


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ada:hunter-two@localhost:1/db",
        "postgresql://ada:hunter-two@with@ats/and/slashes@localhost:1/db",
        "postgresql://localhost:1/db?user=ada&password=hunter-two",
        "postgresql://localhost:1/db?PassWord=hunter-two",
        "postgresql://localhost:1/db?pass%77ord=hunter-two",
        "postgresql://ada:hunter-two@localhost:port/db",
        "nonsense+driver://ada:hunter-two@host/db",
        "postgresql://ada:hunter-two@[::1/db",
    ],
)
@pytest.mark.parametrize("command", ["worker", "compress"])
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(
    address: str, command: str, tiny: str, trained: Path, cli: Cli
):
    if command == "worker":
        arguments = ["worker", "--storage", address, "--debug"]
    else:
        arguments = acp(tiny, trained, "--storage", address, "--debug")
    result = cli(*arguments)

    assert result.exit_code == 2, result.output
    assert "Error: storage='" in result.stderr
    assert_nowhere(["hunter-two", "with@ats", "slashes@"], cli.folder, result.output)


def test_faults_of_ours_show_no_password(tiny: str, trained: Path, cli: Cli):
    """A process of its own, as what it prints then is no matter of the command's."""
    Path("sitecustomize.py").write_text(
        "import clusterprune.search.storage as storage\n"
        "def fails(url):\n    raise ZeroDivisionError(f'{url} with hunter-two')\n"
        "storage.RDBStorage = lambda url, **options: fails(options['connect_args'])\n"
        "storage._ATTEMPTS = 0\n"
    )
    process = cli.start(*acp(tiny, trained, "--storage", "postgresql://ada:hunter-two@host/db"))
    printed, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert_nowhere(["hunter-two"], cli.folder / "run", f"Error {printed}{said}")


@pytest.mark.parametrize(
    ("text", "clean", "shown"),
    [
        ("postgresql://a:b@h/d", "postgresql://a@h/d", "postgresql://a:***@h/d"),
        ("postgresql+psycopg://:b@h/d", "postgresql+psycopg://@h/d", "postgresql+psycopg://:***@h/d"),
        ("storage='mysql://a:b@h/d'", "storage='mysql://a@h/d'", "storage='mysql://a:***@h/d'"),
        ("postgresql://h/d?a=1&password=b&c=2", "postgresql://h/d?a=1&c=2", "postgresql://h/d?a=1&password=***&c=2"),
        ("postgresql://a@h:5432/d", None, None),
        ("sqlite:////folder/a:b@c/search.db", None, None),
        ("runs/a:b@c", None, None),
    ],
)
def test_where_a_password_is(text: str, clean: str | None, shown: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clusterprune.files.credentials, "_known", {})
    assert hide_passwords(f"see {text}, please") == f"see {shown or text}, please"
    assert hide_in_argument(text) == (shown or text)
    assert without_passwords({"a": [text, (text, 1)]}) == {"a": [clean or text, (clean or text, 1)]}
    assert without_password(clean or text) == (clean or text)


def test_a_run_goes_on_with_a_password_from_elsewhere(
    tiny: str, trained: Path, trust: tuple[str, str], cli: Cli, postgres: Server, monkeypatch: pytest.MonkeyPatch
):
    genuine, calls = StructureFitness.__call__, []

    def stop_at_second(fitness: StructureFitness, widths: dict[str, int]) -> float:
        calls.append(widths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(fitness, widths)

    secrets = [PASSWORD, quote(PASSWORD, safe=""), PASSWORD.partition("/")[0]]
    with monkeypatch.context() as patch:
        patch.setattr(StructureFitness, "__call__", stop_at_second)
        stopped = cli(*acp(tiny, trained, "--storage", postgres.secret_url))
    assert stopped.exit_code == 130, stopped.output
    assert_nowhere(secrets, cli.folder, stopped.output)

    monkeypatch.setattr(clusterprune.files.credentials, "_known", {})  # as in another process
    monkeypatch.setenv("PGPASSFILE", str(cli.folder.parent / "none"))
    message = cli.fails("compress", "--out", "run", "--resume", *trust)
    assert "no password supplied" in message
    assert "~/.pgpass" in message
    passes = cli.folder.parent / f"{cli.folder.name}.pgpass"
    passes.write_text(f"*:*:*:postgres:{PASSWORD}\n")
    passes.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passes))
    done = cli("compress", "--out", "run", "--resume", *trust)
    assert done.exit_code == 0, done.output
    monkeypatch.delenv("PGPASSFILE")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    joined = cli("worker", "--storage", postgres.url, *trust)
    assert joined.exit_code == 0, joined.output
    assert_nowhere(secrets, cli.folder, done.output + joined.output)
    # Nor in the database.
    dumped = postgres.dump()
    assert "fitness" in dumped
    assert not any(secret in dumped for secret in secrets)
