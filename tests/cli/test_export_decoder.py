"""`ajuste export` of assistants: plain transformers and plain PEFT load them where this project is not installed."""

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ajuste.cli.models import export
from ajuste.core.errors import UsageError
from ajuste.learning.text import chat
from ajuste.models import decoder
from tests.cli.registered import install, run
from tests.made import tiny_decoders
from tests.serving.conftest import FakeRegistry, speakers  # noqa: F401

torch.set_num_threads(1)
PLAIN = """
import importlib.util, json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, base, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
ours = [name for name in ("learning", "tasks", "tracking", "serving", "cli") if importlib.util.find_spec(name)]
assert not ours, ours
asked = tokenizer.apply_chat_template([{"role": "user", "content": "What is slow?"}], add_generation_prompt=True)
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0]
print(json.dumps({"logits": logits.tolist(), "asked": list(asked if isinstance(asked, list) else asked["input_ids"])}))
"""


@pytest.fixture
def folders(speakers, tmp_path_factory, monkeypatch, tmp_path):  # noqa: F811
    """Version 1 merged, 2 bottleneck; as adapters 1 LoRA, 2 DoRA, 3 QLoRA, 4 prefix tuning."""
    more = tmp_path_factory.mktemp("more")
    made = {method: tiny_decoders.tiny_adapter(speakers["base"], more / method, method)
            for method in ("bottleneck", "dora", "qlora", "prefix")}
    registry = FakeRegistry(
        {"assistant": [speakers["merged"], made["bottleneck"]],
         "assistant-adapter": [speakers["lora"], made["dora"], made["qlora"], made["prefix"]]},
        {"assistant": {"challenger": 1}},
    )
    install(monkeypatch, registry, tmp_path)
    return speakers | made


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The Python of a virtual environment that has the same packages, but for this project."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    # the packages by path: a .pth file inside them, such as that of an editable install, is not read
    paths = {sysconfig.get_paths()["purelib"], str(Path(torch.__file__).parents[1])}
    (Path(own) / "packages.pth").write_text("\n".join(sorted(paths)) + "\n")
    return python


