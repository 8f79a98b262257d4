"""What every stage does before and after its work.

A stage is `python -m tasks.<verb> [variant]`, started by DVC. `start` reads its section of params.yaml into a typed
config, computes the stage key, takes a lock so that no stage ever runs twice at once, ends the process when the DVC
that started it is gone (a killed DVC leaves its child running), and writes .state/<stage>.json: seconds, peak memory,
tokens per second and the kind of error, which is what the flow decides a retry by.

    stage key = sha256(canonical JSON of {cmd, deps: {path: md5}, params}), with the values that dvc.lock writes

Usage: see any file of tasks/. Imports nothing heavy: torch only if the stage itself has imported it.
"""

import fcntl
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

LOCK_SECONDS = 15
EXIT_CODES = {"data": 3, "usage": 2, "infra": 1, "bug": 1, "interrupted": 130}


class DataError(Exception):
    """The data is wrong. The message names the file, the row or the set, what is wrong and what to do."""


class UsageError(Exception):
    """A parameter, a path or a name is wrong. The message names it, what is wrong and what to do."""


class Config(BaseModel):
    """A section of params.yaml. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Compute(Config):
    """Section `compute`, shared by all stages."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of training and inference.")
    device: Literal["auto", "cpu", "cuda"] = Field(description="`auto` takes a GPU when there is one.")
    threads: int = Field(ge=1, description="CPU threads. Equal bytes are promised for one count.")
    seed: int = Field(ge=0, description="The one seed of every stage.")

    def torch_device(self) -> str:
        import torch

        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device


@dataclass
class Stage:
    """A running stage, as `start` yields it."""

    name: str
    variant: str
    config: Any
    compute: Compute
    key: str
    checkpoints: Path  # .checkpoints/<key>, made by start, removed on success
    phases: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the work into .state."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - began

    def count(self, tokens: int) -> None:
        """Count trained or read tokens, for tokens per second in .state."""
        self.tokens += tokens


# --- where things stand -------------------------------------------------------------------------------------------


@cache
def home() -> Path:
    """The main checkout (git's common folder) or $AJUSTE_HOME: mlruns/, .checkpoints/, .state/ stand there once."""
    if os.environ.get("AJUSTE_HOME"):
        return Path(os.environ["AJUSTE_HOME"]).resolve()
    git = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"], capture_output=True, text=True
    )
    return Path(git.stdout.strip()).parent if git.returncode == 0 else Path.cwd()


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's floats, so that 5e-5 is a number here as it is in DVC."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> dict:
    """YAML as DVC reads it."""
    return yaml.load(text, _Yaml) or {}  # _Yaml is a SafeLoader


