"""Which git references of past runs and experiments may go: the rules of `ajuste prune`.

    refs/ajuste/runs/ID        the result of a deployed run (ajuste/tracking/project/publish.py). Stays while a kept
                               version is in its dvc.lock, or a folder that is in use has that very dvc.lock
    refs/exps/XX/.../NAME      a point of a sweep, as `dvc exp run` keeps it. Stays for a week, while a killed sweep is
                               to find its points again, and as long as a kept version was made at its commit

Nothing goes where there is no registry: then nobody knows what a version needs. What they held comes back with
`git gc`, and the cache that only an experiment named with the next `dvc gc`, which is an item of its own.
"""

import re
import time
from collections.abc import Collection
from typing import NamedTuple

from ajuste.tracking.project import git
from ajuste.tracking.project.publish import REFS
from ajuste.tracking.registry.version import Version

EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/.+")  # DVC has others of its own below refs/exps
WEEK = 7 * 24 * 3600  # seconds


class Unneeded(NamedTuple):
    """A reference that goes, and why."""

    ref: git.Ref
    why: str


def unneeded(kept: Collection[Version], locks: Collection[str], sweeping: bool) -> list[Unneeded]:
    """The references that nothing kept needs. locks: the dvc.lock of every folder that is in use, as text."""
    made = {digest for v in kept if (digest := v.tags.get("dvc"))}
    commits = {commit for v in kept if (commit := v.tags.get("git_commit"))}
    found = []
    for ref in git.refs(REFS.rstrip("/")):
        text = (git.content(ref.commit, "dvc.lock") or b"").decode(errors="replace")
        if text not in locks and not any(digest in text for digest in made):
            found.append(Unneeded(ref, "a deployed run that no kept version came from"))
    for ref in git.refs("refs/exps"):
        young = time.time() - ref.when < WEEK
        if EXPERIMENT.fullmatch(ref.name) and not (young or sweeping or ref.commit in commits):
            found.append(Unneeded(ref, "an experiment that no kept version came from, a week old"))
    return found
