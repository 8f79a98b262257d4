"""The server of benchmarks/load.py: of whichever checkout PYTHONPATH names, on two folders.

    PYTHONPATH=CHECKOUT python benchmarks/sides/load.py CLASSIFIER DECODER PORT DTYPE

It imports that checkout alone, which may be older than this file.
"""

import sys
from pathlib import Path
from types import SimpleNamespace


def serve(classifier: Path, decoder: Path, port: int, dtype: str) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    import torch

    from ajuste.models.folder import sha256_of
    from ajuste.serving.app import make_app
    from ajuste.serving.models import Models

    folders = {"reviews-classifier": classifier, "assistant": decoder}
    found = {name: SimpleNamespace(name=name, version="1", alias="champion", path=path,
                                   tags={"sha256": sha256_of(path / "model.safetensors")})
             for name, path in folders.items()}
    how = {}
    if dtype != "float32":
        from ajuste.serving.loading import Place

        how["place"] = Place(getattr(torch, dtype))
    app = make_app(Models(lambda reference: found[reference.partition("@")[0].partition("/")[0]], list(folders),
                          classifier, decoder, **how))
    settings = {"host": "127.0.0.1", "port": port, "log_level": "error", "access_log": False}
    try:
        from ajuste.serving.door.connections import server_of
    except ImportError:                     # of a revision without limits on connections
        import uvicorn

        uvicorn.run(app, **settings)
    else:
        server_of(app, **settings).run()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
