"""The registry's models, opened for a command; one that cannot be had ends it with a line, not with a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.models import Models


def open_models(names: Sequence[str] | None = None, defaults: Sequence[str] = ()) -> "Models":
    """The registered models of these names (None: all), as serving/models.py loads them."""
    from serving.models import Models
    from tasks._stage import home
    from tracking import registry

    bases = home() / "artifacts" / "base"
    names = registry.names() if names is None else names
    return Models(registry.resolve, names, bases / "encoder", bases / "decoder", defaults=defaults)


@contextmanager
def errors_told() -> Iterator[None]:
    """What serving says of a model inside is said to the user: UsageError if it is unknown, DataError if refused."""
    from serving.loading import RefusedModel, UnknownModel
    from tasks._stage import DataError, UsageError

    try:
        yield
    except UnknownModel as error:
        raise UsageError(str(error)) from None
    except RefusedModel as error:
        raise DataError(str(error)) from None
