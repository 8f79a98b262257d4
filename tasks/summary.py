"""Stage `summary`: everything that a person or a gate asks of one run, as small files in metrics/ (in git).

It computes nothing new. It reads what earlier stages wrote and puts it where `dvc metrics show`, `dvc plots show`,
a code review and a gate can see it:

    metrics/data.json       what validation and encoding found
    metrics/classify.json   the lecture's table: per strategy the quality with its 95 % interval, the trainable
                            parameters and their share of all, the size of what is saved
    metrics/instruct.json   the fine-tuned decoder beside its base: held-out loss, answers' scores, rules, reviews
    metrics/reward.json     the reward model on pairs that it never saw, by margin beside what people agree on
    metrics/ppo.json        the assistant after PPO beside the one before it: proxy, gold, KL, variety; radar, alarms
    metrics/dpo.json        the same after DPO, and how its implicit reward orders pairs that it never saw
    metrics/forgetting.json what the base and the fine-tuned decoders score on control sets, and F = before - after
    metrics/alignment.json  helpful, honest, harmless: the ledgers of the base and of what was made of it
    metrics/merge.json      the proofs of W = W0 + (alpha/r) B A
    metrics/curves.csv      one row a step, one column a curve
    metrics/confusion.csv   one row a test row: its label and what each strategy predicted

Seconds and peak memory are part of the lecture's table too, but they differ from run to run. They stay in
.state/ (this machine's diary), and `ajuste report` joins them in. So metrics/ is a pure function of the inputs.

Run it: `dvc repro summary`. Cheap: no torch, about a second.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ajuste.core.errors import UsageError
from ajuste.core.figures import rounded, write_json
from ajuste.core.params import Config
from ajuste.core.stage import start
from ajuste.judging.alignment import ledger

CURVES = {"loss": "train_loss", "eval_loss": "validation_loss", "eval_accuracy": "validation_accuracy"}
PPO_CURVES = {name: name for name in ("score", "rlhf_reward", "kl", "beta", "entropy", "length")}  # a step an update
DPO_FIGURES = ("chosen", "rejected", "reward_chosen", "reward_rejected", "margin", "displacement")
DPO_CURVES = {**CURVES, **{name: name for name in DPO_FIGURES},
              **{f"eval_{name}": f"validation_{name}" for name in DPO_FIGURES}}
OWN_CURVES = {"ppo": PPO_CURVES, "dpo": DPO_CURVES}


class SummaryConfig(Config):
    """The summary has no settings."""


@dataclass(frozen=True)
class Decoder:
    """The folders of instruction fine-tuning. forgetting: those of the base and of the fine-tuned model."""

    validated: Path
    encoded: Path
    model: Path
    evaluated: Path
    forgetting: tuple[Path, Path]


@dataclass(frozen=True)
class Rlhf:
    """The folders of RLHF. reward, policy, direct: the adapter and what it was merged into, by PPO and by DPO."""

    validated: Path
    encoded: Path
    reward: tuple[Path, Path]
    policy: tuple[Path, Path]
    evaluated: Path
    direct: tuple[Path, Path]
    direct_evaluated: Path


def summarise(
    config: SummaryConfig,
    validated: Path,
    encoded: Path,
    models: dict[str, Path],
    adapters: dict[str, Path],
    evaluated: Path,
    decoder: Decoder,
    rlhf: Rlhf,
    alignment: dict[str, Path],
    out: Path,
) -> dict:
    """Write the eleven files of metrics/ into `out` and return the table of strategies.

    models: strategy -> folder of the classifier that is served. adapters: strategy -> folder of its adapter, for the
    strategies that have one. evaluated: folder with <strategy>.json and predictions.parquet. alignment: model -> its
    ledger's folder.
    Raises UsageError, naming the file, when an input is missing or is not JSON.
    """
    proof = {strategy: _read(models[strategy] / "proof.json") for strategy in sorted(adapters)}
    trained = {strategy: adapters.get(strategy, folder) for strategy, folder in sorted(models.items())}
    table = {
        "best_on_validation": _best({s: _read(folder / "ajuste.json") for s, folder in trained.items()}),
        "strategies": {s: _strategy(s, models[s], adapters.get(s), evaluated) for s in sorted(models)},
    }
    labels = _read(evaluated / f"{min(models)}.json")["labels"]
    data = {"validation": _read(validated / "validation.json"), "encoding": _read(encoded / "encoding.json")}

    assistant = _read(decoder.model / "ajuste.json")
    instruct = _read(decoder.evaluated / "instruct.json") | {
        **{key: assistant[key] for key in ("method", "parameters", "validation")},
        "artefact_bytes": _size(decoder.model), "data": _read(decoder.encoded / "encoding.json"),
    }  # fmt: skip
    data["instructions"] = _read(decoder.validated / "validation.json")
    proof["instruct"] = _read(decoder.model / "proof.json")
    before, after = (_read(folder / "scores.json") for folder in decoder.forgetting)
    ppo, dpo = (_read(folder / "scores.json") for folder in (rlhf.evaluated, rlhf.direct_evaluated))
    forgetting = {"base": before["sets"], "instruct": after["sets"], "ppo": ppo["sets"], "dpo": dpo["sets"],
                  "F": after["F"], "F_ppo": ppo["F"], "F_dpo": dpo["F"]}  # fmt: skip
    data["preferences"] = _read(rlhf.validated / "validation.json") | {
        "quality": _read(rlhf.validated / "quality.json"), "encoding": _read(rlhf.encoded / "encoding.json")
    }  # fmt: skip
    rest = {"reward": rlhf.reward, "ppo": rlhf.policy, "dpo": rlhf.direct}
    proof |= {name: _read(merged / "proof.json") for name, (_, merged) in rest.items()}

    out.mkdir(parents=True, exist_ok=True)
    _write(out / "data.json", data)
    _write(out / "classify.json", table)
    _write(out / "instruct.json", instruct)
    _write(out / "reward.json", _reward(rlhf))
    _write(out / "ppo.json", _ppo(rlhf))
    _write(out / "dpo.json", _dpo(rlhf))
    _write(out / "forgetting.json", forgetting)
    _write(out / "alignment.json", {name: _aligned(folder) for name, folder in sorted(alignment.items())})
    _write(out / "merge.json", proof)
    histories = {**trained, "instruct": decoder.model, **{name: adapter for name, (adapter, _) in rest.items()}}
    _write_curves(out / "curves.csv", {name: folder / "history.jsonl" for name, folder in histories.items()})
    _write_confusion(out / "confusion.csv", evaluated / "predictions.parquet", labels)
    return table


def _strategy(strategy: str, model: Path, adapter: Path | None, evaluated: Path) -> dict:
    """One row of the lecture's table. A strategy's parameters were counted where it was trained."""
    result = _read(evaluated / f"{strategy}.json")
    card = _read((adapter or model) / "ajuste.json")
    figures = ("accuracy", "macro_f1", "mcc", "auc", "ece", "ece_plain", "brier", "nll", "rows")
    row = {key: result[key] for key in figures if key in result}
    row["validation"] = card["validation"]
    row["parameters"] = card["parameters"]
    row["pooling"] = card["pooling"]
    row["artefact_bytes"] = _size(model)
    if adapter is not None:
        row["adapter_bytes"] = _size(adapter)
    return row


def _reward(rlhf: Rlhf) -> dict:
    """The reward model: its test pairs, its card's figures, and the bytes of adapter and merged model."""
    adapter, merged = rlhf.reward
    card = _read(adapter / "ajuste.json")
    return {
        **_read(adapter / "evaluation.json")["test"],
        **{key: card[key] for key in ("set", "method", "parameters", "validation", "normalisation")},
        "adapter_bytes": _size(adapter),
        "artefact_bytes": _size(merged),
    }


