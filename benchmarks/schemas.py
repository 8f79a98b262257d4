"""Does the server keep what its /openapi.json promises, whatever it is asked? Asked by Schemathesis.

Schemathesis reads /openapi.json and makes requests from it, right ones and wrong ones, `examples` an operation, with a
fixed seed. Its checks: no server error; no status, content type, header or body that the interface does not promise;
405 for a method that a page does not have. The server is this checkout's, as `ajuste serve` starts it, on tiny models
of each kind with random weights.

Schemathesis is no dependency of this project: it has a virtual environment of its own.

    python -m venv .probe/schemathesis && .probe/schemathesis/bin/pip install schemathesis
    python -m benchmarks.schemas .probe/schemathesis/bin/st
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from ajuste.models.folder import sha256_of
from ajuste.serving import generation
from ajuste.serving.app import make_app
from ajuste.serving.door.connections import server_of
from ajuste.serving.models import Models
from benchmarks.results import value
from benchmarks.servers import in_thread
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "unsupported_method")


def tiny_models(root: Path) -> Models:
    """A classifier, an assistant and a reward model, all loaded."""
    encoder, base = tiny_classifiers.tiny_base(root / "encoder"), tiny_decoders.tiny_base(root / "decoder")
    assistant = tiny_decoders.tiny_full(base, root / "assistant")
    adapter = tiny_rlhf.reward_adapter(assistant, root / "reward-adapter")
    folders = {"assistant": assistant, "ratings-reward": tiny_rlhf.reward_merged(assistant, adapter, root / "reward"),
               "reviews-classifier": tiny_classifiers.tiny_full(encoder, root / "classifier")}

    def resolve(reference: str) -> SimpleNamespace:
        name, _, number = reference.partition("@")[0].partition("/")
        if number not in ("", "1"):
            raise LookupError(f"{name} has no version {number}")
        tags = {"sha256": sha256_of(folders[name] / "model.safetensors")}
        return SimpleNamespace(name=name, version="1", alias="champion", path=folders[name], tags=tags)

    models = Models(resolve, list(folders), encoder, base)
    for name in folders:
        models.get(name)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="Schemathesis's own `st`")
    parser.add_argument("--examples", type=int, default=300, help="an operation")
    parser.add_argument("--page", help="one path alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generation.DEFAULT_TOKENS = 8                       # of an answer: what it says does not matter here
    with tempfile.TemporaryDirectory() as folder:
        server = server_of(make_app(tiny_models(Path(folder))), port=0, log_level="error")
        with in_thread(server) as port:
            command = [
                str(options.program.absolute()), "run", f"http://127.0.0.1:{port}/openapi.json",
                "--checks", ",".join(CHECKS), "--max-examples", str(options.examples),
                "--phases", "examples,coverage,fuzzing", "--seed", "0", "--suppress-health-check", "all",
                "--continue-on-failure", "--request-timeout", "60",
                *(["--include-path", options.page] if options.page else []),
            ]
            done = subprocess.run(command, cwd=folder)
        value("Schemathesis, exit code", "code", [done.returncode])
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
