"""What tells a process of ours to end."""

import _thread
import signal
import threading


def set_when_told_to_end() -> threading.Event:
    """An event that SIGTERM and SIGINT set.

    A handler runs in the midst of the main thread. Were that about to wait for the event, it would hold the event's lock,
    and the handler wait for that for ever: another thread sets it, started without any lock of `threading`.
    """
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _thread.start_new_thread(told.set, ()))
    return told
