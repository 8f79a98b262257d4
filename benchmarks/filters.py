"""How much do the server's filters catch, what do they catch wrongly, and what do they cost?

    1. Catch rate. Texts with something planted, `planted` of each kind, drawn with a fixed seed: in one turn, split
       over two turns of the user, and as an answer that comes in pieces of three characters. Caught: all of it is
       masked and all else stays; of one that is split, more than half of it is masked (95 % Wilson interval).
    2. Benign twins: the same sentences with what is none. A number of the same form with a wrong check digit, a private
       address, a version number, a word that holds a profane one, a phrase in another order. Caught: a false positive.
    3. Ordinary rows: the instructions of the default run, and how many of them each kind flags (data/, if it is there).
       What is flagged there may be right.
    4. Latency. A chat of `tokens` tokens of input, one token of answer, over HTTP on loopback: with and without the
       filters in turn, the difference of each pair. And the filters alone, of that input and of an answer that comes
       token by token.

Run it from the project's folder, on a quiet machine, after `ajuste run` (or give a folder of another decoder):

    python -m benchmarks.filters > docs/measured/filters-server.md
"""

import argparse
import http.client
import json
import os
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import phonenumbers
import torch
import uvicorn
from stdnum import iban, luhn
from stdnum.ar import cuit
from stdnum.br import cpf
from stdnum.cl import rut
from stdnum.es import dni, nie

from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.models.folder import load_tokenizer, sha256_of
from ajuste.rows.filters.config import FilterConfig
from ajuste.rows.filters.filters import made
from ajuste.rows.filters.phrases import PROFANITY, profane_words
from ajuste.rows.filters.rows import scanned
from ajuste.serving.app import make_app
from ajuste.serving.guard import Guard
from ajuste.serving.models import Models
from benchmarks.results import value
from benchmarks.servers import in_thread

KINDS = ["email", "phone", "card", "iban", "national_id", "ip", "profanity", "phrase"]
REGIONS = ["ES", "US"]
SENTENCES = ("Please note: {}.", "I think it was {}, but ask her again.", "Mi dato es {} y nada más.", "{}",
             "They wrote ({}) on the form.", "¿Puedes guardar {}? Gracias.")  # fmt: skip
PHRASES = ["project blue heron", "the north gate opens at noon", "codename quiet river", "la llave del archivo gris"]
BENIGN_PHRASES = ["the blue heron project", "the gate opens north at noon", "a quiet river", "las llaves del archivo"]
BENIGN_WORDS = ["Scunthorpe", "classic", "cocktail", "assessment", "Essex", "shiitake mushrooms", "a therapist",
                "the analysis", "Middlesex county", "a title page", "grape juice", "the peacock", "Dickens",
                "a hoedown", "the Japanese garden", "a nippy morning", "Sussex", "breast cancer screening",
                "sex education", "homosexuality in literature"]  # fmt: skip
NETWORKS = (("4", 16), ("51", 16), ("2221", 16), ("34", 15), ("6011", 16), ("36", 14))
ACCOUNTS = {"DE": "{18}", "GB": "NWBK{14}", "NL": "ABNA{10}", "AT": "{16}", "CH": "{17}"}


# --- what is planted, and its twins -----------------------------------------------------------------------------------


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def grouped(rng: random.Random, number: str, size: int = 4) -> str:
    """As people write it: without signs, in groups with blanks, or with dashes."""
    sign = rng.choice(["", " ", "-"])
    return sign.join(number[i : i + size] for i in range(0, len(number), size)) if sign else number


def email(rng: random.Random) -> tuple[str, str]:
    name, host = f"{rng.choice(['ana', 'li.wei', 'j_smith'])}{rng.randrange(999)}", f"mail{rng.randrange(99)}.example"
    return f"{name}@{host}.{rng.choice(['com', 'org', 'es', 'co.uk'])}", f"@{name} on {host}"


