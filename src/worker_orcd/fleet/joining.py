"""What a Ray cluster's address is checked for before Ray is imported, and the variables that Ray needs for it.

Ray itself would try an address that does not answer for a minute, and then crash or raise an error without the cause.
"""

import importlib
import ipaddress
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from worker_orcd.fleet.options import LOOPBACK, FleetRefused

_grpc: Any = importlib.import_module("grpc")
"""Comes with Ray, and has no types."""
ANSWER_SEC = 10.0
"""How long the cluster's head may take to answer."""
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call that each head of Ray answers. An empty request is valid."""
_NO_ANSWER = f"nothing answered within {ANSWER_SEC:.0f} s"
MODE = "RAY_AUTH_MODE"


class ClusterAddress:
    """The head of a Ray cluster."""

    def __init__(self, given: str) -> None:
        """`given`: HOST:PORT, or `auto`: as RAY_ADDRESS says, or the cluster that `ray start` started last.

        Raises:
            FleetRefused: it is no such address.
        """
        text = _latest() if given == "auto" else given
        self._required = f"--ray-address {given}{f' ({text})' if text not in ('', given) else ''}: required"
        if not text:
            raise self.refusal("a cluster started by `ray start`, or RAY_ADDRESS, but found neither")
        host, _, port = text.rpartition(":")
        if not host or "/" in host or not port.isdecimal():
            raise self.refusal("HOST:PORT, or `auto`")
        self.text = text
        self._host, self._port = host.strip("[]"), int(port)

    def environment(self) -> dict[str, str]:
        """The variables with which Ray can join. Waits for the cluster's answer.

        Raises:
            FleetRefused: no cluster answers, or it requires a token that is not there.
        """
        self._connect()
        variables = dict(LOOPBACK) if self._is_loopback_only() else {}
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return variables
        if not self._asks_for_token():
            return variables
        if os.environ.get(MODE, "token").lower() != "token":
            raise self.refusal(f"a cluster without tokens, as {MODE} says, but it asks for one")
        token, place = _token()
        if not token:
            raise self.refusal(
                f"the token of the cluster in RAY_AUTH_TOKEN or a file, but there is none in {place}"
            )
        if self._asks_for_token(token):
            raise self.refusal(f"the token of the cluster, but it does not accept that of {place}")
        return variables | {MODE: "token"}

    def refusal(self, required_and_found: str) -> FleetRefused:
        """The error of a cluster that cannot be joined."""
        return FleetRefused(f"{self._required} {required_and_found}")

    def _connect(self) -> None:
        try:
            socket.create_connection((self._host, self._port), ANSWER_SEC).close()
        except (OSError, OverflowError) as error:
            raise self.refusal(f"a Ray cluster that listens there, but {_cause(error)}") from error

    def _is_loopback_only(self) -> bool:
        """Whether the cluster listens on the loopback address, and not on the one by which Ray would replace it."""
        if self._host != "localhost" and not _is_loopback(self._host):
            return False
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                # Sends nothing: the kernel only says which address would send.
                probe.connect(("8.8.8.8", 53))
                own = probe.getsockname()[0]
            socket.create_connection((own, self._port), ANSWER_SEC).close()
        except OSError:
            return True
        return False

    def _asks_for_token(self, token: str = "") -> bool:
        """Whether the cluster refuses a call with this token, or without one."""
        sent = (("authorization", f"Bearer {token}"),) if token else ()
        # A proxy of the environment is for other hosts; Ray uses none either.
        with _grpc.insecure_channel(self.text, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                channel.unary_unary(CHECK_ALIVE)(b"", timeout=ANSWER_SEC, metadata=sent)
            except _grpc.RpcError as error:
                code = error.code()
                if code == _grpc.StatusCode.UNAUTHENTICATED:
                    return True
                if code == _grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self.refusal(f"a Ray cluster, but {_NO_ANSWER}") from error
                raise self.refusal(f"a Ray cluster, but what listens there is none ({code.name})") from error
        return False


def _latest() -> str:
    """Where `ray start` writes the address of the cluster that it has started last."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        return os.environ.get("RAY_ADDRESS") or Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _token() -> tuple[str, str]:
    """The token that Ray would send, and where it is."""
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return text, "RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip(), str(path)
    except OSError:
        return "", str(path)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cause(error: Exception) -> str:
    return _NO_ANSWER if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
