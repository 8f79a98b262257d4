"""The queue of the inference thread: slices, whose turn it is, faults, limits, and the requests that nobody awaits."""

import threading
import time

import pytest

from ajuste.serving import batches
from ajuste.serving.batches import Batcher, Busy, Ending


class Recorder:
    """Work that stands still until it is let go, and notes what it was given. A row holding 13 is a fault."""

    def __init__(self):
        self.slices, self.entered, self.go = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, who, rows):
        self.entered.release()
        assert self.go.acquire(timeout=10)
        self.slices.append((who, [list(row) for row in rows]))
        if any(13 in row for row in rows):
            raise ValueError("poison")
        return [sum(row) for row in rows]


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """The size of a slice does not depend on the clock."""
    monkeypatch.setattr(Batcher, "_learn", lambda *_: None)


@pytest.fixture
def work():
    return Recorder()


@pytest.fixture
def batcher(work):
    batcher = Batcher(work)
    yield batcher
    for _ in range(1000):
        work.go.release()
    batcher.close()


def ask(batcher, who, rows):
    job = batcher.open(who, sum(map(len, rows)))
    return job, batcher.submit(job, rows)


def busy(batcher, work):
    """The thread stands at a first request; gives its future."""
    _, first = ask(batcher, "m", [[1]])
    assert work.entered.acquire(timeout=10)
    return first


def finish(work, *futures):
    for _ in range(1000):
        work.go.release()
    return [future.result(10) for future in futures]


def test_waiting_requests_of_one_model_share_a_slice_and_get_their_own_rows(batcher, work):
    first = busy(batcher, work)
    later = [ask(batcher, who, rows)[1] for who, rows in
             (("m", [[2], [3, 4]]), ("n", [[5]]), ("m", [[6]]), ("m", [[7], [8]]))]
    assert finish(work, first, *later) == [[1], [2, 7], [5], [6], [7, 8]]
    assert [who for who, _ in work.slices] == ["m", "m", "n"]
    assert work.slices[1][1] == [[2], [3, 4], [6], [7], [8]]


def test_a_long_request_is_done_in_slices_and_a_short_one_does_not_stand_behind_it(batcher, work, monkeypatch):
    monkeypatch.setattr(batches, "FIRST_TOKENS", 400)
    first = busy(batcher, work)
    _, long = ask(batcher, "m", [[1] * 100] * 12)
    work.go.release()
    assert first.result(10) and work.entered.acquire(timeout=10)        # its first slice is under way
    shorts = [ask(batcher, "m", [[2] * 10])[1] for _ in range(3)]
    work.go.release()                                                   # that slice
    work.go.release()                                                   # and one more
    assert [short.result(10) for short in shorts] == [[20]] * 3 and not long.done()
    assert finish(work, long) == [[100] * 12]
    sizes = [(len(rows), len(rows[0])) for _, rows in work.slices[1:]]
    assert sizes == [(4, 100), (3, 10), (4, 100), (4, 100)], "rows of unlike length do not share a slice"


def test_a_long_request_goes_on_while_short_ones_keep_coming(batcher, work, monkeypatch):
    monkeypatch.setattr(batches, "FIRST_TOKENS", 100)
    busy(batcher, work)
    _, long = ask(batcher, "m", [[1] * 100] * 4)
    for _ in range(12):
        ask(batcher, "n", [[2]])
        work.go.release()
        assert work.entered.acquire(timeout=10)
    work.go.release()
    assert long.result(10) == [100] * 4


def test_what_was_dropped_is_not_computed(batcher, work, monkeypatch):
    """A client that went away costs no more than the slice that is under way."""
    monkeypatch.setattr(batches, "FIRST_TOKENS", 100)
    first = busy(batcher, work)
    job, _ = ask(batcher, "m", [[1] * 100] * 9)
    work.go.release()
    assert first.result(10) and work.entered.acquire(timeout=10)
    batcher.drop(job)
    assert batcher.load() == {"requests": 0, "tokens": 0}
    _, next_one = ask(batcher, "m", [[3]])
    assert finish(work, next_one) == [[3]]
    assert [len(rows) for _, rows in work.slices] == [1, 1, 1]
    batcher.drop(job)                                                   # means nothing any more
    assert batcher.load() == {"requests": 0, "tokens": 0}


def test_the_fault_of_one_request_is_not_anothers(batcher, work):
    first = busy(batcher, work)
    (_, good), (_, bad) = ask(batcher, "m", [[2]]), ask(batcher, "m", [[3], [13]])
    assert finish(work, first, good) == [[1], [2]]
    with pytest.raises(ValueError, match="poison"):
        bad.result(10)
    assert finish(work, ask(batcher, "m", [[4]])[1]) == [[4]]           # the thread lives on
    assert batcher.load() == {"requests": 0, "tokens": 0}
    assert ask(batcher, "m", [])[1].result(10) == []


