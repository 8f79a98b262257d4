"""National identity numbers that a check tells from other numbers: python-stdnum has the rules, this file the forms.

    es.dni, es.nie    8 digits (or X, Y, Z and 7), and a letter = remainder modulo 23
    us.ssn            ddd-dd-dddd; no check digit, but areas and groups that were never given out
    fr.nir            15 digits, the last two 97 - remainder modulo 97
    it.codicefiscale  16 letters and digits, the last one a check letter
    br.cpf            ddd.ddd.ddd-dd, two check digits modulo 11
    cl.rut            d.ddd.ddd-k, a check digit modulo 11
    ar.cuit           dd-dddddddd-d, a check digit modulo 11
    mx.curp           18 letters and digits with a date, a region and a check digit
    pt.cc             8 digits, 1, 2 letters or digits, and a check digit (Luhn over letters too)
    se.personnummer   a date, - or +, 4 digits: Luhn
    fi.hetu           a date, a sign for the century, 3 digits and a check character modulo 31

Numbers that are bare digits with one check digit (PESEL, BSN, Steuer-ID, NHS) are left out: one in ten or eleven
numbers of that length passes, and most of those are orders and prices.
"""

import re
from types import ModuleType

from stdnum.ar import cuit
from stdnum.br import cpf
from stdnum.cl import rut
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.mx import curp
from stdnum.pt import cc
from stdnum.se import personnummer
from stdnum.us import ssn

LEFT, RIGHT = r"(?<![A-Za-z0-9.+\-])", r"(?![A-Za-z0-9]|[.\-][A-Za-z0-9])"
FORMS: dict[str, tuple[str, ModuleType]] = {  # a name -> the form in a text, and who checks it
    "es.dni": (r"\d{1,2}\.?\d{3}\.?\d{3}[ -]?[A-Za-z]", dni),
    "es.nie": (r"[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]", nie),
    "us.ssn": (r"\d{3}-\d{2}-\d{4}", ssn),
    "fr.nir": (r"[12](?: ?\d{2}){2} ?(?:\d{2}|2[AB])(?: ?\d{3}){2} ?\d{2}", nir),
    "it.codicefiscale": (r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]", codicefiscale),
    "br.cpf": (r"\d{3}\.\d{3}\.\d{3}-\d{2}", cpf),
    "cl.rut": (r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", rut),
    "ar.cuit": (r"\d{2}-\d{8}-\d", cuit),
    "mx.curp": (r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z\d]\d", curp),
    "pt.cc": (r"\d{8} ?\d ?[A-Z\d]{2}\d", cc),
    "se.personnummer": (r"(?:\d{2})?\d{6}[-+]\d{4}", personnummer),
    "fi.hetu": (r"\d{6}[-+A]\d{3}[\dA-Y]", hetu),
}
PATTERNS = {name: (re.compile(f"{LEFT}{form}{RIGHT}"), module) for name, (form, module) in FORMS.items()}
DOTTED = {"es.dni"}  # whose checker does not know the dots between thousands


def spans(text: str) -> list[tuple[int, int]]:
    """Where the numbers of a text stand that have a known form and pass its check."""
    found = []
    for name, (pattern, module) in PATTERNS.items():
        for match in pattern.finditer(text):
            number = match[0].replace(".", "") if name in DOTTED else match[0]
            if module.is_valid(number):
                found.append(match.span())
    return found
