"""How many tokens a second does the server generate: one request after the other, together, and beside a peer?

    ajuste, one by one        at most one row under way: what a server without batches does
    ajuste                    rows join and leave the batch between two tokens
    transformers serve        the same folder, dtype and threads; plain, and with its continuous batching

Clients ask in turn over HTTP, greedy, `tokens` tokens an answer, for the same prompts; every answer's token count is
checked, and between the first two the texts too. Servers take turns, `turns` times. Reported: tokens a second, lowest
and highest in brackets, and the ratio to the first line within the same turn.

Run it from the project's folder, on a quiet machine, after `ajuste run` (or give a folder of another decoder):

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.serving > docs/measured/serving.md

PASSIVE is what `ajuste serve` sets, and the peer gets the same. `transformers serve` is part of transformers; where it
does not start, its lines say so.
"""

import argparse
import http.client
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from ajuste.core.errors import DataError
from ajuste.models.folder import sha256_of
from benchmarks.results import value
from benchmarks.servers import ask, load, server

KINDS = ("ajuste, one by one", "ajuste", "transformers serve", "transformers serve --continuous-batching")
PROMPTS = [
    "Write a haiku about rain.", "What is the capital of France?", "Explain why the sky is blue to a child.",
    "Give three tips for staying healthy, one sentence each.", "Name a warm film and say what it is about.",
    "Translate into French: where is the station?", "Summarise the plot of Hamlet in two sentences for a newspaper.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers? Explain your answer step by step.",
]


def serve(folder: Path, port: int, rows: int) -> None:
    """The child process: our server on one folder, with at most `rows` rows under way."""
    import uvicorn

    from ajuste.serving import app, generation
    from ajuste.serving.models import Models

    generation.MAX_ROWS = rows
    tags = {"sha256": sha256_of(folder / "model.safetensors")}
    version = SimpleNamespace(name="assistant", version="1", alias="champion", path=folder, tags=tags)
    models = Models(lambda _: version, ["assistant"], folder)
    uvicorn.run(app.make_app(models), host="127.0.0.1", port=port, log_level="error", access_log=False)


def command_of(kind: str, folder: Path, port: int) -> list[str]:
    """What starts that server."""
    if kind.startswith("ajuste"):
        rows = "1" if kind.endswith("one by one") else "32"
        return [sys.executable, "-m", "benchmarks.serving", "--serve", str(folder), str(port), rows]
    return [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--device", "cpu",
            "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1", *kind.split()[2:]]


def answers_of(port: int, model: str, clients: int, requests: int, tokens: int) -> tuple[float, float, dict[int, str]]:
    """Tokens a second, the median seconds of a request, and the text of each prompt."""
    texts = {}

    def once(connection: http.client.HTTPConnection, number: int) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
                "max_tokens": tokens, "temperature": 0}
        answer = ask(connection, "/v1/chat/completions", body)
        texts[number % len(PROMPTS)] = answer["choices"][0]["message"]["content"]
        return answer["usage"]["completion_tokens"]

    rate, seconds = load(port, clients, once, requests=requests)
    return rate, statistics.median(seconds), texts


def measure(folder: Path, options: argparse.Namespace, log: Path) -> tuple[dict[str, list], dict[str, str]]:
    """(tokens a second, ratio to one by one, median seconds) of each server and turn; why a server has none."""
    found, missing, first = {kind: [] for kind in KINDS}, {}, {}
    port = options.port
    for turn in range(options.turns):
        alone = 0.0
        for kind in KINDS:
            port += 1
            if kind in missing:
                continue
            model = "assistant" if kind.startswith("ajuste") else str(folder)
            try:
                with server(command_of(kind, folder, port), port, log):
                    answers_of(port, model, 2, 2, 4)                        # loads the model, warms up
                    requests = options.requests if kind != KINDS[0] else max(8, options.requests // 4)
                    rate, seconds, texts = answers_of(port, model, options.clients, requests, options.tokens)
            except (RuntimeError, OSError, DataError) as error:
                if kind.startswith("ajuste"):
                    raise
                missing[kind] = str(error)[:120]
                continue
            if kind == KINDS[0]:
                alone, first = rate, texts
            elif kind == KINDS[1] and texts != first:
                raise SystemExit("together and one by one the server says different things")
            found[kind].append((rate, rate / alone, seconds))
            print(f"turn {turn + 1}: {kind}: {rate:.1f} tokens a second", file=sys.stderr)
    return found, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("artifacts/merged/instruct"), help="a whole decoder")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64, help="a turn; a quarter of them one by one")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--port", type=int, default=18700)
    parser.add_argument("--serve", nargs=3, metavar=("FOLDER", "PORT", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), int(options.serve[1]), int(options.serve[2]))
        return
    if not (options.folder / "model.safetensors").is_file():
        raise SystemExit(f"{options.folder} holds no whole decoder: `ajuste run` makes one, or give --folder")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        found, missing = measure(options.folder.resolve(), options, Path(work) / "server.log")
    lines = []
    for kind, values in found.items():
        if kind in missing:
            lines.append(f"| `{kind}` | not measured: {missing[kind]} | | |")
            continue
        rates, ratios, seconds = zip(*values, strict=True)
        value(kind, "tokens/s", rates)
        value(f"{kind}, median wait of a request", "s", seconds)
        lines.append(f"| `{kind}` | {statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) | "
                     f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
                     f"{statistics.median(seconds):.1f} s |")
    card = json.loads((options.folder / "config.json").read_text())
    print(PAGE.format(lines="\n".join(lines), torch=torch.__version__, cores=os.cpu_count(), before=before,
                      threads=torch.get_num_threads(), machine=platform.machine(), after=os.getloadavg()[0],
                      layers=card["num_hidden_layers"], width=card["hidden_size"], **vars(options)))


PAGE = """\
# Tokens a second from the server

Made by `OMP_WAIT_POLICY=PASSIVE python -m benchmarks.serving`. A decoder of {layers} layers of width {width}, float32,
torch {torch}, {threads} threads, {cores} cores ({machine}). {clients} clients ask at once over HTTP, greedy, at most
{tokens} tokens an answer, {requests} requests a turn ({turns} turns; one by one a quarter of them). Client and server
share the cores. Load average before the run {before:.1f}, after it {after:.1f}: where it is above 3 other work ran
beside, and the ratios say more than the rates.

| server | tokens a second | ratio to one by one | median wait of a request |
|---|---|---|---|
{lines}

Together and one by one the server's greedy answers were equal, text for text.
"""


if __name__ == "__main__":
    main()
