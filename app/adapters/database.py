"""Connections to PostgreSQL: a bounded pool, a deadline on everything, domain errors."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import orjson
import psycopg2
import psycopg2.errors
import psycopg2.extensions
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.domain.errors import StoreUnavailable
from app.domain.ports import UNGUARDED, Breaker
from app.settings import Settings

_OUTAGES = (
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.QueryCanceled,
    psycopg2.errors.ReadOnlySqlTransaction,
)
# The only errors that say something about the data of a statement.
_ABOUT_DATA = (psycopg2.DataError, psycopg2.IntegrityError)

# A server that is cut off while something is on its way to it is given up as soon as an idle one.
_UNACKNOWLEDGED_MS = 25_000
# What a lost machine holds (rows, leases of slots) is free again as soon; by default after two hours.
_SERVER_KEEPALIVES = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"


class Database:
    """PostgreSQL through psycopg2.

    Args:
        url: postgresql://user:password@host:port/name, with libpq's query parameters.
        pool_size: most connections at once; further callers wait for `connect_timeout_s`.
        statement_timeout_ms: the server cancels longer statements.
        is_probed: a connection is asked for a sign of life before it is used, at the cost of a round trip.
            Without, the first use after a restart of PostgreSQL is an outage.
        retries_refusals: what PostgreSQL refuses for another reason than the data, such as a missing grant or a
            damaged index, is an outage. For who keeps the data and tries again; elsewhere it shows as the bug
            that it may be.
        breaker: while it is open, nobody waits for PostgreSQL.
    """

    def __init__(
        self,
        url: str,
        pool_size: int,
        connect_timeout_s: int,
        statement_timeout_ms: int,
        is_probed: bool = True,
        retries_refusals: bool = False,
        breaker: Breaker = UNGUARDED,
    ) -> None:
        self._retries_refusals = retries_refusals
        self._breaker = breaker
        self._engine: Engine = create_engine(
            make_url(url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg2"),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=connect_timeout_s,
            pool_pre_ping=is_probed,
            json_deserializer=orjson.loads,  # numbers beyond 64 bits come back as floats, as which they can be shown
            hide_parameters=True,  # they hold ids of users, and errors end in logs
            connect_args={
                "connect_timeout": connect_timeout_s,
                "options": f"-c statement_timeout={statement_timeout_ms} -c timezone=UTC {_SERVER_KEEPALIVES}",
                "application_name": "propositions",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": _UNACKNOWLEDGED_MS,
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection whose work is committed at the end of the block, or undone on any error.

        Raises:
            StoreUnavailable: PostgreSQL is down or too slow; nothing was committed, or it is unknown.
        """
        with self._outages_told(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Like `transaction`, but all reads of the block see the same moment."""
        with self.transaction() as connection:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """A connection outside transactions, for locks that last as long as the block."""
        with (
            self._outages_told(),
            self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            yield connection

    @contextmanager
    def detached_session(self) -> Iterator[Connection]:
        """Like `session`, but the connection ends with the block, however that ends, and with it its locks."""
        with self.session() as connection:
            connection.detach()
            yield connection

    @contextmanager
    def _outages_told(self) -> Iterator[None]:
        """To the breaker, and in the words of the domain."""
        with self._breaker.guard():
            try:
                yield
            except (DBAPIError, PoolTimeoutError, psycopg2.Error) as error:
                _raise_if_outage(error, self._retries_refusals)
                raise

    @property
    def connections_in_use(self) -> int:
        return self._engine.pool.checkedout()

    @property
    def most_connections(self) -> int:
        return self._engine.pool.size()

    def close(self) -> None:
        self._engine.dispose()


def _raise_if_outage(error: Exception, retries_refusals: bool) -> None:
    """Raises StoreUnavailable for what may pass: down, too slow, read-only in a failover, not migrated yet.

    COPY goes past SQLAlchemy, so psycopg2's own errors arrive here as well.
    """
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn)):
        raise StoreUnavailable("the database lacks tables or columns: run `propositions migrate`") from error
    if isinstance(error, PoolTimeoutError) or isinstance(cause, _OUTAGES):
        raise StoreUnavailable(f"PostgreSQL did not answer: {_first_line(error)}") from error
    if retries_refusals and not isinstance(cause, _ABOUT_DATA):
        raise StoreUnavailable(f"PostgreSQL refuses: {_first_line(error)}") from error


def service_database(settings: Settings, breaker: Breaker = UNGUARDED) -> Database:
    """For short statements on the way of a request."""
    return _database(settings, settings.database_timeout_ms, breaker=breaker)


def event_database(settings: Settings) -> Database:
    """For the event log, whose events have a place to wait in while PostgreSQL does not take them."""
    return _database(settings, settings.database_timeout_ms, is_probed=False, retries_refusals=True)


def batch_database(settings: Settings) -> Database:
    """For imports, replays and training, whose statements take long."""
    return _database(settings, settings.database_batch_timeout_ms)


def _database(
    settings: Settings,
    statement_timeout_ms: int,
    is_probed: bool = True,
    retries_refusals: bool = False,
    breaker: Breaker = UNGUARDED,
) -> Database:
    return Database(
        settings.postgres_url,
        settings.database_pool_size,
        settings.database_connect_timeout_s,
        statement_timeout_ms,
        is_probed,
        retries_refusals,
        breaker,
    )


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n", 1)[0]


_patience_s: ContextVar[float | None] = ContextVar("patience_s", default=None)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """What is asked in the block has to be replied to so soon, where replies are waited for cooperatively."""
    token = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(token)


def wait_cooperatively(timeout_s: float) -> None:
    """Makes psycopg2 wait through `poll`, which gevent's patch turns into a switch to other requests.

    Also the only deadline that holds against a server which accepts and then never replies. Not for
    processes that use COPY, which psycopg2 does not support with a wait callback.
    """

    def wait(connection) -> None:
        patience_s = _patience_s.get() or timeout_s
        while True:
            state = connection.poll()
            if state == psycopg2.extensions.POLL_OK:
                return
            # Not select(), which refuses descriptors past 1,023.
            waiter = select.poll()
            waiter.register(
                connection.fileno(),
                select.POLLIN if state == psycopg2.extensions.POLL_READ else select.POLLOUT,
            )
            if not waiter.poll(patience_s * 1_000):
                # psycopg2 closes the connection itself; to close it here would wait for a lock that it holds.
                raise psycopg2.OperationalError(f"no reply within {patience_s:g} s")

    psycopg2.extensions.set_wait_callback(wait)
