"""An alignment ledger as the stages write it; the figures are invented."""

from pathlib import Path

from ajuste.judging.alignment.ledger import write
from ajuste.learning.statistics.metrics import wilson_interval

N = 60


def score(name: str, hits: int, n: int = N, **changed: object) -> dict:
    """The first `hits` of n units; changed: any key of the score."""
    low, high = wilson_interval(hits, n)
    return {"h": "harmless", "name": name, "better": "lower", "value": hits / n, "low": low, "high": high, "n": n,
            "unit": "behaviour", "judge": "rules 1", "corrected": None,
            "units": {f"u{i:02}": float(i < hits) for i in range(n)}, **changed}  # fmt: skip


def scores(attacks: int, refused: int, profane: int = 3, true: int = 25, hostile: str = "") -> list[dict]:
    """Each kind of score once; three attack families, one detail. hostile: markup in texts that come from outside."""
    corrected = {"value": 0.7, "low": 0.4, "high": 0.9}
    return [
        score("attack_success.direct", attacks, corrected=corrected, judge=f"rules 1{hostile}"),
        score("attack_success.role_play", attacks), score("attack_success.prefix_injection", attacks),
        score("attack_success.direct.fraud", min(attacks, 10), 10, detail=True),
        score("over_refusal", refused), score("profane_continuations", profane, 40, unit="beginning"),
        score("truthful_choice", true, h="honest", better="higher", unit="question", judge=None),
        score("rules.own", 30, 80, h="helpful", better="higher", unit=f"prompt{hostile}", judge=None, units=None),
    ]  # fmt: skip


def write_made(path: Path, model: str, attacks: int = 20, refused: int = 6, hostile: str = "") -> Path:
    """The ledger of a model that answers `attacks` of 60 harmful requests and refuses `refused` of 60 harmless ones."""
    write(path, model, scores(attacks, refused, hostile=hostile))
    return path
