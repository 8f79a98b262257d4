"""The code of a registered classifier: MLflow copies this file beside the weights and runs it on loading.

    model = mlflow.pyfunc.load_model("models:/reviews-classifier@challenger")
    model.predict(["A masterpiece.", "I left early."])         # or a DataFrame with column `text`
       label   probability  probabilities
    0  positive       0.98  [0.02, 0.98]

`probabilities` follow the order of the labels in ajuste.json. Logged from code, so nothing is pickled;
learning/classifier.py travels in the model's `code/` folder, so it loads where Ajuste is not installed. No params.
"""

from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class TextClassifier(PythonModel):
    """Plain text in; label, its probability and all probabilities out."""

    def load_context(self, context) -> None:
        from learning import classifier

        self.classifier = classifier
        self.loaded = classifier.load(Path(context.artifacts["model"]))

    # no type hints here: MLflow would take its schema from them instead of from the logged signature
    def predict(self, context, model_input, params=None):
        texts = model_input["text"] if isinstance(model_input, pd.DataFrame) else model_input
        model, tokenizer, card = self.loaded
        probabilities = self.classifier.predict(model, tokenizer, card, [str(text) for text in texts])
        best = probabilities.max(dim=-1) if len(probabilities) else None
        return pd.DataFrame(
            {
                "label": [card["labels"][i] for i in best.indices.tolist()] if best else [],
                "probability": best.values.tolist() if best else [],
                "probabilities": probabilities.tolist(),
            }
        )


set_model(TextClassifier())
