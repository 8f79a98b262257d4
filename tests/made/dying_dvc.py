"""DVC that dies: `python dying_dvc.py MOMENT FOLDER ARGS...` is `dvc ARGS...`, killed at its MOMENT-th step.

A step is a call that changes or opens a file after a stage has ended, which FOLDER/*/ENDED shows. With MOMENT 0 it is
not killed, and FOLDER/steps says how many steps there were.
"""

import os
import signal
import sys
from pathlib import Path

STEPS = ("open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.utime", "sqlite3.connect")


def main() -> int:
    moment, folder, args = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    seen, inside = 0, False

    def step(event: str, _: tuple) -> None:
        nonlocal seen, inside
        if inside or event not in STEPS:
            return
        inside = True  # looking is no step
        ended = any(folder.glob("*/ENDED"))
        inside = False
        seen += ended
        if ended and seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    from dvc.cli import main as dvc

    sys.addaudithook(step)
    code = dvc(args)
    inside = True
    (folder / "steps").write_text(str(seen))
    return code


if __name__ == "__main__":
    sys.exit(main())
