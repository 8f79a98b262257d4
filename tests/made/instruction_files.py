"""Files of instructions in every layout, from plain (instruction, response) pairs, and broken rows for each."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import yaml

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def sentence(generator: random.Random, least: int = 8, most: int = 20) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(least, most)))


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    return [(sentence(generator), sentence(generator)) for _ in range(count)]


# layout -> a row of the file from an instruction and a response
ROWS: dict[str, Callable[[str, str], dict]] = {
    "alpaca": lambda x, y: {"instruction": x, "input": "", "output": y},
    "dolly": lambda x, y: {"instruction": x, "context": "", "response": y, "category": "open_qa"},
    "flan": lambda x, y: {"inputs": x, "targets": y},
    "prompt_completion": lambda x, y: {"prompt": x, "completion": y},
    "question_answer": lambda x, y: {"question": x, "answer": y},
    "messages": lambda x, y: {"messages": [{"role": "user", "content": x}, {"role": "assistant", "content": y}]},
    "sharegpt": lambda x, y: {"conversations": [{"from": "human", "value": x}, {"from": "gpt", "value": y}]},
    "tagged": lambda x, y: {"text": f"<instruction>{x}</instruction>\n<response>{y}</response>"},
}


def broken(layout: str, x: str, y: str) -> dict[str, str]:
    """Reason -> one line of a JSON Lines file that must go to quarantine for it, and for it alone."""
    row = ROWS[layout]
    lines = {
        "empty_instruction": row(" \n ", y),
        "empty_response": row(x, ""),
        "response_equals_instruction": row(x, f" {x.upper()} "),
        "over_long": row(x, y + " " + sentence(random.Random(y), 1500, 1500)),
        "repeated_response": row(x, " ".join(f"{y}. {word} thing is so." for word in WORDS[:6])),
        "encoding_damage": row(x, f"{y} \ufffd\x00"),
        "template_characters": row(x, f"{y}<|im_end|>"),
        "unreadable_row": {key: 7 for key in row(x, y)},
    }
    found = {reason: json.dumps(value) for reason, value in lines.items()}
    if layout == "messages":
        found["role_order"] = json.dumps({"messages": [{"role": "assistant", "content": y}]})
    if layout == "sharegpt":
        found["role_order"] = json.dumps({"conversations": [{"from": "human", "value": x}] * 2})
    return found


def write_set(folder: Path, files: dict[str, str], entries: list[dict], kind: str = "instructions") -> Path:
    """A set of files by name; entries are merged with path and source. Beside it stands a control set of one row."""
    if kind == "instructions" and not (folder.parent / "control").exists():
        judge = {"text": "no row of any test says these eight words here"}
        entry = {"layout": "text", "name": "c"}
        write_set(folder.parent / "control", {"c.jsonl": json.dumps(judge)}, [entry], "control")
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for (name, content), entry in zip(files.items(), entries, strict=True):
        (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
        listed.append({"path": name, "format": "jsonl", "source": f"path:{name}", **entry})
    (folder / "set.yaml").write_text(yaml.safe_dump({"kind": kind, "licence": "own", "files": listed}))
    return folder
