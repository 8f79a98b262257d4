"""How a study's stage starts whose outs stand beside those of the default run: artifacts/{adapters,merged,evaluated}.

Such stages make models that the registry knows. What `ajuste/core/stage.py` does for a stage of dvc.yaml is done here
for one of studies/<study>/dvc.yaml: its key, its lock, its checkpoints, which a killed run goes on from. What is wrong
with params or data is one line.

    with start("grpo", "merge_grpo", DecoderConfig, section(read(), "merge", "ppo")) as stage:
        ...

`sampled` gives a method that learns from samples the section `ppo` of params.yaml, as far as it has its keys, and what
the study says of its own: so all such methods have the same budget, and a preset carries over.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ajuste.core import arithmetic, checkpoints
from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.locks import held
from ajuste.core.params import Compute, Config, lookup, read_yaml, typed
from ajuste.core.stage import LOCK_SECONDS, Stage
from ajuste.core.stages import Remembered, key_of, md5_of
from studies.points import errors_told


@contextmanager
def start(study: str, name: str, config_type: type[Config], values: dict[str, Any]) -> Iterator[Stage]:
    """Run the body as stage `name` of the study. values: its section. Ends the process with one line on an error."""
    with errors_told():
        compute = typed(Compute, read_yaml(Path("params.yaml"))["compute"], "compute")
        config = typed(config_type, values, name)
        lock = home() / ".checkpoints" / f"{name}.lock"
        with held(lock, f"stage `{name}` is already running", LOCK_SECONDS):
            key = stage_key(study, name)
            checkpoints.sweep()
            folder = checkpoints.of_stage(key)
            folder.mkdir(parents=True, exist_ok=True)
            if compute.portable:
                arithmetic.exact_roots()
            try:
                yield Stage(name, config, compute, key, folder)
            except KeyboardInterrupt:
                raise SystemExit(f"{name} was interrupted; run again to go on from its last checkpoint") from None
            checkpoints.end(folder, "")


def stage_key(study: str, name: str) -> str:
    """The key of a study's stage from the files as they stand now, as dvc.lock will record it. Raises UsageError for
    a missing dep."""
    entry = read_yaml(Path("studies") / study / "dvc.yaml")["stages"][name]
    deps, remembered = {}, Remembered()
    for dep in entry["deps"]:
        if not Path(dep).exists():
            raise UsageError(f"{dep} is missing: stage `{name}` needs it; `ajuste run` makes it")
        deps[dep] = md5_of(Path(dep), remembered)
    remembered.keep()
    return key_of(entry["cmd"], deps, _params(entry["params"]))


def _params(named: list) -> dict[str, Any]:
    """The values of a stage's params, of params.yaml and of the files that it names."""
    found = {}
    for item in named:
        files = item if isinstance(item, dict) else {"params.yaml": [item]}
        for file, keys in files.items():
            values = read_yaml(Path(file))
            found |= {key: lookup(values, key) for key in keys}
    return found


def sampled(config_type: type[Config], own: dict[str, Any]) -> dict[str, Any]:
    """The section of a method that learns from samples: its keys of section `ppo`, and over them `own`."""
    shared = read_yaml(Path("params.yaml"))["ppo"]
    return {key: value for key, value in shared.items() if key in config_type.model_fields} | own
