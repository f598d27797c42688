"""What `benchmarks.budget_contract` found: misses, slack, expectations.

*Slack* is what a network leaves unused of the limit that it uses most, by the second measurement.
It counts where the space has a network that comes close, which exact selection with the corrected
table decides. Two parts of it are there by design. The bound that a search goes by has to fit, so
that the estimate stays below the limit: *slack to the bound* is without that. And one that uses
less is taken where it is clearly more accurate: *the closest candidate* is what the search had at
hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from devices.measurement import Measurement

__all__ = ["CLOSE", "GOALS", "report_lines", "summary", "verdict"]

CLOSE = 0.03
"""A space offers a network for a limit where one leaves at most this share unused."""

GOALS = {"misses": 0.0, "slack": CLOSE, "expectation": 0.02}
"""The most that each figure may be."""


def verdict(search: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """One network against its limits, by what was measured afterwards.

    Args:
        search: what the search wrote.
        again: the file's multiply-adds, and its measurement where latency is limited.

    Returns:
        `share`: the largest cost as a share of its limit; `sure`: the same with the lower end of
        the 90 % interval; `missed`: the metrics that are above their limit with all of it;
        `series`: the latency by that of the search's own series, None without one.
    """
    share, sure, missed, series = 0.0, 0.0, [], None
    for limit in search["limits"]:
        if limit["metric"] == "madds":
            cost = low = float(again["madds"])
        else:
            measured = Measurement.from_json(again["measured"])
            cost, low = measured.latency_ms, measured.low_ms
            first_ms = search.get("measured_ms")
            series = cost / first_ms if first_ms else None
        share, sure = max(share, cost / limit["value"]), max(sure, low / limit["value"])
        if low > limit["value"]:
            missed.append(limit["metric"])
    return {"share": share, "sure": sure, "missed": missed, "series": series}


def summary(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """All figures.

    Args:
        pairs: what each search wrote, and what was measured afterwards; empty where nothing was.
    """
    rows = []
    for search, again in pairs:
        row = {
            "number": search["number"],
            "kind": search["kind"],
            "limits": search["limits"],
            "kept": search["kept"],
            "refused": search["refused"],
            "expected": max(
                cost / limit["value"]
                for cost, limit in zip(search["expected"], search["limits"], strict=True)
            ),
            "offered": search.get("offered", False),
            "bound": 1 + search["excess"] if "excess" in search else None,
            "closest": 1 + search["closest"] if search.get("closest") is not None else None,
            "rounds": search.get("rounds"),
            "seconds": search.get("seconds"),
        }
        rows.append({**row, **(verdict(search, again) if again else {"share": None})})
    judged = [row for row in rows if row["kept"] and row["share"] is not None]
    refusing = [row for row in rows if not row["kept"]]
    close = [row for row in judged if row["offered"]]
    misses = [row for row in judged if row["missed"]]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    off = [abs(row["expected"] - 1) for row in rows]
    figures = {
        "misses": float(len(misses)) if judged else None,
        "slack": _mean([1 - row["share"] for row in close]),
        "expectation": max(off) if off else None,
    }
    return {
        "data": rows and pairs[0][0]["data"],
        "device": rows and pairs[0][0]["device"],
        "searches": len(rows),
        "judged": len(judged),
        "not_kept": len(refusing),
        "refused": sum(row["refused"] is not None for row in refusing),
        # Searches that found nothing, though the nearest network keeps the limits after all.
        "not_kept_but_within": sum(
            row["share"] is not None and row["share"] <= 1 for row in refusing
        ),
        "waiting": sum(row["share"] is None and row["refused"] is None for row in rows),
        "misses": [_miss(row) for row in misses],
        "above": sum(row["share"] > 1 for row in judged),
        "worst_share": max((row["share"] for row in judged), default=None),
        "offered": len(close),
        "slack": {
            kind: _mean([1 - row["share"] for row in close if row["kind"] == kind])
            for kind in kinds
        },
        "slack_quantiles": _quantiles([1 - row["share"] for row in close], (0.5, 0.9)),
        "series_quantiles": _quantiles(
            [row["series"] - 1 for row in judged if row["series"]], (0.1, 0.5, 0.9)
        ),
        "slack_to_bound": _mean([1 - row["bound"] for row in close]),
        "slack_of_closest": _mean([1 - row["closest"] for row in close if row["closest"]]),
        "expectation_within": sum(one <= GOALS["expectation"] for one in off),
        "rounds": _mean([row["rounds"] for row in rows if row["rounds"]]),
        "seconds": _mean([row["seconds"] for row in rows if row["seconds"]]),
        "goals": {
            name: {"most": most, "found": figures[name], "met": _met(figures[name], most)}
            for name, most in GOALS.items()
        },
        "rows": rows,
    }


def _met(found: float | None, most: float) -> bool | None:
    return None if found is None else found <= most


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float] | None:
    return [float(x) for x in np.quantile(values, shares)] if values else None


def _miss(row: Mapping[str, Any]) -> str:
    limits = " and ".join(limit["text"] for limit in row["limits"])
    share, sure = row["share"] - 1, row["sure"] - 1
    return f"search {row['number']}, {limits}: {share:+.1%}, for sure {sure:+.1%}"


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """The result as text."""
    made, wanted = result["searches"], result["wanted"]
    if not made:
        return [f"not yet: {wanted} searches"]
    goals = result["goals"]
    within = result["expectation_within"]
    lines = [
        f"{result['data']}; {result['skeleton']} skeleton; {result['device']}",
        f"{made} searches ({_number(result['rounds'])} rounds and {_number(result['seconds'])} s "
        f"each), {result['judged']} of them called kept and measured again",
        "",
        _line("misses beyond the interval", goals["misses"], "{:.0f}"),
        *(f"  {miss}" for miss in result["misses"]),
        f"  estimates above a limit: {result['above']}; the largest is "
        f"{_percent(result['worst_share'])} of its limit",
        _line(
            f"mean slack, {result['offered']} networks where the space offers it",
            goals["slack"],
            "{:.2%}",
        ),
        *(f"  {kind}: {_percent(own)}" for kind, own in result["slack"].items()),
        f"  to the bound that the searches went by: {_percent(result['slack_to_bound'])}; of the "
        f"closest candidate that kept the limits: {_percent(result['slack_of_closest'])}",
        _line("expected cost, furthest from the tightest limit", goals["expectation"], "{:.2%}"),
        f"  within {GOALS['expectation']:.0%}: {within} of {made}",
        "",
        f"said themselves that nothing is kept: {result['not_kept']} ({result['refused']} because "
        f"no network of the space keeps both limits; {result['not_kept_but_within']} nearest "
        "networks are within the limits after all)",
    ]
    if result["series_quantiles"]:
        low, middle, high = (f"{one:+.1%}" for one in result["series_quantiles"])
        lines.append(
            f"latencies of the second series by those of the search's: {middle} in the median, "
            f"10th and 90th percentile {low} and {high}"
        )
    if wanted > made:
        lines.append(f"not yet: {wanted - made} searches")
    if result["waiting"]:
        lines.append(f"not yet: {result['waiting']} files to be measured again")
    return lines


def _line(what: str, goal: Mapping[str, Any], form: str) -> str:
    if goal["found"] is None:
        return f"{what}: not known yet"
    word = "met" if goal["met"] else "MISS"
    return f"{what}: {form.format(goal['found'])} (goal {form.format(goal['most'])}): {word}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
