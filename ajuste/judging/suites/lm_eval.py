"""lm-eval (EleutherAI's evaluation harness, MIT), as `ajuste probe` runs it.

Its own tasks fetch their rows from the Hub. These here are local ones, infra/probe/tasks/*.yaml, on files of data/ that
packages shipped (BoolQ, PIQA): the prompts of lm-eval's tasks of the same name, so figures compare with others'.

    a folder of weights    ajuste_boolq, ajuste_piqa: the choice with the highest log-likelihood (lm-eval's `hf`)
    the server             ajuste_boolq_chat, ajuste_piqa_chat: an answer is written and read (`local-chat-completions`)

Over HTTP lm-eval takes log-likelihoods from `echo` with `logprobs` on /v1/completions, prompts as token ids. This
server refuses `echo` (nothing of OpenAI's own service has it any more), so such tasks are asked of the weights.

Only figures that are 0 or 1 for each row go into the ledger: their share, with Wilson's interval and each row's value.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.judging.suites.asked import SEED, Target, share

VERSION = "0.4.13"
MODULE = "lm_eval"
UNIT = "rows"
TASKS = Path("infra/probe/tasks")
BY_LOGLIKELIHOOD = ("ajuste_boolq", "ajuste_piqa")
BY_CHAT = ("ajuste_boolq_chat", "ajuste_piqa_chat")
BATCH = 8


def names(target: Target) -> tuple[str, ...]:
    """What is asked where nobody says."""
    return BY_CHAT if target.url else BY_LOGLIKELIHOOD


def command(target: Target, wanted: Sequence[str], limit: int, work: Path) -> list[str]:
    """The module's arguments; results and rows are written below `work`."""
    if target.url:
        model, batch = "local-chat-completions", 1
        how = {"model": target.model, "base_url": f"{target.url}/v1/chat/completions", "tokenized_requests": "False",
               "num_concurrent": 1, "max_retries": 3}
        more = ["--apply_chat_template"]
    else:
        model, batch = "hf", BATCH
        how = {"pretrained": target.folder.resolve(), "dtype": "float32", "trust_remote_code": "False"}
        more = ["--device", "cpu"]
    return ["run", "--model", model, "--model_args", ",".join(f"{key}={value}" for key, value in how.items()),
            "--tasks", ",".join(wanted), "--include_path", str(TASKS.resolve()), "--limit", str(limit),
            "--batch_size", str(batch), "--seed", str(SEED), "--log_samples", "--output_path",
            str((work / "results").resolve()), *more]  # fmt: skip


def results(work: Path, wanted: Sequence[str]) -> tuple[list[dict], dict[str, str]]:
    """The scores of a finished run, and what is left out and why. Raises DataError where a task left no rows."""
    paths = sorted((work / "results").rglob("results_*.json"))
    if not paths:
        raise DataError(f"lm-eval left no results below {work / 'results'}")
    found = json.loads(paths[-1].read_text(encoding="utf-8"))
    scores, left_out = [], {}
    for task in wanted:
        rows = _rows(paths[-1].parent, task)
        for key in sorted(found["results"].get(task, {})):
            metric = key.partition(",")[0]
            if "," not in key or metric.endswith("_stderr"):
                continue
            name = f"lm_eval.{task.removeprefix('ajuste_')}.{metric}".lower()
            values = {str(row["doc_id"]): row.get(metric) for row in rows}
            if not all(value in (0, 1) for value in values.values()):
                left_out[name] = "no share: not 0 or 1 for each row"
                continue
            higher = found.get("higher_is_better", {}).get(task, {}).get(metric, True)
            scores.append({"h": "honest" if "truthful" in task else "helpful", "name": name,
                           "better": "higher" if higher else "lower",
                           **share(round(sum(values.values())), len(values)), "unit": "row", "judge": None,
                           "corrected": None, "units": {id_: float(value) for id_, value in values.items()}})
    if not scores:
        raise DataError(f"lm-eval's tasks {', '.join(wanted)} left no figure that the ledger can hold")
    return scores, left_out


def _rows(folder: Path, task: str) -> list[dict]:
    """What lm-eval wrote of each row of a task."""
    paths = sorted(folder.glob(f"samples_{task}_2*.jsonl"))  # the time follows the name, which may begin another's
    if not paths:
        raise DataError(f"lm-eval left no rows of task `{task}` in {folder}")
    return [json.loads(line) for line in paths[-1].read_text(encoding="utf-8").splitlines() if line.strip()]
