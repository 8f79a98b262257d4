from tests.serving.conftest import folders, registry  # noqa: F401