def phone(rng: random.Random) -> tuple[str, str]:
    """A number of a plan, abroad or at home; its twin is an order number of as many digits, or a date."""
    region = rng.choice(["ES", "US", "GB", "MX", "DE", "FR", "AR", "IN", "BR", "JP"])
    while True:  # the last digits drawn, until the plan has the number
        example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        example.national_number = int(str(example.national_number)[:-4] + digits(rng, 4))
        if phonenumbers.is_valid_number(example):
            break
    forms = phonenumbers.PhoneNumberFormat
    home = region in REGIONS and rng.random() < 0.5
    number = phonenumbers.format_number(example, forms.NATIONAL if home else forms.INTERNATIONAL)
    day = f"{rng.randrange(1, 29):02}/{rng.randrange(1, 13):02}/{rng.randrange(1950, 2030)}"
    return number, rng.choice([day, f"#{digits(rng, 4)}/{rng.randrange(1990, 2030)}", f"{rng.randrange(1, 99)},500.00"])


def card(rng: random.Random) -> tuple[str, str]:
    start, length = rng.choice(NETWORKS)
    number = start + digits(rng, length - len(start) - 1)
    right = luhn.calc_check_digit(number)
    return grouped(rng, number + right), grouped(rng, number + str((int(right) + rng.randrange(1, 10)) % 10))


def account(rng: random.Random) -> tuple[str, str]:
    country = rng.choice(list(ACCOUNTS))
    letters, _, count = ACCOUNTS[country].rstrip("}").partition("{")
    number = letters + digits(rng, int(count))
    right = iban.calc_check_digits(f"{country}00{number}")
    wrong = f"{2 + (int(right) - 2 + rng.randrange(1, 96)) % 97:02}"
    sign = rng.choice(["", " "])
    return tuple(sign.join(f"{country}{check}{number}"[i : i + 4] for i in range(0, 34, 4)).strip()
                 for check in (right, wrong))  # fmt: skip


def identity(rng: random.Random) -> tuple[str, str]:
    eight = str(rng.randrange(10**7, 10**8))
    kind = rng.randrange(5)
    if kind == 0:
        right = dni.calc_check_digit(eight)
        return f"{eight}{right}", f"{eight}{'TRWAGMYFPDXBNJZSQVHLCKE'[(int(eight) + 1) % 23]}"
    if kind == 1:
        number = f"{rng.choice('XYZ')}{eight[1:]}"
        right = nie.calc_check_digit(number)
        return f"{number}{right}", f"{number}{'A' if right != 'A' else 'B'}"
    if kind == 2:
        number = digits(rng, 9)
        checks = cpf._calc_check_digits(number)
        shown = f"{number[:3]}.{number[3:6]}.{number[6:]}"
        return f"{shown}-{checks}", f"{shown}-{(int(checks) + 1) % 100:02}"
    if kind == 3:
        right, shown = rut.calc_check_digit(eight), f"{eight[:2]}.{eight[2:5]}.{eight[5:]}"
        return f"{shown}-{right}", f"{shown}-{'1' if right != '1' else '2'}"
    right = cuit.calc_check_digit(f"20{eight}")
    return f"20-{eight}-{right}", f"20-{eight}-{(int(right) + 1) % 10}"


def address(rng: random.Random) -> tuple[str, str]:
    public = f"{rng.choice([8, 52, 81, 151, 193])}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    own = f"{rng.choice(['10', '192.168', '127.0'])}.{rng.randrange(256)}.{rng.randrange(256)}"
    own += f".{rng.randrange(256)}" * (own.count(".") < 3)
    return public, rng.choice([own, f"version {rng.randrange(9)}.{rng.randrange(20)}.{rng.randrange(20)}", "10:30:45"])


def profanity(rng: random.Random) -> tuple[str, str]:
    words = sorted(profane_words()._phrases)
    return " ".join(rng.choice(words)), rng.choice(BENIGN_WORDS)


def phrase(rng: random.Random) -> tuple[str, str]:
    text = rng.choice(PHRASES)
    return rng.choice([text, text.upper(), text.title(), text.replace(" ", ", "), text.replace(" ", "\n")]), \
        rng.choice(BENIGN_PHRASES)


PLANTED: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "email": email, "phone": phone, "card": card, "iban": account, "national_id": identity, "ip": address,
    "profanity": profanity, "phrase": phrase,
}  # fmt: skip


def guard_of(folder: Path) -> Guard:
    """All kinds masked, of input and output."""
    (folder / "phrases.txt").write_text("\n".join(PHRASES), encoding="utf-8")
    actions = {"refuse": [], "mask": KINDS}
    return Guard(FilterConfig(input=actions, output=actions, regions=REGIONS, phrases=str(folder / "phrases.txt")))