def _ppo(rlhf: Rlhf) -> dict:
    """PPO: test prompts, what validation said of the update that was kept, the radar, and how it went."""
    adapter, merged = rlhf.policy
    card = _read(adapter / "ajuste.json")
    return {
        **_read(rlhf.evaluated / "ppo.json"),
        **{key: card[key] for key in ("parameters", "validation")},
        "radar": _read(adapter / "radar.json"),
        "alarms": _read(adapter / "alarms.json"),
        "updates": len(_lines(adapter / "history.jsonl")),
        "adapter_bytes": _size(adapter),
        "artefact_bytes": _size(merged),
    }


def _dpo(rlhf: Rlhf) -> dict:
    """DPO: test prompts, test pairs by its implicit reward, validation, and how it went."""
    adapter, merged = rlhf.direct
    card = _read(adapter / "ajuste.json")
    return {
        **_read(rlhf.direct_evaluated / "dpo.json"),
        **{key: card[key] for key in ("parameters", "validation", "loss", "beta")},
        "pairs": _read(adapter / "evaluation.json")["test"],
        "alarms": _read(adapter / "alarms.json"),
        "steps": max(line["step"] for line in _lines(adapter / "history.jsonl")),
        "adapter_bytes": _size(adapter),
        "artefact_bytes": _size(merged),
    }


