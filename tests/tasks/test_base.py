"""A base in its clean form: the same outputs as its source, the same bytes every time, nothing of this machine."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, RobertaConfig, RobertaModel

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute
from tasks.base.encoder import EncoderConfig, encoder
from tests.made.folders import assert_names_nothing_local, contents

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
TEXTS = ["A warm, funny film.", "dull"]


def bring(source: Path, out: Path) -> dict:
    return encoder(EncoderConfig(source=f"path:{source}"), COMPUTE, out)


def outputs(folder: Path, **options: object) -> torch.Tensor:
    model, tokenizer = AutoModel.from_pretrained(folder, **options).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state


def test_the_same_model_and_the_same_bytes(tiny_encoder: Path, tmp_path: Path) -> None:
    card = bring(tiny_encoder, tmp_path / "one")
    moved = shutil.copytree(tiny_encoder, tmp_path / "elsewhere" / tiny_encoder.name)
    bring(moved, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert torch.equal(outputs(tiny_encoder), outputs(tmp_path / "one"))
    import hashlib

    weights = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(weights).hexdigest()
    assert card == json.loads((tmp_path / "one" / "base.json").read_text())


def test_nothing_of_this_machine_or_of_a_library_version_is_written(tiny_encoder: Path, tmp_path: Path) -> None:
    bring(tiny_encoder, tmp_path / "out")
    assert_names_nothing_local(tmp_path / "out", tmp_path.parent, tiny_encoder.parent)
    assert not list((tmp_path / "out").glob("*.bin")) and not list((tmp_path / "out").glob("*.pt"))


def test_a_length_baked_into_the_tokenizer_is_taken_out(tiny_encoder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    bring(source, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert kept["truncation"] is None and kept["padding"] is None
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out").backend_tokenizer.encode("good " * 20).ids) == 22


def test_bfloat16_and_torch_files_become_float32_safetensors(tiny_encoder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    state = AutoModel.from_pretrained(tiny_encoder, dtype=torch.bfloat16).state_dict()
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    bring(source, tmp_path / "out")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    for name, tensor in state.items():
        assert torch.equal(saved[name], tensor.float()), name


def test_a_torch_file_that_runs_code_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "it ran",))

    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    (source / "model.safetensors").unlink()
    torch.save({"embeddings": Bomb()}, source / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot be loaded"):
        bring(source, tmp_path / "out")
    assert not (tmp_path / "it ran").exists()


def test_a_head_for_another_task_is_left_out(tiny_encoder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    torch.manual_seed(1)
    whole = BertForMaskedLM(BertConfig.from_pretrained(tiny_encoder))
    whole.save_pretrained(source)
    bring(source, tmp_path / "one")
    torch.manual_seed(99)  # the pooler that this checkpoint lacks is drawn by the stage's own seed
    bring(source, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    model = AutoModel.from_pretrained(tmp_path / "one")
    assert torch.equal(model.encoder.layer[0].output.dense.weight, whole.bert.encoder.layer[0].output.dense.weight)


def test_another_architecture(tiny_encoder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    size = len(AutoTokenizer.from_pretrained(tiny_encoder))
    config = RobertaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=64, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    RobertaModel(config).save_pretrained(source)
    bring(source, tmp_path / "out")
    assert torch.equal(outputs(source), outputs(tmp_path / "out"))


@pytest.mark.parametrize(
    "case", ["no model", "no weights", "cut weights", "no tokenizer", "own code", "few embeddings"]
)
def test_a_base_that_cannot_be_used_is_one_line(case: str, tiny_encoder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    weights = source / "model.safetensors"
    if case == "no model":
        (source / "config.json").unlink()
    elif case == "no weights":
        weights.unlink()
    elif case == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif case == "no tokenizer":
        for file in source.glob("tokenizer*"):
            file.unlink()
    elif case == "own code":
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
        (source / "config.json").write_text(json.dumps(config))
        (source / "own.py").write_text("raise SystemExit('ran')")
    else:
        BertForMaskedLM(BertConfig(**{**config, "vocab_size": 100})).bert.save_pretrained(source)
    with pytest.raises(UsageError) as caught:
        bring(source, tmp_path / "out")
    assert "source" in str(caught.value) and "\n" not in str(caught.value)
