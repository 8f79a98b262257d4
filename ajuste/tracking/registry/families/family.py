"""What a family of registered models is: one kind of model, made in one way, and all that differs between them.

A new method is a file beside this one, with a subclass of Family, and its line in all.py. What a family says, in the
order of a version's life:

    where     folders, trains, merge, evaluate, encoded: which stages make its models, and of which rows
    name      registered: the name that its versions stand under
    rank      best, lower, validation_interval; takes_over and judged of a method that is made from another version
    figures   scores: the test figures of these very weights, which become tags of the version
    words     about, page, headline: what the registry's pages say
    compare   figures, validation, pictures, metrics, row_values, answers
    gate      metric, recorded, before, beside, kept, forgetting, talks, alignment
    report    findings
    MLflow    examples, answers_with: what a loaded model asks and says (the code is pyfuncs/<kind>.py)

How a model is exported and served does not depend on its method: `kind` of its card (ajuste.json) says which loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ajuste.tracking.project import lock
from ajuste.tracking.runs import facts

if TYPE_CHECKING:
    from ajuste.judging.verdicts.choosing import Judged
    from ajuste.judging.verdicts.gate import Kept, Paired
    from ajuste.tracking.registry.version import Version

EVALUATED = Path("artifacts/evaluated")
Values = dict[object, tuple[float, float]]  # by row: (sum, weight); a mean is sum / weight
Tags = Mapping[str, str]
# what makes gains on validation comparable: the prompts, the judges, how answers were drawn
RANKED = ("validation_rows", "judge.gold", "judge.second", "ranked.prompts", "ranked.temperature",
          "ranked.max_new_tokens")  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A figure that two versions have row by row, so that their difference is paired."""

    name: str
    lower: bool  # whether a lower one is better
    unit: str  # of the rows


@dataclass(frozen=True)
class Picture:
    """A figure of the comparison's page: its title, whether higher is better, the figure of validation beside it."""

    title: str
    higher: bool
    validation: str | None