def passed(guard: Guard, way: str, text: str, cut: int) -> str:
    """What is left of the text after the filter, by the way that it took."""
    if way == "streamed":
        stream = guard.answer([{"role": "user", "content": "Tell me."}])
        return "".join([*(stream.push(text[i : i + 3]) for i in range(0, len(text), 3)), stream.end()])
    parts = [text] if way == "one turn" else [text[:cut], text[cut:]]
    turns = [{"role": "user", "content": part} for part in parts]
    between = {"role": "assistant", "content": "Go on."}
    (clean,) = guard.asked([[turns[0], between, *turns[1:]] if len(turns) > 1 else turns])
    return "".join(turn["content"] for turn in clean if turn["role"] == "user")


def caught(sentence: str, planted: str, left: str, most: float) -> bool:
    """Whether at most that share of what was planted is left, and the rest of the sentence as it was."""
    before, _, after = sentence.partition("{}")
    inner = left[len(before) : len(left) - len(after)]
    rest = re.sub(r"<[A-Z_]+>", "", inner)
    return inner != rest and left == f"{before}{inner}{after}" and len(rest) <= most * len(planted)


def rates(guard: Guard, number: int) -> dict[str, dict[str, int]]:
    """Of each kind how many of `number` were caught: in one turn, over two, streamed; and how many twins were."""
    found = {}
    for kind, make in PLANTED.items():
        rng, counts = random.Random(f"filters:{kind}"), dict.fromkeys(("one turn", "two turns", "streamed", "twins"), 0)
        for _ in range(number):
            right, twin = make(rng)
            sentence = rng.choice(SENTENCES)
            text, at = sentence.format(right), sentence.index("{}")
            cut = at + rng.randrange(1, len(right))
            for way in ("one turn", "two turns", "streamed"):
                counts[way] += caught(sentence, right, passed(guard, way, text, cut), 0.5 if way == "two turns" else 0)
            benign = sentence.format(twin)
            counts["twins"] += passed(guard, "one turn", benign, 0) != benign
        found[kind] = counts
    return found


def ordinary() -> dict[str, tuple[int, int]]:
    """Of each kind but `phrase`: (rows that have it, rows) of data/instructions; nothing if it is not there."""
    folder = Path("data/instructions")
    if not folder.is_dir():
        return {}
    report = scanned(folder, made([kind for kind in KINDS if kind != "phrase"], REGIONS))
    rows = report["rows"]["read"]
    return {kind: (report["kinds"].get(kind, {"rows": 0})["rows"], rows) for kind in KINDS if kind != "phrase"}


# --- latency ----------------------------------------------------------------------------------------------------------


def running(models: Models, guard: Guard | None) -> AbstractContextManager[int]:
    """A server in a thread; gives its port."""
    app = make_app(models, guard=guard)
    return in_thread(uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False)))


def ask(port: int, text: str) -> float:
    """Milliseconds of a chat with one token of answer."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(content[:200])
    return 1000 * (time.perf_counter() - began)


def over_http(folder: Path, guard: Guard, text: str, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds without and with the filters, pair by pair; who goes first takes turns."""
    tags = {"sha256": sha256_of(folder / "model.safetensors")}
    version = SimpleNamespace(name="assistant", version="1", alias="champion", path=folder, tags=tags)
    models = Models(lambda _: version, ["assistant"], folder, folder)
    plain, filtered = [], []
    with running(models, None) as without, running(models, guard) as beside:
        for port in (without, beside) * 2:
            ask(port, text)
        for i in range(rounds):
            order = ((without, plain), (beside, filtered))
            for port, into in order if i % 2 else reversed(order):
                into.append(ask(port, text))
    return plain, filtered


def alone(guard: Guard, text: str, pieces: list[str], rounds: int) -> tuple[float, float]:
    """Median milliseconds of processor time: of the input's filter, and of a whole answer's in these pieces."""
    turns, inputs, outputs = [{"role": "user", "content": text}], [], []
    for _ in range(rounds):
        began = time.thread_time()
        guard.asked([turns])
        inputs.append(1000 * (time.thread_time() - began))
        began = time.thread_time()
        stream = guard.answer(turns)
        for piece in pieces:
            stream.push(piece)
        stream.end()
        outputs.append(1000 * (time.thread_time() - began))
    return statistics.median(inputs), statistics.median(outputs)


