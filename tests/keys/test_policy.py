"""Keys of policy.yaml: the verdict of the gate or of drift, or what is done about it, changes with each of them."""

import json
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml, typed
from ajuste.judging.alignment.ledger import ledger
from ajuste.judging.verdicts import alignment
from ajuste.judging.verdicts.drift import DriftConfig, drift
from ajuste.judging.verdicts.gate import Evidence, GateConfig, Rule, rules
from ajuste.rows.filters.config import FilterConfig
from ajuste.rows.request_log import read_windows
from ajuste.serving.errors import Refusal
from ajuste.serving.guard import Guard
from ajuste.tracking.registry.families.sft import SFT
from ajuste.tracking.registry.version import Version
from ajuste.tracking.verdicts import drift as verdicts
from ajuste.tracking.verdicts import evidence
from ajuste.tracking.verdicts import gate as judging
from ajuste.tracking.verdicts.baseline import Baseline
from flows import _gate
from tests.judging.test_drift import VOCABULARY, made
from tests.judging.test_gate import kept, pair
from tests.keys.cases import Compared, To, cases
from tests.made.ledgers import scores as made_scores

USUAL = read_yaml(ROOT / "policy.yaml")
SECTIONS = {
    "gate": USUAL["gate"],
    "drift": {**USUAL["drift"], "window": 100, "reference_rows": 200, "permutations": 399},
    "filters": USUAL["filters"],
}
METRICS = ("accuracy", "pair_accuracy", "loss", "gold")
ASKED = tuple(typed(GateConfig, USUAL["gate"], "gate").alignment.asked)
SIZES = ("min_length", "min_vocabulary", "min_classes", "min_embeddings")
CASES = {
    "gate": {
        "minimum_rows": 300, "error_budget": 1e-12, "looks": To(10**6, under={"error_budget": 1e-10}),
        "mode": "dry-run", "forgetting_margin": 0.01, "latency_ms": 1.0, "memory_mb": 1.0, "approval": True,
        **dict.fromkeys(("loss_margin", "rules_margin", "rouge_margin"), 0.01),
        "alignment.missing": "tell", "alignment.base": "refuse",
        **{f"alignment.margins.{name}": 0.0 for name in ASKED},
        "approval_hours": To(1.0, under={"approval": True}),
        **{f"{metric}.{key}": 0.5 for metric in METRICS for key in ("over_base", "over_champion")},
        **{f"{metric}.limit": -0.9 if metric == "loss" else 0.9 for metric in METRICS},
        **{f"{metric}.wanted": 0.5 for metric in METRICS},
        **{f"{metric}.cluster": "source" if metric in ("accuracy", "loss") else None for metric in METRICS},
    },
    "drift": {
        "window": 50, "reference_rows": 100, "alpha": To(0.9, under=dict.fromkeys(SIZES, 0.0)), "correction": "bh",
        "permutations": 599,
        **dict.fromkeys(SIZES, 1.0), "drifted": 3, "of": 3,
    },
    "filters": {
        **{f"{where}.{do}": ["email"] for where in ("input", "output") for do in ("refuse", "mask")},
        "regions": To(["MX"], under={"input.mask": ["phone"]}),
        "phrases": To("two.txt", under={"phrases": "one.txt", "input.mask": ["phrase"]}),
    },
}  # fmt: skip
SILENT: dict[str, str] = {}


def gate(section: dict, out: Path) -> dict:
    """The rules on a challenger of each family, and what the flow says and asks of one that passes."""
    config = GateConfig(**section)
    found, numbers = {"alignment": [(rule.name, rule.passed) for rule in aligned(config)]}, {}
    lost = tuple(kept(0.03, figure) for figure in ("loss", "rules", "rouge"))
    for metric in METRICS:
        better = pair(0.2)
        if metric == "loss":  # a lower one is better
            better = type(better)(better.other, better.others, better.own)
        alike, unknown = sources(getattr(config, metric).cluster, metric, better.own)
        known = Evidence(metric, better, better, {"c4": 0.05}, None, {"empty_text": True}, 5.0, 500.0, kept=lost,
                         clusters=alike, clusters_problem=unknown)
        found[metric] = [(rule.name, rule.passed) for rule in rules(config, known)]
        beside = rules(config, known, look=2)[1]
        numbers[metric] = (beside.value, re.findall(r"needs ([\d,]+) rows", beside.sentence))
    verdict = judging.Verdict("m", "2", None, rules(config, known), "today")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging.registry, "by_alias", lambda name, alias: None)
        patch.setattr(judging.promotion, "rolled_back", lambda name: [])
        patch.setattr(judging.promotion, "move", lambda *args, **more: SimpleNamespace(before=None))
        patch.setattr(_gate, "PREFECT_API_URL", SimpleNamespace(value=lambda: "http://127.0.0.1:1"))
        patch.setattr(_gate, "create_markdown_artifact", lambda **more: None)
        patch.setattr(_gate, "pause_flow_run", lambda timeout, **more: asked.append(timeout) or _gate.Approval())
        done = _gate._decide(verdict, config) if all(passed for _, passed in found["gold"]) else "refused"
    return {"rules": found, "numbers": numbers, "done": done.split(";")[0], "asked": asked}


