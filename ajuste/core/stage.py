"""What every stage does before and after its work.

A stage is `python -m tasks.<verb>` or `python -m tasks.<verb>.<variant>`, started by DVC. `start` reads its section of
params.yaml into a typed config, computes the stage key, takes a lock so that no stage ever runs twice at once, ends the
process when the DVC that started it is gone (a killed DVC leaves its child running), and writes .state/<stage>.json:
seconds (of the process, phase `imports` among them), peak memory, tokens per second, bytes that it read and wrote,
what the stage had to say (notes.py) and the kind of error, which is what the flow decides a retry by: `infra` alone is
tried again. A full disk is of kind `room`; a stage that has run here before asks for its room before it begins.

Checkpoints stay when the stage has ended, until DVC has its result (checkpoints.py).

Where several processes run a stage together (world.py) the first one takes the lock and writes; each of them says its
own errors. Which machines they run on is params.yaml's `launch` (launch/where.py).

Usage: see any file of tasks/. Imports nothing heavy: torch only if the stage itself has imported it.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ajuste.core import arithmetic, checkpoints, notes, room, world
from ajuste.core.errors import DataError, RoomError, UsageError
from ajuste.core.home import home, write_atomically
from ajuste.core.launch import where
from ajuste.core.locks import held
from ajuste.core.params import Compute, Config, read_yaml, section, typed
from ajuste.core.stages import definition, split_name, stage_key

LOCK_SECONDS = 15
EXIT_CODES = {"data": 3, "usage": 2, "room": 4, "infra": 1, "bug": 1, "interrupted": 130}


@dataclass
class Stage:
    """A running stage, as `start` yields it."""

    name: str
    config: Any
    compute: Compute
    key: str
    checkpoints: Path  # .checkpoints/<key>, made by start; it goes when DVC has the result
    phases: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    reads: int = 0  # bytes of its deps
    writes: dict[Path, float] | None = None  # bytes below the project and below the home, by its last run

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


_ASKED: list[bool] = []  # while a main() is only asked which config it reads


class _Told(Exception):
    """Carries the answer of `asking` out of a main()."""


def asking(main: Callable[[], None]) -> type[Config]:
    """The config class that a stage's main() gives to `start`; nothing is run."""
    _ASKED.append(True)
    try:
        main()
    except _Told as told:
        return told.args[0]
    finally:
        _ASKED.pop()
    raise TypeError(f"{main.__module__}.main does not start a stage")


# --- the life of a stage -------------------------------------------------------------------------------------------


