"""The code of a registered assistant: MLflow copies this file beside the weights and runs it on loading.

    model = mlflow.pyfunc.load_model("models:/assistant@challenger")
    model.predict(["What is the capital of France?"])          # or a DataFrame with column `prompt`
       answer                           tokens
    0  The capital of France is Paris.       8

Every text is the user's first turn of a chat of its own; the answer is greedy, at most `NEW_TOKENS` tokens. Logged from
code, so nothing is pickled; ajuste/learning/text/chat.py and generate.py travel in the model's `code/` folder, so it
loads where Ajuste is not installed. No params: `ajuste serve` is the server with samplings and streams.
"""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

NEW_TOKENS = 256


class Assistant(PythonModel):
    """Plain text in; the answer and its number of tokens out."""

    def load_context(self, context) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ajuste.learning.text import chat, generate

        folder = context.artifacts["model"]
        self.chat, self.generate = chat, generate.generate
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    # DataFrame is the one hint with which MLflow neither warns nor takes its schema from the hint: texts in a list,
    # too, arrive as a DataFrame of one column by the logged signature
    def predict(self, context, model_input: pd.DataFrame, params=None):
        chats = [[{"role": "user", "content": str(text)}] for text in model_input.iloc[:, 0]]
        prompts = [self.chat.prompt_ids(self.tokenizer, messages) for messages in chats]
        stop = self.chat.end_of_turn(self.tokenizer)
        answers = self.generate(self.model, prompts, NEW_TOKENS, stop, stop[0])
        return pd.DataFrame({
            "answer": [self.chat.response_text(self.tokenizer, ids).strip() for ids in answers],
            "tokens": [len(ids) for ids in answers],
        })


set_model(Assistant())
