"""Samples a process of its own that answers /suggest, in the environment of a service.

The real application answers without gunicorn and the network, while a timer on CPU time notes the stack
as often as the kernel's clock allows, mostly 250 times a second. That needs no root, costs little, and unlike a tracing profiler it does not
make many small functions look expensive.
"""

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from types import FrameType

from app.gameday.load import SEPARATOR
from tests.benchmarks.keys import HEADERS
from tests.benchmarks.stores import ROOT

SAMPLE_S = 0.001
TEXT, COLLAPSED = "profile.txt", "profile.collapsed"
TOP = 45
WARM_UP_REQUESTS = 200

Stack = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Samples by stack, outermost function first, and the CPU time of a request without sampling."""

    stacks: Counter[Stack]
    cpu_us: float


class Sampler:
    def __init__(self) -> None:
        self.stacks: Counter[Stack] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        previous = signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, previous)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append(_name(frame))
            frame = frame.f_back
        self.stacks[tuple(reversed(stack))] += 1


def profile_suggest(application, bodies: Sequence[bytes], seconds: float) -> Profile:
    """Asks the WSGI application for some bodies to warm up, for all to time, and for `seconds` to sample."""
    for body in bodies[:WARM_UP_REQUESTS]:
        ask(application, body)
    started = time.process_time()
    for body in bodies:
        ask(application, body)
    cpu_s = time.process_time() - started
    sampler, end = Sampler(), time.monotonic() + seconds
    with sampler.running():
        for body in cycle(bodies):
            ask(application, body)
            if time.monotonic() > end:
                break
    return Profile(sampler.stacks, cpu_s / len(bodies) * 1e6)


def ask(application, body: bytes) -> bytes:
    """The answer of a WSGI application to one POST.

    Raises:
        RuntimeError: it is not a 200.
    """
    seen: list[str] = []
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/suggest",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_AUTHORIZATION": HEADERS["Authorization"],
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    parts = application(environ, lambda status, headers, error=None: seen.append(status))
    answer = b"".join(parts)
    if not seen[0].startswith("200"):
        raise RuntimeError(f"{seen[0]}: {answer[:500]!r}")
    return answer


def describe(profile: Profile) -> Iterable[str]:
    """The functions with the most time, by their own and with all that they call."""
    own: Counter[str] = Counter()
    cumulative: Counter[str] = Counter()
    for stack, count in profile.stacks.items():
        own[stack[-1]] += count
        for name in set(stack):
            cumulative[name] += count
    total = sum(own.values())
    yield f"/suggest in process: {profile.cpu_us:.0f} us of CPU per request without sampling"
    yield f"{total} samples: their share, and what it makes of these us\n"
    for title, counts in (("own time", own), ("with everything called", cumulative)):
        yield f"{title}:"
        for name, count in counts.most_common(TOP):
            share = count / total
            yield f"{share:7.1%} {share * profile.cpu_us:8.1f} us  {name}"
        yield ""


def collapsed(profile: Profile) -> Iterable[str]:
    """One line per stack, as flame graph tools and speedscope read them."""
    for stack, count in sorted(profile.stacks.items()):
        yield f"{';'.join(stack)} {count}"


def _name(frame: FrameType) -> str:
    path = frame.f_code.co_filename
    short = path.rpartition("site-packages/")[2] if "site-packages/" in path else path
    return f"{short.removeprefix(f'{ROOT}/')}:{frame.f_code.co_qualname}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    bodies = [r.partition(b"\r\n\r\n")[2] for r in options.requests.read_bytes().split(SEPARATOR)]

    from app.bootstrap.web import web

    application = web()
    answer = ask(application, bodies[0])
    if b'"degradation_level":0' not in answer:
        raise RuntimeError(f"this is not the path to look at: {answer!r}")
    profile = profile_suggest(application, bodies, options.seconds)
    (options.out / TEXT).write_text("\n".join(describe(profile)))
    (options.out / COLLAPSED).write_text("\n".join(collapsed(profile)))


if __name__ == "__main__":
    main()
