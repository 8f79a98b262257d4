"""Is the server as fast as the one before it, and what does a client that sends 256 long texts cost the others?

    classify   1, 8 and 32 clients, one text a request, one after the other: requests a second
    chat       1, 8 and 32 clients, greedy answers of `tokens` tokens: tokens a second
    hostile    8 clients as above, while one more sends 256 texts of 15,000 characters over and over: the latencies of
               the eight, in milliseconds

Both sides run in one go: the revision `--before` in a git worktree of its own, and this checkout; in every turn one
after the other, the same requests to the same two models, each server alone. A third side is this checkout with
`--dtype bfloat16`, as a user may start it. Every answer is checked. Run it from the project's folder, on a quiet
machine, after `ajuste run`:

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.load --before REVISION > docs/measured/serving-load.md
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import value
from benchmarks.servers import HEADERS, ROOT, ask, load, server

TEXT = "a warm , funny and moving film with a plot that never quite gets going but an ending that stays with you"
LONG = (TEXT + " and ") * 200
ASKED = ("Write a haiku about rain.", "What is the capital of France?", "Explain why the sky is blue to a child.",
         "Give three tips for staying healthy, one sentence each.", "Name a warm film and say what it is about.")
CLIENTS = (1, 8, 32)
SIDES = ("before", "now", "now, bfloat16")


@contextlib.contextmanager
def ready(root: Path, options: argparse.Namespace, port: int, dtype: str, log: Path) -> Iterator[None]:
    """A running server of that checkout, both models loaded."""
    script = ROOT / "benchmarks/sides/load.py"
    command = [sys.executable, str(script), str(options.classifier), str(options.decoder), str(port), dtype]
    with server(command, port, log, cwd=root, environment={"PYTHONPATH": str(root)}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
        label(connection)
        chat(connection, 4)
        yield


# --- requests -------------------------------------------------------------------------------------------------------


def label(connection: http.client.HTTPConnection) -> int:
    """One text; 1 request."""
    (result,) = ask(connection, "/classify", {"text": TEXT})["results"]
    if abs(sum(result["probabilities"].values()) - 1) > 1e-2:
        raise ValueError(f"no probabilities: {result}")
    return 1


def chat(connection: http.client.HTTPConnection, tokens: int, number: int = 0) -> int:
    """One answer; how many tokens it has."""
    messages = [{"role": "user", "content": ASKED[number % len(ASKED)]}]
    body = {"model": "assistant", "messages": messages, "max_tokens": tokens, "temperature": 0}
    return ask(connection, "/v1/chat/completions", body)["usage"]["completion_tokens"]


def beside_a_hostile_one(port: int, seconds: float) -> tuple[float, float, float, int, int]:
    """Median, 99th percentile and longest latency of eight clients; how many answers they and the hostile one had."""
    ended, answered = threading.Event(), [0]

    def hostile() -> None:
        body = json.dumps({"texts": [LONG[:15_000]] * 256})
        while not ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/classify", body, HEADERS)
                answered[0] += connection.getresponse().status == 200
            connection.close()

    thread = threading.Thread(target=hostile)
    thread.start()
    time.sleep(1)
    _, latencies = load(port, 8, lambda connection, _: label(connection), seconds)
    ended.set()
    thread.join()
    ordered = sorted(latencies)
    return (statistics.median(ordered), ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)], ordered[-1],
            len(ordered), answered[0])


def measure(roots: dict[str, Path], options: argparse.Namespace, log: Path) -> dict[str, dict]:
    """Of every side a list of figures by cell, one a turn."""
    found: dict[str, dict] = {side: {} for side in roots}
    port = options.port
    for turn in range(options.turns):
        for side, root in roots.items():
            port += 1
            with ready(root, options, port, "bfloat16" if "bfloat16" in side else "float32", log):
                for clients in CLIENTS:
                    rate, _ = load(port, clients, lambda connection, _: label(connection), options.seconds)
                    found[side].setdefault(("classify", clients), []).append(rate)
                    rate, _ = load(port, clients, lambda connection, number: chat(connection, options.tokens, number),
                                   options.seconds)
                    found[side].setdefault(("chat", clients), []).append(rate)
                found[side].setdefault("hostile", []).append(beside_a_hostile_one(port, 2 * options.seconds))
            print(f"turn {turn + 1}: {side}: {found[side]}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", metavar="REVISION", help="the server to compare with")
    parser.add_argument("--classifier", type=Path, default=Path("artifacts/merged/classify_lora"))
    parser.add_argument("--decoder", type=Path, default=Path("artifacts/merged/instruct"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of every load; the hostile one takes twice that")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--port", type=int, default=18900)
    options = parser.parse_args()
    options.classifier, options.decoder = options.classifier.resolve(), options.decoder.resolve()
    for folder in (options.classifier, options.decoder):
        if not (folder / "model.safetensors").is_file():
            raise SystemExit(f"{folder} holds no whole model: `ajuste run` makes one, or name another")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        old = Path(work) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(old), options.before], check=True)
        try:
            found = measure(dict(zip(SIDES, (old, ROOT, ROOT), strict=True)), options, Path(work) / "server.log")
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    revision = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", options.before], check=True,
                              capture_output=True, text=True).stdout.strip()
    print(page(found, options, revision, before))


def page(found: dict[str, dict], options: argparse.Namespace, revision: str, before: float) -> str:
    """The report: medians over the turns, lowest and highest in brackets, and the ratio of the medians."""
    lines = []
    for kind, unit in (("classify", "requests"), ("chat", "tokens")):
        for clients in CLIENTS:
            rates = [found[side][kind, clients] for side in SIDES]
            middle = [statistics.median(some) for some in rates]
            cells = [f"{statistics.median(some):.1f} ({min(some):.1f} to {max(some):.1f})" for some in rates]
            for side, some in zip(SIDES, rates, strict=True):
                value(f"{side}, {kind}, {clients} clients", f"{unit}/s", some)
            lines.append(f"| {kind}, {clients} clients, {unit} a second | {' | '.join(cells)} | "
                         f"{middle[1] / middle[0]:.2f} | {middle[2] / middle[0]:.2f} |")
    hostile = []
    for side in SIDES:
        median, late, longest, others, answered = (statistics.median(cell) for cell in zip(*found[side]["hostile"],
                                                                                           strict=True))
        value(f"{side}, beside a hostile client, median latency", "s", [cell[0] for cell in found[side]["hostile"]])
        hostile.append(f"| {side} | {1000 * median:.0f} | {1000 * late:.0f} | {1000 * longest:.0f} | {others:.0f} | "
                       f"{answered:.0f} |")
    config = json.loads((options.decoder / "config.json").read_text())
    return PAGE.format(lines="\n".join(lines), hostile="\n".join(hostile), revision=revision, cores=os.cpu_count(),
                       machine=platform.machine(), before=before, after=os.getloadavg()[0],
                       layers=config["num_hidden_layers"], width=config["hidden_size"], twice=2 * options.seconds,
                       turns=options.turns, seconds=options.seconds, tokens=options.tokens)


PAGE = """\
# The server under load, beside the one before it

Made by `OMP_WAIT_POLICY=PASSIVE python -m benchmarks.load --before {revision}`. `before` is that revision, `now` this
checkout; the last column is this checkout started with `--dtype bfloat16`, which changes the last digits of answers. A
classifier and a decoder of {layers} layers of width {width}; {cores} cores ({machine}), clients on the same cores; each
figure is the median of {turns} turns of {seconds:g} s, lowest and highest in brackets, sides in turns. Answers of chat
have at most {tokens} tokens. Load average before the run {before:.1f}, after it {after:.1f}: where it is above 3 other
work ran beside, and the ratios say more than the rates.

| | before | now | now, bfloat16 | now / before | bfloat16 / before |
|---|---:|---:|---:|---:|---:|
{lines}

## Beside a client that sends 256 texts of 15,000 characters over and over

Eight other clients, one text a request, for {twice:g} s a turn. Milliseconds.

| server | median | 99 % | longest | their requests | the hostile one's answers |
|---|---:|---:|---:|---:|---:|
{hostile}
"""


if __name__ == "__main__":
    main()
