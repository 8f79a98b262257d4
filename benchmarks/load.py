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
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
TEXT = "a warm , funny and moving film with a plot that never quite gets going but an ending that stays with you"
LONG = (TEXT + " and ") * 200
ASKED = ("Write a haiku about rain.", "What is the capital of France?", "Explain why the sky is blue to a child.",
         "Give three tips for staying healthy, one sentence each.", "Name a warm film and say what it is about.")
CLIENTS = (1, 8, 32)
SIDES = ("before", "now", "now, bfloat16")
HEADERS = {"content-type": "application/json"}


def serve(classifier: Path, decoder: Path, port: int, dtype: str) -> None:
    """The child process: the server of the checkout that PYTHONPATH names, on two folders."""
    import torch

    from ajuste.models.folder import sha256_of
    from ajuste.serving.app import make_app
    from ajuste.serving.models import Models

    folders = {"reviews-classifier": classifier, "assistant": decoder}
    found = {name: SimpleNamespace(name=name, version="1", alias="champion", path=path,
                                   tags={"sha256": sha256_of(path / "model.safetensors")})
             for name, path in folders.items()}
    how = {}
    if dtype != "float32":
        from ajuste.serving.loading import Place

        how["place"] = Place(getattr(torch, dtype))
    app = make_app(Models(lambda reference: found[reference.partition("@")[0].partition("/")[0]], list(folders),
                          classifier, decoder, **how))
    settings = {"host": "127.0.0.1", "port": port, "log_level": "error", "access_log": False}
    try:
        from ajuste.serving.door.connections import server_of
    except ImportError:                     # of a revision without limits on connections
        import uvicorn

        uvicorn.run(app, **settings)
    else:
        server_of(app, **settings).run()


@contextlib.contextmanager
def server(root: Path, options: argparse.Namespace, port: int, dtype: str, log: Path) -> Iterator[None]:
    """A running server of that checkout, both models loaded; ended by its process group."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(options.classifier), str(options.decoder),
               str(port), dtype]
    own = {"PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=os.environ | own, cwd=root, start_new_session=True, stdout=out,
                                   stderr=out)
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "/health")
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server of {root} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
        label(connection)
        chat(connection, 4)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# --- requests -------------------------------------------------------------------------------------------------------


def ask(connection: http.client.HTTPConnection, path: str, body: dict | None = None) -> dict:
    """The answer's JSON; raises ValueError for any other status than 200."""
    connection.request("POST" if body else "GET", path, body and json.dumps(body), HEADERS)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != 200:
        raise ValueError(f"{path} answered {answer.status}: {str(content)[:300]}")
    return content


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


def load(port: int, clients: int, seconds: float, once: Callable[[http.client.HTTPConnection, int], int]) -> tuple:
    """(units a second, latencies in seconds) of so many clients that ask one request after the other."""
    counts, latencies, wrong, lock = [0], [], [], threading.Lock()
    stop = time.perf_counter() + seconds

    def client(me: int) -> None:
        connection, number = http.client.HTTPConnection("127.0.0.1", port, timeout=240), me
        while time.perf_counter() < stop and not wrong:
            began = time.perf_counter()
            try:
                units = once(connection, number)
            except (OSError, ValueError, http.client.HTTPException) as error:
                wrong.append(error)
                return
            with lock:
                counts[0] += units
                latencies.append(time.perf_counter() - began)
            number += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(f"a client of {clients} failed: {wrong[0]!r}")
    return counts[0] / (time.perf_counter() - began), latencies


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
    _, latencies = load(port, 8, seconds, lambda connection, _: label(connection))
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
            with server(root, options, port, "bfloat16" if "bfloat16" in side else "float32", log):
                for clients in CLIENTS:
                    rate, _ = load(port, clients, options.seconds, lambda connection, _: label(connection))
                    found[side].setdefault(("classify", clients), []).append(rate)
                    rate, _ = load(port, clients, options.seconds,
                                   lambda connection, number: chat(connection, options.tokens, number))
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
    parser.add_argument("--serve", nargs=4, metavar=("CLASSIFIER", "DECODER", "PORT", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), Path(options.serve[1]), int(options.serve[2]), options.serve[3])
        return
    options.classifier, options.decoder = options.classifier.resolve(), options.decoder.resolve()
    for folder in (options.classifier, options.decoder):
        if not (folder / "model.safetensors").is_file():
            raise SystemExit(f"{folder} holds no whole model: `ajuste run` makes one, or name another")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work, tempfile.NamedTemporaryFile(suffix=".log") as log:
        old = Path(work) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(old), options.before], check=True)
        try:
            found = measure(dict(zip(SIDES, (old, ROOT, ROOT), strict=True)), options, Path(log.name))
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
            lines.append(f"| {kind}, {clients} clients, {unit} a second | {' | '.join(cells)} | "
                         f"{middle[1] / middle[0]:.2f} | {middle[2] / middle[0]:.2f} |")
    hostile = []
    for side in SIDES:
        median, late, longest, others, answered = (statistics.median(cell) for cell in zip(*found[side]["hostile"],
                                                                                           strict=True))
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
