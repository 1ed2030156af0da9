"""What browsers are told about each answer."""

from collections.abc import Callable, Iterable

_ALL = [
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
# Answers are about persons, or for operators: nobody keeps them on the way.
_DATA = [
    *_ALL,
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
]
# Swagger UI is started by a script in its page, and styles itself.
_DOCS = [
    *_ALL,
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class SecurityHeaders:
    """Adds them around a WSGI application: as hooks of Flask, they took a dozen times as long."""

    def __init__(self, application: Callable) -> None:
        self._application = application

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        added = _DOCS if environ.get("PATH_INFO", "").startswith("/docs") else _DATA

        def start(status: str, headers: list[tuple[str, str]], *exc_info) -> Callable:
            return start_response(status, headers + added, *exc_info)

        return self._application(environ, start)