def read_yaml(path: Path) -> dict:
    """A YAML file as a dict; a syntax error is a UsageError that names the file and the line."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run this in the project's folder") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None


# --- params ---------------------------------------------------------------------------------------------------------


def stage_names() -> list[str]:
    """The stages of the default run, in the order of dvc.yaml."""
    return list(read_yaml(Path("dvc.yaml"))["stages"])


def split_name(name: str) -> tuple[str, str]:
    """classify_lora -> ("classify", "lora"); summary -> ("summary", "")."""
    verb, _, variant = name.partition("_")
    return verb, variant


def section(params: dict, verb: str, variant: str) -> dict:
    """What a stage reads of params.yaml: the verb's plain keys, shared by its variants, and the variant's own."""
    whole = params.get(verb)
    if whole is None and not variant:
        return {}
    if not isinstance(whole, dict):
        raise UsageError(f"params.yaml: section `{verb}` is missing")
    shared = {key: value for key, value in whole.items() if not isinstance(value, dict)}
    if not variant:
        return shared
    if not isinstance(whole.get(variant), dict):
        raise UsageError(f"params.yaml: section `{verb}.{variant}` is missing")
    twice = sorted(shared.keys() & whole[variant].keys())
    if twice:
        raise UsageError(f"params.yaml: `{verb}.{variant}.{twice[0]}` repeats `{verb}.{twice[0]}`: keep one of them")
    return {**shared, **whole[variant]}


def typed(config_type: type[Config], values: dict, where: str) -> Any:
    """The section as its config; the first wrong key is named with what is allowed."""
    try:
        return config_type(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(config_type.model_fields))
            raise UsageError(f"params.yaml: unknown key `{key}`: known keys are {known}") from None
        raise UsageError(f"params.yaml: `{key}`: {first['msg']} (got {first.get('input')!r})") from None


def config_type_of(name: str) -> type[Config]:
    """The config class of a stage: `<Variant>Config` of its module, else `<Verb>Config`."""
    verb, variant = split_name(name)
    module = importlib.import_module(f"tasks.{verb}")
    return getattr(module, f"{variant.capitalize()}Config", None) or getattr(module, f"{verb.capitalize()}Config")


def check_params() -> None:
    """Read every section that dvc.yaml's stages use, before anything runs. Raises UsageError for the first fault."""
    params = read_yaml(Path("params.yaml"))
    names = [split_name(name) for name in stage_names()]
    unknown = sorted(params.keys() - {"compute"} - {verb for verb, _ in names})
    if unknown:
        known = ", ".join(sorted({"compute"} | {verb for verb, _ in names}))
        raise UsageError(f"params.yaml: unknown section `{unknown[0]}`: known sections are {known}")
    typed(Compute, params.get("compute") or {}, "compute")
    for verb, variant in names:
        for key, value in (params.get(verb) or {}).items():
            if isinstance(value, dict) and (verb, key) not in names:
                raise UsageError(f"params.yaml: unknown section `{verb}.{key}`: dvc.yaml has no stage `{verb}_{key}`")
        where = f"{verb}.{variant}".rstrip(".")
        typed(config_type_of(f"{verb}_{variant}".rstrip("_")), section(params, verb, variant), where)


# --- stage key ------------------------------------------------------------------------------------------------------


