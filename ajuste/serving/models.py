"""The models that a server holds: found by name in the registry, checked, loaded once, equal tensors kept once.

    reference        what answers
    NAME             the champion, or the challenger where no champion is set
    NAME@ALIAS       the version that the alias names
    NAME/VERSION     that version

Classifiers label texts, decoders generate them, reward models score them; the card (ajuste.json) says which it is. An
adapter's base is the pretrained one of its kind, or the registered version that its tag `base_version` names.

    get(reference)   from any thread. What was found once is a look into a dictionary: no request waits for the registry
                     or for a load. What was never asked for is looked up and loaded in the caller's thread.
    follow()         from one thread (ajuste/serving/follower.py): looks the references in use up again. Where an alias
                     moved, the new version is loaded beside the old one, checked, asked one smoke request, and then
                     answers, by one assignment. If it is refused the old one goes on, and it is tried again when
                     its files or its sha256 change, or after RETRY_SECONDS.

Two locks. `_lock` guards the dictionaries, for microseconds. `_loading` is held while a model is loaded: transformers
sets global state meanwhile, so two loads at once are not safe; answering is, as it reads none of that. Who holds
`_loading` may take `_lock`, never the other way round. A model under way (a generation) is held by who uses it, so
leaving the dictionaries does not end it. What is kept has at most `max_bytes` of weights, tensors that models share
counted once, or is one model; the least used goes first.
"""

import contextlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ajuste.models.folder import read_card
from ajuste.serving.loading import (
    Place,
    RefusedModel,
    Served,
    UnknownModel,
    Version,
    is_adapter,
    key_of,
    load,
    stamp_of,
)
from ajuste.serving.pool import TensorPool, bytes_of

RETRY_SECONDS = 120.0
REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:@(?P<alias>[\w-]+)|/(?P<version>\d{1,9}))?")

log = logging.getLogger("ajuste.serving")


@dataclass(frozen=True)
class Refused:
    """A version that does not answer, why, and what its files looked like then (`stamp`)."""

    version: Version
    why: str
    stamp: tuple
    when: float


