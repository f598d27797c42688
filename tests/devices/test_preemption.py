"""Runs that lost their processor: told apart, repeated, corrected, and said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.preemption import Run, busy_warning, chosen, timed_runs, without_waiting
from devices.runtimes import get_runtime
from devices.runtimes.base import RuntimeSettings
from latency.measure import Visitor
from latency.probes import build_sentinel

CLEAN = Run(1.0, 0.0, False)
times = st.floats(0.01, 100)


def busy(seconds: float = 0.004) -> None:
    """Works for as long on the processor, however long that takes."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@contextmanager
def competitor() -> Iterator[psutil.Process]:
    """This process and a busy one, real, on one and the same core."""
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    os.sched_setaffinity(0, {core})
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.communicate()
        os.sched_setaffinity(0, allowed)


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned to a core here"
)


class TestTimedRuns:
    def test_work_is_not_waiting(self) -> None:
        runs = timed_runs(lambda: busy(0.002), 20, threads=1)
        assert 20 <= len(runs) <= 40
        assert min(run.latency_ms for run in runs) == pytest.approx(2, rel=0.05)

    def test_a_run_off_the_processor_is_repeated_and_its_time_left_out(self) -> None:
        calls = []

        def every_other_waits() -> None:
            calls.append(1)
            busy(0.0003)  # short: on a busy machine most of the others are to stay undisturbed
            if len(calls) % 2:
                time.sleep(0.02)

        runs = timed_runs(every_other_waits, 20, threads=1)
        assert 20 < len(runs) == len(calls) <= 40
        waited = runs[::2]
        assert all(run.preempted and run.waiting_ms > 15 for run in waited)
        assert all(run.latency_ms < 15 for run in waited)
        undisturbed = sum(not run.preempted for run in runs)
        kept = [runs[place] for place in chosen(runs, 20)]
        assert sum(run.preempted for run in kept) == 20 - min(undisturbed, 20)

    def test_where_all_wait_it_does_not_try_for_ever(self) -> None:
        assert len(timed_runs(lambda: time.sleep(0.002), 5, threads=1)) == 5

    @needs_affinity
    def test_a_real_competitor_on_the_same_core(self) -> None:
        with competitor():
            runs = timed_runs(lambda: busy(0.03), 5, threads=1)
        assert all(run.preempted for run in runs)
        assert all(run.wall_ms > 40 for run in runs), "the competitor did not compete"
        assert all(run.latency_ms == pytest.approx(30, rel=0.1) for run in runs)

    @needs_affinity
    def test_with_more_threads_it_is_noticed_and_left_as_it_is(self) -> None:
        with competitor():
            runs = timed_runs(lambda: busy(0.03), 5, threads=2)
        assert all(run.preempted and run.latency_ms == run.wall_ms > 40 for run in runs)


class TestChosen:
    def test_undisturbed_runs_come_first_in_the_order_of_time(self) -> None:
        long, short = Run(9.0, 6.0, True), Run(4.0, 1.0, True)
        assert chosen([long, CLEAN, short, CLEAN], 3) == [1, 2, 3]

    @given(st.lists(st.booleans(), min_size=1, max_size=20), st.data())
    def test_as_many_as_asked_for(self, preempted: list[bool], data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(preempted)))
        runs = [Run(1.0, float(p), p) for p in preempted]
        places = chosen(runs, count)
        assert len(places) == count and places == sorted(set(places))
        clean = preempted.count(False)
        assert sum(not preempted[place] for place in places) == min(clean, count)


class TestWithoutWaiting:
    def test_the_node_that_stands_out_gives_up_the_waiting(self) -> None:
        samples = {"a": [1.0, 1.0, 4.0, 1.0], "b": [2.0, 2.0, 2.1, 2.0]}
        found = without_waiting(samples, [0.0, 0.0, 3.0, 0.0])
        assert found["a"] == pytest.approx((1, 1, 1, 1))
        assert found["b"] == pytest.approx((2, 2, 2.1, 2))

    def test_a_node_that_always_waits_is_scaled(self) -> None:
        found = without_waiting({"a": [10.0, 10.0], "b": [2.0, 2.0]}, [6.0, 6.0])
        assert found["a"] == pytest.approx((5, 5))
        assert found["b"] == pytest.approx((1, 1))

    @given(
        st.integers(1, 6).flatmap(
            lambda runs: st.tuples(
                st.lists(st.lists(times, min_size=runs, max_size=runs), min_size=1, max_size=5),
                st.lists(st.floats(0, 0.9), min_size=runs, max_size=runs),
            )
        )
    )
    def test_a_run_loses_exactly_its_waiting(
        self, drawn: tuple[list[list[float]], list[float]]
    ) -> None:
        rows, shares = drawn
        samples = {str(i): row for i, row in enumerate(rows)}
        before = [sum(row[run] for row in rows) for run in range(len(shares))]
        waiting = [share * total for share, total in zip(shares, before, strict=True)]
        found = without_waiting(samples, waiting)
        for run, total in enumerate(before):
            after = sum(times[run] for times in found.values())
            assert after == pytest.approx(total - waiting[run])
        assert all(t >= -1e-9 for times in found.values() for t in times)


class TestVisit:
    @needs_affinity
    def test_a_network_beside_a_competitor_on_the_same_core(self) -> None:
        settings, runtime = RuntimeSettings(threads=1), get_runtime("onnxruntime")
        model = build_sentinel(batch=24)
        compiled = runtime.compile(model.SerializeToString(), RuntimeSettings(batch=24))
        with Visitor(runtime, settings) as visitor:
            alone = visitor.visit(compiled, kernels=True)
            with competitor() as other:
                # A visit is so short that now and then the other process has no turn in it.
                for _ in range(10):
                    before_s = other.cpu_times().user
                    beside = visitor.visit(compiled, kernels=True)
                    if other.cpu_times().user > before_s and beside.visit.preempted > 0.5:
                        break
        assert beside.visit.preempted > 0.5
        # By the clock it would be twice as long; both cores may be busy with other tests.
        assert beside.visit.median_ms < 1.5 * alone.visit.median_ms

        def total_ms(kernels) -> float:
            sums = [sum(run) for run in zip(*(t.samples_ms for t in kernels.values()), strict=True)]
            return sorted(sums)[len(sums) // 2]

        assert total_ms(beside.kernels) == pytest.approx(beside.visit.median_ms, rel=0.35)


class TestWarning:
    def test_only_where_it_matters(self) -> None:
        assert busy_warning(0.0) is None
        assert busy_warning(0.09) is None
        assert "42% of the runs lost their core" in str(busy_warning(0.42))
