"""
The Journal on SQLite: in a file, or in memory.

One thread owns the only connection and runs every operation, in order and in groups:
what has arrived while the last group was written is the next group (`writer`). Each
group (`groups`) is one transaction and one sync, in a file that is looked after elsewhere
(`home`). Within it the steps (`entering`, `running`, `leases`, `asking`, `upkeep`) get rows
from the `ledger` and put them through `moves`; the `sheet` gathers what has changed and
writes it with few statements: Python hands the interpreter over at every step of SQLite,
so a statement for each row would cost more than its work.
"""

from jobgate.jobs.sqlite.journal import SqliteJournal

__all__ = ["SqliteJournal"]
