"""What each single person gave to the rated texts of a preference set, by where the text stands in its file.

    ratings_of(Path("data/ratings"))      {"data/ratings/texts.txt:17": [1.0, -2.0, ...], ...}

The validated comparisons keep means alone; their `location` names the two texts, `<better> > <worse>`. In a set without
rated texts there is nothing. Memory: all ratings of the set.
"""

from pathlib import Path

from ajuste.rows.read.comparisons import read_comparisons
from ajuste.rows.sets.preferences import read_set

BATCH_ROWS = 4096
BETWEEN = " > "


def ratings_of(data: Path) -> dict[str, list[float]]:
    """location -> ratings, in the order of the file. Raises DataError for a folder that holds no set of preferences."""
    data_set = read_set(data)
    found = {}
    for file in data_set.files:
        if file.layout != "ratings":
            continue
        for batch in read_comparisons(data, data_set, file, BATCH_ROWS):
            found |= {f"data/{data.name}/{file.path}:{row.line}": row.raters for row in batch if row.raters}
    return found


def of_pair(location: str, known: dict[str, list[float]]) -> tuple[list[float], list[float]] | None:
    """The ratings of the better and of the worse text of a comparison; None if they are not known."""
    better, found, worse = location.partition(BETWEEN)
    if not found or better not in known or worse not in known:
        return None
    return known[better], known[worse]