def test_the_queue_is_bounded_in_tokens_and_leaves_room_for_the_small(work, monkeypatch):
    monkeypatch.setattr(batches, "SMALL_TOKENS", 10)
    batcher = Batcher(work, max_tokens=1000)
    batcher._rate = 10.0
    busy(batcher, work)
    _, large = ask(batcher, "m", [[1] * 100] * 7)
    with pytest.raises(Busy, match="701 tokens are waiting") as full:
        batcher.open("m", 100)
    assert full.value.seconds == 30                                     # 350 tokens at 10 a second, at most 30 s
    small = [ask(batcher, "m", [[2] * 10])[1] for _ in range(29)]
    with pytest.raises(Busy, match="991 tokens"):
        batcher.open("m", 10)
    assert finish(work, large, *small) == [[100] * 7] + [[20]] * 29
    job = batcher.open("m", 5000)                                       # more than all: it has its turn alone
    assert finish(work, batcher.submit(job, [[1]])) == [[1]]
    batcher.close()


def test_a_place_counts_before_its_rows_are_known_and_then_as_they_are(batcher, work):
    job = batcher.open("m", 500)
    assert batcher.load() == {"requests": 1, "tokens": 500}
    first = busy(batcher, work)
    future = batcher.submit(job, [[1] * 20])
    assert batcher.load() == {"requests": 2, "tokens": 21}
    assert finish(work, first, future) == [[1], [20]] and batcher.load()["tokens"] == 0


def test_the_end_answers_what_is_queued_and_takes_no_more(work):
    batcher = Batcher(work)
    first = busy(batcher, work)
    queued, opened = ask(batcher, "m", [[2]])[1], batcher.open("m", 1)
    ending = threading.Thread(target=batcher.close)
    ending.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(Ending, match="ending"):
        batcher.open("m", 1)
    with pytest.raises(Ending):
        batcher.submit(opened, [[3]])
    assert finish(work, first, queued) == [[1], [2]]
    ending.join(10)
    assert not ending.is_alive() and batcher.stuck() == 0.0


def test_a_thread_at_its_work_is_seen_and_so_is_one_that_ended_by_a_fault(batcher, work, monkeypatch):
    assert batcher.stuck() == 0.0
    first = busy(batcher, work)
    one = batcher.stuck()
    time.sleep(0.01)
    assert 0.0 < one < batcher.stuck()
    finish(work, first)
    while batcher.stuck():
        time.sleep(0.001)

    def fault(self):
        raise SystemExit

    monkeypatch.setattr(Batcher, "_slice", fault)
    ask(batcher, "m", [[1]])
    batcher._thread.join(10)
    assert batcher.stuck() == float("inf")


class Endless:
    """A generation that is never done; it counts its steps."""

    def __init__(self):
        self.steps, self.jobs, self.closed, self.looked = 0, [], threading.Event(), []

    def look_at(self, job):
        self.looked.append(threading.current_thread().name)
        return job

    def enqueue(self, row):
        self.jobs.append(row)

    def active(self):
        return bool(self.jobs)

    def step(self):
        self.steps += 1

    def close(self):
        self.closed.set()


def test_slices_are_computed_between_the_steps_of_a_generation_and_it_goes_on(monkeypatch):
    monkeypatch.setattr(batches, "FIRST_TOKENS", 10)
    endless, at = Endless(), []

    def work(who, rows):
        at.append(endless.steps)
        return rows

    batcher = Batcher(work, generation=endless)
    assert endless.steps == 0
    batcher.generate("a job")
    assert endless.looked == [threading.current_thread().name]          # tokenized by who asks
    rows = [[1] * 10] * 20
    assert ask(batcher, "m", rows)[1].result(10) == rows
    assert len(at) == 20 and all(later > earlier for earlier, later in zip(at, at[1:], strict=False))
    batcher.close()
    assert endless.closed.is_set()
    with pytest.raises(Ending, match="ending"):
        batcher.generate("another")


def test_slices_become_as_large_as_the_time_allows(monkeypatch):
    monkeypatch.undo()
    batcher = Batcher(lambda who, rows: rows)
    batcher.close()
    job = batches.Job("m", 0, 1)
    job.rows = [[1] * 100] * 5

    def size():
        return batcher._budgets[id("m")]

    for _ in range(5):                                                  # 500 tokens in 50 ms: full and quick
        batcher._learn([(job, i) for i in range(5)], 0.05)
    assert size() == pytest.approx(512 * 1.25**3), "once it is not full any more it does not grow"
    batcher._learn([(job, i) for i in range(5)], 0.2)
    assert size() == 250                                                # half of what took 0.2 s
    batcher._learn([(job, 0)], 60)
    assert size() == batches.LEAST_TOKENS
