"""How long does a stage take before its first line of work? The imports of every stage's module, one process each.

    OMP_NUM_THREADS=1 python -m benchmarks.startup               a Markdown table (docs/performance.md holds one)
    OMP_NUM_THREADS=1 python -m benchmarks.startup --times 5     the best of five processes a stage

CPU seconds say what the imports cost, whatever else the machine does; seconds by the clock are what a person waits on
it. The packages are the share of the import time that each spends in its own files (`python -X importtime`, one more
process); what a library imports only where it is called does not count here.
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from collections import Counter

from ajuste.core.stages import module_of, stage_names

LINE = re.compile(r"import time:\s*(\d+) \|\s*\d+ \| +([\w.]+)")
SHOWN = 4  # packages a row


def measure(code: str, times: int) -> tuple[float, float]:
    """(CPU seconds, seconds by the clock) of a Python process that runs the code; the least of `times`."""
    found = []
    for _ in range(times):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((cpu, time.perf_counter() - began))
    return min(cpu for cpu, _ in found), min(wall for _, wall in found)


def shares(module: str) -> Counter:
    """Share of the import time that each top-level package spends in its own files."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True)
    spent: Counter = Counter()
    for microseconds, name in LINE.findall(done.stderr):
        spent[name.partition(".")[0]] += int(microseconds)
    total = sum(spent.values())
    return Counter({name: value / total for name, value in spent.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="processes a stage; the best one counts")
    times = parser.parse_args().times
    empty = measure("", times)
    print(f"An empty Python process: {empty[0]:.2f} CPU seconds, {empty[1]:.2f} s.\n")
    print("| stage | CPU seconds | seconds | packages |\n|---|---|---|---|")
    sums = [0.0, 0.0]
    for name in stage_names():
        cpu, wall = measure(f"import {module_of(name)}", times)
        sums = [sums[0] + cpu, sums[1] + wall]
        most = ", ".join(f"{package} {share:.0%}" for package, share in shares(module_of(name)).most_common(SHOWN))
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {most} |", flush=True)
    print(f"| all | {sums[0]:.0f} | {sums[1]:.0f} | |")


if __name__ == "__main__":
    main()
