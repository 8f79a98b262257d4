"""The registry's models, opened for a command; one that cannot be had ends it with a line, not with a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ajuste.serving.loading import Place
    from ajuste.serving.models import Models


def open_models(
    names: Sequence[str] | None = None, defaults: Sequence[str] = (), place: "Place | None" = None,
    max_bytes: int | None = None,
) -> "Models":
    """The registered models of these names (None: all), as ajuste/serving/models.py loads them."""
    from ajuste.core.home import home
    from ajuste.serving.models import Models
    from ajuste.tracking.registry import registry

    bases = home() / "artifacts" / "base"
    names = registry.names() if names is None else names
    return Models(registry.resolve, names, bases / "encoder", bases / "decoder", defaults, place, max_bytes)


@contextmanager
def errors_told() -> Iterator[None]:
    """What serving says of a model inside is said to the user: UsageError if it is unknown, DataError if refused."""
    from ajuste.core.errors import DataError, UsageError
    from ajuste.serving.loading import RefusedModel, UnknownModel

    try:
        yield
    except UnknownModel as error:
        raise UsageError(str(error)) from None
    except RefusedModel as error:
        raise DataError(str(error)) from None
