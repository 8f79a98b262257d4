"""What is measured on a comparison, and the checks on it as Great Expectations' own expectations.

A row that could not be brought into a comparison fails the one check that its fault names
(ajuste/rows/layouts/preferences.py); of such a row no more is known. All others are judged on their cleaned prompt and
responses. Repetitions are no fault here: what a model should not write may be what the rejected response shows.
"""

from ajuste.rows.checks.expectations import MOJIBAKE, gxe, relation_checks
from ajuste.rows.checks.turns import TEMPLATE, pii
from ajuste.rows.clean import damage, visible
from ajuste.rows.layouts.preferences import FAULTS

ROLES = r"^(?:system )?user(?: assistant user)* assistant$"
CONTRADICTORY = "contradictory"  # the same responses to the same prompt in another order
MEASURED = ("damage", "roles", "prompt_chars", "responses", "response_chars", "equal", "chars", "template", "pii",
            "text")  # fmt: skip
TEXTS = {*FAULTS, "roles", "template", "text"}  # the other columns hold numbers
COLUMNS = ("row", *FAULTS, *MEASURED)


def measure(prompt: list[dict], responses: list[str], roles: str, text_alone: bool) -> dict:
    """The columns that row_checks judges, of a cleaned comparison; `text_alone`: a rated text, not yet compared."""
    asked = [turn["content"] for turn in prompt]
    contents = [*asked, *responses]
    found = next((match for content in contents if (match := TEMPLATE.search(content))), None)
    text = "\n".join(contents)
    return {
        "damage": sum(map(damage, contents)),
        "roles": roles,
        "prompt_chars": min((visible(turn["content"]) for turn in prompt if turn["role"] == "user"), default=0),
        "responses": None if text_alone else len(responses),
        "response_chars": min(map(visible, responses), default=0),
        "equal": len(responses) - len({" ".join(response.split()) for response in responses}),
        "chars": len(text) - len(contents) + 1,
        "template": found and found.group(),
        "pii": sum(pii(text).values()),
        "text": text,
    }


def row_checks(max_chars: int) -> list[gxe.Expectation]:
    """What a row must be by itself, on a frame of COLUMNS."""

    def between(column: str, check: str, **limits: int) -> gxe.Expectation:
        return gxe.ExpectColumnValuesToBeBetween(column=column, meta={"check": check}, **limits)

    return [
        *(gxe.ExpectColumnValuesToBeNull(column=fault, meta={"check": fault}) for fault in FAULTS),
        between("damage", "encoding_damage", max_value=0),
        gxe.ExpectColumnValuesToMatchRegex(column="roles", regex=ROLES, meta={"check": "role_order"}),
        between("prompt_chars", "empty_prompt", min_value=1),
        between("responses", "too_few_responses", min_value=2),
        between("response_chars", "missing_response", min_value=1),
        between("equal", "equal_responses", max_value=0),
        between("chars", "over_long", max_value=max_chars),
        gxe.ExpectColumnValuesToBeNull(column="template", meta={"check": "template_characters"}),
        between("pii", "pii", max_value=0),
        gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=MOJIBAKE, meta={"check": "mojibake"}),
    ]


def comparison_checks() -> list[gxe.Expectation]:
    """What a row must be beside all others, on a frame of RELATION_COLUMNS."""
    checks = relation_checks()
    for check in checks:
        if check.meta["check"] == "conflicting_label":
            check.meta["check"] = CONTRADICTORY
    return checks