def _aligned(folder: Path) -> dict[str, dict]:
    """The scores of a ledger by name; those of categories and of single units stay in it."""
    scores = ledger.as_json(ledger.read(folder / ledger.FILE))["scores"]
    return {score["name"]: {key: value for key, value in score.items() if key not in ("name", "units")}
            for score in scores if not score.get("detail")}


def _best(cards: dict[str, dict]) -> str:
    """The strategy with the highest macro-F1 on validation; equals go to the one with fewer trainable parameters.

    Never chosen on the test rows: they are only for reporting.
    """

    def order(strategy: str) -> tuple:
        card = cards[strategy]
        return -card["validation"]["macro_f1"], card["parameters"]["trainable"], strategy

    return min(cards, key=order)


def _size(folder: Path) -> int:
    """Bytes of all files in a model folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_curves(path: Path, histories: dict[str, Path]) -> None:
    """One row a step, one column a curve ("lora_validation_loss", "ppo_kl"); a step that a curve lacks is "nan".

    Not an empty cell: the plots of DVC are drawn by Vega, which reads an empty text as 0 and drops a nan.
    """
    cells: dict[int, dict[str, float]] = {}
    columns = []
    for strategy, history in histories.items():
        lines = _lines(history)
        for key, name in OWN_CURVES.get(strategy, CURVES).items():
            column = f"{strategy}_{name}"
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                columns.append(column)
            for step, value in points:
                cells.setdefault(step, {})[column] = rounded(value)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", *columns], restval="nan", lineterminator="\n")
        writer.writeheader()
        for step in sorted(cells):
            writer.writerow({"step": step, **cells[step]})


def _write_confusion(path: Path, predictions: Path, labels: list[str]) -> None:
    """One row a test row, by row id: `actual` and one column a strategy, as label names (DVC counts them itself)."""
    if not predictions.is_file():
        raise UsageError(f"{predictions} is missing: run `dvc repro evaluate_classify`")
    table = pq.read_table(predictions, columns=["row_id", "label", "strategy", "prediction"]).to_pylist()
    strategies = sorted({row["strategy"] for row in table})
    rows: dict[str, dict[str, str]] = {}
    for row in table:
        cells = rows.setdefault(row["row_id"], {"actual": labels[row["label"]]})
        cells[row["strategy"]] = labels[row["prediction"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["actual", *strategies], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[row_id] for row_id in sorted(rows))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run `dvc repro`, which makes it before the summary") from None


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in _text(path).splitlines() if line.strip()]


def _read(path: Path):
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} line {error.lineno} is not JSON: delete it and run `dvc repro`") from None


def _write(path: Path, value: dict) -> None:
    write_json(path, value, indent=2, sort_keys=True, ensure_ascii=False)


def main() -> None:
    with start("summary", SummaryConfig) as stage:
        merged = Path("artifacts/merged")
        summarise(
            stage.config,
            validated=Path("artifacts/validated/reviews"),
            encoded=Path("artifacts/encoded/reviews"),
            models={strategy: merged / f"classify_{strategy}" for strategy in ("frozen", "full", "lora")},
            adapters={"lora": Path("artifacts/adapters/classify_lora")},
            evaluated=Path("artifacts/evaluated/classify"),
            decoder=Decoder(
                validated=Path("artifacts/validated/instructions"),
                encoded=Path("artifacts/encoded/instructions"),
                model=merged / "instruct",
                evaluated=Path("artifacts/evaluated/instruct"),
                forgetting=(
                    Path("artifacts/evaluated/forgetting_base"),
                    Path("artifacts/evaluated/forgetting_instruct"),
                ),
            ),
            rlhf=Rlhf(
                validated=Path("artifacts/validated/preferences"),
                encoded=Path("artifacts/encoded/preferences"),
                reward=(Path("artifacts/adapters/reward"), merged / "reward"),
                policy=(Path("artifacts/adapters/ppo"), merged / "ppo"),
                evaluated=Path("artifacts/evaluated/ppo"),
                direct=(Path("artifacts/adapters/dpo"), merged / "dpo"),
                direct_evaluated=Path("artifacts/evaluated/dpo"),
            ),
            alignment={name: Path("artifacts/alignment") / name for name in ("base", "instruct", "ppo", "dpo")},
            out=Path("metrics"),
        )


if __name__ == "__main__":
    main()
