"""python -m tests.tracking.killed KIND NAME VERSION AT: a move by a process that kills itself with signal 9.

AT: `client:3` after the third call that writes, `commit:3` before the third commit to the database that changes
something, `never`. A process that survives prints how many there were.
"""

import os
import signal
import sys

from ajuste.tracking.registry import promotion
from tests.tracking.bare import writes


def main(kind: str, name: str, version: str, at: str) -> None:
    where, _, number = at.partition(":")
    commits = _count_commits(int(number) if where == "commit" else 0)
    with writes(int(number) if where == "client" else None, _kill) as made:
        if kind == "rollback":
            promotion.rollback(name, "someone", "why")
        else:
            promotion.move(name, version, "someone", "why")
    print(len(made), len(commits), *made)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _count_commits(at: int) -> list[str]:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    changed: set[int] = set()
    commits: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def executed(connection, cursor, statement, parameters, context, executemany) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            changed.add(id(connection))

    @event.listens_for(Engine, "commit")
    def commit(connection) -> None:
        if id(connection) in changed:
            changed.discard(id(connection))
            commits.append("commit")
            if len(commits) == at:
                _kill()

    return commits


if __name__ == "__main__":
    main(*sys.argv[1:])
