"""A training stage as a Ray `TorchTrainer`: the same main() in every worker, placed and restarted by Ray.

    the stage, started by DVC ── run() ── TorchTrainer ── worker of rank 0: main() of tasks.<stage>
                                                       └─ worker of rank 1: main() of tasks.<stage>   ...

Ray joins the workers (gloo on CPUs, NCCL on GPUs), which finds each one told its RANK and WORLD_SIZE as torchrun tells
them (ajuste/core/world.py): from there on nothing differs. When a worker or its node is lost, Ray ends the others,
waits for room on the cluster and starts them all anew; they go on from the last whole checkpoint of
.checkpoints/<stage key>/, which lies on the disk that the nodes share. Ray keeps no checkpoint of its own.

An error that a second try repeats (data, usage, a full disk) is not tried again: the worker leaves its exit code in
Ray's folder of the run, and workers that find one there do nothing. All else is tried FAILURES times more, and a node
that was taken away in good order (a spot instance) any number of times.
"""

import importlib
import os
import shutil
import sys
from pathlib import Path

from ajuste.core.home import home
from ajuste.core.launch.connect import connected
from ajuste.core.launch.where import AWAY
from ajuste.core.params import Compute

FAILURES = 3
FINAL = (2, 3, 4)  # the exit codes of usage, data and room in ajuste/core/stage.py


def run(module: str, processes: int, address: str, compute: Compute) -> None:
    """Run the stage `module`, such as tasks.instruct, as so many workers of the cluster at `address`, to its end.

    Returns when all have ended well. Raises SystemExit with the stage's own exit code when it failed, and UsageError
    when there is no cluster.
    """
    with connected(address, processes * compute.threads):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import LoggingConfig
        from ray.train.v2.api.exceptions import TrainingFailedError

        gpu = _on_gpus(compute, processes)
        name = f"{module}-{os.getpid()}"
        folder = home().resolve() / ".checkpoints" / "ray" / name
        trainer = TorchTrainer(
            _work,
            train_loop_config={"module": module, "project": os.getcwd(), "ended": str(folder / "ended")},
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=gpu,
                resources_per_worker={"CPU": compute.threads, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(folder.parent),
                failure_config=FailureConfig(max_failures=FAILURES),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={"env_vars": {AWAY: "1"}},
            ),
        )
        try:
            trainer.fit()
            ended = folder / "ended"
            code = int(ended.read_text()) if ended.exists() else 0
        except TrainingFailedError as error:
            print(f"error[infra]: Ray gave up after {FAILURES + 1} tries: {_first_line(error)}", file=sys.stderr)
            code = 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if code:
        raise SystemExit(code)


def _on_gpus(compute: Compute, processes: int) -> bool:
    """Whether each worker gets a GPU: `auto` takes them when the cluster has one for each."""
    import ray

    if compute.device == "auto":
        return ray.cluster_resources().get("GPU", 0) >= processes
    return compute.device == "cuda"


def _work(config: dict) -> None:
    """What a worker does: the stage's main(), in the project's folder."""
    os.chdir(config["project"])
    ended = Path(config["ended"])
    if ended.exists():
        return
    try:
        importlib.import_module(config["module"]).main()
    except SystemExit as error:
        if error.code in FINAL:
            ended.write_text(str(error.code))
        if error.code:
            raise RuntimeError(f"{config['module']} ended with {error.code}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
