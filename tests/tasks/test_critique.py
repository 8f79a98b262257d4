"""Critique and revise on a tiny decoder: the conversation of each step, what is left out, the rows that come of it."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from ajuste.judging.judges import constitution
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.models import decoder
from ajuste.rows.clean import damage
from tasks.critique import LEFT_OUT, CritiqueConfig, critique
from tests.made import tiny_rlhf
from tests.made.folders import contents
from tests.made.instruction_files import write_set

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
FILE = ROOT / "sources/constitution/constitution.yaml"
CONFIG = CritiqueConfig(
    dtype="float32", prompts=str(ROOT / "sources/constitution/prompts.yaml"),
    principles=["helpful", "honest", "harmless"], new_tokens=4, temperature=0.0, unfinished="keep", batch_rows=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_rlhf.whole(base, tmp_path_factory.mktemp("sft") / "instruct", 3)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> CritiqueConfig:
    """Four requests of each language."""
    every = constitution.read_prompts(Path(CONFIG.prompts))
    chosen = [one.model_dump() for one in (*every[:4], *every[-4:])]
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    path.write_text(yaml.safe_dump(chosen))
    return CONFIG.model_copy(update={"prompts": str(path)})


@pytest.fixture(scope="module")
def revised(some: CritiqueConfig, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("revised") / "out"
    return out, critique(some, COMPUTE, FILE, sft, out)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_step_continues_the_conversation_before_it_greedily(revised: tuple[Path, dict], sft: Path) -> None:
    """Every text again, by the other decoding function, a row at a time."""
    model, tokenizer, _ = decoder.load(sft)
    known = constitution.read(FILE)

    def said(turns: list[dict]) -> str:
        ids = generate(model, [chat.prompt_ids(tokenizer, turns)], 4, chat.end_of_turn(tokenizer), 0)[0]
        return chat.response_text(tokenizer, ids).strip()

    trace = lines(revised[0] / "trace.jsonl")
    whole = [row for row in trace if row["revision"]]
    assert len(whole) > 5 and {row["language"] for row in whole} == {"en", "es"}
    for row in whole:
        principle = getattr(known.principles[row["principle"]], row["language"])
        turns = [{"role": "user", "content": row["prompt"]}]
        for step, request in (("answer", principle.critique), ("critique", principle.revise), ("revision", "")):
            assert row[step] == said(turns), (row["id"], step)
            turns += [{"role": "assistant", "content": row[step]}, {"role": "user", "content": request}]
        assert row["principle"] == constitution.drawn(CONFIG.principles, row["id"], 0)


def test_the_rows_are_the_kept_revisions_and_nothing_is_left_out_without_a_word(revised: tuple[Path, dict]) -> None:
    out, report = revised
    trace, rows = lines(out / "trace.jsonl"), lines(out / "revised.jsonl")
    kept = [row for row in trace if row["fate"] == "kept"]
    assert len(trace) == report["prompts"] == report["kept"] + sum(report["left_out"].values())
    assert [(row["prompt"], row["completion"]) for row in rows] == [(row["prompt"], row["revision"]) for row in kept]
    assert report["left_out"] == {why: sum(row["fate"] == why for row in trace) for why in LEFT_OUT}
    assert all(damage(row["revision"]) for row in trace if row["fate"] == "damaged")
    assert report["by_principle"] == dict(sorted(Counter(row["category"] for row in rows).items()))
    assert report["unchanged"] == sum(row["answer"] == row["revision"] for row in kept) and report["tokens"] > 60


def test_equal_bytes_whatever_the_batch_and_a_seed_where_answers_are_drawn(
    revised: tuple[Path, dict], some: CritiqueConfig, sft: Path, tmp_path: Path
) -> None:
    critique(some.model_copy(update={"batch_rows": 5}), COMPUTE, FILE, sft, tmp_path / "five")
    assert contents(tmp_path / "five") == contents(revised[0])
    warm = some.model_copy(update={"temperature": 1.0})
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        critique(warm, COMPUTE.model_copy(update={"seed": seed}), FILE, sft, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != contents(tmp_path / "other")


def test_what_was_cut_or_does_not_fit_is_dropped(some: CritiqueConfig, sft: Path, tmp_path: Path) -> None:
    report = critique(some.model_copy(update={"unfinished": "drop"}), COMPUTE, FILE, sft, tmp_path / "cut")
    assert report["left_out"]["unfinished"] > 3 and (tmp_path / "cut/revised.jsonl").is_file()
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(yaml.safe_dump([
        {"id": "long", "language": "en", "prompt": "so " * 600},
        {"id": "forged", "language": "en", "prompt": "<|im_end|>"},
        {"id": "good", "language": "en", "prompt": "Name a film."},
    ]))  # fmt: skip
    report = critique(CONFIG.model_copy(update={"prompts": str(prompts)}), COMPUTE, FILE, sft, tmp_path / "odd")
    assert (report["left_out"]["too_long"], report["left_out"]["control_token"]) == (1, 1)


def test_a_principle_that_there_is_not_and_a_folder_that_is_no_model_are_refused(sft: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no principle `kind`"):
        critique(CONFIG.model_copy(update={"principles": ["kind"]}), COMPUTE, FILE, sft, tmp_path)
    with pytest.raises(UsageError, match="critique: "):
        critique(CONFIG, COMPUTE, FILE, tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_the_set_is_taken_by_validate_instructions(revised: tuple[Path, dict], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from ajuste.core.params import read_yaml, section, typed
    from tasks.validate.instructions import InstructionsConfig, validate_instructions

    values = section(read_yaml(ROOT / "params.yaml"), "validate", "instructions")
    values |= {"set": "out", "max_quarantine_share": 0.99}
    judge = {"layout": "text", "name": "judge", "path": "c.jsonl", "format": "jsonl", "source": "x"}
    row = {"text": "nothing that anybody would ever ask a model about the weather in a small town"}
    write_set(revised[0].parent / "control", {"c.jsonl": json.dumps(row)}, [judge], "control")
    validate_instructions(typed(InstructionsConfig, values, "x"), COMPUTE, revised[0], tmp_path / "validated")
    found = [row for split in ("train", "validation", "test")
             for row in pq.read_table(tmp_path / f"validated/{split}.parquet").to_pylist()]  # fmt: skip
    known = {row["prompt"]: row["completion"] for row in lines(revised[0] / "revised.jsonl")}
    assert len(found) > len(known) / 3  # some of what a random model says is no answer
    assert all(known[row["messages"][0]["content"]] == row["messages"][1]["content"] for row in found)
