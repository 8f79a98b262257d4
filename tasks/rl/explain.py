"""A recorded update, token by token: what each was paid, how far it stood from the reference, what it learnt.

    reward_t     -beta kl_t, and at the last token the score (or one step later, as the last row `after`)
    advantage_t  above 0 the token becomes likelier: what GAE made of rewards and values, whitened over the batch
                 (PPO), or what the group says of the whole response (GRPO, RLOO, which have no values)
    ratio_t      pi / pi_old in the last epoch, of the token or of the whole response (RLOO), clipped where it stands
                 outside of the clip range in the advantage's direction
    gap_t        log pi of the trainer - log pi of the sampler, both of the policy that sampled

`read` gives it as data, `to_html` as one page that needs no other file.
"""

import html
import math
from pathlib import Path
from typing import NamedTuple

from ajuste.core.errors import UsageError
from ajuste.learning.text.chat import response_text
from ajuste.models.folder import load_tokenizer
from tasks.rl import recorder

COLUMNS = ("log π", "log π_ref", "KL", "reward", "value", "return", "advantage", "ratio", "gap")
OF_VALUES = ("value", "return")


class Token(NamedTuple):
    """A step of a response; `text` is None for the step after its last token. Numbers that a step has not are None."""

    text: str | None
    log_prob: float | None
    reference: float | None
    kl: float | None
    reward: float
    value: float | None
    returned: float | None
    advantage: float | None
    ratio: float | None
    clipped: bool
    gap: float | None = None  # also of an update that was recorded without it


class Episode(NamedTuple):
    """A prompt, its response, and the response's steps."""

    number: int
    prompt: str
    response: str
    score: float
    kl: float
    paid: float  # the sum of its rewards: score after the missing-end rule, less beta times KL
    ended: bool
    tokens: list[Token]


class Explained(NamedTuple):
    """An update: its row of history.jsonl, the settings that made its numbers, its episodes."""

    update: int
    row: dict
    settings: dict
    episodes: list[Episode]
    method: str = "ppo"

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of COLUMNS that the algorithm has numbers for."""
        valued = any(token.value is not None for episode in self.episodes for token in episode.tokens)
        return tuple(name for name in COLUMNS if valued or name not in OF_VALUES)


def read(folder: Path, update: int, method: str = "ppo") -> Explained:
    """The recorded update of an adapter folder of `method`. Raises UsageError when folder or update are not there.

    The texts are those of the folder's tokenizer.
    """
    if not (folder / "flight").is_dir():
        runs = "`ajuste run`" if method == "ppo" else "`ajuste study grpo`"
        raise UsageError(f"{folder / 'flight'} is missing: run stage `{method}` first ({runs} does)")
    flight = recorder.read(folder, update)
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError):
        raise UsageError(f"{folder} has no tokenizer: run stage `{method}` again") from None
    episodes = []
    for i, prompt in enumerate(flight.episodes.prompts):
        ids = flight.episodes.responses[i][flight.episodes.mask[i]].tolist()
        texts = [tokenizer.decode([token]) for token in ids]
        tokens = _tokens(flight, i, texts)
        episodes.append(
            Episode(
                i, tokenizer.decode(prompt), response_text(tokenizer, ids), float(flight.episodes.scores[i]),
                float(flight.episodes.kl[i].sum()), float(flight.episodes.rewards[i].sum()),
                bool(flight.episodes.ended[i]), tokens,
            )
        )  # fmt: skip
    return Explained(update, flight.row, flight.settings, episodes, method)


def _tokens(flight: recorder.Flight, i: int, texts: list[str]) -> list[Token]:
    all_of, settings = flight.episodes, flight.settings
    low, high = (settings[name] if name in settings else settings["clip"] for name in ("clip_low", "clip_high"))
    moved = all_of.new_log_probs[i] - all_of.log_probs[i]
    if settings.get("ratio") == "sequence":
        moved = moved.sum().expand_as(moved)
    known = (all_of.log_probs, all_of.reference, all_of.kl, all_of.rewards, all_of.values, all_of.returns)
    gaps = None if all_of.drawn is None else all_of.log_probs - all_of.drawn
    steps = []
    for t, text in enumerate(texts):
        advantage = float(all_of.advantages[i, t])
        ratio = math.exp(float(moved[t]))
        clipped = ratio > 1 + high if advantage > 0 else ratio < 1 - low if advantage < 0 else False
        numbers = (None if x is None else float(x[i, t]) for x in known)
        gap = None if gaps is None else float(gaps[i, t])
        steps.append(Token(text, *numbers, advantage, ratio, clipped, gap))
    after = len(texts)
    if all_of.value_mask is not None and all_of.value_mask[i, after]:
        reward, value, returned = (float(x[i, after]) for x in (all_of.rewards, all_of.values, all_of.returns))
        steps.append(Token(None, None, None, None, reward, value, returned, None, None, False))
    return steps


def numbers(token: Token, columns: tuple[str, ...] = COLUMNS) -> list[str]:
    """The figures of a step in the order of `columns`, "" for one that it has not."""
    found = (token.log_prob, token.reference, token.kl, token.reward, token.value, token.returned, token.advantage)
    shown = ["" if value is None else f"{value:+.3f}" for value in found]
    ratio = "" if token.ratio is None else f"{token.ratio:.3f}" + (" clipped" if token.clipped else "")
    every = [*shown, ratio, "" if token.gap is None else f"{token.gap:+.3f}"]
    return [text for name, text in zip(COLUMNS, every, strict=True) if name in columns]


def visible(text: str | None) -> str:
    """A token on one line: line feeds and control characters are written out; None is the step after the end."""
    if text is None:
        return "(after)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def headline(explained: Explained) -> str:
    """The update in one line."""
    row = explained.row
    gap = f", gap to the sampler {row['sampler_gap_mean']:.3g} nats a token" if "sampler_gap_mean" in row else ""
    if "flat_groups" in row:
        gap += f", groups without variance {row['flat_groups']:.0%}, gradient norm {row['grad_norm']:.3g}"
    return (
        f"update {explained.update}: score {row['score']:.3f}, KL {row['kl']:.3f} nats a response at beta "
        f"{row['beta']:.4g}, reward {row['rlhf_reward']:.3f}, clip fraction {row['clip_fraction']:.1%}, "
        f"largest ratio {row['ratio_max']:.3g}{gap}"
    )


def figures(episode: Episode) -> str:
    """An episode's numbers in one line."""
    ended = "ended" if episode.ended else "cut off"
    return f"score {episode.score:.3f}, KL {episode.kl:.3f}, paid {episode.paid:.3f}, {ended}"


