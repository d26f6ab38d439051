"""Work in stages that overlap: each stage runs in a thread of its own, and hands on its results in order.

Threads are enough where the work is done by libraries that let go of Python's lock meanwhile, as OpenCV and torch do.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

R = TypeVar("R")
Stage = Callable[[Iterator[Any]], Generator[Any, None, None]]

WAKE = 0.5  # seconds; on Windows no signal, Ctrl-C for one, ends a wait without a limit


class _StoppedError(Exception):
    """The results are not wanted any more."""


@dataclass
class _Channel:
    """The way from one stage to the next: results that wait, and the future of the stage that makes them."""

    waiting: deque[Any] = field(default_factory=deque)
    maker: "Future[None] | None" = None


class Pipeline(Generic[R]):
    """The results of generator functions, each applied to what the one before it yields, in order.

    A context manager to iterate over, from one thread and once. An error in a stage is raised there after the results
    before it; leaving the block early stops all stages, and in any case their threads have ended then. A stage that is
    stopped while it waits for an item finds an exception in place of it, so that what it cleans up, it cleans up; the
    items are closed, too, if they can be.
    """

    def __init__(
        self, items: Iterable[Any], *stages: Stage, depth: int = 2, stop: Callable[[], object] | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            items: what the first stage works on; iterated in its thread.
            stages: generator functions of an iterator.
            depth: how many results of a stage may wait for the next; nothing is begun that has no place to wait in,
                so that of a live source an item is not taken long before its turn. With 0 there are no threads: all
                stages run one after the other in the thread that asks.
            stop: called when the block is left, to wake `items` if they may be waiting for something.
        """
        assert stages, "there is something to do"
        self._items, self._stages, self._depth, self._stop = items, stages, depth, stop
        self._channels = [_Channel() for _ in stages] if depth else []
        self._changed = threading.Condition()
        self._stopped = False
        self._pool: ThreadPoolExecutor | None = None
        self._open = [] if depth else [items]  # what is to be closed here, the last first

    def __enter__(self) -> "Pipeline[R]":
        if self._depth:
            self._pool = ThreadPoolExecutor(len(self._stages), thread_name_prefix="stage")
            for number in range(len(self._stages)):
                maker = self._pool.submit(self._run, number)
                self._channels[number].maker = maker
                maker.add_done_callback(self._announce)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = None
        while True:  # a thread left in a library's hands would end the whole process with an abort
            try:
                self._end()
                break
            except KeyboardInterrupt as signal:
                interrupted = signal
        if interrupted is not None:
            raise interrupted

    def check(self) -> None:
        """Let a stage end where it is, by an exception, if its results are not wanted any more.

        For stages that take long over one item; between items it is done for them.
        """
        if self._stopped:
            raise _StoppedError

    def __iter__(self) -> Iterator[R]:
        if self._depth:
            return self._take(self._channels[-1])
        results = iter(self._items)
        for stage in self._stages:
            results = stage(results)
            self._open.append(results)
        return results

    def _end(self) -> None:
        """Have all threads stop, and wait for them; it may be interrupted, and done again."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._stop is not None:
            self._stop()
        makers = [channel.maker for channel in self._channels if channel.maker is not None]
        with self._changed:  # first, since up to Python 3.12 a join that a signal interrupts takes the thread for ended
            while not all(maker.done() for maker in makers):
                self._changed.wait(WAKE)
        if self._pool is not None:
            self._pool.shutdown()
        while self._open:
            _close(self._open.pop())

    def _run(self, number: int) -> None:
        """Run a stage to its end; what it raises is kept by its future."""
        channel = self._channels[number]
        items = self._take(self._channels[number - 1]) if number else self._items
        with contextlib.ExitStack() as stack:
            stack.callback(_close, items)
            results = stack.enter_context(contextlib.closing(self._stages[number](iter(items))))
            while True:
                self._wait_for(lambda: len(channel.waiting) < self._depth)
                try:
                    result = next(results)
                except StopIteration:
                    return
                with self._changed:
                    channel.waiting.append(result)
                    self._changed.notify_all()
                del result  # it may be large, and the next takes its time

    def _take(self, channel: _Channel) -> Iterator[Any]:
        """Results of a stage until it has ended, and then its error if there is one."""
        while True:
            self._wait_for(lambda: channel.waiting or (channel.maker is not None and channel.maker.done()))
            with self._changed:
                if not channel.waiting:
                    break
                result = channel.waiting.popleft()
                self._changed.notify_all()
            yield result
            del result
        assert channel.maker is not None
        channel.maker.result()

    def _wait_for(self, condition: Callable[[], object]) -> None:
        with self._changed:
            while not self._stopped and not condition():
                self._changed.wait(WAKE)
            self.check()

    def _announce(self, _maker: "Future[None]") -> None:
        with self._changed:
            self._changed.notify_all()


def _close(items: Iterable[Any]) -> None:
    """Close what can be closed, as generators can."""
    close = getattr(items, "close", None)
    if close is not None:
        close()
