"""gunicorn's gevent worker, with connections shared out evenly among the workers."""

import gevent
from gevent.server import StreamServer
from gunicorn.workers import ggevent

# Longer than another worker takes to wake up; so a worker still accepts up to a thousand connections a second.
TURN_S = 0.001


class TurnTakingServer(StreamServer):
    """Leaves the connection after the one that it has accepted to the other workers, if they want it.

    When many clients connect at once, as after a deployment, the worker that is awake takes most of them, and with
    them most of the load for as long as they stay: at 80 % of what two workers can do, one had 95 % and
    the other 60 %.
    """

    def do_handle(self, *args) -> None:
        super().do_handle(*args)
        self.stop_accepting()
        gevent.spawn_later(TURN_S, self._accept_again)

    def _accept_again(self) -> None:
        if self.started:
            self.start_accepting()


class Worker(ggevent.GeventWorker):
    def run(self) -> None:
        ggevent.StreamServer = TurnTakingServer
        super().run()
