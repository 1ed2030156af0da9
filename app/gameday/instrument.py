"""Programs that measure, as child processes."""

import os
from contextlib import suppress

from app.adapters.child_process import end_with_parent


def as_instrument() -> None:
    """What a child does before it becomes a program that measures: it goes first, as far as that is allowed.

    Else it would count its own waiting for a processor as the service's.
    """
    end_with_parent()
    with suppress(OSError):
        os.nice(-10)
