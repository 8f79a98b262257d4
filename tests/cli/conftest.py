from tests.serving.conftest import both, folders, judges, registry, server, speakers  # noqa: F401
