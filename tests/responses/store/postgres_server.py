"""A PostgreSQL server of one test run."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

PASSWORD = "s3cret/with:odd@characters"
QUOTED = "s3cret%2Fwith%3Aodd%40characters"


class PostgresServer:
    """A throw-away cluster. Trusts its socket, and wants a password over TCP."""

    def __init__(self, folder, programs, user):
        self.folder, self._programs, self._user = folder, programs, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        self._run(
            "initdb", "-D", folder / "data", "-U", "cvllm", "--auth-local=trust", "--auth-host=scram-sha-256",
            f"--pwfile={folder / 'password'}", "--no-sync", "--locale=C", "--encoding=UTF8",
        )  # fmt: skip
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{folder}'\n"
            )
            settings.write("fsync = off\nshared_buffers = 16MB\n")
        self.start()

    def start(self):
        self._control("start")

    def restart(self):
        self._control("restart", "-m", "immediate")

    def stop(self):
        self._control("stop", "-m", "immediate")

    def url(self, database):
        return f"postgresql://cvllm@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database, password=QUOTED):
        return f"postgresql://cvllm:{password}@127.0.0.1:{self.port}/{database}"

    def _control(self, *command):
        self._run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", *command)

    def _run(self, program, *arguments):
        subprocess.run(
            [self._programs[program], *arguments], user=self._user, cwd=self.folder, check=True, timeout=60,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def find_programs():
    """PostgreSQL's programs by name, and the user to run them as; skips where there are none."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    programs = {name: shutil.which(name, path=places) for name in ("initdb", "pg_ctl")}
    if not all(programs.values()):
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    if os.getuid() != 0:
        return programs, None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in names), None)
    if user is None:
        pytest.skip("PostgreSQL does not run as root, and there is no other user")
    return programs, user