def aligned(config: GateConfig) -> list[Rule]:
    """The rules of alignment on a version that lost a little beside the champion and much beside its base, and on one
    that nobody measured."""
    names = {"challenger": (22, 8, 4, 23), "champion": (20, 6, 3, 25), "base": (0, 0, 0, 60)}
    scores = {name: ledger({"model": name, "scores": made_scores(*hits)}, name) for name, hits in names.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence.ledgers, "of_base", lambda tags: scores["base"])
        patch.setattr(evidence.ledgers, "of_run", lambda stage, tags: scores[tags["who"]])
        one, other = (Version("assistant", number, None, None, {"who": who, "method": "sft"}, None)
                      for number, who in (("2", "challenger"), ("1", "champion")))
        beside = evidence._alignment(config, one, other, SFT)
    unmeasured = tuple(replace(one, own=None) for one in beside)
    return [rule for found in (beside, unmeasured) for rule in alignment.rules(config.alignment, found, "a stage")]


def sources(column: str | None, metric: str, own: dict) -> tuple[dict | None, str]:
    """Which rows a column of the test rows makes one draw: two and two are alike in each column."""
    with tempfile.TemporaryDirectory() as folder:
        halves = [f"{i // 2}" for i in range(len(own))]
        columns = {"responses": [[half, f"{half} "] for half in halves], "prompt_ids": halves, "source": halves}
        pq.write_table(pa.table({"row_id": [str(row) for row in own], **columns}), Path(folder) / "test.parquet")
        family = SimpleNamespace(encoded=Path(folder), rows="{split}.parquet", metric=metric)
        return evidence._clusters(column, family, own)


def windows_of(section: dict, out: Path) -> dict:
    """Windows of a log of 400 requests, the reports on two others, and whether recorded windows ask for `adapt`."""
    config, rng = DriftConfig(**section), np.random.default_rng(0)
    log = out.parent / "log.jsonl"
    lines = [json.dumps({"time": "t", "version": "1", "text": f"request {n}"}) for n in range(400)]
    log.write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "config_of", lambda: config)
        patch.setattr(verdicts, "exists", lambda: True)
        patch.setattr(verdicts.registry, "find", lambda name: SimpleNamespace(version="1"))
        drifts = [True, False, True, False, False]
        recorded = [SimpleNamespace(drifts=one, triggered=False) for one in drifts]
        patch.setattr(verdicts, "_recorded", lambda name, version, most: recorded[:most])
        state = verdicts.state("m")
        patch.setattr(Baseline, "_rows", lambda self, split: ((f"{n:03}", f"row {n}", 0) for n in range(200)))
        rows = Baseline(None, config, None).rows
    read = read_windows([log], "1", config.window, config.of)
    log.unlink()
    reference = made(rng, 200)
    clear = made(rng, 100, length=26, unseen=0.15, prior=0.8, shift=0.8)
    doubtful = made(rng, 100, length=22, unseen=0.03, prior=0.6, shift=0.2)
    found = [one for window in (clear, doubtful) for one in drift(config, reference, window, VOCABULARY).findings]
    findings = [{key: value for key, value in asdict(one).items() if key != "minimum"} for one in found]
    return {
        "asks": state.asks, "windows": [len(one) for one in read.windows], "skipped": read.skipped,
        "reference": len(rows), "findings": findings,
    }  # fmt: skip


def guarded(section: dict, out: Path) -> dict:
    """What the server makes of a request and of an answer."""
    for name, phrase in (("one.txt", "blue moon"), ("two.txt", "red sun")):
        (out.parent / name).write_text(f"{phrase}\n")
    phrases = section["phrases"] and str(out.parent / section["phrases"])
    guard, text = Guard(FilterConfig(**{**section, "phrases": phrases})), "a@b.org, 612 345 678, blue moon, red sun"
    try:
        asked = guard.asked([text])[0]
    except Refusal as error:
        asked = error.detail
    stream = guard.answer("Hi")
    said = stream and stream.push(text) + stream.end()
    return {"asked": asked, "said": said, "refused": stream and stream.refused}


@pytest.fixture(scope="module")
def sections() -> dict[str, Compared]:
    return {"gate": Compared(gate, SECTIONS["gate"]), "drift": Compared(windows_of, SECTIONS["drift"]),
            "filters": Compared(guarded, SECTIONS["filters"])}


@pytest.mark.parametrize(("section", "key", "to"), cases(CASES))
def test_a_key_says_something(sections: dict[str, Compared], section: str, key: str, to: object) -> None:
    sections[section].differs(key, to)
