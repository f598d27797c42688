"""Hours of work in pieces: done in processes of one thread each, stopped between two of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Protocol

from autospace.events import Progress

__all__ = ["Clock", "Job", "OutOfTimeError", "do", "now_and_then"]

Say = Callable[[str], None]
_EVERY_S = 20.0


class OutOfTimeError(Exception):
    """The given minutes are over."""


@dataclass
class Clock:
    """Stops between two pieces of work.

    Attributes:
        ends_s: on the monotonic clock; None for never.
    """

    ends_s: float | None

    @staticmethod
    def of(minutes: float | None) -> Clock:
        """One that ends in so many minutes; None for never."""
        return Clock(time.monotonic() + 60 * minutes if minutes else None)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.ends_s is not None and time.monotonic() >= self.ends_s

    def check(self) -> None:
        """Stops if the time is over.

        Raises:
            OutOfTimeError: it is.
        """
        if self.over:
            raise OutOfTimeError


class Job(Protocol):
    """One piece of work, which can be sent to another process."""

    @property
    def name(self) -> str:
        """For output."""

    def run(self) -> None:
        """Does it, and keeps the result in a file."""


def do(jobs: Iterable[Job], workers: int, clock: Clock, say: Say) -> None:
    """Runs jobs in processes of one thread each; none begins after the clock has run out.

    Args:
        jobs: in the order in which they are begun.
        workers: processes.
        clock: is looked at before each.
        say: is given a line for each that is done.

    Raises:
        OutOfTimeError: when those that had begun are done.
    """
    waiting = list(jobs)
    if not waiting:
        return
    total, late = len(waiting), False
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        running: dict[Future[None], Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers and not (late := clock.over):
                    job = waiting.pop(0)
                    running[pool.submit(_run, job)] = job
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    job = running.pop(future)
                    say(f"{total - len(waiting) - len(running)} of {total}: {job.name}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if late and waiting:
        raise OutOfTimeError


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on for hours, and disturb what comes next."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job) -> None:
    import torch

    torch.set_num_threads(1)
    job.run()


def now_and_then(say: Say, label: str) -> Progress:
    """Progress as a line every 20 seconds.

    Args:
        say: is given the lines.
        label: what they begin with.
    """
    last = [time.monotonic()]

    def tell(share: float, text: str) -> None:
        if time.monotonic() - last[0] > _EVERY_S:
            last[0] = time.monotonic()
            say(f"{label}, {share:.0%}, {text}")

    return tell
