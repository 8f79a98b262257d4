"""What drift looks at in a text: the label that a classifier gives it, and features that no training moves.

    label       of the served classifier; an assistant has none
    features    of the frozen base encoder, mean-pooled [d], for both kinds of model
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ajuste.core.params import Compute, read_yaml, typed
from ajuste.judging.verdicts.drift import MAX_CHARS
from ajuste.models import classifier
from ajuste.models.features import FeatureReader
from ajuste.models.folder import load_tokenizer
from ajuste.rows.clean import clean

MAX_TOKENS = 256  # of an assistant's prompt that is embedded; a classifier's texts are cut as its card says
BATCH_ROWS = 32


class TextReader:
    """Reads texts with models that are loaded when they are first needed. encoder: the folder of the frozen base;
    labels_by: the folder of the served classifier, None for an assistant."""

    def __init__(self, encoder: Path, labels_by: Path | None):
        self._folder, self._labels_by = encoder, labels_by

    @property
    def labels(self) -> list[str]:
        """The names of the classifier's labels, in the order of its class ids."""
        return self._classifier[2]["labels"]

    def predict(self, texts: list[str]) -> list[str] | None:
        """The label that the classifier gives each text; None for an assistant."""
        if self._labels_by is None:
            return None
        return [self.labels[i] for i in classifier.predict(*self._classifier, texts).argmax(dim=-1).tolist()]

    def embed(self, texts: list[str]) -> np.ndarray:
        """Mean-pooled features of the frozen base [N, d]."""
        reader, tokenizer = self._encoder
        most = MAX_TOKENS if self._labels_by is None else self._classifier[2]["max_tokens"]
        ids = tokenizer([clean(text[:MAX_CHARS])[0] for text in texts], truncation=True, max_length=most)["input_ids"]
        return classifier.logits_of(reader, ids, BATCH_ROWS).numpy()

    @cached_property
    def _classifier(self) -> tuple:
        return classifier.load(self._labels_by)

    @cached_property
    def _encoder(self) -> tuple:
        compute = typed(Compute, read_yaml(Path("params.yaml")).get("compute") or {}, "compute")
        torch.set_num_threads(compute.threads)
        base = classifier.build(self._folder, ["0", "1"], pooling="mean")
        return FeatureReader(base).eval(), load_tokenizer(self._folder)
