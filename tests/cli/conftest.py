from tests.serving.conftest import both, folders, registry, server, speakers  # noqa: F401
