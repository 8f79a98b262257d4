"""The judge behind our own server says what the judge of the same folder says."""

import pytest
import torch

from ajuste.core.imports import ROOT
from ajuste.judging.judges import constitution
from ajuste.judging.judges.endpoint import Endpoint
from ajuste.judging.judges.local import Letters
from ajuste.judging.judges.opinions import Pair
from ajuste.judging.judges.questions import Questions
from ajuste.serving.app import make_app
from ajuste.serving.models import Models
from tests.made.judged import PROMPT, says_letters
from tests.serving.conftest import FakeRegistry, running

pytestmark = pytest.mark.slow


def test_an_endpoint_and_its_folder_give_the_same_numbers(speakers, tmp_path):
    folder = says_letters(speakers["full"], tmp_path / "judge")
    registry = FakeRegistry({"assistant": [folder]}, {"assistant": {"champion": 1}})
    known = constitution.read(ROOT / "sources/constitution/constitution.yaml")
    questions = Questions(known, "en", ["helpful", "honest", "harmless"], 0)
    texts = ["a warm film", "a dull and slow movie", "it is the end of the story", "good", "a plot that is not good"]
    pairs = [Pair(f"{i:016x}", PROMPT, (texts[i % 5], texts[(i + 1 + i // 5) % 5])) for i in range(8)]
    local = Letters(folder, questions, torch.float32)
    here = local.compare([*pairs, Pair("ff", PROMPT, ("so " * 600, "short"))])
    with running(make_app(Models(registry.resolve, ["assistant"], None, speakers["base"]))) as address:
        served = Endpoint(f"{address}/v1", "assistant", questions)
        there = served.compare([*pairs, Pair("ff", PROMPT, ("so " * 600, "short"))])
    assert all(opinion.problem is None for opinion in there[:-1])
    for one, other in zip(here[:-1], there[:-1], strict=True):
        assert other[:2] == pytest.approx(one[:2], abs=1e-5) and one.principle == other.principle
    assert len({round(one.first, 4) for one in here}) > 4, "the judge tells pairs apart"
    assert here[-1].problem and there[-1].problem
    assert local.cost.calls == 16 and local.cost.tokens == served.cost.tokens
