"""`ajuste base`: params.yaml points at a model that follows instructions already; what is none is said in one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ajuste.cli.project import base
from ajuste.core.errors import UsageError
from tests.cli import registered
from tests.made import tiny_decoders

PARAMS = "base:\n  decoder:\n    source: hub:a@b   # where from\n    dtype: bfloat16\ninstruct:\n  method: lora\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(project: Path) -> tuple[str, str, str]:
    params = yaml.safe_load((project / "params.yaml").read_text())
    return params["base"]["decoder"]["source"], params["base"]["decoder"]["dtype"], params["instruct"]["method"]


def test_a_folder_and_a_registered_version(project: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    stored = tiny_decoders.tiny_base(project / "theirs")  # bfloat16
    trained = tiny_decoders.tiny_full(stored, project / "store/whole")  # float32
    registered.run(base.command, "theirs")
    assert values(project) == ("path:theirs", "bfloat16", "none") and "# where from" in Path("params.yaml").read_text()
    assert "params.yaml: instruct.method: none" in capsys.readouterr().out
    asked = []
    registry = SimpleNamespace(folders={}, resolve=lambda reference: asked.append(reference) or SimpleNamespace(
        name="assistant", version="3", path=trained))  # fmt: skip
    registered.install(monkeypatch, registry, project)
    registered.run(base.command, "models:/assistant@champion")
    assert asked == ["models:/assistant@champion"] and values(project) == ("path:store/whole", "float32", "none")


def test_a_reward_model_is_what_ppo_is_paid_by(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "params.yaml").write_text(PARAMS + "ppo:\n  score: reward   # what is paid for\n")
    (project / "theirs").mkdir()
    (project / "theirs/config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    (project / "theirs/model.safetensors").write_bytes(b"")
    registered.run(base.command, "theirs")
    params = yaml.safe_load((project / "params.yaml").read_text())
    assert params["ppo"]["score"] == "model:theirs" and params["instruct"]["method"] == "lora"
    registry = SimpleNamespace(folders={}, resolve=lambda reference: SimpleNamespace(
        name="ratings-reward", version="2", path=project / "theirs"))  # fmt: skip
    registered.install(monkeypatch, registry, project)
    (project / "params.yaml").write_text(PARAMS + "ppo:\n  score: reward\n")
    registered.run(base.command, "ratings-reward@champion")
    assert yaml.safe_load((project / "params.yaml").read_text())["ppo"]["score"] == "model:theirs"


@pytest.mark.parametrize(("name", "folder", "message"), [
    ("reviews-classifier", "whole", "reviews-classifier/3 is a classifier: what others are made from is an assistant"),
    ("assistant", "adapter", "assistant/3 has no model.safetensors: an adapter is no whole model"),
])  # fmt: skip
def test_what_is_no_start_is_refused(
    name: str, folder: str, message: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tiny_decoders.tiny_base(project / "whole")
    tiny_decoders.tiny_adapter(stored, project / "adapter")
    found = SimpleNamespace(name=name, version="3", path=project / folder)
    registered.install(monkeypatch, SimpleNamespace(folders={}, resolve=lambda reference: found), project)
    with pytest.raises(UsageError, match=message):
        registered.run(base.command, f"{name}@champion")
    (project / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty has no config.json: name the folder"):
        registered.run(base.command, "empty")
    assert Path("params.yaml").read_text() == PARAMS
