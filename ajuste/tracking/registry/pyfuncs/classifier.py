"""The code of a registered classifier: MLflow copies this file beside the weights and runs it on loading.

    model = mlflow.pyfunc.load_model("models:/reviews-classifier@challenger")
    model.predict(["A masterpiece.", "I left early."])         # or a DataFrame with column `text`
       label   probability  probabilities
    0  positive       0.98  [0.02, 0.98]

`probabilities` follow the order of the labels in ajuste.json. Logged from code, so nothing is pickled;
ajuste/models/classifier.py travels in the model's `code/` folder, so it loads where Ajuste is not installed. No params.
"""

from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class TextClassifier(PythonModel):
    """Plain text in; label, its probability and all probabilities out."""

    def load_context(self, context) -> None:
        from ajuste.models import classifier

        self.classifier = classifier
        self.loaded = classifier.load(Path(context.artifacts["model"]))

    # DataFrame is the one hint with which MLflow neither warns nor takes its schema from the hint: texts in a list,
    # too, arrive as a DataFrame of one column by the logged signature
    def predict(self, context, model_input: pd.DataFrame, params=None):
        model, tokenizer, card = self.loaded
        texts = [str(text) for text in model_input.iloc[:, 0]]
        probabilities = self.classifier.predict(model, tokenizer, card, texts)
        best = probabilities.argmax(dim=-1).tolist() if texts else []
        return pd.DataFrame({
            "label": [card["labels"][i] for i in best],
            "probability": [row[i].item() for row, i in zip(probabilities, best, strict=True)],
            "probabilities": probabilities.tolist(),
        })


set_model(TextClassifier())
