"""The top of the report: which strategy is best, and can it be trusted? Every sentence stands on a figure of the run.

The best is chosen on validation, as the alias `challenger` is; the test rows are only for reporting. A finding is
"good", "warn" (read it before you rely on the model), "bad" (do not rely on it) or "unknown" (not there yet).
"""

from ajuste.learning.statistics.mcnemar import mcnemar
from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.tracking.pages import report_data as data

ECE_GOOD, ECE_BAD = 0.05, 0.10  # mean distance of "how sure" and "how often right"
WIDE = 0.08  # an interval wider than this leaves much open
SLICE_ROWS = 30  # a slice with fewer rows says nothing
TRUNCATED_WARN = 0.05  # share of rows that lost their end
ALPHA = 0.05


def verdict(rows: list[dict], predictions: dict[str, list[dict]]) -> dict:
    """The best strategy with its figures and what separates it from the next. {} when nothing was evaluated."""
    judged = [row for row in rows if row["result"] and row["card"].get("validation")]
    if not judged:
        return {}
    order = sorted(
        judged, key=lambda row: (-row["card"]["validation"]["macro_f1"], row["parameters"].get("trainable", 0))
    )
    best, others = order[0], order[1:]
    result = {
        "best": best,
        "accuracy": best["result"]["accuracy"],
        "rows": best["result"]["rows"],
        "baseline": baseline(best["result"]),
        "against": [],
    }
    for other in others:
        if best["id"] in predictions and other["id"] in predictions:
            b, c, p = mcnemar(*data.rightness(predictions[best["id"]], predictions[other["id"]]))
            result["against"].append(
                {
                    "name": other["name"],
                    "b": b,
                    "c": c,
                    "p": p,
                    "difference": best["result"]["accuracy"]["value"] - other["result"]["accuracy"]["value"],
                }
            )
    tied = [item["name"].replace("F", "f", 1) for item in result["against"] if item["p"] > ALPHA]
    result["headline"] = f"{best['name']}, level with {' and '.join(tied)}" if tied else f"{best['name']} is the best"
    if result["accuracy"]["low"] <= result["baseline"]:
        result["headline"] = f"{best['name']} leads, but no better than guessing"
    return result


def baseline(result: dict) -> float:
    """Accuracy of always answering the most frequent class of the test rows."""
    sizes = [sum(row) for row in result["confusion"]]
    return max(sizes) / sum(sizes) if sum(sizes) else 0.0


def findings(
    best: dict, validation: dict, encoding: dict, quarantine: dict, proof: dict, provenance: dict
) -> list[dict]:
    """What a careful reader asks before relying on the best strategy."""
    return [
        finding
        for finding in (
            _guessing(best),
            _rows(best),
            _checks(validation),
            _quarantine(quarantine, validation),
            _truncation(encoding),
            _calibration(best),
            _weakest(best),
            _proof(proof, best),
            _provenance(provenance),
        )
        if finding
    ]


def _finding(state: str, what: str, detail: str) -> dict:
    return {"state": state, "what": what, "detail": detail}


def _guessing(best: dict) -> dict:
    if not best:
        return _finding("unknown", "Better than guessing?", "No strategy is evaluated yet: run ajuste run.")
    low, guess = best["accuracy"]["low"], best["baseline"]
    detail = f"Always the most frequent class: {guess:.3f}. Lower end of the interval: {low:.3f}."
    return _finding("good" if low > guess else "bad", "Better than guessing", detail)


def _rows(best: dict) -> dict | None:
    """The Wilson interval stays honest where the bootstrap has nothing to vary: all rows right, or few of them."""
    if not best:
        return None
    low, high = wilson_interval(round(best["accuracy"]["value"] * best["rows"]), best["rows"])
    detail = f"{best['rows']:,} rows: the accuracy is known to lie between {low:.3f} and {high:.3f} (Wilson, 95 %)."
    return _finding("good" if high - low <= WIDE else "warn", "Enough test rows", detail)


