"""A decoder in its clean form: the same model as its source, GGUF too, equal bytes, one line for a fault."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from ajuste.core.errors import UsageError
from ajuste.learning.text import chat
from ajuste.models.gguf import gguf_tokenizer
from tasks.base.decoder import DecoderConfig, decoder
from tests.made.folders import assert_names_nothing_local, contents

TALK = [{"role": "user", "content": "Name a color."}, {"role": "assistant", "content": "Blue."}]
TEXT = "Steps:\n\n1. In 2024 it was 10%.\n\n\n2. Don't, ünï  ☃ 3."


def bring(source: Path, out: Path, dtype: str = "bfloat16") -> dict:
    return decoder(DecoderConfig(source=f"path:{source}", dtype=dtype), out)


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_gguf(source: Path, path: Path, pre: str) -> Path:
    """The tiny decoder as llama.cpp's own converter writes a Llama: other names, rows of q and k in another order."""
    from gguf import GGUFWriter, TokenType

    tokenizer = AutoTokenizer.from_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in sorted(model["vocab"].items(), key=lambda pair: pair[1])])
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokenizer) - 3))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
        "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in load_file(source / "model.safetensors").items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".")
        weight = tensor.numpy()
        if parts[-1] in ("q_proj", "k_proj"):
            heads = config["num_attention_heads" if parts[-1] == "q_proj" else "num_key_value_heads"]
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        block = f"blk.{parts[1]}." if parts[0] == "layers" else ""
        writer.add_tensor(f"{block}{names[parts[-1]]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_same_model_the_same_bytes_and_its_digests(tiny_decoder: Path, tmp_path: Path) -> None:
    card = bring(tiny_decoder, tmp_path / "one")
    bring(shutil.copytree(tiny_decoder, tmp_path / "elsewhere" / tiny_decoder.name), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    ids = chat.prompt_ids(tokenizer, TALK[:1])
    assert torch.equal(logits(tiny_decoder, ids), logits(tmp_path / "one", ids))  # its weights fit into bfloat16
    saved = load_file(tmp_path / "one" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in saved  # tied: stored once
    assert card == json.loads((tmp_path / "one" / "base.json").read_text())
    assert card == {
        "source": f"path:{tiny_decoder.name}",
        "id": tiny_decoder.name,
        "sha256": sha256(tmp_path / "one" / "model.safetensors"),
        "tokenizer_sha256": sha256(tmp_path / "one" / "tokenizer.json"),
        "template_sha256": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        "dtype": "bfloat16",
    }


def test_nothing_of_this_machine_or_of_a_library_version_is_written(tiny_decoder: Path, tmp_path: Path) -> None:
    bring(tiny_decoder, tmp_path / "out")
    assert_names_nothing_local(tmp_path / "out", tmp_path.parent, tiny_decoder.parent)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 2)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(tiny_decoder: Path, tmp_path: Path, pre: str) -> None:
    file = write_gguf(tiny_decoder, tmp_path / "tiny.gguf", pre)
    card = bring(file, tmp_path / "one")
    bring(file, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (card["id"], card["source"]) == ("tiny.gguf", "path:tiny.gguf")
    assert "quant" not in (tmp_path / "one" / "config.json").read_text()
    own, found = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_decoder, tmp_path / "one"))
    assert found.chat_template == own.chat_template and found.pad_token == own.pad_token == "<|im_end|>"
    ids = [token for part, _ in chat.segments(own, TALK) for token in part]
    assert ids == [token for part, _ in chat.segments(found, TALK) for token in part]
    assert torch.equal(logits(tmp_path / "one", ids), logits(tiny_decoder, ids))
    assert found.decode(found(TEXT)["input_ids"]) == TEXT
    if pre == "gpt-2":
        assert found(TEXT)["input_ids"] == own(TEXT)["input_ids"]


def test_digits_are_cut_off_first_where_the_model_was_made_so(tiny_decoder: Path, tmp_path: Path) -> None:
    """What stands before a digit is cut as if nothing followed: two line feeds stay together (SmolLM2's `ĊĊ`)."""
    file = write_gguf(tiny_decoder, tmp_path / "tiny.gguf", "smollm")
    cut = gguf_tokenizer(file, "tiny").backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12 b\n\nc")
    assert [piece for piece, _ in cut] == ["a", "ĊĊ", "1", "2", "Ġb", "Ċ", "Ċ", "c"]


def test_a_gguf_file_that_cuts_text_in_an_unknown_way_is_refused(tiny_decoder: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_decoder, tmp_path / "tiny.gguf", "hunyuan")
    with pytest.raises(UsageError, match="how its tokenizer cuts text .`hunyuan`. is not known here"):
        bring(file, tmp_path / "out")


def test_without_a_padding_token_the_end_pads_and_without_a_template_the_tags_write(tmp_path: Path, tiny_decoder: Path,
                                                                                  capsys) -> None:  # fmt: skip
    """GPT-2: no padding token, no template, another architecture, weights tied."""
    source = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer.pad_token, tokenizer.chat_template = None, None
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64,
                               bos_token_id=2, eos_token_id=2)).save_pretrained(source)  # fmt: skip
    tokenizer.save_pretrained(source)
    (source / "chat_template.jinja").unlink(missing_ok=True)
    card = bring(source, tmp_path / "out", "float32")
    assert "<|im_end|> pads too" in capsys.readouterr().err
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.pad_token, found.chat_template) == ("<|im_end|>", None)
    assert card["template_sha256"] == chat.template_sha256(found)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["pad_token_id"] == 2
    ids = chat.prompt_ids(found, TALK[:1])
    assert torch.equal(logits(source, ids), logits(tmp_path / "out", ids))


@pytest.mark.parametrize("case", ["an encoder", "a missing weight", "a weight too many", "no end", "bad template",
                                  "no gguf", "few embeddings"])  # fmt: skip
def test_a_base_that_cannot_be_used_is_one_line(case: str, tiny_decoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = shutil.copytree(tiny_decoder, tmp_path / "source")
    state = load_file(source / "model.safetensors")
    if case == "an encoder":
        config = BertConfig(vocab_size=2048, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        BertModel(config).save_pretrained(source)
        named = "no causal language model"
    elif case == "a missing weight":
        del state["model.layers.0.mlp.up_proj.weight"]
        named = "1 missing weights, first model.layers.0.mlp.up_proj.weight"
    elif case == "a weight too many":
        state["v_head.weight"] = torch.zeros(1, 128)
        named = "1 unexpected weights, first v_head.weight"
    elif case in ("no end", "bad template"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        if case == "no end":
            tokenizer.eos_token, named = None, "no end-of-sequence token"
        else:
            tokenizer.chat_template, named = "{{ messages | length }}", "differently once the conversation goes on"
        tokenizer.save_pretrained(source)
    elif case == "few embeddings":
        config = json.loads((source / "config.json").read_text()) | {"vocab_size": 100}
        (source / "config.json").write_text(json.dumps(config))
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:100].clone()
        named = "2048 tokens, the model only 100"
    else:
        source = source / "model.gguf"
        source.write_text("this is no model")
        named = "no GGUF file"
    if case in ("a missing weight", "a weight too many", "few embeddings"):
        save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError) as caught:
        bring(source, tmp_path / "out")
    assert named in str(caught.value) and "\n" not in str(caught.value)
