"""The code of a registered reward model: MLflow copies this file beside the weights and runs it on loading.

    model = mlflow.pyfunc.load_model("models:/ratings-reward@challenger")
    model.predict(pandas.DataFrame({"prompt": ["Write a one-sentence movie review."], "response": ["A warm film."]}))
       reward
    0    1.31

The prompt is the user's first turn, the response all that the assistant said: r(x, y) = w . h + b at its end of turn.
Mean 0 and deviation 1 on what the assistant itself says to the training prompts, so 1 is better than about five of six.
Logged from code, so nothing is pickled; ajuste/learning/text/chat.py travels in the model's `code/` folder, so it loads
where Ajuste is not installed. Plain transformers finds the last token that is not padding; its `score` has no bias: b
is added here.
"""

import json
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

BATCH_ROWS = 32


class RewardModel(PythonModel):
    """Prompt and response in; the reward out."""

    def load_context(self, context) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from ajuste.learning.text import chat

        folder = context.artifacts["model"]
        self.chat = chat
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.bias = json.loads((Path(folder) / "ajuste.json").read_text(encoding="utf-8"))["bias"]

    # DataFrame is the one hint with which MLflow neither warns nor takes its schema from the hint
    def predict(self, context, model_input: pd.DataFrame, params=None):
        import torch

        rows = []
        for prompt, response in zip(model_input["prompt"], model_input["response"], strict=True):
            turns = [{"role": "user", "content": str(prompt)}, {"role": "assistant", "content": str(response)}]
            rows.append([token for ids, _ in self.chat.segments(self.tokenizer, turns) for token in ids])
        rewards: list[float] = []
        for start in range(0, len(rows), BATCH_ROWS):
            some = rows[start : start + BATCH_ROWS]
            ids = torch.full((len(some), max(map(len, some))), self.model.config.pad_token_id)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(some):
                ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
            with torch.no_grad():
                rewards += (self.model(input_ids=ids, attention_mask=mask).logits[:, 0] + self.bias).tolist()
        return pd.DataFrame({"reward": rewards})


set_model(RewardModel())
