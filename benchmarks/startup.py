"""How long does a stage take before its first line of work? The imports of every stage's module, one process each.

    OMP_NUM_THREADS=1 python -m benchmarks.startup                      a Markdown table (docs/performance.md holds one)
    OMP_NUM_THREADS=1 python -m benchmarks.startup ppo summary --times 5   two stages, the best of five processes each

CPU seconds say what the imports cost, whatever else the machine does; seconds by the clock are what a person waits on
it. The packages are the share of the import time that each spends in its own files (`python -X importtime`, in the same
process). What a library imports only where it is called does not count here: it is part of the stage's own seconds.
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from collections import Counter

from ajuste.core.stages import module_of, stage_names
from benchmarks.results import value

LINE = re.compile(r"import time:\s*(\d+) \|\s*\d+ \| +([\w.]+)")
SHOWN = 4  # packages a row


def measure(code: str) -> tuple[float, float, Counter]:
    """(CPU seconds, seconds by the clock, seconds in the files of each package) of a Python process that runs it."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent: Counter = Counter()
    for microseconds, name in LINE.findall(done.stderr):
        spent[name.partition(".")[0]] += int(microseconds)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, spent


def best(code: str, times: int) -> tuple[float, float, Counter]:
    """The process that took the least CPU time of `times`."""
    return min((measure(code) for _ in range(times)), key=lambda found: found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stages", nargs="*", help="stages of dvc.yaml; all if none is named")
    parser.add_argument("--times", type=int, default=3, help="processes a stage; the best one counts")
    asked = parser.parse_args()
    empty = best("", asked.times)
    print(f"An empty Python process: {empty[0]:.2f} CPU seconds, {empty[1]:.2f} s.\n")
    print("| stage | CPU seconds | seconds | packages |\n|---|---|---|---|")
    for name in asked.stages or stage_names():
        cpu, wall, spent = best(f"import {module_of(name)}", asked.times)
        value(f"{name}, processor", "s", [cpu])
        value(f"{name}, clock", "s", [wall])
        total = sum(spent.values())
        most = ", ".join(f"{package} {value / total:.0%}" for package, value in spent.most_common(SHOWN))
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {most} |", flush=True)


if __name__ == "__main__":
    main()
