"""A TCP proxy that misbehaves on command, in a process of its own: the way to a server, for game days.

What it does is told by `Proxy`, a line per command on its standard input, and takes effect at once, for open
connections as well. With another fault all connections end that the one before has spoilt.
"""

import argparse
import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import uvloop

from app.gameday.instrument import as_instrument

HOST = "127.0.0.1"
GARBAGE_BYTES = 64


class Fault(StrEnum):
    """PASS: none. REFUSE: every connection is cut at once. CUT: every reply is cut in the middle, and its
    connection with it. DELAY: everything takes some seconds, each way. SILENT: connections are accepted and nothing
    is ever replied. GARBAGE: random bytes are replied, and nothing arrives.
    """

    PASS = "pass"  # noqa: S105  (no password: it passes on)
    REFUSE = "refuse"
    CUT = "cut"
    DELAY = "delay"
    SILENT = "silent"
    GARBAGE = "garbage"


class Proxy:
    """The process, as its owner sees it. `port` is where it listens; it forwards to `target_port`."""

    def __init__(self, target_port: int, seed: int = 0) -> None:
        command = [sys.executable, "-m", __name__, str(target_port), f"--seed={seed}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=as_instrument()
        )
        self.port = int(self._process.stdout.readline())

    def set(self, fault: Fault, seconds: float = 0.0) -> None:
        """From now on; `seconds` is how long DELAY takes each way."""
        self._process.stdin.write(f"{fault} {seconds}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()  # it is so now

    def close(self) -> None:
        """Ends the process and all connections through it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def proxy_to(target_port: int, seed: int = 0) -> Iterator[Proxy]:
    proxy = Proxy(target_port, seed)
    try:
        yield proxy
    finally:
        proxy.close()


@dataclass
class _State:
    fault: Fault = Fault.PASS
    delay_s: float = 0.0


class _Side(asyncio.Protocol):
    """One of the two connections of a pair. The client's side is made first, the server's for it."""

    def __init__(self, server: "_Server", other: "_Side | None" = None) -> None:
        self._server = server
        self._is_client = other is None
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self.is_spoilt = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._server.sides.add(self)
        if not self._is_client:
            if self.other.transport.is_closing():
                transport.abort()
                return
            self.other.flush_to(self)
            return
        match self._server.state.fault:
            case Fault.REFUSE:
                transport.abort()
            case Fault.SILENT | Fault.GARBAGE:
                self.is_spoilt = True
            case _:
                self._server.connect(self)

    def flush_to(self, other: "_Side") -> None:
        self.other = other
        for data in self._early:
            other.transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        match self._server.state.fault:
            case Fault.PASS:
                self._forward(data)
            case Fault.DELAY:
                self.is_spoilt = True
                asyncio.get_running_loop().call_later(self._server.state.delay_s, self._forward, data)
            case Fault.CUT:
                self._cut(data)
            case Fault.REFUSE:
                self.transport.abort()
            case fault:
                self.is_spoilt = True
                if fault is Fault.GARBAGE and self._is_client:
                    self.transport.write(self._server.chance.randbytes(GARBAGE_BYTES))

    def _forward(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.other is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def _cut(self, data: bytes) -> None:
        if self._is_client:
            self._forward(data)
        else:
            self.other.transport.write(data[: len(data) // 2])
            self.other.transport.close()
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.sides.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Server:
    def __init__(self, target_port: int, seed: int) -> None:
        self.state = _State()
        self.chance = random.Random(seed)
        self.sides: set[_Side] = set()
        self._target_port = target_port
        self._tasks: set[asyncio.Task] = set()

    def connect(self, client: _Side) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: _Side) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Side(self, client), HOST, self._target_port
            )
        except OSError:
            client.transport.abort()

    def set(self, fault: Fault, delay_s: float) -> None:
        self.state.fault, self.state.delay_s = fault, delay_s
        for side in list(self.sides):
            if side.is_spoilt or fault is Fault.REFUSE:
                side.transport.abort()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: _Side(self), HOST, 0, backlog=1_024)
        print(listener.sockets[0].getsockname()[1], flush=True)
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async for line in commands:
            fault, seconds = line.decode().split()
            self.set(Fault(fault), float(seconds))
            print("ok", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target_port", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(_Server(options.target_port, options.seed).run())


if __name__ == "__main__":
    main()
