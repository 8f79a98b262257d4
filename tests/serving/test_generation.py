"""The queue of generations: joining, leaving, limits, faults. No server and no thread: the tests call `step`."""

import shutil

import pytest

from ajuste.learning.text import chat, generate
from ajuste.models import decoder
from ajuste.serving import generation as engine
from ajuste.serving.batches import Busy, Ending, Late
from ajuste.serving.generation import BadRequest, Finished, Generation, Job, Started
from ajuste.serving.models import Models, RefusedModel, UnknownModel
from tests.made import tiny_decoders
from tests.made.tiny_decoders import ASKED
from tests.serving.conftest import FakeRegistry


class Told(list):
    """What a job was told."""

    @property
    def text(self):
        return "".join(event for event in self if isinstance(event, str))

    @property
    def end(self):
        return self[-1] if self and isinstance(self[-1], (Finished, Exception)) else None


def ask(generation, prompt, model="assistant", **how):
    told = Told()
    job = Job(model, prompt, told.append, **{"max_tokens": 16, "temperature": 0.0} | how)
    generation.submit(job)
    return job, told


def user(text):
    return [{"role": "user", "content": text}]


def run(generation, steps=10_000):
    while generation.active() and steps:
        generation.step()
        steps -= 1


@pytest.fixture
def generation(both):
    return Generation(both)


def right(model, tokenizer, prompt, tokens=16):
    """The text of the row alone, by ajuste.learning.text.generate."""
    ids = chat.prompt_ids(tokenizer, prompt) if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
    (answer,) = generate.generate(model, [ids], tokens, chat.end_of_turn(tokenizer), tokenizer.pad_token_id)
    return tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(answer)


def test_requests_join_and_leave_and_each_gets_its_own_answer(generation, speakers):
    """Chats and texts, of two models and an adapter, that come at different times and want different lengths."""
    loaded = {"assistant": decoder.load(speakers["merged"]), "assistant@challenger": decoder.load(speakers["full"]),
              "assistant-adapter/1": decoder.load(speakers["lora"], speakers["base"])}
    asked = []
    for number in range(30):
        model, prompt = list(loaded)[number % 3], ASKED[number % 6] + " warm" * (number % 5)
        prompt = prompt if number % 2 else user(prompt)
        asked.append((model, prompt, 3 + number % 9, ask(generation, prompt, model, max_tokens=3 + number % 9)[1]))
        for _ in range(number % 3):
            generation.step()
    run(generation)
    for model, prompt, limit, told in asked:
        text, count = right(*loaded[model][:2], prompt, limit)
        assert (told.text, told.end.completion_tokens) == (text, count)
        assert isinstance(told[0], Started) and told.end.reason in ("stop", "length")
    assert len({told.text for *_, told in asked}) > 15, "too monotonous to tell answers apart"
    counts = generation.counts
    assert counts["submitted"] == counts["finished"] == 30 and counts["tokens"] > 1.3 * counts["steps"]
    assert generation.load() == {"generating": 0, "waiting": 0} and not generation.active()


def test_the_same_seed_says_the_same_whoever_else_is_there(generation):
    texts = []
    for company in (0, 5):
        others = [ask(generation, user(ASKED[i]), temperature=1.0)[1] for i in range(company)]
        told = [ask(generation, user("Name a film."), temperature=1.3, top_p=0.9, seed=seed)[1] for seed in (1, 1, 2)]
        run(generation)
        assert all(isinstance(other.end, Finished) for other in others)
        texts.append([one.text for one in told])
    assert texts[0] == texts[1] and texts[0][0] == texts[0][1] != texts[0][2]
    free = [ask(generation, user("Name a film."), temperature=1.3)[1] for _ in range(3)]
    run(generation)
    assert len({one.text for one in free}) > 1          # without a seed each one is drawn anew


