"""What tests/tracking/test_many.py holds of SQLite, on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.test_many import (  # noqa: F401
    asked,
    many,
    test_a_reference_is_one_question,
    test_names_beyond_the_first_page_are_there,
    test_prune_sees_every_name_and_every_version,
    test_the_runs_of_all_versions_are_read_once,
    test_what_a_reference_means_is_as_it_was,
)
from tests.tracking.test_server import postgres  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:  # noqa: F811
    with many(tmp_path_factory.mktemp("many"), postgres) as folder:
        yield folder
