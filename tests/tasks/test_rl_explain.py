"""`explain` by hand: every number, word and tag of an update whose tensors are written out here."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ajuste.core.errors import UsageError
from tasks.rl import explain, recorder
from tasks.rl.episodes import Episodes
from tasks.rl.explain import Episode, Explained, Token

PLAIN = Token("it", -1.0, -0.5, -0.5, 0.25, 0.75, 1.5, 0.5, 1.25, False, 0.125)
LATE = Token(None, None, None, None, 2.0, 0.5, 1.0, None, None, False)
CLIPPED = Token("<is>\n", -2.0, -2.0, 0.0, -0.125, None, None, -3.0, 0.5, True)
ROW = {"score": 1.23456, "kl": 2.5, "beta": 0.0512345, "rlhf_reward": -0.75, "clip_fraction": 0.125,
       "ratio_max": 1.2345}  # fmt: skip
SAID = (
    "update 7: score 1.235, KL 2.500 nats a response at beta 0.05123, reward -0.750, clip fraction 12.5%, "
    "largest ratio 1.23"
)


# --- tokens -----------------------------------------------------------------------------------------------------------


def tokens_of(moved: list[float], advantages: list[float], settings: dict, **more: Tensor) -> list[Token]:
    """The steps of the second of two responses, of which the first is another one throughout."""
    R = len(moved)
    log_probs = torch.tensor([[-9.0] * R, [-1.0 - t for t in range(R)]])
    known = {
        "log_probs": log_probs, "new_log_probs": log_probs + torch.tensor([[5.0] * R, moved]),
        "reference": torch.tensor([[-8.0] * R, [-2.0 - t for t in range(R)]]),
        "kl": torch.tensor([[7.0] * R, [1.0 + t for t in range(R)]]),
        "rewards": torch.tensor([[6.0] * (R + 1), [0.25 + t for t in range(R + 1)]]),
        "advantages": torch.tensor([[9.0] * R, advantages]),
        "values": None, "returns": None, "value_mask": None, "drawn": None, **more,
    }  # fmt: skip
    return explain._tokens(recorder.Flight(SimpleNamespace(**known), {}, settings), 1, ["a", "b", "c"][:R])


def test_each_step_has_its_own_numbers() -> None:
    first, second = tokens_of([0.25, -0.5], [2.0, -1.0], {"clip": 0.2})
    assert first == Token("a", -1.0, -2.0, 1.0, 0.25, None, None, 2.0, math.exp(0.25), True, None)
    assert second == Token("b", -2.0, -3.0, 2.0, 1.25, None, None, -1.0, math.exp(-0.5), True, None)
    drawn = torch.tensor([[0.0, 0.0], [-1.5, -1.75]])
    assert [token.gap for token in tokens_of([0.0, 0.0], [1.0, 1.0], {"clip": 0.2}, drawn=drawn)] == [0.5, -0.25]


@pytest.mark.parametrize(("moved", "advantage", "settings", "clipped"), [
    (0.5, 0.5, {"clip": 0.2}, True), (0.1, 0.5, {"clip": 0.2}, False), (-0.5, 0.5, {"clip": 0.2}, False),
    (-0.5, -0.5, {"clip": 0.2}, True), (-0.1, -0.5, {"clip": 0.2}, False), (0.5, -0.5, {"clip": 0.2}, False),
    (0.1, -0.5, {"clip": 0.2}, False), (0.1, -1.0, {"clip": 0.2}, False),
    (0.5, 0.0, {"clip": 0.2}, False), (-0.5, 0.0, {"clip": 0.2}, False),
    (0.0, 1.0, {"clip": 0.0}, False), (0.0, -1.0, {"clip": 0.0}, False),  # at the bound nothing is cut
    (0.25, 1.0, {"clip_low": 0.1, "clip_high": 0.5}, False), (0.25, 1.0, {"clip_low": 0.5, "clip_high": 0.1}, True),
    (-0.15, -1.0, {"clip_low": 0.1, "clip_high": 0.5}, True), (-0.15, -1.0, {"clip_low": 0.5, "clip_high": 0.1}, False),
])  # fmt: skip
def test_a_ratio_is_clipped_beyond_its_range_in_the_advantages_direction(
    moved: float, advantage: float, settings: dict, clipped: bool
) -> None:
    (token,) = tokens_of([moved], [advantage], settings)
    assert token.clipped is clipped and token.ratio == pytest.approx(math.exp(moved))


def test_a_response_that_is_one_action_has_one_ratio() -> None:
    for name, expected in (("sequence", [math.exp(0.75)] * 3), ("token", [math.exp(x) for x in (0.5, 0.5, -0.25)])):
        found = tokens_of([0.5, 0.5, -0.25], [1.0] * 3, {"clip": 0.2, "ratio": name})
        assert [token.ratio for token in found] == pytest.approx(expected)


def test_the_step_after_the_last_token_is_there_where_it_has_a_value() -> None:
    values, returns = torch.tensor([[9.0] * 3, [0.5, 0.75, 1.25]]), torch.tensor([[8.0] * 3, [1.5, 1.75, 2.25]])
    for there in (True, False):
        mask = torch.tensor([[not there] * 3, [True, True, there]])
        known = {"values": values, "returns": returns, "value_mask": mask}
        found = tokens_of([0.0, 0.0], [1.0, 1.0], {"clip": 0.2}, **known)
        assert [(token.value, token.returned) for token in found[:2]] == [(0.5, 1.5), (0.75, 1.75)]
        after = [Token(None, None, None, None, 2.25, 1.25, 2.25, None, None, False)] if there else []
        assert found[2:] == after


# --- what is read -----------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + number) for number in ids)


def recorded(folder: Path) -> Episodes:
    """Two responses, of two tokens and of one."""
    R2, R3 = torch.tensor([[0.5, 0.25], [1.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.5], [-1.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    episodes = Episodes(
        [[3, 4], [5]], torch.tensor([[1, 2], [6, 0]]), mask, torch.tensor([True, False]),
        scores=torch.tensor([1.5, -0.25]), log_probs=-R2, reference=-2 * R2, kl=R2, rewards=R3,
        advantages=3 * R2, new_log_probs=-R2,
    )  # fmt: skip
    folder.mkdir()
    recorder.write(folder, 7, episodes, {"score": 1.0}, {"clip": 0.2})
    return episodes


def test_a_recorded_update_is_read_with_the_texts_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path / "ppo")
    asked: list = []
    monkeypatch.setattr(explain, "load_tokenizer", lambda folder: asked.append(folder) or Letters())
    monkeypatch.setattr(explain, "response_text", lambda tokenizer, ids: f"said {tokenizer.decode(ids)}")
    found = explain.read(tmp_path / "ppo", 7)
    assert asked == [tmp_path / "ppo"]
    first, second = found.episodes
    assert found == Explained(7, {"score": 1.0}, {"clip": 0.2}, [first, second], "ppo")
    assert first[:-1] == (0, "cd", "said ab", 1.5, 0.75, 2.5, True)
    assert second[:-1] == (1, "e", "said f", -0.25, 1.0, -1.0, False)
    assert [token.text for token in first.tokens] == ["a", "b"] and [token.text for token in second.tokens] == ["f"]
    assert [token.reward for token in first.tokens] == [0.0, 2.0] and second.tokens[0].reward == -1.0
    assert explain.read(tmp_path / "ppo", 7, "grpo").method == "grpo"


def test_what_is_not_there_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for method, command in (("ppo", "ajuste run"), ("rloo", "ajuste study grpo")):
        with pytest.raises(UsageError) as caught:
            explain.read(Path("made"), 7, method)
        assert str(caught.value) == f"made/flight is missing: run stage `{method}` first (`{command}` does)"
    recorded(Path("made"))
    for error in (OSError, ValueError):
        monkeypatch.setattr(explain, "load_tokenizer", lambda folder, kind=error: (_ for _ in ()).throw(kind("x")))
        with pytest.raises(UsageError) as caught:
            explain.read(Path("made"), 7, "grpo")
        assert str(caught.value) == "made has no tokenizer: run stage `grpo` again"


# --- what is said -----------------------------------------------------------------------------------------------------


def test_numbers_of_a_step_stand_in_their_columns() -> None:
    assert explain.COLUMNS == ("log π", "log π_ref", "KL", "reward", "value", "return", "advantage", "ratio", "gap")
    assert explain.numbers(PLAIN) == ["-1.000", "-0.500", "-0.500", "+0.250", "+0.750", "+1.500", "+0.500", "1.250",
                                      "+0.125"]  # fmt: skip
    assert explain.numbers(LATE) == ["", "", "", "+2.000", "+0.500", "+1.000", "", "", ""]
    assert explain.numbers(CLIPPED, ("reward", "ratio", "gap")) == ["-0.125", "0.500 clipped", ""]


def test_columns_of_values_are_there_if_one_step_has_a_value() -> None:
    def of(*groups: list[Token]) -> tuple[str, ...]:
        return Explained(1, {}, {}, [Episode(0, "", "", 0, 0, 0, True, tokens) for tokens in groups]).columns

    assert of([CLIPPED], [CLIPPED, PLAIN]) == explain.COLUMNS
    assert of([CLIPPED], [CLIPPED]) == ("log π", "log π_ref", "KL", "reward", "advantage", "ratio", "gap")


def test_what_does_not_print_is_written_out() -> None:
    assert explain.visible(None) == "(after)" and explain.visible(" é\n\x1b") == " é\\n\\x1b"
    assert explain.visible("\\n") == "\\n", "what prints stays as it is"


def test_the_lines_of_an_update_and_of_an_episode() -> None:
    def line(**more: float) -> str:
        return explain.headline(Explained(7, ROW | more, {}, []))

    assert line() == SAID
    assert line(sampler_gap_mean=0.012345) == SAID + ", gap to the sampler 0.0123 nats a token"
    groups = ", groups without variance 25%, gradient norm 0.0457"
    assert line(flat_groups=0.25, grad_norm=0.045678) == SAID + groups
    both = line(flat_groups=0.25, grad_norm=0.045678, sampler_gap_mean=2)
    assert both == SAID + ", gap to the sampler 2 nats a token" + groups
    episode = Episode(3, "p", "r", 1.23456, 0.5, -0.75, True, [])
    assert explain.figures(episode) == "score 1.235, KL 0.500, paid -0.750, ended"
    assert explain.figures(episode._replace(ended=False)) == "score 1.235, KL 0.500, paid -0.750, cut off"


PAGE = f"""<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>
<title>RLOO, update 7</title><style>{explain.STYLE}</style>
<h1>RLOO, {SAID}</h1>
<p>clip 0.2, ratio a&lt;b</p>
<p>Colour: the advantage, green makes a token likelier and red less likely. Hover for its numbers.</p>
<h2>episode 3: score 1.000, KL 0.500, paid 2.000, ended</h2><div class=prompt>a &amp; b</div><div class=words>\
<span style="background: rgba(40, 160, 80, 0.25)" title="log π -1.000, log π_ref -0.500, KL -0.500, reward +0.250, \
value +0.750, return +1.500, advantage +0.500, ratio 1.250, gap +0.125">it</span>\
<span style="background: rgba(210, 60, 60, 1.00)" title="log π -2.000, log π_ref -2.000, KL +0.000, reward -0.125, \
value , return , advantage -3.000, ratio 0.500 clipped, gap ">&lt;is&gt;\\n</span>\
</div><details><summary>numbers</summary><div class=wide><table><tr><th>token<th>log π<th>log π_ref<th>KL<th>reward\
<th>value<th>return<th>advantage<th>ratio<th>gap\
<tr><td>it<td>-1.000<td>-0.500<td>-0.500<td>+0.250<td>+0.750<td>+1.500<td>+0.500<td>1.250<td>+0.125\
<tr><td>(after)<td><td><td><td>+2.000<td>+0.500<td>+1.000<td><td><td>\
<tr class=clipped><td>&lt;is&gt;\\n<td>-2.000<td>-2.000<td>+0.000<td>-0.125<td><td><td>-3.000<td>0.500 clipped<td>\
</table></div></details>
</html>
"""


def test_the_page_in_full() -> None:
    episode = Episode(3, "a & b", "it is", 1.0, 0.5, 2.0, True, [PLAIN, LATE, CLIPPED])
    assert explain.to_html(Explained(7, ROW, {"clip": 0.2, "ratio": "a<b"}, [episode], "rloo")) == PAGE


def test_the_page_of_a_method_without_values_has_no_cells_for_them() -> None:
    still = CLIPPED._replace(text="no", advantage=0.0, clipped=False)
    page = explain.to_html(Explained(7, ROW, {}, [Episode(0, "", "", 1.0, 0.5, 2.0, True, [CLIPPED, still])], "rloo"))
    assert "\\n<td>-2.000<td>-2.000<td>+0.000<td>-0.125<td>-3.000<td>0.500 clipped<td><tr><td>no<td>-2.000<td>" in page
    assert (
        '<span style="background: rgba(210, 60, 60, 0.00)" title="log π -2.000, log π_ref -2.000, KL +0.000, '
        'reward -0.125, advantage +0.000, ratio 0.500, gap ">no</span>'
    ) in page