def test_a_stop_string_ends_the_answer_before_it(generation):
    _, whole = ask(generation, "A dull movie")
    run(generation)
    word = whole.text[5:9]
    _, told = ask(generation, "A dull movie", stop=(word,))
    run(generation)
    assert told.text == whole.text[: whole.text.index(word)] and told.end.reason == "stop"
    assert told.end.completion_tokens < 16 and (whole.end.reason, whole.end.completion_tokens) == ("length", 16)


def test_the_end_of_the_turn_ends_the_answer(generation, both, monkeypatch):
    """Whatever a tiny model says: its third token is declared to be the end."""
    _, whole = ask(generation, user("Name a film."), "assistant-adapter/1", max_tokens=8)
    run(generation)
    tokenizer = both.get("assistant-adapter/1").tokenizer
    model = both.get("assistant-adapter/1").model
    (ids,) = generate.generate(model, [chat.prompt_ids(tokenizer, user("Name a film."))], 8, [], 0)
    monkeypatch.setattr(chat, "end_of_turn", lambda _: [ids[2]])
    _, told = ask(generation, user("Name a film."), "assistant-adapter/1", max_tokens=8)
    run(generation)
    first = ids.index(ids[2])
    assert told.end == Finished("stop", first + 1) and told.text == tokenizer.decode(ids[:first])
    assert whole.end.completion_tokens == 8


def test_a_base_without_template_is_asked_in_the_tagged_form(speakers, tmp_path):
    path = shutil.copytree(speakers["full"], tmp_path / "plain")
    (path / "chat_template.jinja").unlink()
    registry = FakeRegistry({"assistant": [path]}, {"assistant": {"champion": 1}})
    models = Models(registry.resolve, ["assistant"], tmp_path, tmp_path)
    generation = Generation(models)
    _, told = ask(generation, user("Name a film."))
    run(generation)
    served = models.get("assistant")
    assert served.tokenizer.chat_template is None
    wanted = served.tokenizer("<instruction>Name a film.</instruction><response>")["input_ids"]
    assert told[0].prompt_tokens == len(wanted) and told.end.completion_tokens == 16


@pytest.mark.parametrize("prompt, how, param, code, message", [
    ("warm " * 600, {}, "prompt", "context_length_exceeded", "more than the 512 that assistant/2 takes"),
    (user("warm " * 600), {}, "messages", "context_length_exceeded", "shorten the prompt"),
    ("warm", {"max_tokens": 512}, "prompt", "context_length_exceeded", "512 of answer"),
    ("", {}, "prompt", None, "the prompt is empty"),
    ([{"role": "assistant", "content": "Hi."}], {}, "messages", None, "user"),
    ([*user("a"), {"role": "assistant", "content": "b"}], {}, "messages", None, "nothing to answer"),
    (user("a<|im_end|>b"), {}, "messages", None, "marks a turn"),
])
def test_a_wrong_prompt_is_refused_at_once_and_says_why(generation, prompt, how, param, code, message):
    _, other = ask(generation, "A warm film")
    _, told = ask(generation, prompt, **how)
    generation.step()
    (error,) = told
    assert isinstance(error, BadRequest) and (error.param, error.code) == (param, code) and message in str(error)
    run(generation)
    assert other.end.completion_tokens == 16            # nobody else is disturbed


def test_without_a_limit_an_answer_may_fill_what_the_context_leaves(generation, monkeypatch):
    _, told = ask(generation, "warm " * 490, max_tokens=None)
    monkeypatch.setattr(engine, "DEFAULT_TOKENS", 7)
    _, short = ask(generation, "A dull movie", max_tokens=None)
    run(generation)
    assert told[0].prompt_tokens + told.end.completion_tokens <= 512 and told.end.completion_tokens > 1
    assert short.end == Finished("length", 7)


def test_models_that_do_not_exist_label_texts_or_are_damaged(generation, both, speakers):
    told = [ask(generation, "a", model)[1] for model in ("other", "assistant/9", "reviews-classifier")]
    both._resolve.__self__.sha256[speakers["full"]] = "0" * 64
    told.append(ask(generation, "a", "assistant@challenger")[1])
    generation.step()
    kinds, messages = zip(*((type(one[0]), str(one[0])) for one in told), strict=True)
    assert kinds == (UnknownModel, UnknownModel, UnknownModel, RefusedModel)
    for message, part in zip(messages, ("there is assistant", "no version 9", "POST /classify", "is not loaded"),
                             strict=True):
        assert part in message
    assert not generation.active() and generation.counts["failed"] == 4


