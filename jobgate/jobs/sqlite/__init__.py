"""
The Journal on SQLite: in a file, or in memory.

One thread owns the only connection and runs every operation, in order and in groups:
what has arrived while the last group was written is the next group (`writer`). Each
group is one transaction and one sync. Within it the steps (`entering`, `running`,
`leases`, `asking`, `upkeep`) work on rows in RAM, which the `ledger` writes with few
statements: Python hands the interpreter over at every step of SQLite, so a statement
for each row would cost more than its work.
"""

from jobgate.jobs.sqlite.journal import SqliteJournal

__all__ = ["SqliteJournal"]
