"""How many planted faults do the tests find? mutmut on the mathematics (ajuste/learning) and on the loops.

    pip install -c constraints.txt -e '.[mutation]'
    make mutation                                    # every file of the table below; writes docs/measured/mutation.md
    python -m benchmarks.mutation kl advantages      # these alone, by the name of the file; the page keeps the others

mutmut (3.x) changes one operator, number, argument, string or assignment at a time, and runs the tests that reach the
function: a fault that no test notices has survived.

    score = killed / (killed + survived)     killed: a test failed, or ran far beyond its time; survived: all passed,
                                             or no test reaches the function

Each file is measured by the tests that stand in its row of `FILES`, in a working folder of its own under .mutation/
(mutmut copies the code there and puts all mutants of a function behind one switch). A survivor that cannot be killed
has its reason in benchmarks/mutation.toml; one without a reason makes the command end with 1.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".mutation"
PAGE = ROOT / "docs/measured/mutation.md"
REASONS = ROOT / "benchmarks/mutation.toml"
WANTED = 0.95
MUTATED = ("ajuste", "tasks")
COPIED = (*MUTATED, "tests", "flows", "params.yaml", "policy.yaml", "presets")

# each file, and the tests that measure it
FILES = {
    "ajuste/learning/losses/bradley_terry.py": ["tests/learning/test_bradley_terry.py"],
    "ajuste/learning/losses/cross_entropy.py": ["tests/learning/test_losses.py"],
    "ajuste/learning/rl/advantages.py": ["tests/learning/test_advantages.py"],
    "ajuste/learning/rl/divergence.py": ["tests/learning/test_divergence.py"],
    "ajuste/learning/rl/kl.py": ["tests/learning/test_kl.py"],
    "ajuste/learning/rl/ppo.py": ["tests/learning/test_ppo.py"],
    "ajuste/learning/rl/rollout.py": ["tests/learning/test_rollout.py"],
    "ajuste/learning/rl/steps.py": ["tests/learning/test_steps.py"],
    "ajuste/learning/rl/token_log_probs.py": ["tests/learning/test_token_log_probs.py"],
    "ajuste/learning/statistics/agreement.py": ["tests/learning/test_agreement.py"],
    "ajuste/learning/statistics/mcnemar.py": ["tests/learning/test_mcnemar.py"],
    "ajuste/learning/statistics/metrics.py": ["tests/learning/test_statistics.py"],
    "ajuste/learning/statistics/paired.py": ["tests/learning/test_comparison.py"],
    "ajuste/learning/statistics/two_sample.py": ["tests/learning/test_statistics.py"],
    "ajuste/learning/batching.py": ["tests/learning/test_batching.py"],
    "ajuste/learning/head.py": ["tests/learning/test_head.py"],
    "ajuste/learning/lora.py": ["tests/invariants/test_lora.py", "tests/invariants/test_merge.py"],
    "ajuste/learning/memory_plan.py": ["tests/learning/test_memory.py"],
    "ajuste/learning/seeds.py": ["tests/learning/test_seeds.py"],
    "ajuste/learning/layers/attention.py": ["tests/learning/test_attention.py"],
    "ajuste/learning/layers/bottleneck.py": ["tests/models/test_bottleneck.py"],
    "ajuste/learning/layers/fused.py": ["tests/learning/test_fused.py"],
    "ajuste/learning/layers/packed.py": ["tests/learning/test_rollout.py"],
    "ajuste/learning/layers/ragged.py": ["tests/learning/test_ragged.py", "tests/invariants/test_ragged.py"],
    "ajuste/learning/layers/shared_prefix.py": ["tests/invariants/test_shared_prefix.py"],
    "ajuste/learning/text/chat.py": ["tests/learning/test_chat.py"],
    "ajuste/learning/text/choices.py": ["tests/learning/test_choices.py"],
    "ajuste/learning/text/generate.py": ["tests/learning/test_generate.py"],
    "ajuste/learning/text/masking.py": ["tests/learning/test_masking.py"],
}

CONFIG = """
[tool.mutmut]
source_paths = ["ajuste", "tasks"]
also_copy = {copied}
only_mutate = ["{file}"]
pytest_add_cli_args = ["-m", "not slow", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 2.0
timeout_constant = 3.0
use_git_change_detection = false
"""
# decorators that are plain functions of a function, so that `name = decorator(name)` says the same
PLAIN = ("torch.no_grad", "once_differentiable", "torch.amp.custom_fwd", "torch.amp.custom_bwd", "property",
         "contextmanager")  # fmt: skip
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SEEN = {"killed": "killed", "timeout": "killed", "segfault": "killed", "suspicious": "killed"}


def measure(file: str, tests: list[str]) -> dict:
    """{mutants, killed, survivors: [{function, was, becomes}]} of one file. Raises RuntimeError with mutmut's last
    lines when it did not come to its end."""
    folder = WORK / file.removesuffix(".py").replace("/", ".")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        if name in MUTATED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / name).symlink_to(ROOT / name)
    (folder / file).write_text(undecorated((ROOT / file).read_text(encoding="utf-8")), encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    config = CONFIG.format(copied=json.dumps([*COPIED[2:]]), file=file, tests=json.dumps(tests))
    (folder / "pyproject.toml").write_text(project + config, encoding="utf-8")
    run = _mutmut(folder, "run", "--max-children", os.environ.get("MUTATION_CHILDREN", "1"))
    if run.returncode:
        said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip() and line[0] not in SPINNER]
        raise RuntimeError(f"{file}: mutmut ended with {run.returncode}:\n" + "\n".join(said[-30:]))
    states = dict(
        line.strip().split(": ", 1) for line in _mutmut(folder, "results", "--all", "true").stdout.splitlines() if line
    )
    survived = sorted(name for name, state in states.items() if state not in SEEN)
    return {
        "mutants": len(states),
        "killed": len(states) - len(survived),
        "states": dict(Counter(states.values())),
        "survivors": [_changed(name, states[name], folder) for name in survived],
    }


def undecorated(source: str) -> str:
    """The source with `@decorator` above a function as `name = decorator(name)` below it: mutmut passes by functions
    with decorators, but for a single @staticmethod."""
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: -node.lineno):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        plain = [text for text in decorators if text.split("(")[0] in PLAIN]
        if not plain or len(plain) + ("staticmethod" in decorators) < len(decorators):
            continue
        indent, said = " " * node.col_offset, node.name
        for text in reversed(decorators):
            said = f"{text}({said})"
        lines.insert(node.end_lineno, f"{indent}{node.name} = {said}")
        first = node.decorator_list[0].lineno - 1
        lines[first : node.lineno - 1] = [f"{indent}@staticmethod"] if "staticmethod" in decorators else []
    return "\n".join(lines) + "\n"


def _mutmut(folder: Path, *args: str) -> subprocess.CompletedProcess:
    # one thread, and no path to the unchanged code
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    mutmut = str(Path(sys.executable).with_name("mutmut"))
    return subprocess.run([mutmut, *args], cwd=folder, env=environment, capture_output=True, text=True)


def _changed(name: str, state: str, folder: Path) -> dict[str, str]:
    """Which lines a mutant changed, joined by blanks, and in which function."""
    lines = _mutmut(folder, "show", name).stdout.splitlines()
    was, becomes = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))
        for sign in "-+"
    )
    function = re.sub(r"^x_|^xǁ", "", name.rsplit(".", 1)[-1].rsplit("__mutmut_", 1)[0]).replace("ǁ", ".")
    return {"function": function, "was": was, "becomes": becomes, "state": state, "name": name}


if __name__ == "__main__":
    for file, tests in FILES.items():
        if len(sys.argv) == 1 or Path(file).stem in sys.argv[1:]:
            try:
                found = measure(file, tests)
            except RuntimeError as error:
                print(error)
                continue
            print(file, found["killed"], found["mutants"], found["states"])
            for s in found["survivors"]:
                print("   ", s["name"].rsplit(".", 1)[-1], s["state"], "\n      -", s["was"], "\n      +", s["becomes"], flush=True)
