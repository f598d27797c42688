"""The accuracy report as tables for a terminal and as plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy import GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_scatter", "plot_sweeps", "report_lines"]

_METHODS = {
    "predictor": "predictor",
    "flops": "FLOPs × constant",
    "roofline": "FLOPs + bytes roofline",
    "isolated": "sum of kernels alone",
}
_COLOURS = {"mobile": "#1f6fb2", "small": "#3a8f4d", "torchvision": "#c4581a"}
_COSTLIEST_SHOWN = 8


@dataclass(frozen=True)
class _Table:
    """A table of text: the first columns to the left, figures to the right.

    Attributes:
        title: above it.
        columns: headers.
        left: how many columns hold words.
        note: below it.
        rows: as many cells as there are columns.
    """

    title: str
    columns: tuple[str, ...]
    left: int = 1
    note: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A blank line, the title, the headers, and a line for each row."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        text = [
            "  ".join(
                cell.ljust(width) if place < self.left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return ["", self.title, *(f"  {line}" for line in text), *([self.note] * bool(self.note))]


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """Everything that a reader needs to judge the predictor, line by line."""
    profile, split = result["profile"], result["error_split"]
    curve = {f"{point['minutes']:g} min": point["groups"] for point in result["curve"]}
    methods = {_METHODS[name]: groups for name, groups in result["methods"].items()}
    sums = {
        "calibrated on the profile": result["summation"],
        "calibrated on the truth itself": result["summation_own_calibration"],
    }
    tables = [
        _goal_table(result["goals"]),
        _figure_table("Summation: each network's own measured kernels", sums),
        _figure_table("Predictor, by minutes of profiling", curve, note=_LEGEND),
        _worst_table(result["curve"][-1]["groups"]),
        _figure_table("Methods, all networks", methods),
        *_isolated_tables(result["isolated"]),
        *(t for group, own in split.items() if own["networks"] for t in _split_tables(group, own)),
        _family_table(result["families"]),
        _sweep_table(result["sweeps"]),
    ]
    return [
        _conditions_line(result["conditions"]),
        *(f"note: {warning}" for warning in result["warnings"]),
        f"profile: {profile['networks']} networks, {profile['kernels']} kernels, "
        f"{profile['visits']} visits; begun in this order: {_order(result['order'])}.",
        *_truth_lines(result["truth"]),
        *(line for table in tables if table.rows for line in table.lines()),
        "",
        *_speed_lines(result["speed"]),
        _fusion_line(result["fusion"]),
    ]


def _conditions_line(found: Mapping[str, Any]) -> str:
    return (
        f"{found['runtime']} {found['runtime_version']}, {found['threads']} thread(s), "
        f"{found['precision']}, batch {found['batch']}, {found['cpu']}"
    )


def _order(steps: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{s['step']} ({s['minutes']:.1f} min)" if s["minutes"] else s["step"] for s in steps
    )


def _truth_lines(truth: Mapping[str, Any]) -> list[str]:
    minutes = f"{truth['minutes']:.0f} minutes" if truth["minutes"] else "minutes not recorded"
    lines = []
    for group, found in {"all": truth["floor"], **truth["floor_by_group"]}.items():
        cost = f" ({minutes})" if group == "all" else ""
        lines.append(
            f"truth, {group}: {found['networks']} networks, {found['visits']} visits{cost}; halves "
            f"disagree by {_percent(found['repeatability_median'])} (median), "
            f"{_percent(found['repeatability_p90'])} (90th percentile); {found['unstable']} "
            f"unstable ({_percent(found['unstable_share'])})."
        )
    if truth["not_measured"]:
        lines.append(f"too slow, or not measured: {', '.join(truth['not_measured'])}.")
    if truth["not_exported"]:
        lines.append(f"cannot be exported: {', '.join(truth['not_exported'])}.")
    return lines


def _speed_lines(speed: Mapping[str, Any] | None) -> list[str]:
    if speed is None:
        return ["speed: not measured."]
    lines = [
        f"speed, {group}: {own['from_kernels_per_s']:.0f} networks/s from kernels, "
        f"{own['from_onnx_per_s']:.0f}/s from ONNX and its compiled graph (median "
        f"{own['nodes_median']:.0f} nodes, 90th percentile {own['from_onnx_ms_p90']:.0f} ms; mean "
        f"{own['parse_ms']:.1f} ms reading, {own['match_ms']:.1f} ms matching, "
        f"{own['predict_ms']:.1f} ms predicting)."
        for group, own in speed.items()
        if group != "expected_latency"
    ]
    rates = speed["expected_latency"]["speed"]
    return [
        *lines,
        f"ExpectedLatency: {rates['forward'] / 1e6:.2f} M architectures/s forward, "
        f"{rates['forward_backward'] / 1e6:.2f} M/s forward and backward.",
    ]


def _fusion_line(fusion: Mapping[str, Any] | None) -> str:
    if fusion is None:
        return "fusion: not judged (the card holds no rules)."
    worst = ", ".join(f"{w['name']} {_percent(w['share'])}" for w in fusion["worst"])
    return (
        f"fusion: {_percent(fusion['share'])} of {fusion['kernels']} kernels of "
        f"{fusion['networks']} networks as the rules say, median {_percent(fusion['median'])}, "
        f"{fusion['exact_networks']} networks exactly; worst {worst}."
    )


# -- tables


_LEGEND = (
    "  * networks with unstable truth count as misses; †: like any other. interval: truths inside "
    "the 90 %\n  interval; width: its median half-width; cover: smallest coverage; measured: part "
    "of the predicted\n  time that is exact hits"
)


def _goal_table(goals: Sequence[Mapping[str, Any]]) -> _Table:
    table = _Table("Goals", ("figure", "verdict", "goal", "reached", "unstable as misses"), 2)
    words = {True: "met", False: "MISSED", None: "no figure"}
    for goal in goals:
        show = _SHOW[goal["unit"]]
        limits = [f"≥ {show(goal['least'])}"] if goal["least"] is not None else []
        limits += [f"≤ {show(goal['most'])}"] if goal["most"] is not None else []
        missed = goal["with_unstable"]
        table.rows.append(
            (
                goal["name"],
                words[goal["met"]],
                ", ".join(limits),
                show(goal["value"]),
                "" if missed is None else show(missed),
            )
        )
    return table


def _figure_table(title: str, rows: Mapping[str, Mapping[str, Any]], note: str = "") -> _Table:
    """A line for each method and group."""
    columns = (
        "",
        "networks",
        "n",
        "±5 %",
        "±10 %",
        "±5 % *",
        "±10 % *",
        "±10 % †",
        "median",
        "p90",
        "bias",
    )
    further = ("rank", "interval", "width", "cover", "measured")
    table = _Table(title, columns + further, 2, note)
    for method, groups in rows.items():
        for group, found in groups.items():
            if not found["networks"]:
                continue
            own, missed = found["stable"], found["unstable_as_misses"]
            table.rows.append(
                (
                    method,
                    group,
                    str(found["networks"]),
                    _percent(own["within_5_percent"]),
                    _percent(own["within_10_percent"]),
                    _percent(missed["within_5_percent"]),
                    _percent(missed["within_10_percent"]),
                    _percent(found["all"]["within_10_percent"]),
                    _percent(own["median_error"]),
                    _percent(own["p90_error"]),
                    _signed(own["bias"]),
                    _correlation(own["rank_correlation"]),
                    _percent(own.get("interval_coverage")),
                    _percent(own.get("median_half_width")),
                    _percent(own.get("coverage_min")),
                    _percent((own.get("time_by_source") or {}).get("measured")),
                )
            )
    return table


def _worst_table(groups: Mapping[str, Any]) -> _Table:
    table = _Table("Worst networks", ("", "signed error"), 2)
    for group in GROUPS:
        worst = groups[group]["stable"]["worst"]
        if not worst:
            continue
        text = ", ".join(f"{w['name']} {_signed(w['error'])}" for w in worst)
        table.rows.append((group, text))
    return table


def _isolated_tables(isolated: Mapping[str, Any] | None) -> list[_Table]:
    if isolated is None:
        return []
    missing = ", ".join(f"{name} ×{count}" for name, count in isolated["not_built"].items())
    return [
        _figure_table(
            f"Methods, {isolated['networks']} networks whose kernels were measured alone",
            {_METHODS[name]: groups for name, groups in isolated["methods"].items()},
            f"  {isolated['kernels']} kernels alone; not built, so counted as the predictor says: "
            f"{missing or 'none'}",
        )
    ]


def _split_tables(group: str, split: Mapping[str, Any]) -> list[_Table]:
    columns = ("", "median |error|", "p90 |error|", "median signed")
    table = _Table(f"Error split, {group}: {split['dominant']} dominates", columns)
    for name, sizes in split["parts"].items():
        cells = map(_percent, (sizes["median_absolute"], sizes["p90_absolute"]))
        table.rows.append((name, *cells, _signed(sizes["median_signed"])))
    sources = {f"source: {name}": line for name, line in split["sources"].items()}
    costliest = list(split["kernels"].items())[:_COSTLIEST_SHOWN]
    return [
        table,
        _kernel_table(
            f"Kernel errors as parts of the mean network's time, {group}",
            {**split["families"], **sources}.items(),
        ),
        _kernel_table(f"Kernels that add most to the error, {group}", costliest),
    ]


def _kernel_table(title: str, rows: Iterable[tuple[str, Mapping[str, float]]]) -> _Table:
    table = _Table(title, ("", "kernels", "time", "signed", "absolute"))
    for name, line in rows:
        table.rows.append(
            (
                name,
                str(line["kernels"]),
                _percent(line["time_share"]),
                _signed(line["signed"], 2),
                _percent(line["absolute"], 2),
            )
        )
    return table


def _family_table(families: Mapping[str, Any]) -> _Table:
    columns = ("family", "networks", "stable", "median signed error")
    table = _Table(f"Torchvision's {len(families)} families", columns)
    for name, found in families.items():
        counts = (str(found["networks"]), str(found["stable"]))
        table.rows.append((name, *counts, _signed(found["bias"])))
    return table


def _sweep_table(sweeps: Sequence[Mapping[str, Any]]) -> _Table:
    columns = ("", "points", "median |error|", "worst error", "drop, predicted", "measured")
    further = ("drop of the layers, predicted", "measured")
    note = "  drop: how far the latency ever falls below what it reached at a smaller size"
    table = _Table("Sweeps", columns + further, 1, note)
    for sweep in sweeps:
        drop = sweep["largest_drop"]
        parts = ("predicted", "measured", "layers_predicted", "layers_measured")
        table.rows.append(
            (
                sweep["name"],
                str(len(sweep["points"])),
                _percent(sweep["median_error"]),
                _signed(sweep["worst_error"]),
                *(_percent(drop[name]) for name in parts),
            )
        )
    return table


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _signed(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:+.{digits}f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


_SHOW: dict[str, Callable[[float | None], str]] = {
    "share": _percent,
    "count": _number,
    "per second": _number,
    "correlation": _correlation,
}


# -- plots


def plot_scatter(result: Mapping[str, Any], path: Path) -> None:
    """Predicted over measured latency, and the signed error with the 10 % band."""
    figure = _figure(10, 4.5)
    left, right = figure.subplots(1, 2)
    label = f"{result['curve'][-1]['minutes']:g} minutes of profiling"
    for group, colour in _COLOURS.items():
        own = [n for n in result["networks"] if n["group"] == group and n["stable"]]
        if not own:
            continue
        measured = [n["measured_ms"] for n in own]
        predicted = [n["predicted_ms"] for n in own]
        errors = [100 * (p / m - 1) for p, m in zip(predicted, measured, strict=True)]
        left.plot(measured, predicted, ".", color=colour, label=group, alpha=0.6, markersize=4)
        right.plot(measured, errors, ".", color=colour, label=group, alpha=0.6, markersize=4)
    times = [n["measured_ms"] for n in result["networks"] if n["stable"]]
    ends = (min(times, default=1.0) / 1.2, max(times, default=1.0) * 1.2)
    left.plot(ends, ends, color="#888888", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title=label)
    right.axhspan(-10, 10, color="#888888", alpha=0.15, linewidth=0)
    right.axhspan(-5, 5, color="#888888", alpha=0.2, linewidth=0)
    right.axhline(0, color="#888888", linewidth=0.8)
    right.set(xscale="log", xlabel="measured, ms", ylabel="error, %", title="bands of 5 and 10 %")
    left.legend(frameon=False)
    _save(figure, path)


def plot_sweeps(result: Mapping[str, Any], path: Path) -> None:
    """Predicted curves with their intervals over measured points."""
    sweeps = result["sweeps"]
    columns = 4
    rows = -(-len(sweeps) // columns)
    figure = _figure(13, 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place >= len(sweeps):
            axis.set_axis_off()
            continue
        _plot_sweep(sweeps[place], axis)
    axes[0][0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def _plot_sweep(sweep: Mapping[str, Any], axis: Axes) -> None:
    points = sweep["points"]
    axis.fill_between(points, sweep["low_ms"], sweep["high_ms"], color="#1f6fb2", alpha=0.15)
    axis.plot(points, sweep["predicted_ms"], color="#1f6fb2", linewidth=1.2, label="predicted")
    axis.plot(points, sweep["measured_ms"], "k.", markersize=5, label="measured")
    axis.set(xscale="log", yscale="log", xlabel=sweep["size"], ylabel="ms")
    axis.set_title(sweep["name"], fontsize=9)
    ticks = points[:: max(1, len(points) // 4)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.tick_params(labelsize=7)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    # Without a date and with fixed names the same figures give the same file.
    with rc_context({"svg.hashsalt": "autospace", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
