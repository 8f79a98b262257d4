"""ajuste/judging/rules.py: every rule has answers that keep it and answers that break it."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from ajuste.judging import rules as judging_rules
from ajuste.judging.rules import COMMON, RULE, check, language_of

ROOT = Path(__file__).parents[2]

KEEPS = [
    ({"rule": "bullets", "count": 3}, "- one\n- two\n- three"),
    ({"rule": "bullets", "count": 2}, "Here they are:\n\n* one\n  • two"),
    ({"rule": "numbered", "count": 3}, "1. one\n2) two\n3. three"),
    ({"rule": "words", "max": 1}, "Yes."),
    ({"rule": "words", "min": 4, "max": 4}, "Don't do well-known things."),
    ({"rule": "sentences", "min": 1, "max": 1}, "The moon, e.g. ours, is 3.5 thousand kilometres wide."),
    ({"rule": "sentences", "min": 2, "max": 2}, "Why not? Dogs are kind"),
    ({"rule": "sentences", "min": 1, "max": 1}, "Really?!"),
    ({"rule": "paragraphs", "count": 2}, "one\nstill one\n \n\ntwo"),
    ({"rule": "json", "keys": ["a", "b"]}, '{"b": 1, "a": [2], "c": null}'),
    ({"rule": "json", "keys": ["a"]}, '```json\n{"a": 1}\n```'),
    ({"rule": "include", "words": ["rain", "The Roses"]}, "Rain falls on the roses."),
    ({"rule": "exclude", "words": ["white", ","]}, "Snow whitens everything."),
    ({"rule": "repeat", "word": "music", "min": 3}, "Music, music and MUSIC."),
    ({"rule": "lowercase"}, "all of it, 1 by 1."),
    ({"rule": "uppercase"}, "STORM AT 7 O'CLOCK!"),
    ({"rule": "starts", "text": "Dear teacher"}, "  dear Teacher, thank you."),
    ({"rule": "ends", "text": "The end."}, "It slept. The End.\n"),
    ({"rule": "quoted"}, '"Learn and play"'),
    ({"rule": "quoted"}, "“Learn and play”"),
    ({"rule": "answer", "text": "yes"}, ' "Yes." '),
    ({"rule": "answer", "text": "New York"}, "new   york!"),
    ({"rule": "number", "value": 7}, "I had 5 and got 2, so there are 7."),
    ({"rule": "number", "value": 1234.5}, "In all $1,234.50 of it"),
    ({"rule": "number", "value": -3}, "It is -3 degrees"),
    ({"rule": "number", "value": 9}, "pages 7-9"),
    ({"rule": "language", "code": "es"}, "La ciudad es muy grande y hay muchos coches en las calles."),
    ({"rule": "language", "code": "fr"}, "Le pain est un aliment que les enfants mangent avec plaisir."),
    ({"rule": "language", "code": "de"}, "Das Brot ist frisch und der Mann isst es mit Butter."),
    ({"rule": "language", "code": "it"}, "Il pane è buono per gli amici della casa."),
    ({"rule": "language", "code": "pt"}, "O pão não é bom para os amigos da casa."),
    ({"rule": "language", "code": "en"}, "The bread is fresh and the man eats it with butter."),
]

BREAKS = [
    ({"rule": "bullets", "count": 3}, "- one\n- two"),
    ({"rule": "bullets", "count": 1}, "-one - two"),
    ({"rule": "bullets", "count": 3}, "1. one\n2. two\n3. three"),
    ({"rule": "numbered", "count": 3}, "1. one\n3. three\n2. two"),
    ({"rule": "numbered", "count": 2}, "1. one\n2. two\n3. three"),
    ({"rule": "words", "max": 1}, "Yes, it is."),
    ({"rule": "words", "min": 3}, "Two words"),
    ({"rule": "sentences", "min": 1, "max": 1}, "One. Two."),
    ({"rule": "sentences", "min": 2}, "Only one."),
    ({"rule": "paragraphs", "count": 2}, "one\ntwo"),
    ({"rule": "json", "keys": ["a"]}, '{"b": 1}'),
    ({"rule": "json", "keys": ["a"]}, 'Here you are: {"a": 1}'),
    ({"rule": "json", "keys": ["a"]}, '["a"]'),
    ({"rule": "json", "keys": ["a"]}, "{'a': 1}"),
    ({"rule": "include", "words": ["rain", "roses"]}, "Trains pass the roses."),
    ({"rule": "exclude", "words": ["white"]}, "It is White."),
    ({"rule": "exclude", "words": [","]}, "Cold, wet"),
    ({"rule": "repeat", "word": "music", "min": 3}, "Music and musical musicians love music."),
    ({"rule": "lowercase"}, "almost All"),
    ({"rule": "lowercase"}, "123"),
    ({"rule": "uppercase"}, "ALMOST aLL"),
    ({"rule": "starts", "text": "Dear teacher"}, "My dear teacher"),
    ({"rule": "ends", "text": "The end."}, "The end. Or not?"),
    ({"rule": "quoted"}, 'He said "yes".'),
    ({"rule": "answer", "text": "yes"}, "Yes, I have."),
    ({"rule": "answer", "text": "yes"}, "no"),
    ({"rule": "number", "value": 7}, "7 cards are 5 and 2"),
    ({"rule": "number", "value": 7}, "seven"),
    ({"rule": "number", "value": 7}, "It is 17"),
    ({"rule": "language", "code": "es"}, "The city is big and it has many streets."),
    ({"rule": "language", "code": "en"}, "Ciudad grande coches calles"),
]


@pytest.mark.parametrize("rule,answer", KEEPS)
def test_an_answer_that_keeps_the_rule(rule: dict, answer: str) -> None:
    assert check([RULE.validate_python(rule)], answer) == [True]


@pytest.mark.parametrize("rule,answer", BREAKS)
def test_an_answer_that_breaks_the_rule(rule: dict, answer: str) -> None:
    assert check([RULE.validate_python(rule)], answer) == [False]


def test_every_rule_has_both_and_none_is_kept_by_an_empty_answer() -> None:
    kinds = {kind.model_fields["rule"].annotation.__args__[0] for kind in _kinds()}
    assert {rule["rule"] for rule, _ in KEEPS} == {rule["rule"] for rule, _ in BREAKS} == kinds
    assert not any(check([RULE.validate_python(rule) for rule, _ in KEEPS], " \n"))


def _kinds() -> list[type]:
    named = vars(judging_rules).values()
    found = [kind for kind in named if isinstance(kind, type) and issubclass(kind, judging_rules._Rule)]
    return [kind for kind in found if "rule" in kind.model_fields]


def test_rules_are_judged_one_by_one() -> None:
    rules = [RULE.validate_python(rule) for rule in ({"rule": "lowercase"}, {"rule": "words", "max": 2})]
    assert check(rules, "Two words") == [False, True]


@pytest.mark.parametrize(
    "rule", [{"rule": "rhymes"}, {"rule": "words"}, {"rule": "bullets"}, {"rule": "lowercase", "count": 2}]
)
def test_a_rule_that_is_none_is_refused(rule: dict) -> None:
    with pytest.raises(ValidationError):
        RULE.validate_python(rule)


def test_no_language_shares_a_common_word_and_a_tie_is_no_language() -> None:
    words = Counter(word for line in COMMON.values() for word in line.split())
    assert [word for word, times in words.items() if times > 1] == []
    assert language_of("the und") is None
    assert language_of("") is None


def test_the_packaged_prompts_are_valid_and_their_ids_unique() -> None:
    entries = [
        entry
        for name in ("open", "verifiable")
        for entry in yaml.safe_load((ROOT / f"sources/prompts/{name}.yaml").read_text(encoding="utf-8"))
    ]
    ids = [entry["id"] for entry in entries]
    assert len(ids) == len(set(ids)) >= 40
    practice = yaml.safe_load((ROOT / "sources/rules/practice.yaml").read_text(encoding="utf-8"))["asked"]
    kinds = {RULE.validate_python(rule).rule for entry in entries + practice for rule in entry.get("rules", [])}
    assert len(kinds) == len(_kinds())  # every rule is asked for
