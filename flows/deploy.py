"""Bring infra/prefect.yaml and the automations to a Prefect server: the pool, the deployments, what follows a crash.

    deploy("process")                        adapt, reproduce, drift and recover on pool `ajuste`
    deploy("docker")                         the same four on pool `ajuste-docker`, with infra/pools/docker.json
    deploy("process", "full", "v1.2")        besides: adapt-full, which runs revision v1.2 with preset full when asked

Doing it again changes nothing. A deployment lives in one pool: deploying to another one moves it there.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from prefect.client.orchestration import get_client

from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.project import git
from flows import automations

FILE = Path("infra/prefect.yaml")
IMAGE_HOME = "/srv/ajuste"  # where infra/Dockerfile and the job templates have the checkout
POOLS = {"process": "ajuste", "docker": "ajuste-docker", "kubernetes": "ajuste-kubernetes"}


def deploy(pool: str, preset: str = "", revision: str = "HEAD") -> list[str]:
    """Deploy to the server of $PREFECT_API_URL; returns the names of deployments and automations.

    Raises UsageError for an unknown pool, preset or revision, DataError with Prefect's reason.
    """
    if pool not in POOLS:
        raise UsageError(f"there is no pool `{pool}`: take one of {', '.join(POOLS)}")
    if preset and not Path(f"presets/{preset}.yaml").exists():
        raise UsageError(f"there is no preset `{preset}`: `ajuste preset --help` lists them")
    git.run("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    main = Path.cwd()
    settings = _settings(POOLS[pool], preset, revision)
    names = [item["name"] for item in settings["deployments"]]
    for name in names:  # Python forgets a folder of its path that is not there when it starts
        (main / ".prefect" / "worktrees" / name).mkdir(parents=True, exist_ok=True)
    _make_pool(pool)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        home = str(main) if pool == "process" else IMAGE_HOME
        _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(file), AJUSTE_HOME=home)
    with get_client(sync_client=True) as client:
        return names + automations.apply(client)


def _settings(pool: str, preset: str, revision: str) -> dict:
    """infra/prefect.yaml for this pool; with a preset or revision `adapt` has a twin that no schedule starts."""
    settings = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    settings.pop("definitions", None)
    if preset or revision != "HEAD":
        adapt = next(item for item in settings["deployments"] if item["name"] == "adapt")
        name = "-".join(["adapt", *([preset] if preset else []), *([_word(revision)] if revision != "HEAD" else [])])
        words = f"{name} {revision} {preset}".rstrip()
        text = json.dumps(adapt).replace(r'worktree.py\" adapt HEAD', rf'worktree.py\" {words}')
        text = text.replace("worktrees/adapt\"", f"worktrees/{name}\"").replace("homes/adapt\"", f"homes/{name}\"")
        what = f"When asked for. `adapt` at revision {revision}" + (f" with preset {preset}." if preset else ".")
        settings["deployments"].append(json.loads(text) | {"name": name, "schedules": [], "description": what})
    for item in settings["deployments"]:
        item["work_pool"] = item["work_pool"] | {"name": pool}
    return settings


def _word(revision: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", revision).strip("-")


def _make_pool(kind: str) -> None:
    template = ["--base-job-template", f"infra/pools/{kind}.json"] if kind != "process" else []
    try:
        _prefect("work-pool", "inspect", POOLS[kind])
    except DataError:
        _prefect("work-pool", "create", POOLS[kind], "--type", kind, *template)
    else:
        if template:
            _prefect("work-pool", "update", POOLS[kind], *template)


def _prefect(*args: str, **settings: str) -> None:
    command = [sys.executable, "-P", "-m", "prefect", *args]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise DataError(f"prefect {' '.join(args[:3])}: {' '.join(lines[-3:])}")
