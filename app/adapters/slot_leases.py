"""Which slots this process folds: advisory locks of one session, gone the moment that ends.

They only keep processes out of each other's way. That no event is folded twice rests on the transactions
of `FeatureTables.batch`, so a lease that was lost unnoticed costs a wait, never a count.
"""

from sqlalchemy import Connection, text

from app.features.slots import ALL_SLOTS

_SLOTS_LOCK = 0x534C4F54  # the first of two numbers; the second is the slot

# Every projector shares the lock that this session shares with them, so they can be counted.
_MEMBERS = text("""
    SELECT pid, pid = pg_backend_pid() FROM pg_locks AS held
    WHERE locktype = 'advisory' AND granted AND mode = 'ShareLock' AND (database, classid, objid, objsubid) = (
        SELECT database, classid, objid, objsubid FROM pg_locks
        WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND mode = 'ShareLock'
    ) ORDER BY pid""")


def try_lock(connection: Connection, lock: int, mode: str = "") -> bool:
    """Takes an advisory lock for the session, `_shared` or alone; False if another session is in the way."""
    return connection.execute(text(f"SELECT pg_try_advisory_lock{mode}(:lock)"), {"lock": lock}).scalar_one()


class SlotLeases:
    """The slots of one projector. `connection` holds its membership, a shared advisory lock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: set[int] = set()

    def balance(self) -> frozenset[int]:
        """The slots to fold from now on: gives up what is beyond a fair share, takes what is free within it.

        Raises:
            StoreUnavailable: the session is lost, and all slots with it.
        """
        share = self._fair_share()
        for slot in sorted(self._slots)[share:]:
            self._execute("SELECT pg_advisory_unlock(:lock, :slot)", slot)
            self._slots.remove(slot)
        for slot in sorted(ALL_SLOTS - self._slots):
            if len(self._slots) < share and self._execute("SELECT pg_try_advisory_lock(:lock, :slot)", slot):
                self._slots.add(slot)
        return frozenset(self._slots)

    def _fair_share(self) -> int:
        """What all members' shares have in common is that they differ by one at most and make up the whole."""
        members = [is_this for _, is_this in self._connection.execute(_MEMBERS)]
        each, left_over = divmod(len(ALL_SLOTS), len(members))
        return each + (members.index(True) < left_over)

    def _execute(self, statement: str, slot: int) -> bool:
        return self._connection.execute(text(statement), {"lock": _SLOTS_LOCK, "slot": slot}).scalar_one()
