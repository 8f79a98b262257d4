"""What a deployed run leaves behind: its dvc.lock as a git ref, its results in the DVC remote.

    refs/ajuste/runs/<first 12 of the inputs digest>     a commit on top of the revision that ran: dvc.lock, params.yaml
                                                         (a preset changes it) and metrics/ as the run left them

No branch, index or working tree is touched, and the same result makes the same commit. `ajuste reproduce
refs/ajuste/runs/ID` makes it again; `git push REMOTE 'refs/ajuste/*:refs/ajuste/*'` shares them.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.core.home import without_git
from ajuste.tracking.project import dvc, git, lock

REFS = "refs/ajuste/runs/"


def keep() -> str:
    """Keep the result of the current checkout as a ref; returns its name. Doing it again changes nothing."""
    head = git.run("rev-parse", "HEAD").strip()
    date = git.run("show", "--no-patch", "--format=%cI", head).strip()
    ref = REFS + lock.inputs_digest()[:12]
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **without_git(os.environ),
            "GIT_INDEX_FILE": str(Path(folder) / "index"),
            **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
               for what, value in (("NAME", "Ajuste"), ("EMAIL", "ajuste@localhost"), ("DATE", date))},
        }  # fmt: skip
        _git(env, "read-tree", head)
        _git(env, "add", "--update")
        _git(env, "add", str(lock.LOCK))  # which the revision may not have
        tree = _git(env, "write-tree")
        commit = _git(env, "commit-tree", tree, "-p", head, "-m", f"Result of {ref}")
    git.run("update-ref", ref, commit)
    return ref


def push() -> bool:
    """Bring the results and the raw data of the current checkout to the DVC remote; False if there is none.

    Raises DataError with DVC's reason. Only what the remote lacks is sent.
    """
    if not dvc.has_remote():
        return False
    done = dvc.run("push", "--quiet", "dvc.yaml", "data.dvc")
    if done.returncode != 0:
        raise DataError(f"dvc push failed: {dvc.last_error(done.stderr)}; `dvc push` in {Path.cwd()} tries again")
    return True


def _git(env: dict[str, str], *args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise DataError(f"git {args[0]}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
