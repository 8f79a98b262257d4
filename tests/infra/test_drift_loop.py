"""Drift, from a request to a run of `adapt`, with nothing made up: model server, its log, worker, event, automation.

The classifier is a random model of one million parameters; what drifts is the texts: reviews, then another language.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from ajuste.cli.processes import free_port
from tests.infra.servers import Deployed, start, stop, wait_for
from tests.made.projects import run

NAME, WINDOW = "reviews-classifier", 50
GERMAN = (
    "der die das und nicht ein eine ist war sehr guter schlechter Film mit vielen langen Szenen ohne jede Handlung "
    "aber wunderbare Schauspieler spielen darin trotzdem überzeugend"
).split()


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    """The servers, with windows of 50 requests."""
    found = Deployed(tmp_path)
    try:
        policy = found.project / "policy.yaml"
        assert "window: 300 " in policy.read_text()
        policy.write_text(policy.read_text().replace("window: 300 ", f"window: {WINDOW} "))
        run(found.project, "git", "commit", "--quiet", "--all", "--message", "Smaller windows")
        for name in ("prefect", "mlflow"):
            found.start(name)
        found.deploy()
        ends = {"parameters": {"until": "evaluate_classify"}}
        httpx.patch(f"{found.api}/deployments/{found.deployment('adapt')['id']}", json=ends).raise_for_status()
        found.start("worker")
        yield found
    finally:
        found.close()


def judged(deployed: Deployed) -> str:
    """Run the deployment drift once; what its artifact says of the model."""
    deployed.completes(deployed.begin("drift"), 300)
    (found,) = deployed.ask("/artifacts/latest/filter", artifacts={"key": {"any_": [f"drift-{NAME}"]}})
    return found["description"]


@pytest.mark.slow
def test_requests_of_another_kind_make_a_run_of_adapt(deployed: Deployed) -> None:
    deployed.completes(deployed.begin(), 900)
    before = {item["id"] for item in deployed.runs()}
    rows = pq.read_table(deployed.place / "artifacts/validated/reviews/test.parquet").to_pylist()
    usual = [row["text"] for row in rows if row["source"] == "rotten_tomatoes"]  # as in encode.reviews
    assert len(usual) >= WINDOW
    port, log = free_port(0), deployed.log("models")
    serve = ["ajuste.cli.main", "serve", NAME, "--log-requests", "--port", str(port)]
    server = start(deployed.project, deployed.env, log, *serve)
    try:
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200, 180, log)

        def ask(texts: list[str]) -> None:
            for text in texts:
                httpx.post(f"http://127.0.0.1:{port}/classify", json={"text": text}, timeout=60).raise_for_status()

        ask(usual[:WINDOW])
        assert judged(deployed).startswith("1 new windows, 0 of them drifted")
        draw = random.Random(0)
        other = [" ".join(draw.choices(GERMAN, k=20)) for _ in range(2 * WINDOW)]
        ask(other[:WINDOW])
        assert judged(deployed).startswith("1 new windows, 1 of them drifted")
        assert {item["id"] for item in deployed.runs()} == before, "one window is chance"
        ask(other[WINDOW:])
        assert judged(deployed).endswith("`adapt` was asked for")
    finally:
        stop(server)

    def new() -> list[dict]:
        return [item for item in deployed.runs() if item["id"] not in before]

    (made,) = wait_for(new, 60, deployed.log("prefect"))
    deployed.completes(made["id"], 900)