# --- the page ---------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2rem 0 .3rem; }
.prompt { opacity: .65; white-space: pre-wrap; } .words { line-height: 2.1; }
.words span { border-radius: 3px; padding: .1em .05em; white-space: pre-wrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } div.wide { overflow-x: auto; }
td, th { border-bottom: 1px solid var(--line); padding: .1rem .6rem; text-align: right; }
td:first-child, th:first-child { text-align: left; white-space: pre; font-family: ui-monospace, monospace; }
.clipped { font-weight: bold; } summary { cursor: pointer; }
"""


def to_html(explained: Explained) -> str:
    """The update as a page: each response coloured by advantage (green above 0, red below), its numbers below it."""
    settings = ", ".join(f"{key} {value}" for key, value in explained.settings.items())
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{explained.method.upper()}, update {explained.update}</title><style>{STYLE}</style>",
        f"<h1>{explained.method.upper()}, {html.escape(headline(explained))}</h1>",
        f"<p>{html.escape(settings)}</p>",
        "<p>Colour: the advantage, green makes a token likelier and red less likely. Hover for its numbers.</p>",
        *(_episode(episode, explained.columns) for episode in explained.episodes),
        "</html>\n",
    ]
    return "\n".join(parts)


def _episode(episode: Episode, columns: tuple[str, ...]) -> str:
    title = f"episode {episode.number}: {figures(episode)}"
    words = "".join(_word(token, columns) for token in episode.tokens if token.text is not None)
    head = "".join(f"<th>{column}" for column in ("token", *columns))
    rows = "".join(
        f"<tr{' class=clipped' if token.clipped else ''}><td>{html.escape(visible(token.text))}"
        + "".join(f"<td>{value}" for value in numbers(token, columns))
        for token in episode.tokens
    )
    return (
        f"<h2>{title}</h2><div class=prompt>{html.escape(episode.prompt)}</div><div class=words>{words}</div>"
        f"<details><summary>numbers</summary><div class=wide><table><tr>{head}{rows}</table></div></details>"
    )


def _word(token: Token, columns: tuple[str, ...]) -> str:
    strength = min(1.0, abs(token.advantage) / 2)
    colour = "40, 160, 80" if token.advantage > 0 else "210, 60, 60"
    pairs = zip(columns, numbers(token, columns), strict=True)
    title = html.escape(", ".join(f"{name} {value}" for name, value in pairs), quote=True)
    text = html.escape(visible(token.text))
    return f'<span style="background: rgba({colour}, {strength:.2f})" title="{title}">{text}</span>'
