"""garak (NVIDIA, Apache-2.0), a scanner for what can go wrong with a language model, as `ajuste probe` runs it.

Only probes whose prompts and detectors come inside the package are asked by default: no hub, no translation, no judge
model. Each probe's own detector judges, and what is written is the share of answers in which the attack succeeded:

    attack success = hits / judged answers          with Wilson's interval; garak's own is a bootstrap of the same share

The server is asked as any OpenAI-compatible one, at temperature 0; a folder is loaded by garak with transformers.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ajuste.core.errors import DataError
from ajuste.judging.suites.asked import SEED, Target, share

VERSION = "0.17.1"
MODULE = "garak"
UNIT = "answers"
# of the probes whose number of prompts can be bounded, one a kind of attack
NAMES = ("phrasing.PastTense", "dan.DanInTheWild", "promptinject.HijackLongPrompt", "encoding.InjectBase64",
         "latentinjection.LatentInjectionFactSnippetEiffel")  # fmt: skip
TOKENS = 100  # of an answer, at most
REPORT = "garak.report.jsonl"


def names(target: Target) -> tuple[str, ...]:
    """What is asked where nobody says."""
    return NAMES


def command(target: Target, wanted: Sequence[str], limit: int, work: Path) -> list[str]:
    """The module's arguments; its settings are written into `work`, where its report will stand."""
    if target.url:
        kind, name = "openai.OpenAICompatible", target.model
        own = {"openai": {"OpenAICompatible": {"uri": f"{target.url}/v1/", "max_tokens": TOKENS, "temperature": 0.0,
                                               "stop": []}}}
    else:
        kind, name = "huggingface.Model", str(target.folder.resolve())
        own = {"huggingface": {"Model": {"max_tokens": TOKENS, "hf_args": {"device": "cpu", "do_sample": False}}}}
    settings = {
        "system": {"lite": False, "parallel_attempts": False, "narrow_output": True},
        "run": {"seed": SEED, "generations": 1, "soft_probe_prompt_cap": limit,
                "spec": {"include": [f"probes.{one}" for one in wanted], "exclude": []}},
        "plugins": {"target_type": kind, "target_name": name, "extended_detectors": False, "generators": own},
        "reporting": {"report_dir": str(work.resolve()), "report_prefix": "garak",
                      "confidence_interval_method": "none"},
    }  # fmt: skip
    path = work / "garak.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=True), encoding="utf-8")
    return ["--config", str(path.resolve())]


def results(work: Path, wanted: Sequence[str]) -> tuple[list[dict], dict[str, str]]:
    """The scores of a finished run, and what is left out and why. Raises DataError where a probe judged nothing."""
    path = work / REPORT
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        raise DataError(f"garak left no report that can be read ({path})") from None
    judged = [line for line in lines if line.get("entry_type") == "eval"]
    if missing := sorted(set(wanted) - {line["probe"] for line in judged if line["total_evaluated"]}):
        raise DataError(f"garak's probe `{missing[0]}` judged no answer: see its log")
    several = {line["probe"] for line in judged if sum(one["probe"] == line["probe"] for one in judged) > 1}
    scores, unjudged = [], {}
    for line in judged:
        detector = line["detector"].removeprefix("detector.")
        name = f"garak.{snake(line['probe'])}" + (f".{snake(detector)}" if line["probe"] in several else "")
        if line["nones"]:
            unjudged[name] = f"{line['nones']} answers that the detector could not judge"
        if not line["total_evaluated"]:
            continue
        scores.append({"h": "harmless", "name": name, "better": "lower",
                       **share(line["fails"], line["total_evaluated"]), "unit": "answer",
                       "judge": f"garak {VERSION} {detector}", "corrected": None})
    return scores, unjudged


def snake(name: str) -> str:
    """phrasing.PastTense -> phrasing.past_tense"""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
