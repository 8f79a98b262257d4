"""Alarms of learning from samples: figures that no healthy run shows. The first one stops the run and takes it back.

    of the rollout      kl (nats a response), entropy (nats a token), repeats (share of repeated bigrams), score finite,
                        sampler_gap (mean over tokens of |log pi of the trainer - log pi of the sampler|)
                        they judge the policy that sampled, the work of the update before
    of the learning     ratio (largest of a token), value_loss, loss and grad_norm finite
                        they judge this update's own steps

So a rollout's alarm in update u goes back to the newest checkpoint of update u - 2 or before, one of the learning to
that of u - 1 or before: the newest one whose policy has sampled and was found good.
"""

import json
import math
import sys
from pathlib import Path

from ajuste.core.home import write_atomically

Row = dict[str, float]
ABOVE = {"alarm_kl": "kl", "alarm_repeats": "repeats", "alarm_sampler_gap": "sampler_gap_mean",
         "alarm_ratio": "ratio_max", "alarm_value_loss": "value_loss"}  # fmt: skip
BELOW = {"alarm_entropy": "entropy"}
SAID = {
    "kl": "KL to the reference is {value:.4g} nats a response",
    "repeats": "{value:.0%} of a response's bigrams repeat",
    "sampler_gap_mean": "sampler and trainer differ by {value:.4g} nats a token",
    "ratio_max": "the largest ratio of a token is {value:.4g}",
    "value_loss": "the value loss is {value:.4g}",
    "entropy": "the entropy is {value:.4g} nats a token",
}


class Alarm(Exception):
    """A figure of `row` crossed its limit. key: of params.yaml, or "finite"; limit is None there."""

    def __init__(self, update: int, key: str, figure: str, row: Row, limit: float | None, last_good: int):
        self.update, self.key, self.figure, self.row = update, key, figure, row
        self.value, self.limit, self.last_good = row[figure], limit, last_good
        value = self.value
        said = SAID.get(figure, f"{figure} is {{value}}").format(value=value)
        side = "is no number" if limit is None else f"the limit `{key}` is {limit:g}"
        super().__init__(f"update {update}: {said}; {side}")


def check(config: object, update: int, row: Row, last_good: int) -> None:
    """Raise Alarm for the first figure of `row` that is no number or beyond its limit in `config`.

    last_good: the newest update whose weights this figure does not accuse. A limit that the algorithm's config does
    not have is none.
    """
    for figure, value in row.items():
        if not math.isfinite(value):
            raise Alarm(update, "finite", figure, row, None, last_good)
    for limits, beyond in ((ABOVE, 1), (BELOW, -1)):
        for key, figure in limits.items():
            limit = getattr(config, key, None)
            if limit is not None and figure in row and beyond * (row[figure] - limit) > 0:
                raise Alarm(update, key, figure, row, limit, last_good)


def report(folder: Path, alarm: Alarm, back_to: int, name: str) -> list[dict]:
    """Write alarms.json, say on stderr what happened to the run of algorithm `name`, and return what was written."""
    number = alarm.value if math.isfinite(alarm.value) else str(alarm.value)
    found = [
        {"update": alarm.update, "alarm": alarm.key, "figure": alarm.figure, "value": number, "limit": alarm.limit,
         "said": str(alarm), "rolled_back_to": back_to,
         "row": {key: value if math.isfinite(value) else str(value) for key, value in alarm.row.items()}}
    ]  # fmt: skip
    print(f"ALARM, {name.upper()} stops: {alarm}. Rolled back to update {back_to}.", file=sys.stderr, flush=True)
    _write(folder, found)
    return found


def clear(folder: Path) -> None:
    """alarms.json of a run without an alarm: an empty list."""
    _write(folder, [])


def _write(folder: Path, found: list[dict]) -> None:
    write_atomically(folder / "alarms.json", json.dumps(found, indent=1) + "\n")
