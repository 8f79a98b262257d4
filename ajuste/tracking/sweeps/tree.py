"""Where a sweep works: a clone of its own at the baseline, with the shared DVC cache.

`dvc exp run` stashes and resets the tree that it stands in, so it never stands in the user's.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.core.home import home
from ajuste.core.params import lookup, read_yaml
from ajuste.tracking.project import dvc, git, lock
from ajuste.tracking.runs import facts


@dataclass(frozen=True)
class Made:
    """What an experiment left: its commit and what DVC did (ran, restored, unchanged), or why it failed."""

    commit: str = ""
    action: str = ""
    error: str = ""


@dataclass(frozen=True)
class Tree:
    """The clone `place`/tree of the user's checkout `here`, at `commit`. Whoever runs experiments stands in it."""

    place: Path
    here: Path
    commit: str

    @property
    def path(self) -> Path:
        return self.place / "tree"

    def clone(self) -> None:
        """Make it anew, with the user's data by digest, the shared cache and assets."""
        root = git.run("rev-parse", "--show-toplevel").strip()
        shutil.rmtree(self.path, ignore_errors=True)  # of a sweep that was killed: its points are in the cache
        cache = Path(dvc.run("cache", "dir").stdout.strip()).resolve()
        git.run("clone", "--quiet", "--no-checkout", root, str(self.path))
        git.run("-C", str(self.path), "checkout", "--quiet", "-b", "sweep", self.commit)
        for key, value in (("user.name", "Ajuste"), ("user.email", "ajuste@localhost")):
            git.run("-C", str(self.path), "config", key, value)
        (self.place / ".state").mkdir(exist_ok=True)
        (self.path / ".state").symlink_to(self.place / ".state")
        if (home() / ".assets").exists():
            (self.path / ".assets").symlink_to(home() / ".assets")
        with (self.path / ".git" / "info" / "exclude").open("a") as file:
            file.write(".state\n.assets\n")
        for args in (["cache", "dir", "--quiet", "--local", str(cache)],
                     ["checkout", "--quiet", "--force", "data.dvc"]):
            done = dvc.run("--cd", str(self.path), *args)
            if done.returncode != 0:
                raise DataError(f"the data of {self.commit[:8]} is not in the DVC cache: `ajuste data pull` brings it "
                                f"({dvc.last_error(done.stderr)})")

    def experiment(self, name: str, params: dict[str, object], targets: list[str]) -> Made:
        """`dvc exp run` on the baseline; then the tree stands at the experiment's commit, which the user's clone gets.

        Raises DataError if DVC wrote another value than it was given.
        """
        self._reset()
        log = self.place / f"{name}.log"
        outcome = dvc.experiment(Path.cwd(), self.place, name, params, targets, log)
        if outcome.code != 0:
            stage = next((s for s in targets if _state(s).get("error")), targets[0])
            reason = (_state(stage).get("error") or {}).get("message") or dvc.last_error(outcome.output)
            return Made(error=f"{reason} (all of it: {log})")
        written = read_yaml(Path("params.yaml"))
        for key, value in params.items():
            if lookup(written, key) != value:
                raise DataError(f"dvc exp run set `{key}` to {lookup(written, key)!r}, not to {value!r}: "
                                "write it otherwise")
        reference = dvc.experiment_ref(self.commit, name)
        # a checkout of what stands there: code and params are those of a commit, so the run is not "dirty"
        git.run("checkout", "--quiet", "--force", "--detach", reference)
        git.run("-C", str(self.here), "fetch", "--quiet", "--no-write-fetch-head", "--no-tags", str(Path.cwd()),
                f"+{reference}:{reference}")
        return Made(git.head(), outcome.action)

    def _reset(self) -> None:
        """Back to the baseline, with the lock of the user's last run: what is up to date there is so here."""
        git.run("checkout", "--quiet", "--force", "sweep")
        if (self.here / lock.LOCK).exists():
            shutil.copyfile(self.here / lock.LOCK, lock.LOCK)


def _state(stage: str) -> dict:
    return facts.read_json(Path(".state") / f"{stage}.json")
