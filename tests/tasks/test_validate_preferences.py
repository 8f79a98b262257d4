"""Validation of preferences: broken rows in quarantine with their reason, comparisons of ratings, equal bytes."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError
from ajuste.learning.statistics.agreement import agreement
from ajuste.rows.split import SPLITS, split_of, split_text, text_digest
from tasks.validate.preferences import PreferencesConfig, validate_preferences
from tests.made.instruction_files import sentence
from tests.made.preference_files import ROWS, broken, rated, transcript, triples, write_set


def config(**changes) -> PreferencesConfig:
    values = {"set": "mine", "sample": 1.0, "max_chars": 5000, "near_duplicate_jaccard": 0.8, "prompt_share": 0.5,
              "shared_with": [], "max_quarantine_share": 0.5, "batch_rows": 256}  # fmt: skip
    return PreferencesConfig(**{**values, **changes})


def kept(out: Path, prefix: str = "") -> list[dict]:
    return [{**row, "split": split} for split in SPLITS
            for row in pq.read_table(out / f"{prefix}{split}.parquet").to_pylist()]  # fmt: skip


def quarantine(out: Path) -> dict[str, dict]:
    return {row["location"]: row for row in pq.read_table(out / "quarantine.parquet").to_pylist()}


def split_of_text(text: str) -> str:
    return SPLITS[split_of(text_digest(split_text(text)))]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """600 pairs in hh-rlhf's form of which 2 % are broken, one of each kind; and 60 of every other layout."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = triples(600)
    content: list = [ROWS["transcripts"](*row) for row in rows]
    bad: list = list(broken(*triples(1, seed=99)[0]).items())
    bad += [("exact_duplicate", content[3]), ("unreadable_row", '{"chosen": "cut o')]
    places = sorted(random.Random(1).sample(range(10, 600), len(bad)))
    for place, (_, line) in reversed(list(zip(places, bad, strict=True))):
        content.insert(place, line)
    wrong = {f"data/mine/hh.jsonl:{place + shift + 1}": reason
             for shift, (place, (reason, _)) in enumerate(zip(places, bad, strict=True))}  # fmt: skip
    files, good = {"hh.jsonl": content}, {"hh": rows}
    for number, layout in enumerate(ROWS, 1):
        if layout != "transcripts":
            good[layout] = triples(60, seed=number)
            files[f"{layout}.jsonl"] = [ROWS[layout](*row) for row in good[layout]]
    entries = [{"layout": "transcripts" if name == "hh.jsonl" else name.removesuffix(".jsonl")} for name in files]
    data = write_set(folder / "data/mine", files, entries)
    report = validate_preferences(config(), None, data, folder / "out")
    return {"data": data, "out": folder / "out", "report": report, "wrong": wrong, "good": good}


def test_every_broken_row_is_in_quarantine_with_file_line_and_reason(made):
    found = quarantine(made["out"])
    assert {place: row["reasons"] for place, row in found.items()} == {
        place: [reason] for place, reason in made["wrong"].items()
    }
    by_reason = {row["reasons"][0]: row for row in found.values()}
    assert by_reason["different_prompts"]["detail"] == "they differ before the last turn"
    assert by_reason["role_order"]["detail"] == "turns: user assistant user"
    assert by_reason["not_a_transcript"]["detail"] == "the chosen text does not begin with `Human:`"
    assert by_reason["exact_duplicate"]["detail"] == "repeats data/mine/hh.jsonl:4"
    assert "chosen" in by_reason["different_prompts"]["text"]
    checks = {check["name"]: check for check in made["report"]["checks"]}
    assert all(checks[reason]["rows_failed"] >= 1 for reason in made["wrong"].values())


def test_nothing_else_is_lost_and_the_split_is_decided_by_the_prompt(made):
    rows = kept(made["out"])
    for source, expected in made["good"].items():
        mine = {(row["prompt"][0]["content"], *row["responses"]) for row in rows if row["source"] == source}
        assert mine == set(expected)
    assert all(row["split"] == split_of_text(row["prompt"][0]["content"]) for row in rows)
    counts = made["report"]["rows"]
    assert counts["read"] == len(rows) + len(made["wrong"]) == counts["kept"] + counts["quarantined"]
    assert len({row["row_id"] for row in rows}) == len(rows)
    prompts = kept(made["out"], "prompts_")
    assert {row["prompt"][0]["content"] for row in prompts} == {row["prompt"][0]["content"] for row in rows}
    assert len(prompts) == len(rows) and {row["prefill"] for row in prompts} == {""}
    assert pq.read_metadata(made["out"] / "texts.parquet").num_rows == 0


