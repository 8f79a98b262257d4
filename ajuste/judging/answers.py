"""Is a short answer right? SQuAD's exact match and word F1, after lower-casing and dropping punctuation and articles.

    F1 = 2 |words in common, with their counts| / (|words found| + |words true|)      the best over a row's answers
"""

import re
import string
from collections import Counter


def normalise(text: str) -> list[str]:
    """SQuAD's words: lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(answer: str, answers: list[str]) -> float:
    """1 if the answer equals one of the answers after SQuAD's normalisation, else 0."""
    return float(any(normalise(answer) == normalise(true) for true in answers))


def word_f1(answer: str, answers: list[str]) -> float:
    """Highest F1 over words in common (with their counts) with one of the answers."""
    return max(_f1(normalise(answer), normalise(true)) for true in answers)


def _f1(found: list[str], true: list[str]) -> float:
    common = sum((Counter(found) & Counter(true)).values())
    return 2 * common / (len(found) + len(true)) if found or true else 1.0
