"""Programs that measure, as child processes."""

import os
from collections.abc import Callable
from contextlib import suppress

from app.adapters.child_process import ending_with_parent


def as_instrument() -> Callable[[], None]:
    """A `preexec_fn` for a program that measures: it goes first, as far as that is allowed.

    Else it would count its own waiting for a processor as the service's.
    """
    end_with_parent = ending_with_parent()

    def prepare_child() -> None:
        end_with_parent()
        with suppress(OSError):
            os.nice(-10)

    return prepare_child