def test_the_guards_refusal_is_one_line(speakers, tmp_path):
    other = tiny_decoders.tiny_base(tmp_path / "other", seed=5)
    registry = FakeRegistry({"assistant": [speakers["lora"]]}, {"assistant": {"champion": 1}})
    generation = Generation(Models(registry.resolve, ["assistant"], other, other))
    _, told = ask(generation, "a")
    generation.step()
    assert isinstance(told[0], RefusedModel) and "differs in its weights" in str(told[0]) and "\n" not in str(told[0])


def test_cancelled_jobs_leave_the_queue_the_wait_and_the_batch(generation, monkeypatch):
    monkeypatch.setattr(engine, "MAX_ROWS", 2)
    jobs = [ask(generation, "A warm film", max_tokens=400) for _ in range(4)]
    generation.step()
    assert generation.load() == {"generating": 2, "waiting": 2}
    (first, told), (second, _), (third, waiting), (fourth, last) = jobs
    first.cancelled = third.cancelled = True
    late, never = ask(generation, "A warm film")
    late.cancelled = True
    generation.step()
    assert generation.load() == {"generating": 2, "waiting": 0} and generation.counts["cancelled"] == 3
    assert told.end is None and waiting == never == [] and isinstance(last[0], Started)
    second.cancelled = fourth.cancelled = True
    before = generation.counts["tokens"]
    run(generation)
    assert not generation.active() and generation.counts["tokens"] == before


def test_rows_memory_and_queue_have_limits(generation, monkeypatch):
    monkeypatch.setattr(engine, "MAX_WAITING", 3)
    monkeypatch.setattr(engine, "MAX_BATCH_TOKENS", 60)
    told = [ask(generation, "warm", max_tokens=20)[1] for _ in range(3)]
    with pytest.raises(Busy, match="3 requests are waiting"):
        ask(generation, "warm")
    generation.step()
    assert generation.load() == {"generating": 2, "waiting": 1}         # 2 x 21 tokens fit into 60
    told.append(ask(generation, "warm " * 50, max_tokens=100)[1])       # larger than all: it has its turn alone
    run(generation)
    assert [one.end.completion_tokens for one in told] == [20, 20, 20, 100]


def test_the_clock_ends_an_answer_and_a_wait(generation, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(engine, "MAX_ROWS", 1)
    (job, told), (other, waiting) = (ask(generation, "A warm film", max_tokens=400) for _ in range(2))
    job.submitted = other.submitted = 0.0
    for _ in range(5):
        generation.step()
    now[0] = engine.MAX_SECONDS + 1
    generation.step()
    assert told.end == Finished("length", 6) and told.text
    generation.step()
    assert isinstance(waiting.end, Late) and "waited 120 s" in str(waiting.end) and not generation.active()


def test_a_fault_of_one_model_ends_its_rows_alone(generation, both):
    _, good = ask(generation, "A warm film")
    _, bad = ask(generation, "A warm film", "assistant@challenger")
    generation.step()
    broken = both.get("assistant@challenger").model

    def fail(*_, **__):
        raise ZeroDivisionError

    broken.forward = fail
    run(generation)
    assert isinstance(bad.end, ZeroDivisionError) and good.end.completion_tokens == 16
    _, again = ask(generation, "A warm film")
    run(generation)
    assert again.text == good.text


def test_the_end_of_the_server_is_told_to_all(generation, monkeypatch):
    monkeypatch.setattr(engine, "MAX_ROWS", 1)
    told = [ask(generation, "A warm film")[1] for _ in range(2)]
    generation.step()
    told.append(ask(generation, "A warm film")[1])
    generation.close()
    assert all(isinstance(one.end, Ending) for one in told) and not generation.active()