def _checks(validation: dict) -> dict:
    if not validation:
        return _finding("unknown", "Data checks", "Not validated yet.")
    failed = [check for check in validation.get("checks", []) if not check["passed"]]
    if not failed:
        return _finding("good", "Data checks", f"All {len(validation.get('checks', []))} passed.")
    errors = [check for check in failed if check["severity"] == "error"]
    shown = ", ".join(
        f"{str(check['name']).replace('_', ' ')} ({check['rows_failed']:,} rows)" for check in errors or failed
    )
    return (
        _finding("bad", "Data checks", f"{len(errors)} failed: {shown}.")
        if errors
        else _finding("warn", "Data checks", f"No error. {len(failed)} to look at: {shown}.")
    )


def _quarantine(quarantine: dict, validation: dict) -> dict | None:
    if not quarantine:
        return None
    detail = (
        f"{quarantine['rows']:,} rows were kept out of training and test, each with its reason."
        if quarantine["rows"]
        else "Empty: every row could be used."
    )
    return _finding("good", "Quarantine", detail)


def _truncation(encoding: dict) -> dict | None:
    split = encoding.get("splits", {}).get("test")
    if not split or not split.get("rows"):
        return None
    share = split["rows_truncated"] / split["rows"]
    return _finding(
        "good" if share <= TRUNCATED_WARN else "warn",
        "Texts read to their end",
        f"{share:.1%} of the test texts were cut at {encoding['max_tokens']} tokens.",
    )


def _calibration(best: dict) -> dict | None:
    if not best:
        return None
    found = best["best"]["result"]["ece"]
    error = found["value"]
    state = "good" if error <= ECE_GOOD else "warn" if error <= ECE_BAD else "bad"
    words = {
        "good": "A probability can be read as one.",
        "warn": "Probabilities are roughly right.",
        "bad": "Do not read the probabilities as such.",
    }[state]
    return _finding(state, "Honest probabilities",
                    f"Calibration error {error:.3f} ({found['low']:.3f} to {found['high']:.3f}). {words}")


def _weakest(best: dict) -> dict | None:
    if not best:
        return None
    slices = [
        (name, key, cell)
        for name, cells in best["best"]["result"].get("slices", {}).items()
        for key, cell in cells.items()
        if cell["rows"] >= SLICE_ROWS
    ]
    if not slices:
        return None
    name, key, cell = min(slices, key=lambda item: item[2]["accuracy"])
    state = "good" if cell["accuracy"] >= best["accuracy"]["low"] else "warn"
    return _finding(state, "Weakest slice", f"{name} {key}: accuracy {cell['accuracy']:.3f} on {cell['rows']:,} rows.")


def _proof(proof: dict, best: dict) -> dict | None:
    if not proof:
        return _finding("unknown", "Merge proof", "No proof yet.") if best and best["best"]["id"] == "lora" else None
    good = proof["max_logit_difference"] <= proof["tolerance"] and proof["equal_predictions"] == 1
    detail = (
        f"Merged weights against adapter: largest logit difference {proof['max_logit_difference']:.1e} "
        f"(allowed {proof['tolerance']:.0e}), {proof['equal_predictions']:.1%} equal predictions."
    )
    return _finding("good" if good else "bad", "Merge proof", detail)


def _provenance(provenance: dict) -> dict:
    if not provenance["commit"]:
        return _finding("unknown", "Can be made again", "There is no git commit to name.")
    if provenance["stale"]:
        return _finding(
            "bad", "Can be made again", f"Out of date: {_listed(provenance['stale'])}. Run ajuste run again."
        )
    if provenance["dirty"]:
        return _finding(
            "warn", "Can be made again", "Code or params differ from the commit: commit them, so that others can."
        )
    return _finding(
        "good",
        "Can be made again",
        f"Commit {provenance['commit'][:10]} and dvc.lock name every input. ajuste reproduce proves it.",
    )


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
