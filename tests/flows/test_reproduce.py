"""The weekly proof: which results it makes again, and that it fails after all were tried."""

import pytest

from ajuste.tracking.again.outs import DIFFERENT, EQUAL, Out
from ajuste.tracking.again.reproduce import Verdict
from flows import reproduce


def test_the_champion_of_each_served_name_else_head(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, written = [], []
    aliases = {"assistant": ("champion",), "assistant-adapter": (), "x-classifier": ("challenger",)}

    def make(reference: str) -> Verdict:
        tried.append(reference)
        return Verdict(reference, "c" * 40, [Out("train", "artifacts/x", DIFFERENT if "bad" in reference else EQUAL)])

    monkeypatch.setattr(reproduce.proof, "reproduce", make)
    monkeypatch.setattr(reproduce, "create_markdown_artifact", lambda key, markdown: written.append(markdown))
    monkeypatch.setattr(reproduce.registry, "names", lambda: list(aliases))
    monkeypatch.setattr(reproduce.registry, "by_alias", lambda name, alias: name if alias in aliases[name] else None)
    assert "bit-equal" in reproduce.reproduce.fn()
    assert tried == ["models:/assistant@champion"]
    aliases["assistant"] = ()
    reproduce.reproduce.fn()
    assert tried[1:] == ["HEAD"]
    aliases["bad"] = aliases["good"] = ("champion",)
    with pytest.raises(reproduce.NotReproduced, match="artifacts/x of stage train: different"):
        reproduce.reproduce.fn()
    assert tried[2:] == ["models:/bad@champion", "models:/good@champion"] and "bit-equal" in written[-1]
    with pytest.raises(reproduce.NotReproduced):
        reproduce.reproduce.fn("bad")
