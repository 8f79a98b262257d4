"""Keys of the stages that read, check and encode rows: base, validate, encode."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.params import Compute
from ajuste.rows.split import SPLITS
from tasks.base.decoder import DecoderConfig, decoder
from tasks.base.encoder import EncoderConfig, encoder
from tasks.encode import instructions as encode_instructions
from tasks.encode import preferences as encode_preferences
from tasks.encode import reviews as encode_reviews
from tasks.validate import instructions, preferences, reviews
from tests.keys.cases import Compared, To, cases
from tests.made import instruction_files, preference_files
from tests.tasks import test_encode_instructions, test_encode_preferences
from tests.tasks.test_validate import make_set

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
LIMITS = {"train": None, "validation": None, "test": None}
SECTIONS = {
    "base.encoder": {"source": "made:tiny-encoder"},
    "base.decoder": {"source": "made:tiny-decoder", "dtype": "float32"},
    "validate.reviews": {"set": "mine", "sample": 1.0, "max_chars": 400, "near_duplicate_jaccard": 0.8,
                         "max_quarantine_share": 0.5, "min_class_share": 0.05, "batch_rows": 256},
    "validate.instructions": {"set": "mine", "sample": 1.0, "max_chars": 5000, "max_repeats": 6, "ngram": 8,
                              "near_duplicate_jaccard": 0.8, "decontaminate": "control", "max_quarantine_share": 0.5,
                              "batch_rows": 256},
    "validate.preferences": {"set": "mine", "sample": 1.0, "max_chars": 5000, "near_duplicate_jaccard": 0.8,
                             "prompt_share": 0.5, "shared_with": [], "max_quarantine_share": 0.5, "batch_rows": 256},
    "encode.reviews": {"max_tokens": 32, "sources": ["mine"], "rows": LIMITS, "unknown_share": 1.0,
                       "batch_rows": 256},
    "encode.instructions": {"max_tokens": 128, "weights": {"wiki": 1}, "rows": LIMITS, "batch_rows": 256},
    "encode.preferences": {"max_tokens": 128, "max_prompt_tokens": 96, "rows": LIMITS, "prompts": LIMITS,
                           "min_margin": {"train": 1.0, "validation": 0.5, "test": 0.5}, "batch_rows": 256},
}  # fmt: skip
CASES = {
    "base.encoder": {"source": "path:other"},
    "base.decoder": {"source": "path:other", "dtype": "bfloat16"},
    "validate.reviews": {
        "set": "other", "sample": 0.5, "max_chars": 60, "near_duplicate_jaccard": 1.0, "max_quarantine_share": 0.01,
        "min_class_share": 0.9,
    },
    "validate.instructions": {
        "set": "other", "sample": 0.5, "max_chars": 80, "max_repeats": 2, "near_duplicate_jaccard": 1.0,
        "decontaminate": "judge", "ngram": To(20, under={"decontaminate": "judge"}), "max_quarantine_share": 0.01,
    },
    "validate.preferences": {
        "set": "other", "sample": 0.5, "max_chars": 60, "prompt_share": 0.1, "near_duplicate_jaccard": 1.0,
        "shared_with": ["other"], "max_quarantine_share": 0.001,
    },
    "encode.reviews": {
        "max_tokens": 8, "sources": ["second"], "unknown_share": 0.0, "rows.train": 5, "rows.validation": 1,
        "rows.test": 1,
    },
    "encode.instructions": {
        "max_tokens": 48, "weights.wiki": 2, "rows.train": 5, "rows.validation": 1, "rows.test": 1,
    },
    "encode.preferences": {
        "max_tokens": 24, "max_prompt_tokens": 12, "min_margin.train": 3.0, "min_margin.validation": 3.0,
        "min_margin.test": 3.0, "rows.train": 5, "rows.validation": 1, "rows.test": 1, "prompts.train": 2,
        "prompts.validation": 2, "prompts.test": 2,
    },
}  # fmt: skip
SILENT = dict.fromkeys([f"{verb}.{kind}.batch_rows" for verb in ("validate", "encode")
                        for kind in ("reviews", "instructions", "preferences")],
                       "rows in memory at a time")  # fmt: skip


def files_of(data: Path) -> None:
    """Sets `mine` and `other` of every kind, in folders reviews, instructions and preferences."""
    rng = random.Random(0)
    words = instruction_files.sentence
    for name in ("other", "mine"):  # what judges has rows of the last
        rows = [(words(rng, 10, 30).encode(), rng.choice([b"bad", b"good"])) for _ in range(60)]
        rows.append((rows[0][0] + b" ba", rows[0][1]))  # nearly the same
        make_set(data / "reviews" / name, rows, ["bad", "good"], name=f"{name}.csv")

        pairs = [(words(rng), words(rng)) for _ in range(60)]
        pairs.append((pairs[0][0], pairs[0][1] + " ba"))
        pairs.append((words(rng), "Yes it is so. " + "The same again and again. " * 4))
        lines = [instruction_files.ROWS["messages"](*pair) for pair in pairs]
        text = "\n".join(map(json.dumps, lines)) + "\n"
        instruction_files.write_set(data / "instructions" / name, {f"{name}.jsonl": text}, [{"layout": "messages"}])

        rated = preference_files.rated(80, seed=1)  # the same texts in both, for `shared_with`
        rated.append({**rated[0], "text": rated[0]["text"] + " ba"})
        preference_files.write_set(data / "preferences" / name, {f"{name}.jsonl": rated},
                                   [{"layout": "ratings"}], prompt="Write a review.")  # fmt: skip

        judged = "\n".join(json.dumps({"text": question}) for question, _ in pairs[:20])
        instruction_files.write_set(data / "instructions" / "judge", {"c.jsonl": judged},
                                    [{"layout": "text", "name": "c"}], "control")  # fmt: skip


def validated_sets(root: Path) -> None:
    """Rows as validation leaves them, for the stages that encode: folders reviews, instructions, preferences."""
    scattered = [f"{(n + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in range(40)]
    (root / "reviews").mkdir(parents=True)
    rows = [{"row_id": ids, "label": n % 2, "text": "a good film ☃ " * (n % 9 + 1), "source": ["mine", "second"][n % 2],
             "location": f"data/x/x.csv:{n + 2}"} for n, ids in enumerate(scattered)]  # fmt: skip
    for split in SPLITS:
        pq.write_table(pa.Table.from_pylist(rows, schema=reviews.KEPT), root / "reviews" / f"{split}.parquet")
    (root / "reviews/labels.json").write_text('["x", "y"]')
    (root / "reviews/validation.json").write_text('{"set": "x"}')

    a_row = test_encode_instructions.a_row
    turns = [(n, [{"role": "user", "content": f"Count to {n}, " * 8}, {"role": "assistant", "content": f"{n} it is."}])
             for n in range(20)]  # fmt: skip
    rows = [a_row(n, "alpaca", messages) for n, messages in turns]
    rows += [a_row(n, "wiki", [{"role": "text", "content": f"A film of {n} people."}]) for n in range(8)]
    test_encode_instructions.write(root / "instructions", dict.fromkeys(SPLITS, rows))

    rows = [test_encode_preferences.a_row(n) for n in range(40)]
    prompts = [test_encode_preferences.a_prompt(n, prefill=f"the film {n} is " * (1 + n % 3)) for n in range(20)]
    test_encode_preferences.write(root / "preferences", rows, prompts)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_decoder: Path) -> dict[str, Compared]:
    data, sets = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("validated")
    files_of(data)
    validated_sets(sets)

    def validated(kind: str, config: type, validate: Callable) -> Callable:
        return lambda section, out: validate(config(**section), COMPUTE, data / kind / section["set"], out)

    def encoded(kind: str, config: type, encode: Callable) -> Callable:
        base = tiny_encoder if kind == "reviews" else tiny_decoder
        return lambda section, out: encode(config(**section), COMPUTE, sets / kind, base, out)

    functions = {
        "base.encoder": lambda section, out: encoder(EncoderConfig(**section), COMPUTE, out),
        "base.decoder": lambda section, out: decoder(DecoderConfig(**section), out),
        "validate.reviews": validated("reviews", reviews.ReviewsConfig, reviews.validate_reviews),
        "validate.instructions": validated(
            "instructions", instructions.InstructionsConfig, instructions.validate_instructions
        ),
        "validate.preferences": validated(
            "preferences", preferences.PreferencesConfig, preferences.validate_preferences
        ),
        "encode.reviews": encoded("reviews", encode_reviews.ReviewsConfig, encode_reviews.encode_reviews),
        "encode.instructions": encoded(
            "instructions", encode_instructions.InstructionsConfig, encode_instructions.encode_instructions
        ),
        "encode.preferences": encoded(
            "preferences", encode_preferences.PreferencesConfig, encode_preferences.encode_preferences
        ),
    }
    return {name: Compared(functions[name], SECTIONS[name]) for name in functions}


@pytest.mark.parametrize(("section", "key", "to"), cases(CASES))
def test_a_key_says_something(stages: dict[str, Compared], section: str, key: str, to: object) -> None:
    stages[section].differs(key, to)