@dataclass(frozen=True)
class Said:
    """What versions ("name/number") answered to one prompt, and the pretrained base; None: it was not asked."""

    id: str
    prompt: str
    by: dict[str, str]
    base: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One kind of model, made in one way. The methods are those of a method that says nothing of its own."""

    talks: ClassVar[bool] = False  # whether it answers people, so that its alignment is asked for

    kind: str  # the last word of the registered name, and MLflow's model type
    method: str  # tag: by what kind of training it was made
    title: str  # the same in words
    registered: str  # the name of what is served; {set} is the card's
    folders: str  # the pattern of its model folders below artifacts/
    trains: str  # the verb that trains it
    merge: str  # the stage that merges it
    evaluate: str  # the stage that tests it
    encoded: Path  # its rows
    rows: str = "{split}.parquet"  # the file of its rows of a split
    from_another: bool = False  # whether its versions are made from registered versions of the same name
    from_users: bool = False  # whether these rows are what users send: then their requests can drift away from them
    best: str  # the figure of its validation that ranks its versions
    best_name: str  # in words
    lower: bool  # whether a lower figure is better
    metric: str  # what the gate compares, a key of section `gate` of policy.yaml
    rescored: bool = True  # whether the gate can have today's rows scored anew (ajuste/judging/score_rows.py)
    based: bool = True  # whether that needs the pretrained base
    forgetting: str = ""  # the stage that measures forgetting; "": nobody does
    alignment: str = ""  # the stage that measures the alignment of its versions; "": nobody does
    keeping: str = ""  # the stage that measures what a version must not lose against the one it was made from
    strategies: dict[str, str] = field(default_factory=dict)  # strategy -> words, of those that it alone has
    results: tuple[str, ...] = ()  # small files of its evaluations that its runs keep
    figures: dict[str, str] = field(default_factory=dict)  # of the test rows: name -> row of the comparison
    validation: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (row, format); what counts first
    pictures: dict[str, Picture] = field(default_factory=dict)  # of the figures of the test rows
    metrics: tuple[Metric, ...] = ()
    examples: dict[str, list[str]] = field(default_factory=dict)  # what a loaded model is asked, by column
    answers_with: tuple[tuple[str, str], ...] = ()  # (MLflow's type, name) of the columns that it answers with

    # --- rank ---

    def takes_over(self, tags: Tags) -> str:
        """Where `from_another`: why the version may be challenger in place of the one that it was made from, as the
        beginning of a sentence ("its ... is ... above"); "" if it may not."""
        return ""

    def judged(self, tags: Tags, shared: bool) -> Judged | None:
        """Where `from_another`: its gain and its KL on validation, to be chosen by; None: by `best` alone.

        shared: whether all that it is compared with answered the same prompts for the same judges (RANKED); else by
        what its own training says.
        """
        return None

    def validation_interval(self, folder: Path, card: dict) -> tuple[float | None, float | None]:
        """The 95 % interval of `best` on validation rows; None where a bound is not known."""
        return card["validation"].get(f"{self.best}_low"), None

    # --- figures ---

    def scores(self, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float | str], list[str]]:
        """The test figures of these very weights by tag, and the stages that judged them; ({}, []) if none did."""
        return {}, []

    def run_figures(self, folder: Path) -> dict[str, dict | float]:
        """What an out of its evaluations holds, by metric ("loss/base"): an interval or a number; {} of other folders.
        """
        return {}

    def own_tags(self, card: dict, whole: bool) -> dict[str, object]:
        """What a version of this kind says of itself, from the card. whole: it answers without a base."""
        return {}

    # --- words ---

    def about(self, name: str) -> list[str]:
        """The page of a registered name, in lines of Markdown: what it holds, how to use it."""
        return [f"{self.title}: versions of `{name}`."]

    def challenger_rule(self) -> str:
        """When a version becomes `challenger`, beyond being the best on validation; "": nothing else."""
        return ""

    def what(self, tags: Tags) -> str:
        """What a version is, in words that depend on no figure; "": its strategy says it."""
        return ""

    def page(self, tags: Tags) -> list[str]:
        """The figures on a version's page, as lines of a list."""
        return [f"- validation: {self.best_name} {number(tags, f'validation.{self.best}')}"]

    def inputs_line(self, tags: Tags) -> str:
        """What a version reads: the last facts of its page."""
        return (f"- tokenizer `{tags['tokenizer_sha256'][:12]}`, template `{tags['template_sha256'][:12]}`; "
                f"rows are cut at {tags['max_tokens']} tokens")

    def headline(self, tags: Tags) -> str:
        """The one figure that a list shows: ", test accuracy 0.806"; "" if the version was not tested."""
        return ""

    # --- compare ---

    def row_values(self, version: Version) -> dict[tuple[str, str], Values]:
        """{("name/number", metric's name): its value of each test row}: of the version, and of others that its
        evaluation judged beside it."""
        return {}

    def answers(self, version: Version) -> list[Said]:
        """What its evaluations let it answer."""
        return []

    # --- gate ---

    def recorded(self, version: Version) -> Values:
        """The results of its own evaluation in `metric`; {} if it left none."""
        return {}

    def before(self, version: Version, own: Values, today: str) -> Paired | None:
        """Beside what it was made from; None: the pretrained base, which has to be scored anew."""
        return None

    def beside(self, challenger: Version, champion: Version, own: Values) -> Paired | None:
        """Beside a champion, of a method that compares in its own way; None: on today's rows, as all others."""
        return None

    def apart(self) -> str:
        """Why a challenger of another method cannot be compared with a champion of this one."""
        return f"it was made with {self.title}, which is measured by {self.best_name}"

    def kept(self, challenger: Version, champion: Version | None, others: dict[str, Values]) -> list[Kept]:
        """What it must not have lost, beside the version that it was made from and, on the same rows, the champion,
        whose `measured` is `others`. [] where that was not measured."""
        return []

    def measured(self, version: Version) -> dict[str, Values]:
        """Its figures of `kept`, by name."""
        return {}

    # --- report ---

    def findings(self) -> list[tuple[str, str, str]]:
        """(good, warn, bad or unknown; what was asked; the answer) about the model in artifacts/; [] if there is none.
        """
        return []


# --- for the files of families ----------------------------------------------------------------------------------------


def judged(stage: str, folder: Path, md5: str) -> bool:
    """Whether dvc.lock has that stage's run on these very weights."""
    return names(lock.every().get(stage, {}).get("deps", []), folder, md5)


def names(entries: list[dict], folder: Path, md5: str) -> bool:
    """Whether deps or outs of dvc.lock hold that folder with that hash."""
    return any(Path(entry["path"]) == folder and entry["md5"] == md5 for entry in entries)


def as_tags(prefix: str, figures: Mapping[str, dict | float]) -> dict[str, float]:
    """{"loss": interval} -> {"test.loss": v, "test.loss.low": l, "test.loss.high": h}."""
    return {f"{prefix}.{key.replace(':', '.')}": value for key, value in facts.flat_intervals(dict(figures)).items()}


def number(tags: Tags, key: str, form: str = ".4f") -> str:
    """A figure of the tags as text, "?" if it is not known."""
    return format(float(tags[key]), form) if key in tags else "?"


def interval(tags: Tags, key: str) -> str:
    """0.8060 [0.7793, 0.8321]"""
    low, high = number(tags, f"{key}.low"), number(tags, f"{key}.high")
    return f"{number(tags, key)} [{low}, {high}]"


def said(found: dict, form: str = ".3f") -> str:
    """An interval of a result as text: 0.806 [0.779, 0.832]"""
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"
