"""Verifiable instructions: what a program can tell of an answer without knowing whether it is true.

The idea is IFEval's (Zhou et al. 2023, arXiv:2311.07911): ask for "three bullet points" or "no commas" and count. The
rules, prompts and code here are our own and simpler; numbers are not comparable with IFEval's.

    rule: bullets     count                lines that begin with -, * or the round bullet: exactly so many
    rule: numbered    count                lines 1. 2. 3. in order: exactly so many
    rule: words       min, max             words (runs of letters and digits, apostrophes and hyphens inside)
    rule: sentences   min, max             pieces that end in . ! or ?, and a last one without
    rule: paragraphs  count                blocks with empty lines between them
    rule: json        keys                 an object with all these keys, bare or in one code fence, nothing around it
    rule: include     words                each stands in the answer as a whole word or phrase, case apart
    rule: exclude     words                none does; a mark such as a comma anywhere
    rule: repeat      word, min            so often at least, as a whole word, case apart
    rule: lowercase, uppercase             no letter of the other case, and at least one letter
    rule: starts, ends  text               case and blanks around the answer apart
    rule: quoted                           the whole answer in double quotes
    rule: answer      text                 the answer is this text: case, blanks, quotes and an ending mark apart
    rule: number      value                the last number in the answer is this one; 1,234 is 1234, and 3. is 3
    rule: language    code                 en, es, fr, de, it or pt: its commonest words beat every other language's

An empty answer breaks every rule.
"""

import json
import re
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

Text = Annotated[str, StringConstraints(min_length=1)]

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
SENTENCE = re.compile(r"[^.!?]*\w[^.!?]*(?:[.!?]+|$)")
ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|etc|Mr|Mrs|Dr|vs)\.|(?<=\d)\.(?=\d)")
BULLET, NUMBER = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE), re.compile(r"^\s*(\d+)[.)]\s+\S", re.MULTILINE)
FIGURE = re.compile(r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?")
FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)

# The commonest words of each language, without those that another of the six has among its own.
COMMON = {
    "en": "the of and to is that it for was on are with at be this have from by not you which their they his her",
    "es": "el los las y del que en con por una su para lo más pero sus como está muy también hay ser cuando yo esta",
    "fr": "le les et des est dans une pour qui sur avec pas au ce du plus par elle sont nous vous cette aux",
    "de": "der die und ist nicht ein eine den mit von auf für im dem zu sich auch wie als sie wir ich oder wird",
    "it": "di che è per un della gli sono nel anche alla dei più ma questo perché delle loro essere ha molto degli",
    "pt": "o os do da em um uma não ao dos pelo são foi ele isso muito à você também pela na no seu sua",
}


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def holds(self, answer: str) -> bool:
        """True if the answer, which is not empty and has no blanks around it, keeps the rule."""


class _Span(_Rule):
    """At least `min` and at most `max` of something; one of the two may be left out."""

    min: int | None = Field(None, ge=1)
    max: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _bounds(self) -> "_Span":
        if self.min is None and self.max is None:
            raise ValueError("it needs `min`, `max` or both")
        return self

    def within(self, number: int) -> bool:
        return (self.min is None or number >= self.min) and (self.max is None or number <= self.max)


class Bullets(_Rule):
    rule: Literal["bullets"]
    count: int = Field(ge=1)

    def holds(self, answer: str) -> bool:
        return len(BULLET.findall(answer)) == self.count


class Numbered(_Rule):
    rule: Literal["numbered"]
    count: int = Field(ge=1)

    def holds(self, answer: str) -> bool:
        return [int(number) for number in NUMBER.findall(answer)] == list(range(1, self.count + 1))


class Words(_Span):
    rule: Literal["words"]

    def holds(self, answer: str) -> bool:
        return self.within(len(WORD.findall(answer)))


class Sentences(_Span):
    rule: Literal["sentences"]

    def holds(self, answer: str) -> bool:
        return self.within(len(SENTENCE.findall(ABBREVIATIONS.sub("", answer))))


