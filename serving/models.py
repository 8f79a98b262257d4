"""The models that a server holds: found by name in the registry, checked, loaded once, equal tensors kept once.

    reference        what answers
    NAME             the champion, or the challenger where no champion is set
    NAME@ALIAS       the version that the alias names
    NAME/VERSION     that version

Adapters share their base. A LoRA model is W0 and a small A and B: `TensorPool` gives all loaded models one and the same
tensor wherever theirs are equal byte for byte. So ten adapters of one base cost one base and ten times A and B, and a
merged model costs only the matrices that the merge changed. Every model keeps its own modules, so there is no active
adapter to switch, and no request can be answered by another one's. Classifiers label texts, decoders generate them,
reward models score them; the card (ajuste.json) says which it is. An adapter's base is the pretrained one of its kind,
or the registered version that its tag `base_version` names.

A reference is looked up again after `FRESH_SECONDS`: when an alias moves, the server follows without a restart. If the
registry does not answer then, the last answer stands. At most `MAX_LOADED` models are kept, the least used goes first.
Not thread-safe: `Models.get` belongs to the one inference thread (see serving/batches.py).
"""

import contextlib
import hashlib
import logging
import re
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from learning import bottleneck, classifier, decoder, reward
from serving import decoding

FRESH_SECONDS = 10.0
MAX_LOADED = 8
# what a model of each kind is for, where it was asked for something else
DOES = {
    "classifier": "labels texts: ask POST /classify",
    "decoder": "generates text: ask POST /v1/chat/completions",
    "reward": "scores responses: ask POST /v1/score",
}
REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:@(?P<alias>[\w-]+)|/(?P<version>\d{1,9}))?")

log = logging.getLogger("ajuste.serving")


class UnknownModel(LookupError):
    """No such model: the message names those that exist."""


class RefusedModel(ValueError):
    """The model's files are not what the registry recorded, or not what this server can answer with."""


class Version(Protocol):
    """What the registry says of a version (tracking.registry.Version)."""

    name: str
    version: Any
    alias: str | None
    path: Path
    tags: dict[str, str]


@dataclass(frozen=True)
class Served:
    """A loaded model and the version that it is."""

    name: str
    version: str
    alias: str | None
    strategy: str
    model: nn.Module
    tokenizer: Any
    card: dict

    @property
    def kind(self) -> str:
        """`classifier`, `decoder` or `reward`."""
        return self.card.get("kind", "classifier")

    def must_be(self, kind: str) -> None:
        """Raise UnknownModel, saying what this model is for, unless it is of that kind."""
        if self.kind != kind:
            raise UnknownModel(f"`{self.name}` {DOES[self.kind]}")

    @property
    def context(self) -> int:
        """How many tokens a decoder or a reward model can look back on, those of a learned prefix not counted."""
        adapter = getattr(self.model, "active_peft_config", None)
        prefix = adapter.num_virtual_tokens if adapter and adapter.is_prompt_learning else 0
        return self.model.config.max_position_embeddings - prefix

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Probabilities [N, C] of the texts, in their order; C follows card["labels"]. Raises UnknownModel."""
        self.must_be("classifier")
        return classifier.predict(self.model, self.tokenizer, self.card, list(texts))


class TensorPool:
    """One copy of equal tensors. A tensor leaves the pool with the last model that uses it."""

    def __init__(self) -> None:
        self._tensors: weakref.WeakValueDictionary = weakref.WeakValueDictionary()

    def share(self, model: nn.Module) -> None:
        """Replace the model's parameters by those of the pool where they are equal; add the others to the pool.

        Quantised ones stay alone: their codes are equal for W and 2 W, the scale stands elsewhere.
        """
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if type(parameter) is nn.Parameter and parameter.is_floating_point():
                    module._parameters[name] = self._tensors.setdefault(_content(parameter), parameter)


def _content(tensor: Tensor) -> tuple:
    flat = tensor.detach().cpu().contiguous().flatten()
    data = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return str(tensor.device), tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).digest()


def check_digest(version: Version) -> None:
    """Raise RefusedModel unless the weights on disk are the ones that were registered."""
    weights = "adapter_model.safetensors" if is_adapter(version) else "model.safetensors"
    if (version.path / bottleneck.CONFIG).is_file():
        weights = bottleneck.WEIGHTS
    recorded = {weights: version.tags["sha256"]}
    if "head_sha256" in version.tags:       # mean pooling: the head is a file of its own
        recorded[classifier.HEAD] = version.tags["head_sha256"]
    label = f"{version.name}/{version.version}"
    for name, wanted in recorded.items():
        file = version.path / name
        if not file.is_file():
            raise RefusedModel(f"{label}: {file} is missing: was the project's folder moved? `ajuste doctor` checks it")
        found = classifier.sha256_of(file)
        if found != wanted:
            raise RefusedModel(f"{label}: {file} has sha256 {found[:12]}, the registry recorded {wanted[:12]}: "
                               "the file was changed or damaged; it is not loaded")


def is_adapter(version: Version) -> bool:
    """Whether the version needs its base: A and B in PEFT's layout, or another kind of adapter."""
    return decoder.is_adapter(version.path)


