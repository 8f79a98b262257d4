"""Environments of their own for tools that may not share the project's packages: `ajuste probe`'s suites.

    <home>/.probe/<name>/venv       infra/probe/<name>.txt, exactly those versions; the project's packages come after
                                    them by a .pth file, so torch is there once. The project's own are not touched
    <home>/.probe/<name>/home       what the tool takes for its user's home: caches and settings
    <home>/.probe/<name>/setup.log

Set-up needs a package registry once, by pip's own settings. What runs there later is told to stay offline and to send
no telemetry; of the user's environment it gets the variables named here and no other, so none of the user's keys.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.core.home import home, write_atomically
from ajuste.core.locks import held

LOCKS = Path("infra/probe")
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "SSL_CERT_FILE")  # of the user's environment
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "ANONYMIZED_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false", "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONNOUSERSITE": "1", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
    "PYTHONUNBUFFERED": "1",
    "NO_PROXY": "*", "OPENAI_API_KEY": "none", "OPENAICOMPATIBLE_API_KEY": "none",
}  # fmt: skip


def folder_of(name: str) -> Path:
    """Where the environment and all that the tool writes stand."""
    return home() / ".probe" / name


def ready(name: str) -> bool:
    """Whether the environment is there and of today's lock, Python and place."""
    stamp = folder_of(name) / "ready"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _wanted(name)


def made(name: str, module: str) -> Path:
    """The Python of the environment, which is made first where it is missing or of another lock.

    module: what must import there. Raises DataError, in one line that names the log.
    """
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "venv" / "bin" / "python"
    with held(folder / "lock", wait=None):
        if ready(name):
            return python
        (folder / "ready").unlink(missing_ok=True)
        shutil.rmtree(folder / "venv", ignore_errors=True)
        with (folder / "setup.log").open("w") as log:
            _run([sys.executable, "-m", "venv", str(folder / "venv")], name, log)
            _own_packages(python).joinpath("project.pth").write_text("\n".join(_packages()) + "\n", encoding="utf-8")
            # the lock is whole: nothing is resolved, so nothing else can come
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                  "-r", str(LOCKS / f"{name}.txt")], name, log)  # fmt: skip
            _run([str(python), "-P", "-c", f"import {module}"], name, log, quiet(name))
        write_atomically(folder / "ready", _wanted(name))
    return python


def quiet(name: str) -> dict[str, str]:
    """The environment variables of what runs there: offline, without telemetry, keys or a home of the user's."""
    own = folder_of(name) / "home"
    places = {"HOME": own, "HF_HOME": own / "hf", "NLTK_DATA": own / "nltk", "XDG_CACHE_HOME": own / "cache",
              "XDG_CONFIG_HOME": own / "config", "XDG_DATA_HOME": own / "data"}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    kept = {key: os.environ[key] for key in KEPT if key in os.environ}
    return kept | OFFLINE | {key: str(value) for key, value in places.items()}


def _wanted(name: str) -> str:
    """What the environment was made of: the lock, Python, the project's packages, the place."""
    lock = hashlib.sha256((LOCKS / f"{name}.txt").read_bytes()).hexdigest()
    return "\n".join([lock, sys.version.split()[0], *_packages(), str(folder_of(name)), ""])


def _packages() -> list[str]:
    """Where the project's packages are."""
    return sorted({sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]})


def _own_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def _run(command: list[str], name: str, log, env: dict[str, str] | None = None) -> None:
    """One step of the set-up. Raises DataError with the last line that says something."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env)
    if done.returncode == 0:
        return
    log.flush()
    path = folder_of(name) / "setup.log"
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no word")
    raise DataError(f"the environment of {name} could not be made ({said[:200]}): see {path}; its set-up needs a "
                    "package registry once")