def test_no_text_is_in_the_reports(made):
    text = (made["out"] / "validation.json").read_text() + (made["out"] / "quality.json").read_text()
    assert not any(part in text for row in made["good"]["hh"] for part in row)
    quality = json.loads((made["out"] / "quality.json").read_text())
    assert quality["duplicates"] == {"exact": 1, "contradictory": 0, "near": 0}
    assert quality["responses"] == {"2": 840} and quality["cycles"]["comparisons"] == 0
    assert quality["label_noise"]["pairs"] == made["report"]["splits"]["train"]["comparisons"]
    assert quality["humans"] is None and quality["margins"] == {}


def test_two_runs_and_other_batches_write_the_same_bytes(made, tmp_path):
    validate_preferences(config(batch_rows=1000), None, made["data"], tmp_path / "again")
    first, again = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in
                    (made["out"], tmp_path / "again"))  # fmt: skip
    assert first == again and sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_contradictory_comparisons_leave_both_and_cycles_are_reported(tmp_path):
    a, b, c = "the first answer", "a second one", "number three"
    rows = [*((x, *sides) for x, *sides in triples(30)), ("ask", a, b), ("ask", b, a), ("why", a, b), ("why", b, c),
            ("why", c, a), ("how", a, b)]  # fmt: skip
    data = write_set(tmp_path / "mine", {"a.jsonl": [ROWS["pairs"](*row) for row in rows]}, [{"layout": "pairs"}])
    report = validate_preferences(config(), None, data, tmp_path / "out")
    assert {place: row["reasons"] for place, row in quarantine(tmp_path / "out").items()} == {
        "data/mine/a.jsonl:31": ["contradictory"], "data/mine/a.jsonl:32": ["contradictory"]}  # fmt: skip
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality["cycles"] == {"comparisons": 3, "prompts": 1,
                                 "first": [f"data/mine/a.jsonl:{line}" for line in (33, 34, 35)]}  # fmt: skip
    assert quality["duplicates"]["contradictory"] == 2 and report["rows"]["kept"] == 34


def test_prompts_nearly_the_same_leave_train_and_answers_to_one_prompt_stay(tmp_path):
    generator = random.Random(3)
    long = sentence(generator, 60, 70)
    rows = [(long, *(sentence(generator) for _ in range(2))) for _ in range(5)]  # many answers to one prompt
    for _ in range(60):
        prompt = sentence(generator, 40, 50)
        rows += [(asked, sentence(generator), sentence(generator)) for asked in (prompt, f"{prompt} ok")]
    data = write_set(tmp_path / "mine", {"a.jsonl": [ROWS["pairs"](*row) for row in rows]}, [{"layout": "pairs"}])
    validate_preferences(config(), None, data, tmp_path / "out")
    order, left = {"test": 0, "validation": 1, "train": 2}, set()
    for line, (one, other) in enumerate(zip(rows[5::2], rows[6::2], strict=True)):
        splits = [order[split_of_text(row[0])] for row in (one, other)]
        if splits[0] != splits[1]:
            left.add(f"data/mine/a.jsonl:{6 + 2 * line + (splits[1] > splits[0])}")
    found = quarantine(tmp_path / "out")
    assert set(found) == left and len(left) > 5
    assert {tuple(row["reasons"]) for row in found.values()} == {("near_duplicate", "leakage")}


def test_rankings_of_several_responses(tmp_path):
    rows = [{"prompt": f"ask {n} about {sentence(random.Random(n))}", "responses": ["b b", "c c c", "a"],
             "ratings": [2, 1, 3]} for n in range(40)]  # fmt: skip
    rows += [{**rows[0], "prompt": "one", "responses": ["a"], "ratings": [1]},
             {**rows[0], "prompt": "tie", "ratings": [1, 1, 2]}]  # fmt: skip
    data = write_set(tmp_path / "mine", {"a.jsonl": rows}, [{"layout": "rankings"}])
    validate_preferences(config(), None, data, tmp_path / "out")
    assert [row["reasons"] for row in quarantine(tmp_path / "out").values()] == [["too_few_responses"], ["tied_ranks"]]
    found = kept(tmp_path / "out")
    assert len(found) == 40 and all(row["responses"] == ["a", "b b", "c c c"] for row in found)
    assert all((row["ratings"], row["margin"], row["agreement"]) == ([3, 2, 1], None, None) for row in found)
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality["position"]["best_first"] == 0 and quality["responses"] == {"3": 40}


