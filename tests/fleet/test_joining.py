"""`worker-orcd fleet --ray-address` with an address that cannot be joined: one line with its code, and soon."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker_orcd.testing.harness import free_port

pytestmark = [pytest.mark.needs("ray")]

HUNG_SEC = 180
"""Many times what it takes. Ray itself would try for a minute, and then write many lines."""


class Joining:
    """A `worker-orcd fleet --ray-address` that runs."""

    def __init__(self, address: str, **env: str) -> None:
        command = [sys.executable, "-m", "worker_orcd", "fleet", "--port", str(free_port())]
        command += ["--ray-address", address]
        self._process = subprocess.Popen(
            command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def refusal(self) -> str:
        """What it says: one line, and exit code 1."""
        try:
            said, line = self._process.communicate(timeout=HUNG_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        assert (self._process.returncode, said) == (1, ""), line
        assert line.count("\n") == 1, line
        assert line.startswith("worker-orcd: INVALID_REQUEST: --ray-address "), line
        return line


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The address of a server that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering() -> Iterator[str]:
    """The address of a server that answers whatever comes with HTTP/1.1, as one that is no Ray does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_address_that_cannot_be_joined_is_refused_in_one_line(tmp_path: Path) -> None:
    """Where nothing listens, where something else does, what is no address, and `auto` without a cluster."""
    with silent() as dumb, answering() as web:
        nothing = {"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": ""}
        said = {
            name: joining.refusal()
            for name, joining in {
                "free": Joining(f"127.0.0.1:{free_port()}"),
                "dumb": Joining(dumb),
                "web": Joining(web),
                "name": Joining("ray.example"),
                "url": Joining("ray://127.0.0.1:10001"),
                "none": Joining("auto", **nothing),
                "gone": Joining("auto", RAY_ADDRESS=f"127.0.0.1:{free_port()}"),
            }.items()
        }
    assert "but Connection refused" in said["free"]
    assert "required a Ray cluster, but nothing answered within 10 s" in said["dumb"]
    assert "required a Ray cluster, but what listens there is none" in said["web"]
    assert "required HOST:PORT" in said["name"]
    assert "required HOST:PORT" in said["url"]
    assert "required a cluster started by `ray start`, or RAY_ADDRESS" in said["none"]
    assert "--ray-address auto (127.0.0.1:" in said["gone"]
    assert "but Connection refused" in said["gone"]
