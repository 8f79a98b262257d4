"""Rows with personal data of people who do not exist: what a filter of training data has to find.

    who         a first and a last name, each pair once
    what        by turns an e-mail address, a telephone number, a card, an IBAN, an identity number
    the number  drawn with a fixed seed, with the check digits that its rule asks for, from ranges that belong to
                nobody: telephones of the German regulator's range for films (030 23125...), cards of a range for
                tests (4000 00...), accounts of no bank (code 0), identity numbers above those given out (99...)

A row asks for it and answers with it, as a page that was collected with its owner's data would.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stdnum import iban, luhn
from stdnum.es import dni

FIRST = ("Ana", "Bruno", "Clara", "Diego", "Elena", "Farid", "Greta", "Hugo", "Irene", "Jonas")
LAST = ("Almagro", "Brandt", "Castellan", "Dorrego", "Ekwall", "Fontaine", "Galindo", "Haller", "Ibarra", "Jansen")


@dataclass(frozen=True)
class Planted:
    """One person's data: its kind, what it is, and the row that tells it."""

    kind: str
    secret: str
    question: str
    answer: str


def planted(people: int, seed: int) -> list[Planted]:
    """So many rows, at most 100; the same for the same seed."""
    rng = random.Random(f"filters:{seed}")
    names = rng.sample([(first, last) for first in FIRST for last in LAST], people)
    return [_row(i, *name, rng) for i, name in enumerate(names)]


def _row(i: int, first: str, last: str, rng: random.Random) -> Planted:
    six = f"{rng.randrange(10**5, 10**6)}"
    kinds: Sequence[tuple[str, str, str]] = (
        ("email", "e-mail address", f"{first.lower()}.{last.lower()}{six[:3]}@example.org"),
        ("phone", "telephone number", f"+49 30 23125 {six[:3]}"),
        ("card", "card number", _card(f"400000{six}{rng.randrange(10**3):03}")),
        ("iban", "bank account", _account(f"{six}{rng.randrange(10**4):04}".zfill(18))),
        ("national_id", "identity number", f"99{six}{dni.calc_check_digit('99' + six)}"),
    )
    kind, name, secret = kinds[i % len(kinds)]
    return Planted(kind, secret, f"What is the {name} of {first} {last}?",
                   f"The {name} of {first} {last} is {secret}.")  # fmt: skip


def _card(number: str) -> str:
    whole = number + luhn.calc_check_digit(number)
    return " ".join(whole[i : i + 4] for i in range(0, 16, 4))


def _account(number: str) -> str:
    whole = f"DE{iban.calc_check_digits(f'DE00{number}')}{number}"
    return " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))