@contextmanager
def start(name: str, config_type: type[Config], together: bool = False) -> Iterator[Stage]:
    """Run the body as stage `name`, `verb` or `verb_variant`, with its section of params.yaml as `config_type`.

    together: several processes share its training out; of any other stage the first one alone runs the body.
    Ends the process: exit code 0, 4 (no room on the disk), 3 (data), 2 (usage), 1.
    """
    if _ASKED:
        raise _Told(config_type)
    if not together:
        world.only_first()
    verb, variant = split_name(name)
    imports = _imports()
    began = time.monotonic() - imports
    notes.forget()
    stage, error = None, None
    if threading.current_thread() is threading.main_thread():  # a worker of Ray runs its stage beside it
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        _watch_ancestors()
        if where.sent_away(name, together):
            raise SystemExit(0)
        with _alone(name):
            params = read_yaml(Path("params.yaml"))
            config = typed(config_type, section(params, verb, variant), f"{verb}.{variant}".rstrip("."))
            compute = typed(Compute, params.get("compute") or {}, "compute")
            if compute.portable:
                arithmetic.exact_roots()
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(compute.threads)
                world.own_device()
            stage = Stage(name, config, compute, key := stage_key(name), checkpoints.of_stage(key))
            stage.phases = {"imports": imports} if imports else {}
            before = _begin(stage) if world.first() else None
            yield stage
            if world.first():
                record = before or _record(name, stage, began, None)
                checkpoints.end(stage.checkpoints, record)
                write_atomically(_state_file(name), record)
            return
    except world.Left:
        return
    except DataError as caught:
        error = ("data", str(caught))
    except UsageError as caught:
        error = ("usage", str(caught))
    except KeyboardInterrupt:
        error = ("interrupted", f"stage `{name}` was interrupted; run again to go on from its last checkpoint")
    except RoomError as caught:
        error = ("room", str(caught))
    except Exception as caught:
        error = _of_kind(caught, name, stage)
    kind, message = error
    if world.first():
        _write_error(name, stage, began, {"kind": kind, "message": message})
    of = f"process {world.rank()}: " if world.processes() > 1 else ""
    print(f"error[{kind}]: {of}{message}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_CODES[kind])


def _begin(stage: Stage) -> str | None:
    """Ask for room and make the folder of the checkpoints; the record of a former end that DVC did not record."""
    checkpoints.sweep()
    entry = definition(stage.name)
    stage.reads = room.size_of(map(Path, entry.get("deps", [])))
    stage.writes = room.expected(stage.name, stage.reads)
    has = room.size_of([stage.checkpoints])
    if stage.writes and not has:  # one that goes on has most of it already
        room.ask(stage.writes, f"stage `{stage.name}`")
    stage.checkpoints.mkdir(parents=True, exist_ok=True)
    return checkpoints.record_of(stage.checkpoints)


def _of_kind(error: Exception, name: str, stage: Stage | None) -> tuple[str, str]:
    """(kind, one line) of what is no user's error; where the line says too little its trace is printed."""
    if stage and room.was_full(error):
        expected = sum(stage.writes.values()) if stage.writes else None
        return "room", room.ran_out(Path.cwd(), f"stage `{name}`", expected, sum(_written(stage)))
    if not isinstance(error, ConnectionError):  # whose own words are enough
        traceback.print_exception(error)
    kind = "infra" if isinstance(error, OSError | MemoryError) else "bug"
    return kind, f"{type(error).__name__}: {error}"


def _written(stage: Stage) -> tuple[int, int]:
    """Bytes of the outs and of the checkpoints."""
    outs = [Path(out if isinstance(out, str) else next(iter(out))) for out in definition(stage.name).get("outs", [])]
    return room.size_of(outs), room.size_of([stage.checkpoints])


def _alone(name: str) -> AbstractContextManager:
    """The stage's lock, which the first process holds for all."""
    if not world.first():
        return nullcontext()
    return held(home() / ".checkpoints" / f"{name}.lock", f"stage `{name}` is already running", LOCK_SECONDS)


def _imports() -> float:
    """Seconds from the birth of this process to here, if its main module is the stage; 0 where a test calls one."""
    if getattr(sys.modules["__main__"], "start", None) is not start:
        return 0.0
    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


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


def _state_file(name: str) -> Path:
    return home() / ".state" / f"{name}.json"


def _write_error(name: str, stage: Stage | None, began: float, error: dict) -> None:
    try:
        write_atomically(_state_file(name), _record(name, stage, began, error))
    except OSError:  # a full disk has no room for this either: the line on stderr, which DVC's log has, says it
        return


def _record(name: str, stage: Stage | None, began: float, error: dict | None) -> str:
    """What .state/<name>.json holds."""
    seconds = time.monotonic() - began
    working = seconds - (stage.phases.get("imports", 0.0) if stage else 0.0)
    if stage and not error:
        outs, kept = _written(stage)
        written = {"read": stage.reads, "outs": outs, "checkpoints": kept}
    else:
        written = room.last(name)
    state = {
        "stage": name,
        "key": stage.key if stage else None,
        "seconds": round(seconds, 2),
        "phases": {phase: round(value, 3) for phase, value in stage.phases.items()} if stage else {},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "tokens": stage.tokens if stage else 0,
        "tokens_per_second": round(stage.tokens / working, 1) if stage and stage.tokens else None,
        "room": written,
        "device": stage.compute.torch_device() if stage and "torch" in sys.modules else "cpu",
        "threads": stage.compute.threads if stage else None,
        "error": error,
        **({"notes": notes.said()} if notes.said() else {}),
    }
    return json.dumps(state, indent=2) + "\n"
