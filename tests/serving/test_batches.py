"""The queue of the inference thread: order, batching, faults, limits."""

import threading

import pytest

from ajuste.serving.batches import Batcher, Busy


class Recorder:
    """Work that stands still until it is let go, and notes what it was given."""

    def __init__(self):
        self.batches, self.entered, self.go = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, reference, texts):
        self.entered.release()
        assert self.go.acquire(timeout=10)
        self.batches.append((reference, texts))
        if "poison" in texts:
            raise ValueError("poison")
        return reference, [text.upper() for text in texts]


def test_waiting_requests_of_one_model_share_a_batch_and_get_their_own_rows():
    work = Recorder()
    batcher = Batcher(work, max_rows=4)
    first = batcher.submit("m", ["a"])
    assert work.entered.acquire(timeout=10)             # the thread is busy with it
    later = [batcher.submit("m", ["b", "c"]), batcher.submit("n", ["d"]), batcher.submit("m", ["e"]),
             batcher.submit("m", ["f", "g"])]
    for _ in range(4):
        work.go.release()
    assert first.result(10) == ("m", ["A"])
    assert [future.result(10) for future in later] == [("m", ["B", "C"]), ("n", ["D"]), ("m", ["E"]), ("m", ["F", "G"])]
    assert work.batches == [("m", ["a"]), ("m", ["b", "c", "e"]), ("n", ["d"]), ("m", ["f", "g"])]
    batcher.close()


def test_the_fault_of_one_request_is_not_anothers():
    work = Recorder()
    batcher = Batcher(work)
    first = batcher.submit("m", ["a"])
    assert work.entered.acquire(timeout=10)
    good, bad = batcher.submit("m", ["b"]), batcher.submit("m", ["poison"])
    for _ in range(4):
        work.go.release()
    assert first.result(10) and good.result(10) == ("m", ["B"])
    with pytest.raises(ValueError, match="poison"):
        bad.result(10)
    assert batcher.submit("m", []) and work.go.release() is None     # the thread lives on
    batcher.close()


def test_too_many_waiting_and_a_closed_queue_are_refused():
    work = Recorder()
    batcher = Batcher(work, max_waiting=2)
    first = batcher.submit("m", ["a"])
    assert work.entered.acquire(timeout=10)
    waiting = [batcher.submit("m", ["b"]), batcher.submit("m", ["c"])]
    with pytest.raises(Busy, match="2 requests are waiting"):
        batcher.submit("m", ["d"])
    waiting[0].cancel()                                 # a client that went away
    for _ in range(2):
        work.go.release()
    assert first.result(10) and waiting[1].result(10) == ("m", ["C"])
    batcher.close()
    assert ("m", ["b"]) not in work.batches and work.batches[-1] == ("m", ["c"])
    with pytest.raises(Busy):
        batcher.submit("m", ["e"])


class Endless:
    """A generation that is never done; it counts its steps."""

    def __init__(self):
        self.steps, self.jobs, self.closed = 0, [], threading.Event()

    def submit(self, job):
        self.jobs.append(job)

    def active(self):
        return bool(self.jobs)

    def step(self):
        self.steps += 1

    def close(self):
        self.closed.set()


def test_texts_are_answered_between_the_steps_of_a_generation_and_it_goes_on():
    endless, at = Endless(), []

    def work(reference, texts):
        at.append(endless.steps)
        return reference, texts

    batcher = Batcher(work, generation=endless)
    assert endless.steps == 0
    batcher.generate("a job")
    for _ in range(20):
        assert batcher.submit("m", ["a"]).result(10) == ("m", ["a"])
    assert at == sorted(at) and at[-1] >= 19            # at least one step between two batches
    batcher.close()
    assert endless.closed.is_set()
    with pytest.raises(Busy, match="ending"):
        batcher.generate("another")