class Models:
    """What a reference to one of `names` stands for, loaded.

    `resolve` is ajuste.tracking.registry.registry.resolve or a test's stand-in; `base` is the folder of the
    classifiers' base, and `decoder_base` that of the decoders', which only adapters need. `defaults` are the references
    that answer requests that name no model, the first of each kind; absent: the names. `place` says where the weights
    stand and in which arithmetic they answer, `max_bytes` how much of them is kept.
    """

    def __init__(
        self, resolve: Callable[[str], Version], names: Sequence[str], base: Path, decoder_base: Path | None = None,
        defaults: Sequence[str] = (), place: Place | None = None, max_bytes: int | None = None,
    ) -> None:
        self._place = place or Place()
        self._max_bytes = self._place.memory() // 2 if max_bytes is None else max_bytes
        self.names, self._defaults = list(names), list(defaults or names)
        self._resolve, self._base, self._decoder_base = resolve, base, decoder_base
        self._kinds: dict[str, str] = {}                        # "" is not known yet
        self._pool = TensorPool()
        self._current: dict[str, Served] = {}                   # by reference
        self._loaded: OrderedDict[tuple[str, str], Served] = OrderedDict()
        self._refused: dict[str, Refused] = {}                  # by reference
        self._silent: dict[str, str] = {}                       # by reference: why the registry gave no answer
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, reference: str) -> Served:
        """The model that answers to this reference. Raises UnknownModel or RefusedModel. From any thread."""
        self._check(reference)
        with self._lock:
            if served := self._current.get(reference):
                self._loaded.move_to_end(key_of(served))
                return served
        if refused := self._still_refused(reference):
            raise RefusedModel(refused.why)
        return self._answer_with(reference, self.find(reference))

    def is_ready(self, reference: str, kind: str) -> bool:
        """Whether a request can be answered without a look into the registry. "" is the default of the kind."""
        if not reference and len(self._kinds) < len(self.names):
            return False
        return (reference or self.default(kind)) in self._current

    def needs_load(self, reference: str) -> bool:
        """Whether NAME/VERSION is neither in memory nor known to be refused."""
        name, _, version = reference.partition("/")
        with self._lock:
            return (name, version) not in self._loaded and reference not in self._refused

    def held(self) -> int:
        """Bytes of weights in memory, tensors that models share counted once."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return bytes_of(served.model for served in self._loaded.values())

    def follow(self) -> None:
        """Look up once what every alias in use names now, and let that answer. One thread calls it."""
        with self._lock:
            using = {*self._current, *self._refused}
        for reference in sorted(using):
            if "/" not in reference:                            # a number stays what it is
                self._follow(reference)
        for name, kind in list(self._kinds.items()):
            self._kinds[name] = kind or self._kind_of(name)

    def _follow(self, reference: str) -> None:
        try:
            version = self.find(reference)
        except UnknownModel as error:
            if self._silent.get(reference) != str(error):
                self._silent[reference] = str(error)
                log.warning("%s; the last answer stands", error)
            return
        if self._silent.pop(reference, None):
            log.warning("%s: the registry answers again", reference)
        before = self._current.get(reference)
        if before and key_of(before) == key_of(version):
            with self._lock:
                self._refused.pop(reference, None)              # the alias came back
                if before.alias != version.alias and reference in self._current:
                    self._current[reference] = replace(before, alias=version.alias)
            return
        if self._still_refused(reference, version):
            return
        with contextlib.suppress(RefusedModel):                 # said in the log, and by `refused`
            served = self._answer_with(reference, version)
            log.warning("%s: version %s answers now%s", reference, served.version,
                        f", before it version {before.version}" if before else "")

    def refused(self) -> dict[str, dict[str, str]]:
        """The references whose version does not answer: which one, and why."""
        with self._lock:
            found = dict(self._refused)
        return {reference: {"version": str(one.version.version), "why": one.why}
                for reference, one in found.items()}

    def _answer_with(self, reference: str, version: Version) -> Served:
        """Let that version answer to the reference from now on. Raises RefusedModel, and then nothing has changed."""
        stamp = stamp_of(version)
        try:
            served = self._have(version)
        except RefusedModel as error:
            why = str(error)                                    # names the version
            with self._lock:
                known = why in {one.why for one in self._refused.values()}
                self._refused[reference] = Refused(version, why, stamp, time.monotonic())
            if not known:
                log.warning("refused: %s", why)
            raise
        if served.alias != version.alias:
            served = replace(served, alias=version.alias)
        with self._lock:
            self._loaded.setdefault(key_of(served), served)     # it may have left since, for others
            self._loaded.move_to_end(key_of(served))
            self._current[reference] = served                   # the swap
            self._refused.pop(reference, None)
            while len(self._loaded) > 1 and self._bytes() > self._max_bytes:
                gone, _ = self._loaded.popitem(last=False)
                for other in [name for name, one in self._current.items() if key_of(one) == gone]:
                    del self._current[other]                    # asked again, it is looked up again
        return served

    def _have(self, version: Version) -> Served:
        """The version, loaded if it is not. Waits for another load only if it has to load itself."""
        key = key_of(version)
        if served := self._loaded.get(key):
            return served
        with self._loading:
            if not (served := self._loaded.get(key)):           # who held the lock may have loaded this very version
                served = load(version, self._base, self._base_of, self._pool, self._place)
                with self._lock:
                    self._loaded[key] = served
            return served

    def _still_refused(self, reference: str, version: Version | None = None) -> Refused | None:
        """What was refused, if that version with those files is not worth another try yet."""
        known = self._refused.get(reference)
        if known is None or time.monotonic() - known.when > RETRY_SECONDS:
            return None
        return known if stamp_of(version or known.version) == known.stamp else None

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
            if name not in self._kinds:
                self._kinds[name] = self._kind_of(name)
        return [name for name in self.names if self._kinds.get(name) == kind]

    def _kind_of(self, name: str) -> str:
        """The kind of a name's models, "" if no version of it is to be had."""
        for reference in (name, f"{name}/1"):       # aliases stand on served names alone, not on adapters
            with contextlib.suppress(UnknownModel, ValueError):
                return read_card(self.find(reference).path).get("kind", "classifier")
        return ""

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
        """What is in memory now, the least used first; each with the alias that names it, if one in use does."""
        with self._lock:
            using = sorted(self._current.items(), reverse=True)                 # of several, NAME's own counts
            aliases = {key_of(one): one.alias for _, one in using if one.alias}
            return [replace(served, alias=aliases.get(key)) for key, served in self._loaded.items()]

    def _base_of(self, version: Version) -> Path | None:
        """The folder of a decoder's or reward model's base: the registered version that it was trained on, if any."""
        made_from = version.tags.get("base_version")
        if not made_from or not is_adapter(version):
            return self._decoder_base
        try:
            return self._resolve(made_from).path
        except Exception as error:          # as in `find`
            raise ValueError(f"its base {made_from} is not to be had: {error}") from None