# --- ratings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> dict:
    """900 rated texts in two files that meet by id, as the default set has them, some of them broken."""
    folder = tmp_path_factory.mktemp("ratings")
    rows = rated(900)
    texts = [f'{n}\t{0.5}\tsay "{n}" {row["text"]}' for n, row in enumerate(rows)]
    given = [f"{n}\t0.5\t1.0\t{row['ratings']}" for n, row in enumerate(rows)]
    given[5] = "5\t0.5\t1.0\t[1, x, 2]"
    given[7] = "someone\t0.5\t1.0\t[1, 2]"
    texts[9] = "9\tno text"
    texts[11] = texts[10].replace("10\t", "11\t", 1)
    texts[13] = "13\t0.5\t "
    data = folder / "data/mine"
    write_set(data, {"texts.txt": texts, "raw.txt": given}, [
        {"format": "tsv", "layout": "ratings", "header": ["id", "mean", "text"], "raters": "raw.txt", "name": "films"},
        {"format": "tsv", "layout": "raters", "header": ["id", "mean", "deviation", "ratings"]},
    ], prompt="Write a review.")  # fmt: skip
    report = validate_preferences(config(), None, data, folder / "out")
    texts = {f'say "{n}" {row["text"]}': row["ratings"] for n, row in enumerate(rows)}
    return {"data": data, "out": folder / "out", "report": report, "raters": texts}


def test_broken_ratings_are_in_quarantine(ratings):
    found = {place: (row["reasons"], row["detail"]) for place, row in quarantine(ratings["out"]).items()}
    assert found == {
        "data/mine/texts.txt:6": (["bad_ratings"], "the rating `x` is no number"),
        "data/mine/texts.txt:8": (["bad_ratings"], "there are no ratings"),
        "data/mine/texts.txt:10": (["unreadable_row"], "the line has 2 fields, the header 3"),
        "data/mine/texts.txt:12": (["exact_duplicate"], "repeats data/mine/texts.txt:11"),
        "data/mine/texts.txt:14": (["missing_response"], ""),
    }


def test_comparisons_are_formed_inside_a_split_each_text_once_the_better_mean_wins(ratings):
    texts = {row["text"]: row for row in pq.read_table(ratings["out"] / "texts.parquet").to_pylist()}
    assert len(texts) == 895
    used = []
    for row in kept(ratings["out"]):
        means = [round(sum(given) / len(given), 9) for given in (ratings["raters"][text] for text in row["responses"])]
        assert row["ratings"] == means and row["margin"] == means[0] - means[1] > 0
        assert row["agreement"] == agreement(*(ratings["raters"][text] for text in row["responses"]))
        assert {texts[text]["split"] for text in row["responses"]} == {row["split"]}
        assert [split_of_text(text) for text in row["responses"]] == [row["split"]] * 2
        assert row["prompt"] == [{"role": "user", "content": "Write a review."}] and row["source"] == "films"
        assert 0 <= row["one_against_rest"] <= 1 and 0 <= row["split_half"] <= 1
        used += row["responses"]
    assert len(used) == len(set(used))
    sizes = {split: sum(row["split"] == split for row in texts.values()) for split in SPLITS}
    pairs = {split: sum(row["split"] == split for row in kept(ratings["out"])) for split in SPLITS}
    assert all(pairs[split] >= sizes[split] // 2 - 2 for split in ("validation", "test"))
    assert pairs["train"] == pytest.approx(sizes["train"] / 4, rel=0.15)  # the other half are prompts


def test_prompts_of_train_are_texts_that_no_comparison_holds(ratings):
    compared = {text for row in kept(ratings["out"]) if row["split"] == "train" for text in row["responses"]}
    texts = {row["row_id"]: row for row in pq.read_table(ratings["out"] / "texts.parquet").to_pylist()}
    prompts = kept(ratings["out"], "prompts_")
    for row in prompts:
        text = texts[row["row_id"]]
        assert row["prefill"] == " ".join(text["text"].split()[:6]) and text["text"].startswith(row["prefill"])
        assert text["split"] == row["split"] and (row["split"] != "train" or text["text"] not in compared)
    free = {split: sum(row["split"] == split for row in prompts) for split in SPLITS}
    assert free["test"] == sum(text["split"] == "test" for text in texts.values())
    assert free["train"] + len(compared) == pytest.approx(sum(t["split"] == "train" for t in texts.values()), abs=2)


def test_human_figures_stand_in_the_quality_report(ratings):
    quality = json.loads((ratings["out"] / "quality.json").read_text())
    rows = kept(ratings["out"])
    for figures in quality["humans_all"]:
        chosen = [row for row in rows if row["margin"] >= figures["margin"]]
        assert figures["pairs"] == len(chosen)
        mean = sum(row["one_against_rest"] for row in chosen) / len(chosen)
        assert figures["one_against_rest"] == pytest.approx(mean, abs=1e-6)
    figures = [row["one_against_rest"] for row in quality["humans_all"]]
    assert figures == sorted(figures) and figures[-1] > 0.9
    assert quality["agreement"]["pairs"] == len(rows)
    assert quality["prompts"]["shared_by_train_and_test"] == 1  # all texts answer the one prompt


def test_adding_texts_moves_none_and_a_sample_is_a_part(ratings, tmp_path):
    validate_preferences(config(sample=0.5), None, ratings["data"], tmp_path / "half")
    all_texts, half = (pq.read_table(out / "texts.parquet").to_pylist() for out in (ratings["out"], tmp_path / "half"))
    assert 350 < len(half) < 550 and all(row in all_texts for row in half)
    prompts = {row["row_id"] for row in kept(tmp_path / "half", "prompts_")}
    assert prompts == {row["row_id"] for row in kept(ratings["out"], "prompts_")} & {row["row_id"] for row in half}


def test_ratings_write_the_same_bytes_in_other_batches(ratings, tmp_path, monkeypatch):
    monkeypatch.setattr("ajuste.rows.layouts.rated_pairs.BUCKET_ROWS", 50)
    validate_preferences(config(batch_rows=200), None, ratings["data"], tmp_path / "again")
    first, again = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in
                    (ratings["out"], tmp_path / "again"))  # fmt: skip
    assert first == again


