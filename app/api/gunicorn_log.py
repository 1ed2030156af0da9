"""What gunicorn logs itself."""

from typing import Any

from gunicorn.glogging import Logger


class GunicornLog(Logger):
    """Without lines of requests: the application writes its own. gunicorn would put each together, and throw it away."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        pass