def md5_of(path: Path) -> str:
    """DVC's hash of a file or a folder."""
    if path.is_dir():
        return md5_of_listing(
            {file.relative_to(path).as_posix(): md5_of(file) for file in path.rglob("*") if file.is_file()}
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def md5_of_listing(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the md5 of its files by relative path: md5 of their sorted JSON list."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def key_of(cmd: str, deps: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """The stage key. `deps` maps path to md5, `params` dotted key to value, as dvc.lock writes them."""
    text = json.dumps({"cmd": cmd, "deps": dict(deps), "params": dict(params)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def definition(name: str) -> dict:
    """The stage's entry of dvc.yaml with ${...} filled in from params.yaml."""
    params = read_yaml(Path("params.yaml"))
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    if name not in stages:
        raise UsageError(f"dvc.yaml has no stage `{name}`: stages are {', '.join(stages)}")
    text = json.dumps(stages[name])
    return json.loads(re.sub(r"\$\{([\w.]+)\}", lambda match: str(lookup(params, match[1])), text))


def lookup(params: dict, dotted: str) -> Any:
    """The value at a dotted key of params.yaml."""
    value: Any = params
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"params.yaml: `{dotted}` is missing")
        value = value[part]
    return value


def stage_key(name: str) -> str:
    """The key of a stage from the files as they stand now. Raises UsageError for a missing dep."""
    entry, params = definition(name), read_yaml(Path("params.yaml"))
    deps = {}
    for dep in entry.get("deps", []):
        if not Path(dep).exists():
            raise UsageError(
                f"{dep} is missing: stage `{name}` needs it; `ajuste run` makes it, `ajuste data pull` the data"
            )
        deps[dep] = md5_of(Path(dep))
    return key_of(entry["cmd"], deps, {key: lookup(params, key) for key in entry.get("params", [])})


# --- the life of a stage -------------------------------------------------------------------------------------------


@contextmanager
def start(verb: str, config_type: type[Config] | Mapping[str, type[Config]]) -> Iterator[Stage]:
    """Run the body as stage `verb` or `verb_variant`, the variant being the only argument of the command line.

    `config_type` is the config class, or one for each variant. Ends the process: exit code 0, 3 (data), 2 (usage), 1.
    """
    variant = sys.argv[1] if len(sys.argv) > 1 else ""
    name = f"{verb}_{variant}" if variant else verb
    began = time.monotonic()
    stage, error = None, None
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if isinstance(config_type, Mapping):
            if variant not in config_type:
                raise UsageError(f"`python -m tasks.{verb}` takes one of: {', '.join(config_type)}")
            config_type = config_type[variant]
        with _only_one(name):
            _watch_ancestors()
            params = read_yaml(Path("params.yaml"))
            config = typed(config_type, section(params, verb, variant), f"{verb}.{variant}".rstrip("."))
            compute = typed(Compute, params.get("compute") or {}, "compute")
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(compute.threads)
            key = stage_key(name)
            checkpoints = home() / ".checkpoints" / key
            checkpoints.mkdir(parents=True, exist_ok=True)
            stage = Stage(name, variant, config, compute, key, checkpoints)
            yield stage
            _write_state(name, stage, began, None)
            shutil.rmtree(checkpoints)
            return
    except DataError as caught:
        error = ("data", str(caught))
    except UsageError as caught:
        error = ("usage", str(caught))
    except KeyboardInterrupt:
        error = ("interrupted", f"stage `{name}` was interrupted; run again to go on from its last checkpoint")
    except (OSError, MemoryError) as caught:
        traceback.print_exc()
        error = ("infra", f"{type(caught).__name__}: {caught}")
    except Exception as caught:
        traceback.print_exc()
        error = ("bug", f"{type(caught).__name__}: {caught}")
    kind, message = error
    _write_state(name, stage, began, {"kind": kind, "message": message})
    print(f"error[{kind}]: {message}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_CODES[kind])


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _only_one(name: str) -> Iterator[None]:
    """Hold .checkpoints/<stage>.lock; the kernel frees it however the process ends."""
    path = home() / ".checkpoints" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read().strip() or "unknown"
                    raise UsageError(
                        f"stage `{name}` is already running as process {owner}: wait for it or end it"
                    ) from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _watch_ancestors() -> None:
    """End this process when the DVC above it, or the flow above that, is gone."""
    import psutil

    def is_dvc(process: psutil.Process) -> bool:
        try:
            return any(Path(part).name == "dvc" for part in process.cmdline()[:4])
        except psutil.Error:
            return False

    watched = [process for process in psutil.Process().parents() if is_dvc(process)]
    flow = os.environ.get("AJUSTE_FLOW_PID")
    if flow and psutil.pid_exists(int(flow)):
        watched.append(psutil.Process(int(flow)))
    elif flow:
        os._exit(1)
    if not watched:
        return

    def watch() -> None:
        # is_running compares creation times too: a pid that was given to another process counts as gone
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in watched):
            time.sleep(0.3)
        os._exit(1)

    def guarded() -> None:
        try:
            watch()
        except psutil.Error:
            os._exit(1)

    threading.Thread(target=guarded, daemon=True, name="ancestor-watch").start()


def _write_state(name: str, stage: Stage | None, began: float, error: dict | None) -> None:
    seconds = time.monotonic() - began
    state = {
        "stage": name,
        "key": stage.key if stage else None,
        "seconds": round(seconds, 2),
        "phases": {phase: round(value, 3) for phase, value in stage.phases.items()} if stage else {},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "tokens": stage.tokens if stage else 0,
        "tokens_per_second": round(stage.tokens / seconds, 1) if stage and stage.tokens else None,
        "device": stage.compute.torch_device() if stage and "torch" in sys.modules else "cpu",
        "threads": stage.compute.threads if stage else None,
        "error": error,
    }
    write_atomically(home() / ".state" / f"{name}.json", json.dumps(state, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