def test_texts_of_one_mean_form_no_comparison(tmp_path):
    rows = [{"text": f"{sentence(random.Random(n), 10, 12)}", "ratings": [1, 1]} for n in range(60)]
    data = write_set(tmp_path / "mine", {"a.jsonl": rows}, [{"layout": "ratings"}], prompt="Write.")
    report = validate_preferences(config(), None, data, tmp_path / "out")
    assert kept(tmp_path / "out") == [] and report["splits"]["validation"]["unpaired"] > 0
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality["label_noise"] is quality["humans"] is quality["length"] is None


# --- what stops the stage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "entries", "more", "message"),
    [
        ({"a.jsonl": [{"prompt": "x", "chosen": "y"}]}, [{"layout": "pairs"}], {}, "has no column `rejected`"),
        ({"a.jsonl": [{"text": "x", "ratings": [1]}]}, [{"layout": "ratings"}], {}, "needs `prompt`"),
        ({"a.jsonl": [ROWS["pairs"]("x", "y", "y")]}, [{"layout": "pairs"}], {}, "equal_responses 1"),
        ({"a.tsv": ["1\tx", "1\ty"], "b.tsv": ["1\t[1]", "1\t[2]"]},
         [{"layout": "ratings", "format": "tsv", "header": ["id", "text"], "raters": "b.tsv"},
          {"layout": "raters", "format": "tsv", "header": ["id", "ratings"]}], {"prompt": "w"}, "tsv:2: id `1` comes"),
        ({"a.jsonl": [{"text": "x", "id": 1}]}, [{"layout": "ratings", "raters": "c"}], {"prompt": "w"}, "c, and that"),
        ({"a.jsonl": [ROWS["pairs"]("x", "y", "z")]}, [{"layout": "pairs", "columns": {"worse": "z"}}], {},
         "layout pairs has no `worse`"),
        ({"a.jsonl": [ROWS["pairs"]("x", "y", "z")]}, [{"layout": "pairs", "header": ["a"]}], {}, "format tsv"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, files, entries, more, message):
    data = write_set(tmp_path / "mine", files, entries, **more)
    with pytest.raises(DataError, match=message) as caught:
        validate_preferences(config(max_quarantine_share=0.1), None, data, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_set_of_another_kind_is_refused_and_dialogues_keep_their_turns(tmp_path):
    rows = [{"chosen": transcript("hi", "hello", row[0], row[1]), "rejected": transcript("hi", "hello", row[0], row[2])}
            for row in triples(20)]  # fmt: skip
    data = write_set(tmp_path / "mine", {"a.jsonl": rows}, [{"layout": "transcripts"}])
    validate_preferences(config(), None, data, tmp_path / "out")
    found = kept(tmp_path / "out")
    assert len(found) == 20 and len({row["split"] for row in found}) == 1  # by the first user turn
    assert [turn["role"] for turn in found[0]["prompt"]] == ["user", "assistant", "user"]
    (tmp_path / "mine/set.yaml").write_text("kind: chats\n")
    with pytest.raises(DataError, match="a set of kind chats, and preferences is needed here"):
        validate_preferences(config(), None, tmp_path / "mine", tmp_path / "out")
