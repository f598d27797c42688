"""The top of the page: whether the budget was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autospace.report import words
from autospace.report.parts import Cell, Table
from autospace.report.run import RunFolder, number, records

__all__ = ["Tone", "Verdict", "verdict_of"]

Tone = Literal["kept", "failed", "open"]


@dataclass(frozen=True)
class Verdict:
    """The top of the page.

    Attributes:
        tone: of the whole.
        headline: a few words.
        sentence: one plain sentence.
        figures: name, value and a remark of each key figure.
        limits: each limit, as a table; None where there are none.
    """

    tone: Tone
    headline: str
    sentence: str
    figures: tuple[tuple[str, str, str], ...] = ()
    limits: Table | None = field(default=None)


def verdict_of(run: RunFolder) -> Verdict:
    """Whether the budget was kept, in words and figures."""
    verdict = run.verdict
    if verdict is None:
        return _without_verdict(run)
    limits = [entry for entry in run.limits if "kept" in entry]
    broken = [entry for entry in limits if entry["kept"] is not True]
    kept = verdict.get("kept") is True and not broken
    accuracy = words.percent(verdict.get("accuracy"))
    data = run.said("data") or "its data"
    if kept:
        room = "; ".join(_said_of_limit(entry) for entry in limits)
        sentence = f"The network is right on {accuracy} of the test images ({data})" + (
            f" and keeps every limit: {room}." if room else "; no limit was set."
        )
    else:
        missed = "; ".join(_said_of_limit(entry) for entry in broken)
        sentence = "No network found keeps every limit" + (
            f": {missed}."
            if missed
            else ", although none was missed by the network shown here: see the warnings."
        )
    measured = verdict.get("measured_ms")
    predicted = verdict.get("predicted_ms")
    marked = " · simulated" if run.simulated else ""
    coverage = number(verdict.get("coverage"))
    remark = [words.interval_ms(verdict.get("predicted_low_ms"), verdict.get("predicted_high_ms"))]
    if coverage is not None:
        remark.append(f"coverage {words.percent(coverage)}")
    trained = number(verdict.get("accuracy")) is not None
    figures = [
        ("accuracy", accuracy, "on the test images" if trained else "not trained"),
        ("multiply-adds", words.count(verdict.get("madds")), "for one image at the target"),
        ("parameters", words.count(verdict.get("params")), ""),
    ]
    if predicted is not None:
        figures.append(("predicted", words.ms(predicted), ", ".join(filter(None, remark)) + marked))
    if measured is not None:
        ends = words.interval_ms(verdict.get("measured_low_ms"), verdict.get("measured_high_ms"))
        figures.append(("measured", words.ms(measured), ends + marked))
    if number(verdict.get("seconds")) is not None:
        figures.append(("took", words.duration(verdict.get("seconds")), "from start to verdict"))
    return Verdict(
        "kept" if kept else "failed",
        "Budget kept" if kept else "Budget not kept",
        sentence,
        tuple(figures),
        _limits_table(limits),
    )


def _without_verdict(run: RunFolder) -> Verdict:
    stages = run.state.get("stages")
    done = ", ".join(stages) if isinstance(stages, Mapping) and stages else "none"
    if run.verification is not None and run.verification.get("chosen") is None:
        rounds = records(run.verification.get("rounds"))
        tried = sum(len(records(entry.get("candidates"))) for entry in rounds)
        return Verdict(
            "failed",
            "Budget not kept",
            f"None of the {tried} candidates that were measured keeps every limit; the run "
            f"stopped there. Stages done: {done}.",
        )
    return Verdict(
        "open",
        "Unfinished",
        f"This run has no verdict yet (verdict.json is missing or unreadable). Stages done: "
        f"{done}; the same command goes on from there.",
    )


def _slack(entry: Mapping[str, Any]) -> float | None:
    value = number(entry.get("value"))
    bound = number(entry.get("bound"))
    bound = number(entry.get("found")) if bound is None else bound
    return None if not value or bound is None else 1 - bound / value


def _said_of_limit(entry: Mapping[str, Any]) -> str:
    metric, slack = str(entry["metric"]), _slack(entry)
    found, bound = (
        words.short_cost(metric, entry.get("found")),
        words.short_cost(metric, entry.get("bound")),
    )
    said = f"{words.METRICS.get(metric, metric)} {found}"
    if bound not in (found, words.NONE):
        said += f" (upper bound {bound})"
    limit = words.short_cost(metric, entry.get("value"))
    if entry.get("kept") is True:
        room = "" if slack is None else f", {words.percent(slack)} to spare"
        return f"{said} under {limit}{room}"
    if slack is not None and slack < 0:
        return f"{said}, {words.percent(-slack)} above the limit of {limit}"
    return f"{said} against a limit of {limit}"


def _limits_table(limits: Sequence[Mapping[str, Any]]) -> Table | None:
    if not limits:
        return None
    rows = []
    for entry in limits:
        metric, kept, slack = str(entry["metric"]), entry["kept"] is True, _slack(entry)
        asked, value = str(entry.get("text") or ""), words.short_cost(metric, entry.get("value"))
        rows.append(
            (
                Cell(words.METRICS.get(metric, metric)),
                Cell(value if not asked or asked == value else f"{value} ({asked})"),
                Cell(words.short_cost(metric, entry.get("found"))),
                Cell(words.short_cost(metric, entry.get("bound"))),
                Cell(words.percent(slack), "" if kept else "bad"),
                Cell("✓ kept" if kept else "✗ missed", "good" if kept else "bad"),
            )
        )
    headings = ("limit", "value", "found", "upper bound", "slack", "verdict")
    return Table("Limits; slack is what the upper bound leaves", headings, tuple(rows))
