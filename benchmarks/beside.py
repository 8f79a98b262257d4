"""A side-by-side measurement: each side a process of its own, all under the same settings, in turns.

The process prints its figures as JSON in a line that begins with RESULT. A side's name with ALLOCATOR behind it is that
side with our allocator settings (ajuste/core/allocator.py).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ALLOCATOR = " + allocator"


def options_beside_trl(
    parser: argparse.ArgumentParser, peers: Sequence[str], base: str, encoded: str, out: str
) -> argparse.Namespace | None:
    """The command line, with the options of every comparison with TRL; None, and a line that says so, without TRL.

    base, encoded: what it reads of the default run, below artifacts/. out: its page, below docs/measured/.
    """
    parser.add_argument("--base", type=Path, default=Path("artifacts", base))
    parser.add_argument("--encoded", type=Path, default=Path("artifacts/encoded", encoded))
    parser.add_argument("--out", type=Path, default=Path("docs/measured", out))
    peer_python = os.environ.get("AJUSTE_TRL_PYTHON")
    parser.add_argument("--peer-python", default=peer_python, help="python that has trl; or $AJUSTE_TRL_PYTHON")
    parser.add_argument("--peers", nargs="+", choices=peers, default=list(peers))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not options.peer_python:
        print(f"{parser.prog}: skipped: --peer-python or $AJUSTE_TRL_PYTHON must name a python that has trl 1.16")
        return None
    options.base, options.encoded = options.base.resolve(), options.encoded.resolve()
    return options


def run_side(module: str, side: str, options: argparse.Namespace, arguments: Sequence[object]) -> dict:
    """The figures of `python -m module SIDE arguments`, ours in this python and the others in the peer's."""
    name = side.removesuffix(ALLOCATOR)
    python = sys.executable if name == "ours" else options.peer_python
    kept = ["--keep-memory"] if side.endswith(ALLOCATOR) else []
    return result_of(side, [python, "-m", module, name, *arguments, *kept], options.threads)


def in_turn(sides: Sequence[str], turn: int) -> Sequence[str]:
    """The sides of a round in its order: nobody is always first."""
    return sides if turn % 2 == 0 else sides[::-1]


def in_rounds(sides: Sequence[str], rounds: int, run: Callable[[str, int], dict]) -> list[dict]:
    """What run(side, round) gives, of every side in every round; each is printed as it comes."""
    results = []
    for turn in range(rounds):
        for side in in_turn(sides, turn):
            results.append(run(side, turn))
            print(json.dumps(results[-1]), flush=True)
    return results


def label(side: str, names: dict[str, str]) -> str:
    """The side as the report calls it."""
    name = side.removesuffix(ALLOCATOR)
    return names[name] + (ALLOCATOR if side != name else "")


def write_pairs(encoded: Path, work: Path, number: int) -> None:
    """The first `number` pairs by row id at work/pairs, one of the other splits, and two prompts."""
    import pyarrow.parquet as pq

    (work / "pairs").mkdir()
    for name in ("train", "validation", "test"):
        table = pq.read_table(encoded / f"{name}.parquet").sort_by("row_id")
        two = [len(responses) == 2 for responses in table["responses"].to_pylist()]
        table = table.filter(two).slice(0, number if name == "train" else 1)
        if name == "train" and table.num_rows < number:
            raise SystemExit(f"{encoded} has {table.num_rows} pairs, {number} are needed: lower --steps")
        pq.write_table(table, work / "pairs" / f"{name}.parquet")
        prompts = pq.read_table(encoded / f"prompts_{name}.parquet").slice(0, 2)
        pq.write_table(prompts, work / "pairs" / f"prompts_{name}.parquet")
    (work / "pairs" / "encoding.json").write_bytes((encoded / "encoding.json").read_bytes())


def loads_of(results: Sequence[dict]) -> str:
    """What else the machine did, in one line."""
    loads = [result["load"] for result in results]
    return f"Load average of the machine at the ends of the runs: {min(loads):.1f} to {max(loads):.1f}."


def publish(out: Path, text: str) -> None:
    """Write the report and print it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)


def result_of(side: str, command: Sequence[object], threads: int, project: Path | None = None) -> dict:
    """Run the command in the project's folder (this one, or another copy) and return its figures.

    Ends the benchmark if it fails.
    """
    root = str(project or Path(__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "2000",  # as stages run, for both sides; the default is as fast on quiet cores
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, cwd=root)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not found:
        raise SystemExit(f"{side} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(found[0].removeprefix("RESULT "))
