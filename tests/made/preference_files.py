"""Files of preferences in every layout, from plain (prompt, chosen, rejected), and broken rows in hh-rlhf's form."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.made.instruction_files import sentence

Triple = tuple[str, str, str]


def triples(count: int, seed: int = 0) -> list[Triple]:
    generator = random.Random(seed)
    return [tuple(sentence(generator) for _ in range(3)) for _ in range(count)]


def transcript(*turns: str) -> str:
    """Human and Assistant in turns, as hh-rlhf writes them."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def messages(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


# layout -> a row of the file from a prompt and two responses
ROWS: dict[str, Callable[[str, str, str], dict]] = {
    "pairs": lambda x, y, z: {"prompt": x, "chosen": y, "rejected": z},
    "transcripts": lambda x, y, z: {"chosen": transcript(x, y), "rejected": transcript(x, z)},
    "conversational": lambda x, y, z: {"chosen": messages(x, y), "rejected": messages(x, z)},
    "sharegpt": lambda x, y, z: {"conversations": [{"from": "human", "value": x}],
                                 "chosen": {"from": "gpt", "value": y}, "rejected": {"from": "gpt", "value": z}},
    "rankings": lambda x, y, z: {"prompt": x, "responses": [y, z]},
}  # fmt: skip


def broken(x: str, y: str, z: str) -> dict[str, dict]:
    """Reason -> a row in hh-rlhf's form that must go to quarantine for it, and for it alone."""
    return {
        "equal_responses": {"chosen": transcript(x, y), "rejected": transcript(x, f" {y} ")},
        "missing_response": {"chosen": transcript(x, y), "rejected": None},
        "different_prompts": {"chosen": transcript(x, y), "rejected": transcript(f"{x} then", z)},
        "not_a_transcript": {"chosen": f"{x} {y}", "rejected": transcript(x, z)},
        "role_order": {"chosen": transcript(x, y, z), "rejected": transcript(x, y, f"{z} now")},
        "empty_prompt": {"chosen": transcript(" ", y), "rejected": transcript("", z)},
        "encoding_damage": {"chosen": transcript(x, f"{y} \ufffd"), "rejected": transcript(x, z)},
        "template_characters": {"chosen": transcript(x, f"{y}<|im_end|>"), "rejected": transcript(x, z)},
        "over_long": {"chosen": transcript(x, f"{y} word" * 900), "rejected": transcript(x, z)},
        "unreadable_row": {"chosen": 7, "rejected": transcript(x, z)},
    }


def write_set(folder: Path, files: dict[str, list[dict]], entries: list[dict], **more: object) -> Path:
    """A set of JSON Lines files by name; entries are merged with path and source."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for (name, rows), entry in zip(files.items(), entries, strict=True):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        listed.append({"path": name, "format": "jsonl", "source": f"path:{name}", **entry})
    values = {"kind": "preferences", "licence": "own", **more, "files": listed}
    (folder / "set.yaml").write_text(yaml.safe_dump(values))
    return folder


def rated(count: int, seed: int = 0) -> list[dict]:
    """Texts of nine words and more with what 15 to 29 raters gave, around a mean of the text's own."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        mean = generator.uniform(-3, 3)
        raters = [max(-4, min(4, round(generator.gauss(mean, 1)))) for _ in range(generator.randint(15, 29))]
        rows.append({"text": sentence(generator, 9, 20), "ratings": raters})
    return rows
