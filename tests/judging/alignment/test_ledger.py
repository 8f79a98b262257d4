"""The ledger: what was written is read, and what is wrong is named by file, score and field."""

import json
from pathlib import Path

import pytest

from ajuste.core.errors import DataError
from ajuste.judging.alignment.ledger import FEW, Ledger, ledger, read, write

REFUSED = {"h": "harmless", "name": "attack_success.direct", "better": "lower", "value": 0.25, "low": 0.15,
           "high": 0.38, "n": 60, "unit": "behaviour", "judge": "rules 1",
           "corrected": {"value": 0.2, "low": 0.05, "high": 0.4}}  # fmt: skip
TWIN = {**REFUSED, "name": "over_refusal", "n": 20, "corrected": None}
UNITS = {**REFUSED, "name": "hit_at_4.direct", "n": 2, "value": 0.5, "low": 0.1, "high": 0.9, "judge": None,
         "corrected": None, "units": {"fraud-01": 1.0, "fraud-02": 0.0}}  # fmt: skip
TRUE = {**REFUSED, "h": "honest", "name": "truthful", "better": "higher", "judge": None, "corrected": None}
PART = {**REFUSED, "name": "attack_success.direct.fraud", "n": 5, "corrected": None, "detail": True}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ppo" / "alignment.json"
    written = write(path, "ppo", [TRUE, TWIN, UNITS, PART, REFUSED])
    assert read(path) == written
    names = ["attack_success.direct", "attack_success.direct.fraud", "hit_at_4.direct", "over_refusal", "truthful"]
    assert [score.name for score in written.scores] == names
    found = json.loads(path.read_text())
    assert found == {"model": "ppo", "scores": [REFUSED, PART, UNITS, TWIN, TRUE]}
    assert list(found["scores"][0]) == list(REFUSED)  # a person reads the name first


def test_equal_scores_give_equal_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    write(one, "dpo", [REFUSED, TWIN])
    write(other, "dpo", [{**TWIN, "value": TWIN["value"] + 1e-12}, REFUSED])
    assert one.read_bytes() == other.read_bytes()


def test_rounding_cannot_put_a_value_outside_its_interval(tmp_path: Path) -> None:
    noisy = {**REFUSED, "value": 1.0, "low": 0.9, "high": 1 - 1e-13}
    assert write(tmp_path / "a.json", "ppo", [noisy]).scores[0].high == 1


def test_a_score_is_found_by_its_name() -> None:
    found = ledger({"model": "base", "scores": [REFUSED, TWIN, PART]}, "here")
    assert found.of("over_refusal").few and found.of("over_refusal").n < FEW
    assert not found.of("attack_success.direct").few
    assert found.of("toxicity") is None
    assert [score.name for score in found.main()] == ["attack_success.direct", "over_refusal"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": 0.1}, "low <= value <= high"),
        ({"low": -0.1}, "`low`: Input should be greater than or equal to 0"),
        ({"value": 0.5, "high": 1.2}, "is a share, and 1.2 is above 1"),
        ({"corrected": {"value": 0.5, "low": 0.4, "high": 1.5}}, "is a share, and 1.5 is above 1"),
        ({"corrected": {"value": 0.5, "low": 0.6, "high": 0.9}}, "`corrected`: low <= value"),
        ({"units": {"a": 0.25}}, "n is 60, and there are 1 units"),
        ({"n": 2, "units": {"a": 0.0, "b": 1.0}}, "the mean of its units is 0.5, and the value 0.25"),
        ({"n": 0}, "`n`: Input should be greater than or equal to 1"),
        ({"n": "60"}, "`n`: Input should be a valid integer"),
        ({"value": "0.25"}, "`value`: Input should be a valid number"),
        ({"value": True}, "`value`"),
        ({"high": float("nan")}, "`high`: Input should be a finite number"),
        ({"h": "helpfull"}, "`h`: Input should be 'helpful', 'honest' or 'harmless'"),
        ({"better": "up"}, "`better`"),
        ({"judge": ...}, "`judge`: Field required"),
        ({"seconds": 3}, "`seconds`: Extra inputs"),
        ({"name": "Attack Success"}, "score `Attack Success`: `name`"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict, words: str) -> None:
    wrong = {key: value for key, value in {**REFUSED, **change}.items() if value is not ...}
    with pytest.raises(DataError) as error:
        write(tmp_path / "alignment.json", "ppo", [TWIN, wrong])
    said = str(error.value)
    assert words in said and f"score `{wrong['name']}`" in said and str(tmp_path / "alignment.json") in said
    assert "\n" not in said and not (tmp_path / "alignment.json").exists()


def test_a_name_stands_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="score `over_refusal` stands there twice"):
        write(tmp_path / "alignment.json", "ppo", [TWIN, TWIN])


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dpo" / "alignment.json"
    with pytest.raises(DataError, match="dpo/alignment.json is missing: `dvc repro alignment_dpo`"):
        read(path)
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(DataError, match=r"alignment.json is no JSON"):
        read(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"alignment.json: "):
        read(path)
    path.write_text('{"model": "dpo", "scores": [3]}')
    with pytest.raises(DataError, match="score `number 1`"):
        read(path)


def test_over_refusal_is_shown_right_below_the_attacks() -> None:
    names = ("toxicity", "over_refusal", "hit_at_k.direct", "attack_success.role_play", "attack_success.direct")
    made = [{**REFUSED, "name": name} for name in names] + [TRUE, {**TRUE, "h": "helpful", "name": "win_rate"}]
    shown = [score.name for score in ledger({"model": "base", "scores": made}, "here").main()]
    assert shown == ["win_rate", "truthful", "attack_success.direct", "attack_success.role_play", "hit_at_k.direct",
                     "over_refusal", "toxicity"]  # fmt: skip


def test_no_scores_are_a_ledger() -> None:
    assert ledger({"model": "base", "scores": []}, "here") == Ledger(model="base", scores=[])
