"""What a stage found, in a few words, as soon as it is over: nobody need wait for the end of a run to see a result.

    validate_reviews     ran            8.1 s  439 MB; 33,407 of 33,530 rows kept, 98 exact and 22 near duplicates
    classify_frozen      ran            3.0 s  696 MB; validation accuracy 0.758

Read from the small JSON files of its outs; a stage whose outs say nothing of the kind has no words. And before the
first stage of a fresh checkout: what metrics/ records, so that there is something to look at from the first second on.
"""

from pathlib import Path

from ajuste.tracking.runs.facts import folders, read_json

FIRST = ("accuracy", "gold_gain", "perplexity", "loss")  # the first one that a card has says most


def found(entry: dict) -> str:
    """Of a stage's entry in dvc.lock; "" where its outs hold nothing of this kind."""
    parts = []
    for folder in folders(entry):
        for file, told in (("validation.json", _rows_kept), ("encoding.json", _rows), ("ajuste.json", _quality),
                           ("proof.json", _proof)):  # fmt: skip
            content = read_json(folder / file)
            if file == "ajuste.json" and (folder / "proof.json").is_file():
                continue  # a merged model's card repeats its adapter's
            words = told(content) if content else ""
            parts += [words] if words else []
    return "; ".join(parts)


def _rows_kept(report: dict) -> str:
    rows = report.get("rows") or {}
    if not {"read", "kept"} <= rows.keys():
        return ""
    exact, near = rows.get("exact_duplicates", 0), rows.get("near_duplicates", 0)
    twice = f", {exact:,} exact and {near:,} near duplicates" if exact or near else ""
    return f"{rows['kept']:,} of {rows['read']:,} rows kept{twice}"


def _rows(report: dict) -> str:
    splits = {name: split["rows"] for name, split in (report.get("splits") or {}).items() if "rows" in split}
    return f"rows: {', '.join(f'{rows:,} {name}' for name, rows in splits.items())}" if splits else ""


def _quality(card: dict) -> str:
    measured = card.get("validation") or {}
    name = next((name for name in FIRST if isinstance(measured.get(name), float)), None)
    return f"validation {name.replace('_', ' ')} {measured[name]:.4g}" if name else ""


def _proof(proof: dict) -> str:
    difference = proof.get("max_logit_difference")
    return f"merged, largest logit difference {difference:.1e}" if difference is not None else ""


def recorded(metrics: Path = Path("metrics")) -> str:
    """What the recorded run came to: the test accuracies of metrics/classify.json; "" without that file."""
    strategies = read_json(metrics / "classify.json").get("strategies") or {}
    accuracies = {name: result["accuracy"] for name, result in strategies.items() if "accuracy" in result}
    shown = [f"{name} {a['value']:.3f} ({a['low']:.3f} to {a['high']:.3f})" for name, a in accuracies.items()]
    if not shown:
        return ""
    return f"recorded in {metrics}/, to be made anew here: test accuracy {', '.join(shown)}"
