"""Stages that overlap give what the same stages give one after the other, and end together whatever happens."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from utils.pipeline import Pipeline


def slowly(seconds: float, name: str = "", seen: list[tuple[str, int]] | None = None) -> Callable[[Iterator], Any]:
    def stage(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(seconds)
            if seen is not None:
                seen.append((name, item))
            yield item

    return stage


def pairs(items: Iterator[int]) -> Iterator[tuple[int, int]]:
    for item in items:
        yield item, next(items)


def sums(items: Iterator[tuple[int, int]]) -> Iterator[int]:
    for one, other in items:
        yield from (one, one + other)


def failing(at: int) -> Callable[[Iterator], Any]:
    def stage(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if item == at:
                raise ValueError(f"item {item}")
            yield item

    return stage


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_results_are_those_of_a_plain_loop_in_order(depth: int):
    with Pipeline(range(40), pairs, slowly(1e-4), sums, depth=depth) as results:
        found = list(results)
    assert found == list(sums(pairs(iter(range(40)))))


def test_stages_overlap():
    start = time.perf_counter()
    with Pipeline(range(20), *[slowly(0.01)] * 3) as results:
        assert list(results) == list(range(20))
    assert time.perf_counter() - start < 0.45  # one after the other it takes 0.6 s


@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_is_taken_that_has_no_place_to_wait_in(depth: int):
    taken: list[int] = []
    with Pipeline((taken.append(number) or number for number in range(100)), slowly(0), depth=depth) as results:
        for number in results:
            time.sleep(0.003)
            assert len(taken) <= number + 1 + depth


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_comes_after_the_results_before_it(place: int, depth: int):
    stages = [slowly(0)] * 3
    stages[place] = failing(at=5)
    found: list[int] = []
    with pytest.raises(ValueError, match="item 5"), Pipeline(iter(range(10**9)), *stages, depth=depth) as results:
        found.extend(results)
    assert found == list(range(5))


def test_an_error_of_the_items_is_told():
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"), Pipeline(items(), slowly(0), slowly(0)) as results:
        list(results)


@pytest.mark.parametrize("depth", [0, 2])
def test_leaving_early_stops_all_and_lets_each_stage_clean_up(depth: int):
    ended = []

    def stage(items: Iterator[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            ended.append(threading.current_thread().name)

    with Pipeline(iter(range(10**9)), stage, stage, stage, depth=depth) as results:
        assert next(iter(results)) == 0
    assert len(ended) == 3


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("wanted", [0, 1, 3, 9])
def test_the_items_are_closed_before_the_block_is_left(wanted: int, depth: int):
    closed: list[bool] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    items = numbers()
    assert next(items) == 0
    with Pipeline(items, slowly(0), depth=depth) as results:
        held = iter(results)  # and so are the stages, which nobody may rely on to be forgotten
        found = [number for number, _ in zip(held, range(wanted), strict=False)]
    assert found == list(range(1, 5))[:wanted]
    assert closed == [True]


def test_a_source_that_waits_is_woken():
    there_is_more = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        there_is_more.wait()

    with Pipeline(items(), slowly(0), stop=there_is_more.set) as results:
        assert next(iter(results)) == 1


@pytest.fixture
def alarm() -> Iterator[Callable[[float], Any]]:
    """Ask for a KeyboardInterrupt in so many seconds."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_the_wait(alarm: Callable[[float], Any]):
    forever = threading.Event()
    alarm(0.1)
    with pytest.raises(KeyboardInterrupt), Pipeline(iter(forever.wait, 1), slowly(0), stop=forever.set) as results:
        list(results)


def test_a_long_stage_sees_the_stop_and_more_signals_leave_no_thread_behind(alarm: Callable[[float], Any]):
    parts: list[int] = []
    later = [0.05, 0.05]

    def stage(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            for part in range(1000):
                results.check()
                time.sleep(0.5)  # as a forward pass, which nothing interrupts
                parts.append(part)
            yield item

    alarm(0.1)  # and again while the stage is waited for
    results: Pipeline[int] = Pipeline(range(3), stage, stop=lambda: later and alarm(later.pop()))
    with pytest.raises(KeyboardInterrupt), results:
        list(results)
    assert not any(thread.name.startswith("stage") for thread in threading.enumerate())
    assert parts == [0]
