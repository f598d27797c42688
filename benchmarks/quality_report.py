"""What trained networks of several spaces say about the spaces: tables, intervals, plots.

A space is described by the distribution of its networks' errors (Radosavovic et al., *On Network
Design Spaces for Visual Recognition*, ICCV 2019): mean, best, and the share of networks below each
error. Intervals are 90 % bootstrap intervals over networks; where a space has several seeds they
are drawn first, because networks of one evolution are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality_spaces import ABLATIONS

__all__ = ["plot_distributions", "rank_correlation", "report_lines", "summary"]

_RESAMPLES = 4000
_INTERVAL = (0.05, 0.95)
_GOALS = ("random cells", "MBConv")


def summary(
    errors: Mapping[str, Mapping[int, Sequence[float]]], against: str, seed: int = 0
) -> dict[str, Any]:
    """Mean and best error of each space, and how far each is behind one of them.

    Args:
        errors: by space and seed, the test error of each network, 0 to 1.
        against: the space that the others are compared with.
        seed: of the bootstrap.

    Returns:
        By space: `networks`, `seeds`, `mean`, `best`, each with its interval, and `behind`: the
        difference of means and of bests to `against`, positive where that one is better.
    """
    rng = np.random.default_rng(seed)
    drawn = {name: _resampled(own, rng) for name, own in errors.items() if any(own.values())}
    found: dict[str, Any] = {}
    for name, resamples in drawn.items():
        every = [error for own in errors[name].values() for error in own]
        found[name] = {
            "networks": len(every),
            "seeds": sum(bool(own) for own in errors[name].values()),
            "mean": float(np.mean(every)),
            "mean_interval": _interval(resamples[:, 0]),
            "best": min(every),
            "best_interval": _interval(resamples[:, 1]),
        }
        if against in drawn and name != against:
            gaps = resamples - drawn[against]
            base = [error for own in errors[against].values() for error in own]
            found[name]["behind"] = {
                "mean": float(np.mean(every) - np.mean(base)),
                "mean_interval": _interval(gaps[:, 0]),
                "best": min(every) - min(base),
                "best_interval": _interval(gaps[:, 1]),
            }
    return found


def _resampled(
    by_seed: Mapping[int, Sequence[float]], rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean and best of bootstrap samples, shape `(resamples, 2)`."""
    groups = [np.array(own) for own in by_seed.values() if len(own)]
    results = np.empty((_RESAMPLES, 2))
    for row in range(_RESAMPLES):
        picked = [groups[int(i)] for i in rng.integers(len(groups), size=len(groups))]
        sample = np.concatenate([own[rng.integers(len(own), size=len(own))] for own in picked])
        results[row] = sample.mean(), sample.min()
    return results


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    return [float(x) for x in np.quantile(values, _INTERVAL)]


def rank_correlation(short: Sequence[float], long: Sequence[float]) -> float | None:
    """Spearman's correlation of two trainings of the same networks; None below three."""
    from scipy.stats import spearmanr

    if len(short) < 3:
        return None
    return float(spearmanr(short, long).statistic)


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """The result as text."""
    lines = [
        f"{result['data']}; {result['skeleton']} skeleton; {result['recipe']}",
        f"networks at {result['target']:.0%} of the reference network's latency, "
        f"± {result['band']:.0%}, on {result['device']}",
        "",
        f"{'space':<20}{'networks':>9}{'seeds':>6}  {'mean error':>22}  {'best error':>22}  "
        f"{'mean behind':>24}  {'best behind':>24}",
    ]
    for name, own in result["spaces"].items():
        behind = own.get("behind")
        lines.append(
            f"{name:<20}{own['networks']:>9}{own['seeds']:>6}  "
            f"{_with_interval(own['mean'], own['mean_interval']):>22}  "
            f"{_with_interval(own['best'], own['best_interval']):>22}  "
            + (
                f"{_with_interval(behind['mean'], behind['mean_interval']):>24}  "
                f"{_with_interval(behind['best'], behind['best_interval']):>24}"
                if behind
                else ""
            )
        )
    lines.append("")
    for name in _GOALS:
        if behind := result["spaces"].get(name, {}).get("behind"):
            for what in ("mean", "best"):
                met = behind[f"{what}_interval"][0] > 0
                lines.append(
                    f"{'met ' if met else 'MISS'} evolved better than {name} in {what}, outside "
                    "the interval"
                )
    rank = result["rank"]
    if rank["correlation"] is not None:
        lines += [
            "",
            f"the short recipe ranks {rank['networks']} networks as one of "
            f"{rank['long_epochs']} epochs does: Spearman {rank['correlation']:.2f}",
        ]
    places = Counter(own["trained_on"] for own in result["networks"] if own["trained_on"])
    lines += [f"{count} networks trained on {place}" for place, count in sorted(places.items())]
    for missing in result["missing"]:
        lines.append(f"not yet: {missing}")
    return lines


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"


def plot_distributions(errors: Mapping[str, Sequence[float]], path: Path) -> None:
    """The share of each space's networks below each error, as an SVG; ablations are dashed."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 4.0))
    for name, own in errors.items():
        ordered = np.sort(own)
        axes.step(
            100 * np.concatenate([ordered[:1], ordered]),
            np.arange(len(ordered) + 1) / len(ordered),
            where="post",
            linestyle="--" if name in ABLATIONS else "-",
            label=f"{name} ({len(ordered)})",
        )
    axes.set_xlabel("test error, %")
    axes.set_ylabel("share of networks at or below")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
