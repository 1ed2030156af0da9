"""Ports on loopback that a server can keep, also while it is down."""

import random
import socket

# Below those that the system gives to clients. A client that tries again and again to reach a server that is down there
# would now and then get the server's own port, connect to itself, and keep the server from coming back.
_FIRST, _LAST = 15_000, 32_000


def free_port() -> int:
    """One that nobody listens on, drawn at random so that two who ask at once get different ones."""
    while True:
        port = random.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