@pytest.mark.slow
@pytest.mark.parametrize(("reference", "adapter"), [("assistant@challenger", False), ("assistant-adapter/1", True)])
def test_it_loads_without_this_project_and_gives_the_same_logits(reference, adapter, folders, elsewhere, tmp_path):
    run(export.command, reference, tmp_path / "out")
    model, tokenizer, _ = decoder.load(folders["lora"], folders["base"])
    asked = chat.prompt_ids(tokenizer, [{"role": "user", "content": "What is slow?"}])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([asked])).logits[0]
        base = decoder.load_base(folders["base"])[0](input_ids=torch.tensor([asked])).logits[0]
    assert (expected - base).abs().max() > 0.1, "the adapter changes nothing: this test could not fail"
    arguments = [tmp_path / "out", str(folders["base"]) if adapter else "", json.dumps(asked)]
    done = subprocess.run([elsewhere, "-I", "-c", PLAIN, *arguments], cwd="/", capture_output=True, text=True,
                          timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["asked"] == asked
    assert torch.allclose(torch.tensor(found["logits"]), expected, atol=1e-5)


def test_an_adapter_has_the_layout_that_vllm_reads(folders, tmp_path):
    run(export.command, "assistant-adapter/1", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(tiny_decoders.LORA["target_modules"])
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    assert not config["use_dora"] and not config["modules_to_save"] and not config["use_rslora"]
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 4
    for name, tensor in weights.items():
        assert name.startswith("base_model.model.model.layers.") and name.endswith((".lora_A.weight", ".lora_B.weight"))
        assert tensor.shape["lora_B" in name] == 4


def test_the_printed_lines_run_and_name_vllm(folders, tmp_path, capsys):
    said = {}
    references = {"whole": "assistant@challenger", "lora": "assistant-adapter/1", "dora": "assistant-adapter/2",
                  "qlora": "assistant-adapter/3", "prefix": "assistant-adapter/4"}
    for name, reference in references.items():
        run(export.command, reference, tmp_path / name)
        said[name] = capsys.readouterr().out.split("\n\n", 1)[1]
    values = {}
    *lines, last, vllm = said["whole"].strip().splitlines()
    assert vllm.startswith("# vLLM: vllm serve ")
    exec("\n".join(lines), values)
    assert isinstance(eval(last, values), str)
    for name in ("lora", "dora", "qlora", "prefix"):
        values = {}
        exec(said[name].replace('"BASE"', f'"{folders["base"]}"'), values)
        assert values["model"].peft_config and values["tokenizer"].chat_template
    assert '--served-model-name "tiny" --enable-lora --max-lora-rank 8' in said["lora"]
    assert "vLLM loads no DoRA" in said["dora"] and "vLLM loads no prefix tuning" in said["prefix"]
    assert "its base was quantised" in said["qlora"] and "load_in_4bit=True" in said["qlora"]
    exported = json.loads((tmp_path / "lora" / "exported.json").read_text())
    assert exported["strategy"] == "lora" and exported["base"]["template_sha256"]


def test_a_base_without_a_template_gets_the_tagged_form(speakers, tmp_path, monkeypatch, capsys):  # noqa: F811
    """For vLLM as a file, which writes what the training read."""
    plain = shutil.copytree(speakers["merged"], tmp_path / "plain")
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    registry = FakeRegistry({"assistant": [plain]}, {"assistant": {"challenger": 1}})
    install(monkeypatch, registry, tmp_path)
    run(export.command, "assistant", tmp_path / "out")
    said = capsys.readouterr().out
    run(export.command, "assistant", tmp_path / "served", "--for", "vllm")
    assert script_words(tmp_path / "served").count("./tagged.jinja") == 1
    assert (tmp_path / "served/tagged.jinja").read_text() == (tmp_path / "out/tagged.jinja").read_text()
    assert "<instruction>" in said
    option, file = vllm_command(said)[-2:]
    assert option == "--chat-template" and Path(file).parent == tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template is None
    turns = [{"role": "user", "content": "What is slow?"}, {"role": "assistant", "content": "A film."},
             {"role": "user", "content": "Why?"}]
    for messages in (turns, [{"role": "system", "content": "Be brief."}, *turns], turns[:1]):
        written = tokenizer.apply_chat_template(messages, chat_template=Path(file).read_text(), tokenize=False,
                                                add_generation_prompt=True)
        assert tokenizer(written, add_special_tokens=False)["input_ids"] == chat.prompt_ids(tokenizer, messages)


def vllm_command(said):
    """What stands behind `# vLLM: `, as a shell reads it."""
    text = said.split("# vLLM: ", 1)[1].replace("\\\n#", " ")
    return shlex.split(text.splitlines()[0])


def test_the_line_for_vllm_names_a_folder_that_holds_what_it_reads(folders, tmp_path, capsys):
    """vLLM is not run: the options are those of its documentation, the files those that it looks for."""
    run(export.command, "assistant@challenger", tmp_path / "a folder")
    program, verb, folder, *options = vllm_command(capsys.readouterr().out)
    assert (program, verb, Path(folder)) == ("vllm", "serve", tmp_path / "a folder")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given == {"--served-model-name": "assistant", "--dtype": "float32", "--generation-config": "vllm"}
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM") and config["model_type"]
    tensors = load_file(Path(folder) / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{given['--dtype']}"}
    assert not any("lora" in name or "base_layer" in name for name in tensors)
    assert (Path(folder) / "tokenizer.json").is_file() and AutoTokenizer.from_pretrained(folder).chat_template


def script_words(folder):
    """The command of serve.sh, as a shell reads it; $here is a folder of the name `.`."""
    script = (folder / "serve.sh").read_text()
    words = script[script.index("exec ") :].replace("\\\n", " ").replace("$here", ".").replace("$base", "BASE")
    return shlex.split(words)


@pytest.mark.parametrize(("reference", "adapter"), [("assistant@challenger", False), ("assistant-adapter/1", True)])
def test_for_vllm_a_folder_has_template_ends_of_a_turn_and_the_command(reference, adapter, folders, tmp_path, capsys):
    """vLLM is not run: the options are those of its documentation, and every file that they name is there."""
    out = tmp_path / "out"
    run(export.command, reference, out, "--for", "vllm")
    assert f"sh {out}/serve.sh" in capsys.readouterr().out
    program, verb, run_, model, *options, rest = script_words(out)
    assert (program, verb, run_, rest) == ("exec", "vllm", "serve", "$@")
    given = dict(zip((words := [word for word in options if word != "--enable-lora"])[::2], words[1::2], strict=True))
    common = {"--generation-config": ".", "--host": "127.0.0.1"}
    if adapter:
        assert model == "BASE" and "--enable-lora" in options
        lora = {"--served-model-name": "tiny", "--max-lora-rank": "8", "--lora-modules": "assistant-adapter=."}
        assert given == common | lora and (out / "adapter_model.safetensors").is_file()
    else:
        assert model == "." and given == common | {"--served-model-name": "assistant", "--dtype": "float32"}
        assert (out / "config.json").is_file() and (out / "model.safetensors").is_file()
    tokenizer = AutoTokenizer.from_pretrained(out)
    ends = json.loads((out / "generation_config.json").read_text())
    assert ends["eos_token_id"] == chat.end_of_turn(tokenizer) and ends["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.chat_template and (out / "tokenizer.json").is_file()
    shell = subprocess.run(["sh", "-n", out / "serve.sh"], capture_output=True, text=True)
    assert shell.returncode == 0, shell.stderr
    if adapter:
        done = subprocess.run(["sh", out / "serve.sh"], capture_output=True, text=True)
        assert done.returncode != 0 and "name the folder of tiny" in done.stderr


def test_for_vllm_what_it_cannot_load_is_refused_before_anything_is_written(folders, tmp_path):
    for version, why in ((2, "DoRA"), (4, "prefix tuning")):
        with pytest.raises(UsageError, match=f"assistant-adapter/{version} was tuned with {why}, which vLLM cannot"):
            run(export.command, f"assistant-adapter/{version}", tmp_path / "out", "--for", "vllm")
    assert not (tmp_path / "out").exists()


def test_bottleneck_layers_are_refused_in_one_line(folders, tmp_path):
    with pytest.raises(UsageError, match="assistant/2 holds bottleneck layers, which PEFT and vLLM") as error:
        run(export.command, "assistant/2", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
