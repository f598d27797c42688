"""What `benchmarks.search_quality` found: errors of networks of equal latency, and who is behind.

Intervals are 90 % bootstrap intervals over the seeds, and over the networks of a seed where there
are several (`benchmarks.quality_report`). The best of the random networks is the best by the very
test that counts, which favours it: what it reaches when it is trained again is told beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["report_lines"]

_ALIKE = (0.93, 1.01)
"""Shares of a limit that count as the same: the band, and what a measurement is off."""


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """The result as text."""
    if not result["limits"]:
        return ["not yet: networks of equal latency"]
    lines = [
        f"{result['data']}; {result['skeleton']} skeleton; {result['recipe']}; space: "
        f"{result['space']}",
        f"on {result['device']}; reference network {result['reference_ms']:.4f} ms",
    ]
    for limit in result["limits"]:
        lines += ["", *_limit_lines(limit)]
    if result["missing"]:
        lines += ["", f"not yet: {result['missing']} trainings"]
    return lines


def _limit_lines(limit: Mapping[str, Any]) -> list[str]:
    found = limit["found"]
    lines = [
        f"limit: {limit['target']:.0%} of the reference network, {limit['latency_ms']:.4f} ms",
        f"{'network':<34}{'trained':>8}{'seeds':>6}  {'latency, of the limit':>22}  "
        f"{'mean error':>24}  {'behind searched':>24}",
    ]
    for name, own in sorted(found.items(), key=lambda item: float(item[1]["mean"])):
        low, high = limit["shares"].get(name, limit["shares"].get("random", (0.0, 0.0)))
        behind = own.get("behind")
        lines.append(
            f"{name:<34}{own['networks']:>8}{own['seeds']:>6}  {f'{low:.1%} to {high:.1%}':>22}  "
            f"{_with_interval(own['mean'], own['mean_interval']):>24}  "
            + (f"{_with_interval(behind['mean'], behind['mean_interval']):>24}" if behind else "")
        )
    for name, (low, high) in limit["shares"].items():
        if low < _ALIKE[0] or high > _ALIKE[1]:
            lines.append(
                f"{name}: not of the same latency, at {low:.1%} to {high:.1%} of the limit"
            )
    for name, own in found.items():
        if (behind := own.get("behind")) and name != "random":
            met = behind["mean_interval"][0] > 0
            lines.append(
                f"{'met ' if met else 'MISS'} searched better than {name}, outside the interval"
            )
    if limit["ranking"]:
        told = ", ".join(f"{one:.2f}" for one in limit["ranking"])
        lines.append(f"what supernets' ranking of the random networks is worth: Spearman {told}")
    return lines


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"