def of_tokens(tokenizer: object, tokens: int) -> tuple[str, list[str]]:
    """An ordinary text of so many tokens, with a few numbers in it, and its pieces token by token."""
    text = ("The committee met on 14 March 2021 in room 305 and agreed on 3 of the 12 points. Its report, of 48 pages, "
            "says that costs rose by 2.5 % to $1,250,000, mostly for heating, and that letter 2021/117 is open. ") * 9
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    pieces = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
    return pieces[-1], [after.removeprefix(before) for before, after in zip(pieces, pieces[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("artifacts/merged/instruct"))
    parser.add_argument("--planted", type=int, default=200, help="texts of each kind")
    parser.add_argument("--tokens", type=int, default=200, help="of the input whose latency is measured")
    parser.add_argument("--rounds", type=int, default=60, help="pairs of requests")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        guard = guard_of(Path(scratch))
        found, flagged = rates(guard, options.planted), ordinary()
        text, pieces = of_tokens(load_tokenizer(options.folder), options.tokens)
        asked, answered = alone(guard, text, pieces, options.rounds)
        plain, filtered = over_http(options.folder, guard, text, options.rounds)
    added = [after - one for one, after in zip(plain, filtered, strict=True)]
    value("a request, without filters", "ms", plain)
    value("a request, with filters", "ms", filtered)
    for kind, counts in found.items():
        for way, hits in counts.items():
            value(f"{kind}, {way}", "share", [hits / options.planted])
    print(PAGE.format(
        rates="\n".join(lines(found, flagged, options.planted)), planted=options.planted, tokens=options.tokens,
        characters=len(text), rounds=options.rounds, asked=asked, answered=answered, each=answered / len(pieces),
        plain=statistics.median(plain), filtered=statistics.median(filtered), added=statistics.median(added),
        list=PROFANITY.rpartition("/")[2], machine=platform.machine(), cores=os.cpu_count(), torch=torch.__version__,
        threads=options.threads,
        before=before, after=os.getloadavg()[0],
    ))  # fmt: skip


def lines(found: dict, flagged: dict, number: int) -> list[str]:
    """The table's rows."""
    rows = []
    for kind, counts in found.items():
        cells = []
        for way in ("one turn", "two turns", "streamed", "twins"):
            low, high = wilson_interval(counts[way], number)
            cells.append(f"{counts[way] / number:.3f} ({low:.3f} to {high:.3f})")
        there = f"{flagged[kind][0]:,} of {flagged[kind][1]:,}" if kind in flagged else ""
        rows.append(f"| `{kind}` | {' | '.join(cells)} | {there} |")
    return rows


PAGE = """\
# The server's filters: caught, caught wrongly, and their cost

Made by `python -m benchmarks.filters`. {planted} texts of each kind, drawn with a fixed seed; 95 % Wilson intervals.
Caught: all of it is masked, and nothing else. Split: at a random place of it, over two turns of the user with an
answer between (caught: at least half of it is masked: `a@b.example` alone is an address too, before `.com` comes), and
over the pieces of an answer, three characters each. A twin is the same sentence with a number whose check digit is
wrong, a private address, a date, a word that only holds a profane one, the words of a phrase in another order. The last
column: rows of the default run's instructions that a kind flags; what it flags there may be right.

| kind | caught: one turn | split over two turns | streamed | benign twins caught | ordinary rows flagged |
|---|---|---|---|---|---|
{rates}

The numbers are made by the rules that the filter checks, in the forms that docs/filters.md names: the rates say that
the path leaks nothing of these forms, and nothing about forms that it does not know. `profanity` is a word list
(`{list}`), so its rate is that of its own words; insults in other words are not counted here, and pass.

## Latency

{tokens} tokens of input ({characters} characters, with dates and amounts), one token of answer, all kinds masked in
input and output; {rounds} pairs of requests over HTTP on loopback. torch {torch}, threads {threads}, {cores} cores
({machine}). Load average before the run {before:.1f}, after it {after:.1f}.

| | median |
|---|---:|
| without filters | {plain:.1f} ms |
| with filters | {filtered:.1f} ms |
| added, median of the pairs' differences | {added:.1f} ms |
| the filter alone, on that input, processor time | {asked:.2f} ms |
| the same on an answer of as many tokens, token by token | {answered:.2f} ms ({each:.3f} ms a token) |
"""


if __name__ == "__main__":
    main()