class Paragraphs(_Rule):
    rule: Literal["paragraphs"]
    count: int = Field(ge=1)

    def holds(self, answer: str) -> bool:
        return len(re.split(r"\n[ \t]*\n\s*", answer)) == self.count


class Json(_Rule):
    rule: Literal["json"]
    keys: list[Text] = Field(min_length=1)

    def holds(self, answer: str) -> bool:
        fenced = FENCE.fullmatch(answer)
        try:
            value = json.loads(fenced[1] if fenced else answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and all(key in value for key in self.keys)


class Include(_Rule):
    rule: Literal["include"]
    words: list[Text] = Field(min_length=1)

    def holds(self, answer: str) -> bool:
        return all(_count(word, answer) for word in self.words)


class Exclude(_Rule):
    rule: Literal["exclude"]
    words: list[Text] = Field(min_length=1)

    def holds(self, answer: str) -> bool:
        return not any(_count(word, answer) for word in self.words)


class Repeat(_Rule):
    rule: Literal["repeat"]
    word: Text
    min: int = Field(ge=2)

    def holds(self, answer: str) -> bool:
        return _count(self.word, answer) >= self.min


class Lowercase(_Rule):
    rule: Literal["lowercase"]

    def holds(self, answer: str) -> bool:
        return answer.islower()


class Uppercase(_Rule):
    rule: Literal["uppercase"]

    def holds(self, answer: str) -> bool:
        return answer.isupper()


class Starts(_Rule):
    rule: Literal["starts"]
    text: Text

    def holds(self, answer: str) -> bool:
        return answer.casefold().startswith(self.text.casefold())


class Ends(_Rule):
    rule: Literal["ends"]
    text: Text

    def holds(self, answer: str) -> bool:
        return answer.casefold().endswith(self.text.casefold())


class Quoted(_Rule):
    rule: Literal["quoted"]

    def holds(self, answer: str) -> bool:
        return len(answer) > 2 and answer[0] in '"“' and answer[-1] in '"”'


class Answer(_Rule):
    rule: Literal["answer"]
    text: Text

    def holds(self, answer: str) -> bool:
        return _bare(answer) == _bare(self.text)


class Number(_Rule):
    rule: Literal["number"]
    value: float

    def holds(self, answer: str) -> bool:
        found = FIGURE.findall(answer)
        return bool(found) and float(found[-1].replace(",", "")) == self.value


class Language(_Rule):
    rule: Literal["language"]
    code: Literal["en", "es", "fr", "de", "it", "pt"]

    def holds(self, answer: str) -> bool:
        return language_of(answer) == self.code


Rule = Annotated[
    Bullets | Numbered | Words | Sentences | Paragraphs | Json | Include | Exclude | Repeat | Lowercase | Uppercase
    | Starts | Ends | Quoted | Answer | Number | Language,
    Field(discriminator="rule"),
]  # fmt: skip
RULE = TypeAdapter(Rule)


def check(rules: list[Rule], answer: str) -> list[bool]:
    """Whether the answer keeps each of the rules. Blanks around the answer do not count."""
    answer = answer.strip()
    return [bool(answer) and rule.holds(answer) for rule in rules]


def language_of(text: str) -> str | None:
    """The language whose commonest words are most of the text's; None on a tie or when there are hardly any (5 %)."""
    words = [word.casefold() for word in WORD.findall(text)]
    hits = sorted(((sum(word in COMMON[code].split() for word in words), code) for code in COMMON), reverse=True)
    (most, code), (second, _) = hits[:2]
    return code if most > second and most >= 0.05 * len(words) else None


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip("\"“”'").rstrip(".!").strip("\"“”'")


def _count(word: str, answer: str) -> int:
    """How often a word or phrase stands in the answer, not as a part of a longer word; case apart."""
    left, right = (r"\b" if re.match(r"\w", edge) else "" for edge in (word[0], word[-1]))
    return len(re.findall(f"{left}{re.escape(word)}{right}", answer, re.IGNORECASE))
