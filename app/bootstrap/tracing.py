"""What this process is traced with."""

import atexit

from app.domain.tracing import NO_TRACING, Tracer
from app.settings import Settings


def build_tracer(settings: Settings, process: str) -> Tracer:
    """Sends what it has at the end of the process. To be called after a fork."""
    if not settings.is_traced:
        return NO_TRACING
    from app.adapters.tracing import open_tracer

    tracer = open_tracer(settings, process)
    atexit.register(tracer.close)
    return tracer