class Models:
    """What a reference to one of `names` stands for, loaded.

    `resolve` is tracking.registry.resolve or a test's stand-in; `base` is the folder of the classifiers' base, and
    `decoder_base` that of the decoders', which only adapters need. `defaults` are the references that answer requests
    that name no model, the first of each kind; absent: the names.
    """

    def __init__(
        self, resolve: Callable[[str], Version], names: Sequence[str], base: Path, decoder_base: Path | None = None,
        defaults: Sequence[str] = (),
    ) -> None:
        self.names, self._defaults = list(names), list(defaults or names)
        self._resolve, self._base, self._decoder_base = resolve, base, decoder_base
        self._kinds: dict[str, str] = {}
        self._pool = TensorPool()
        self._found: dict[str, tuple[float, tuple[str, str], str | None]] = {}
        self._loaded: OrderedDict[tuple[str, str], Served] = OrderedDict()

    def get(self, reference: str) -> Served:
        """The model that answers to this reference. Raises UnknownModel or RefusedModel."""
        self._check(reference)
        now = time.monotonic()
        when, key, alias = self._found.get(reference, (float("-inf"), ("", ""), None))
        if now - when > FRESH_SECONDS:
            try:
                version = self.find(reference)
            except UnknownModel as error:
                if key not in self._loaded:
                    raise
                log.warning("%s; the last answer stands", error)
            else:
                key, alias = (version.name, str(version.version)), version.alias
                if key not in self._loaded:
                    self._keep(key, self._load(version))
            self._found[reference] = (now, key, alias)
        elif key not in self._loaded:       # it was found a moment ago and had to leave for others since
            self._keep(key, self._load(self.find(reference)))
        self._loaded.move_to_end(key)
        served = self._loaded[key]
        return served if served.alias == alias else replace(served, alias=alias)

    def find(self, reference: str) -> Version:
        """The registry's version of that reference. Raises UnknownModel with the reason."""
        self._check(reference)
        try:
            return self._resolve(reference)
        except Exception as error:          # the registry's own errors are as many as its back ends
            raise UnknownModel(f"no model `{reference}`: {error}") from error

    def of_kind(self, kind: str) -> list[str]:
        """The names that hold models of that kind. From any thread."""
        for name in self.names:
            for reference in (name, f"{name}/1"):       # aliases stand on served names alone, not on adapters
                if name not in self._kinds:
                    with contextlib.suppress(UnknownModel, ValueError):
                        card = classifier.read_card(self.find(reference).path)
                        self._kinds[name] = card.get("kind", "classifier")
        return [name for name in self.names if self._kinds.get(name) == kind]

    def default(self, kind: str) -> str:
        """What answers a request of that kind that names no model. Raises UnknownModel, saying what to do."""
        names = self.of_kind(kind)
        for reference in self._defaults:
            if REFERENCE.fullmatch(reference)["name"] in names:
                return reference
        word = "reward model" if kind == "reward" else kind
        raise UnknownModel(f"no {word} is served here: `ajuste run` trains and registers one")

    def _check(self, reference: str) -> None:
        if not self.names:
            raise UnknownModel(f"no model `{reference[:80]}`: nothing is registered yet, `ajuste run` does it")
        match = REFERENCE.fullmatch(reference)
        if not match or match["name"] not in self.names:
            raise UnknownModel(f"no model `{reference[:80]}` here: there is {', '.join(self.names)}, "
                               "each also as NAME@champion, NAME@challenger or NAME/VERSION")

    def loaded(self) -> list[Served]:
        """What is in memory now, the least used first."""
        return list(self._loaded.values())

    def _base_of(self, version: Version) -> Path | None:
        """The folder of a decoder's or reward model's base: the registered version that it was trained on, if any."""
        made_from = version.tags.get("base_version")
        if not made_from or not is_adapter(version):
            return self._decoder_base
        try:
            return self._resolve(made_from).path
        except Exception as error:          # as in `find`
            raise ValueError(f"its base {made_from} is not to be had: {error}") from None

    def _keep(self, key: tuple[str, str], served: Served) -> None:
        self._loaded[key] = served
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)

    def _load(self, version: Version) -> Served:
        check_digest(version)
        label = f"{version.name}/{version.version}"
        try:
            card = classifier.read_card(version.path)
            if card.get("kind") == "decoder":
                model, tokenizer, card = decoder.load(version.path, self._base_of(version))
                decoding.check(model)
            elif card.get("kind") == "reward":
                model, tokenizer, card = reward.load(version.path, self._base_of(version))
            elif is_adapter(version):
                model, tokenizer, card = classifier.load_adapter(self._base, version.path)
            else:
                model, tokenizer, card = classifier.load(version.path)
        except (ValueError, OSError) as error:
            raise RefusedModel(f"{label} does not load: {error}") from None
        if card.get("kind", "classifier") == "classifier" and card["task"] != "sequence":
            raise RefusedModel(f"{label} is a model for task `{card['task']}`: "
                               "/classify answers with one label a text, task `sequence`")
        model.eval().requires_grad_(False)
        self._pool.share(model)
        strategy = card.get("strategy", card.get("method", ""))      # a reward model has a method alone
        return Served(version.name, str(version.version), version.alias, strategy, model, tokenizer, card)
