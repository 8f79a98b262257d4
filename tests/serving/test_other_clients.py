"""LangChain's and LlamaIndex's OpenAI classes, in a venv of their own, against a real server.

    python -m venv clients && clients/bin/pip install langchain-openai llama-index-llms-openai-like
    AJUSTE_CLIENTS_PYTHON=clients/bin/python python -m pytest tests/serving/test_other_clients.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ajuste.models import decoder
from tests.serving.test_generation import right, user

PYTHON = os.environ.get("AJUSTE_CLIENTS_PYTHON", "")
TURNS = [{"role": "system", "content": "Be brief."}, *user("A film."), {"role": "assistant", "content": "Yes."},
         *user("Is it good?")]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="$AJUSTE_CLIENTS_PYTHON names no Python that has LangChain and LlamaIndex")
def test_both_chat_stream_complete_and_list(server, speakers):
    away = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, "-P", Path(__file__).with_name("other_clients.py"), f"{server[0]}/v1", "assistant"],
        env=away, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model, tokenizer, _ = decoder.load(speakers["merged"])
    chat, text = right(model, tokenizer, TURNS, 12)[0], right(model, tokenizer, "A warm", 12)[0]
    names = ["assistant", "assistant-adapter"]
    both = {"chat": chat, "streamed": chat, "again": True, "text": text, "text streamed": text, "models": names}
    assert found["llamaindex"] == both
    assert found["langchain"] == both | {"batched": chat, "choice": chat, "logprobs": 12}
