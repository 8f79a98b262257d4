"""What a judge reads, made by hand in the layouts of the stages: pairs that people have judged, prompts, samples."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ajuste.learning.statistics.agreement import agreement, one_against_rest
from ajuste.learning.text import chat
from ajuste.models import decoder
from tests.made.tiny_rlhf import ASKED, SNIPPETS

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
KEPT = pa.schema(
    [("row_id", pa.string()), ("prompt", MESSAGES), ("responses", pa.list_(pa.string()))]
    + [("ratings", pa.list_(pa.float64()))]
    + [(name, pa.float64()) for name in ("agreement", "margin", "one_against_rest", "split_half")]
    + [("source", pa.string()), ("location", pa.string())]
)
PROMPT = [{"role": "user", "content": ASKED}]
GOOD, BAD = ["good", "warm", "funny", "fast"], ["bad", "cold", "dull", "slow"]
SUBJECTS = ["film", "plot", "scene", "actor", "story", "cast"]


def ratings_set(folder: Path, texts: int = 240) -> Path:
    """A set of rated texts: every second one praises a subject, and five raters mostly agree."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(texts):
        word = (GOOD if i % 2 else BAD)[i // 12 % 4]
        mean = (2 if i % 2 else -2) + i % 3 / 2
        given = [mean + shift for shift in (-1, -0.5, 0, 0.5, 1)][: 4 + i % 2]
        text = f"The {SUBJECTS[i // 2 % 6]} of number {i} is really {word} and it goes on {'and on ' * (i % 5)}so."
        lines.append(json.dumps({"text": text, "ratings": given}))
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "set.yaml").write_text(
        f"kind: preferences\nprompt: {ASKED}\nlicence: none\nfiles:\n"
        "- {path: texts.jsonl, format: jsonl, layout: ratings, source: 'path:texts.jsonl'}\n"
    )
    return folder


def validated(data: Path, folder: Path) -> Path:
    """artifacts/validated/preferences of a ratings_set: pairs of two texts in a row, 24 prompts a split."""
    rows = [json.loads(line) for line in (data / "texts.jsonl").read_text().splitlines()]
    folder.mkdir(parents=True)
    (folder / "validation.json").write_text(json.dumps({"set": data.name}))
    (folder / "quality.json").write_text("{}")
    third = len(rows) // 4 // 2 * 2
    parts = {"train": (0, len(rows) - 2 * third), "validation": (len(rows) - 2 * third, len(rows) - third),
             "test": (len(rows) - third, len(rows))}  # fmt: skip
    for split, (begin, end) in parts.items():
        found = []
        for i in range(begin, end - 1, 2):
            worse, better = rows[i], rows[i + 1]
            means = [sum(row["ratings"]) / len(row["ratings"]) for row in (better, worse)]
            raters = better["ratings"], worse["ratings"]
            found.append({
                "row_id": f"{(i // 2 * 7919 + 13) % 65536:016x}", "prompt": PROMPT,
                "responses": [better["text"], worse["text"]], "ratings": means, "agreement": agreement(*raters),
                "margin": means[0] - means[1], "one_against_rest": one_against_rest(*raters), "split_half": 1.0,
                "source": "texts",
                "location": f"data/{data.name}/texts.jsonl:{i + 2} > data/{data.name}/texts.jsonl:{i + 1}",
            })  # fmt: skip
        pq.write_table(pa.Table.from_pylist(found, schema=KEPT), folder / f"{split}.parquet")
        begun = [" ".join(text.split()[:words]) for words in (6, 5, 4, 3) for text in SNIPPETS[::-1]]
        prompts = [{"row_id": f"{i * 7 + len(split):016x}", "prompt": PROMPT, "prefill": text, "source": "texts",
                    "location": f"texts:{i}"} for i, text in enumerate(begun)]  # fmt: skip
        schema = pa.schema([("row_id", pa.string()), ("prompt", MESSAGES)]
                           + [(name, pa.string()) for name in ("prefill", "source", "location")])  # fmt: skip
        pq.write_table(pa.Table.from_pylist(prompts, schema=schema), folder / f"prompts_{split}.parquet")
    return folder


def prompts(validated: Path, base: Path, folder: Path) -> Path:
    """artifacts/encoded/preferences/prompts_train.parquet of the validated prompts."""
    tokenizer = decoder.load_base(base)[1]
    folder.mkdir(parents=True)
    rows = pq.read_table(validated / "prompts_train.parquet").to_pylist()
    for row in rows:
        begun = chat.encode(tokenizer, row["prefill"])
        row |= {"prompt_ids": chat.prompt_ids(tokenizer, row.pop("prompt")) + begun, "prefill_tokens": len(begun)}
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts_train.parquet")
    return folder


def says_letters(folder: Path, out: Path, gain: float = 0.5) -> Path:
    """The decoder at `folder`, changed so that A and B are its likeliest first tokens, each for reasons of its own."""
    import torch

    model, tokenizer, card = decoder.load(folder)
    ids = chat.prompt_ids(tokenizer, PROMPT)
    letters = [chat.encode(tokenizer, letter)[0] for letter in ("A", "B")]
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        noise = torch.randn(2, len(hidden), generator=torch.Generator().manual_seed(5)) * 0.05
        model.get_output_embeddings().weight[letters] = gain * hidden / hidden.norm() * 2 + noise
    decoder.save_whole(model, tokenizer, out, card)
    return out
