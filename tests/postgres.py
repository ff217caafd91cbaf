"""A PostgreSQL server of our own, which listens on a socket in a temporary folder and asks for a password."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

PASSWORD = "swordfish/100%@sea"  # with all that an address has to escape


@dataclass(frozen=True)
class Server:
    """Where it listens, and how it is addressed."""

    folder: Path

    @property
    def url(self) -> str:
        """The address without a password."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    @property
    def secret_url(self) -> str:
        """The address with the password."""
        return self.url.replace("postgres@", f"postgres:{quote(PASSWORD, safe='')}@")

    def dump(self) -> str:
        """Return all that the server keeps, as text."""
        pg_dump = program("pg_dump")
        assert pg_dump is not None
        command = [pg_dump, "-h", str(self.folder), "-U", "postgres", "postgres"]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def program(name: str) -> str | None:
    """Find a program of PostgreSQL; Debian keeps them out of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))


@contextmanager
def server() -> Iterator[Server]:
    """Start a server, and stop it when the block ends; skip the test where there is none, or no driver."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if not any(importlib.util.find_spec(driver) for driver in ("psycopg", "psycopg2")):
        pytest.skip("there is no driver for PostgreSQL: pip install 'psycopg[binary]'")
    # The server refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        (folder / "password").write_text(PASSWORD)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres")
        data = str(folder / "data")

        def run(*command: str) -> None:
            subprocess.run([*user, *command], check=True, stdout=subprocess.DEVNULL, timeout=120, cwd=folder)

        secret = f"--pwfile={folder / 'password'}"
        run(initdb, "-D", data, "-U", "postgres", "-A", "scram-sha-256", secret, "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        run(pg_ctl, "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield Server(folder)
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
