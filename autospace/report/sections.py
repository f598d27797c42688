"""What stands on the page, as plain values that both templates show: verdict and sections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autospace.cost import format_cost
from autospace.inspecting import layer_table, times_by_owner
from autospace.onnx_export import owner_of
from autospace.quantities import format_count, format_ms
from autospace.report.run import RunFolder, number, numbers, records

__all__ = ["Cell", "Figure", "Section", "Table", "Verdict", "all_sections", "verdict_of"]

Tone = Literal["kept", "failed", "open"]
_NONE = "–"
_LABELS = {"memory_gib": "memory (GiB)", "clock_mhz": "clock (MHz)", "cpu": "processor"}
_METRICS = {"madds": "multiply-adds", "latency_ms": "latency"}


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: what it says.
        tone: colours it.
        bar: a share from 0 to 1, drawn behind it.
    """

    text: str
    tone: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        headings: of the columns.
        rows: of as many cells.
        left: how many columns, from the left, hold words; the others hold figures.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        svg: its markup.
        caption: what it shows, in words; also read aloud.
        wide: whether it takes the page's whole width.
    """

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        notes: sentences.
        facts: names and values.
        tables: below them.
        figures: below those.
        text: verbatim, last, under a title.
        alarm: a loud line at the top.
    """

    key: str
    title: str
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    text: tuple[tuple[str, str], ...] = ()
    alarm: str = ""


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


# -- words ----------------------------------------------------------------------------------------


def _ms(value: object) -> str:
    found = number(value)
    return _NONE if found is None else format_ms(found)


def _count(value: object) -> str:
    found = number(value)
    return _NONE if found is None else format_count(found)


def _percent(value: object, digits: int = 1) -> str:
    found = number(value)
    return _NONE if found is None else f"{found * 100:.{digits}f} %"


def _interval(low: object, high: object) -> str:
    first, last = number(low), number(high)
    return "" if first is None or last is None else f"90 % interval {first:.3g} to {last:.3g} ms"


def _range(low: object, high: object) -> str:
    first, last = number(low), number(high)
    return _NONE if first is None or last is None else f"{first:.3g}–{last:.3g} ms"


def _duration(seconds: object) -> str:
    found = number(seconds)
    if found is None:
        return _NONE
    if found < 120:
        return f"{found:.3g} s"
    minutes = round(found / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _cost(metric: str, value: object) -> str:
    found = number(value)
    if found is None:
        return _NONE
    if metric in ("madds", "latency_ms"):
        return format_cost("madds" if metric == "madds" else "latency_ms", found)
    return f"{found:.4g}"


def _plain(value: object) -> str:
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or _NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items()) or _NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _strings(value: object) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list | tuple) else []


def _row(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)


def _inline(svg: str) -> str:
    """A picture without the namespace that only a file of its own needs."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


# -- verdict --------------------------------------------------------------------------------------


def verdict_of(run: RunFolder) -> Verdict:
    """Whether the budget was kept, in words and figures."""
    verdict = run.verdict
    if verdict is None:
        return _without_verdict(run)
    limits = [entry for entry in run.limits if "kept" in entry]
    broken = [entry for entry in limits if entry["kept"] is not True]
    kept = verdict.get("kept") is True and not broken
    accuracy = _percent(verdict.get("accuracy"))
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
    remark = [_interval(verdict.get("predicted_low_ms"), verdict.get("predicted_high_ms"))]
    if coverage is not None:
        remark.append(f"coverage {_percent(coverage)}")
    trained = number(verdict.get("accuracy")) is not None
    figures = [
        ("accuracy", accuracy, "on the test images" if trained else "not trained"),
        ("multiply-adds", _count(verdict.get("madds")), "for one image at the target"),
        ("parameters", _count(verdict.get("params")), ""),
    ]
    if predicted is not None:
        figures.append(("predicted", _ms(predicted), ", ".join(filter(None, remark)) + marked))
    if measured is not None:
        ends = _interval(verdict.get("measured_low_ms"), verdict.get("measured_high_ms"))
        figures.append(("measured", _ms(measured), ends + marked))
    if number(verdict.get("seconds")) is not None:
        figures.append(("took", _duration(verdict.get("seconds")), "from start to verdict"))
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
    found, bound = _short_cost(metric, entry.get("found")), _short_cost(metric, entry.get("bound"))
    said = f"{_METRICS.get(metric, metric)} {found}"
    if bound not in (found, _NONE):
        said += f" (upper bound {bound})"
    limit = _short_cost(metric, entry.get("value"))
    if entry.get("kept") is True:
        room = "" if slack is None else f", {_percent(slack)} to spare"
        return f"{said} under {limit}{room}"
    if slack is not None and slack < 0:
        return f"{said}, {_percent(-slack)} above the limit of {limit}"
    return f"{said} against a limit of {limit}"


def _short_cost(metric: str, value: object) -> str:
    return _count(value) if metric == "madds" else _cost(metric, value)


def _limits_table(limits: Sequence[Mapping[str, Any]]) -> Table | None:
    if not limits:
        return None
    rows = []
    for entry in limits:
        metric, kept, slack = str(entry["metric"]), entry["kept"] is True, _slack(entry)
        asked, value = str(entry.get("text") or ""), _short_cost(metric, entry.get("value"))
        rows.append(
            (
                Cell(_METRICS.get(metric, metric)),
                Cell(value if not asked or asked == value else f"{value} ({asked})"),
                Cell(_short_cost(metric, entry.get("found"))),
                Cell(_short_cost(metric, entry.get("bound"))),
                Cell(_percent(slack), "" if kept else "bad"),
                Cell("✓ kept" if kept else "✗ missed", "good" if kept else "bad"),
            )
        )
    headings = ("limit", "value", "found", "upper bound", "slack", "verdict")
    return Table("Limits; slack is what the upper bound leaves", headings, tuple(rows))


# -- sections -------------------------------------------------------------------------------------


def all_sections(run: RunFolder) -> tuple[Section, ...]:
    """Every section of the page, in order; one without its file says so."""
    return (
        _asked(run),
        _device(run),
        _evolution(run),
        _space(run),
        _search(run),
        _candidates(run),
        _network(run),
        _training(run),
        _export(run),
        _benchmark(run),
        _kernels(run),
        _warnings(run),
        _reproduce(run),
    )


def _missing(run: RunFolder, key: str, title: str, file: str, meaning: str) -> Section:
    fault = next((line for line in run.faults if line.startswith(f"{file}:")), None)
    if fault is not None:
        return Section(key, title, notes=(f"{fault}.",))
    there = (run.path / file).exists()
    state = "holds no complete entry" if there else "is not in the run folder"
    return Section(key, title, notes=(f"{file} {state}: {meaning}.",))


def _asked(run: RunFolder) -> Section:
    made = run.architecture or run.space
    target = run.said("target")
    if made is not None:
        skeleton = made.skeleton
        target = target or f"{skeleton.name} at {skeleton.resolution}×{skeleton.resolution}"
    facts = [
        ("target (where costs are counted)", target or "unknown"),
        ("data (on which worth is learned)", run.said("data") or "unknown"),
        ("device", run.said("device") or ("see below" if run.card else "none")),
    ]
    facts += [
        (
            f"limit on {_METRICS.get(entry['metric'], entry['metric'])}",
            f"at most {_cost(entry['metric'], entry['value'])}",
        )
        for entry in run.limits
    ]
    notes = []
    if not run.limits:
        notes.append("No limits are recorded yet.")
    notes.append(
        "Costs are counted at the target; what a network is worth is learned on the data, which "
        "may stand in for the task (a proxy: other images, a smaller input, fewer steps)."
    )
    return Section("asked", "What was asked", notes=tuple(notes), facts=tuple(facts))


def _device(run: RunFolder) -> Section:
    title = "The device"
    card = run.card
    if card is None:
        return _missing(
            run,
            "device",
            title,
            "device.card",
            "no device was profiled, so no latency was predicted from a card",
        )
    environment = card.get("environment")
    settings = numbers(card.get("settings"))
    found: list[tuple[str, str]] = [
        ("runtime", f"{card.get('runtime')} {card.get('runtime_version')}"),
        ("settings", _plain(card.get("settings"))),
    ]
    if isinstance(environment, Mapping):
        found += [
            (_LABELS.get(k, str(k).replace("_", " ")), _plain(v)) for k, v in environment.items()
        ]
    found.append(
        ("measured", f"{card.get('kernels')} kernels in {_plain(card.get('networks'))} networks, "
         f"{card.get('visits')} visits")
    )  # fmt: skip
    sentinel = card.get("sentinel")
    if isinstance(sentinel, Mapping):
        rounds = sentinel.get("disturbed_rounds")
        disturbed = len(rounds) if isinstance(rounds, list) else 0
        found.append(
            (
                "sentinel",
                f"{_ms(sentinel.get('reference_ms'))} undisturbed, median "
                f"{_ms(sentinel.get('median_ms'))}, 90th percentile {_ms(sentinel.get('p90_ms'))}; "
                f"{disturbed} of {_plain(sentinel.get('rounds'))} rounds disturbed; "
                f"{_percent(sentinel.get('preempted'))} of the runs lost their core",
            )
        )
    repeat = numbers(card.get("repeatability"))
    if "median" in repeat:
        found.append(
            (
                "repeatability",
                f"two halves of the visits differ by {_percent(repeat['median'])} in the median, "
                f"{_percent(repeat.get('p90'))} at the 90th percentile "
                f"({repeat.get('networks', 0):.0f} networks)",
            )
        )
    else:
        found.append(("repeatability", "unknown: fewer than four visits to each network"))
    validation = numbers(card.get("validation"))
    if "median_error" in validation:
        found.append(
            (
                "predictor",
                f"median error {_percent(validation['median_error'])}, "
                f"{_percent(validation.get('within_10_percent'), 0)} of networks within 10 %, each "
                f"predicted by a fit that left it out ({validation.get('networks', 0):.0f} "
                "networks)",
            )
        )
    found.append(("fingerprint", str(card.get("fingerprint"))[:16]))
    notes = [] if card.get("complete") else ["The card is unfinished: its profile was interrupted."]
    if settings.get("batch", 1.0) != 1.0:
        notes.append(f"Latencies are for batch {settings['batch']:.0f}.")
    alarm = (
        "Simulated device: its latencies were computed, not measured, and say nothing about a "
        "real one."
        if card.get("simulated")
        else ""
    )
    tables = _errors_by_family(card.get("validation"))
    return Section("device", title, tuple(notes), tuple(found), tables, alarm=alarm)


def _errors_by_family(validation: object) -> tuple[Table, ...]:
    """How well single kernels are predicted, a row for each family, the costliest first."""
    families = validation.get("by_family") if isinstance(validation, Mapping) else None
    if not isinstance(families, Mapping):
        return ()
    rows = sorted(
        ((str(name), numbers(row)) for name, row in families.items()),
        key=lambda item: -item[1].get("share", 0.0),
    )
    return (
        Table(
            "Errors of predicted kernels, their networks left out of the fit",
            ("family", "kernels", "share of time", "median error", "90th percentile"),
            tuple(
                (
                    Cell(name),
                    Cell(f"{row.get('kernels', 0):.0f}"),
                    Cell(_percent(row.get("share"))),
                    Cell(_percent(row.get("median_error"))),
                    Cell(_percent(row.get("p90_error"))),
                )
                for name, row in rows
            ),
        ),
    )


def _column(
    lines: Sequence[Mapping[str, Any]], x: str, *path: str
) -> tuple[list[float], list[float]]:
    """Positions and values of one quantity, where both are numbers."""
    xs, ys = [], []
    for line in lines:
        value: Any = line
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        place, found = number(line.get(x)), number(value)
        if place is not None and found is not None:
            xs.append(place)
            ys.append(found)
    return xs, ys


def _plot(
    name: str,
    lines: Sequence[Mapping[str, Any]],
    x: str,
    columns: Mapping[str, tuple[str, ...]],
    y_label: str,
    caption: str,
    **options: Any,
) -> list[Figure]:
    """A line plot of log columns; none when they hold no numbers."""
    from autospace.report import plots

    series = [plots.Series(label, *_column(lines, x, *path)) for label, path in columns.items()]
    series = [one for one in series if one.x]
    if not series:
        return []
    svg = plots.lines(name, series, x_label=x, y_label=y_label, **options)
    return [Figure(svg, caption)]


def _metrics(lines: Sequence[Mapping[str, Any]], field: str) -> list[str]:
    """The metrics that a log holds; names from a file must not reach a picture's markup."""
    found = {metric for line in lines for metric in numbers(line.get(field))}
    return [metric for metric in _METRICS if metric in found]


def _cost_plots(
    run: RunFolder, name: str, lines: Sequence[Mapping[str, Any]], x: str
) -> list[Figure]:
    """Expected cost against its limit, for every metric that the log holds."""
    values = {entry["metric"]: float(entry["value"]) for entry in run.limits}
    metrics = _metrics(lines, "expected")
    figures: list[Figure] = []
    for metric in metrics:
        bound = values.get(metric)
        scale = 1e6 if metric == "madds" else 1.0
        unit = "million multiply-adds" if metric == "madds" else "ms"
        scaled = [
            {x: line.get(x), "cost": numbers(line.get("expected"))[metric] / scale}
            for line in lines
            if metric in numbers(line.get("expected"))
        ]
        said = "" if bound is None else f" against the limit of {_cost(metric, bound)}"
        figures += _plot(
            f"{name}-{metric.replace('_', '-')}",
            scaled,
            x,
            {"expected": ("cost",)},
            unit,
            f"Expected {_METRICS.get(metric, metric)} of the network{said}.",
            limit=None if bound is None else (bound / scale, "limit"),
        )
    return figures


def _evolution(run: RunFolder) -> Section:
    key, title = "evolution", "Evolution of the space"
    log = run.evolve
    if not log:
        return _missing(
            run, key, title, "evolve.jsonl", "no space was evolved here, or one was given"
        )
    last, x = log[-1], "generation"
    facts = [
        ("generations", str(len(log))),
        ("cells tried", _plain(last.get("cells_tried"))),
        ("distinct cells at the end", _plain(last.get("distinct_cells"))),
        ("layers led by a reference cell", _percent(last.get("reference_share"), 0)),
    ]
    figures = [
        *_plot("evolve-loss", log, x,
               {"training": ("train_loss",), "held out": ("validation_loss",)},
               "cross-entropy", "Losses of the stacked cells."),
        *_plot("evolve-fitness", log, x,
               {"best": ("best_fitness",), "median": ("median_fitness",)},
               "fitness", "Best and median fitness over all populations."),
        *_cost_plots(run, "evolve", log, x),
        *_plot("evolve-price", log, x,
               {_METRICS.get(metric, metric): ("prices", metric)
                for metric in _metrics(log, "prices")},
               "price", "Price of each limit: how much fitness a cell that takes all of it loses."),
        *_plot("evolve-reference", log, x, {"reference share": ("reference_share",)},
               "share of layers", "Share of layers whose fittest cell is a reference cell.",
               percent=True),
        *_plot("evolve-distinct", log, x, {"distinct cells": ("distinct_cells",)},
               "cells", "Distinct cells in all populations."),
        *_plot("evolve-entropy", log, x, {"entropy": ("operation_entropy_bits",)},
               "bits", "Entropy of the operations on all edges: how varied the cells are."),
    ]  # fmt: skip
    return Section(key, title, facts=tuple(facts), figures=tuple(figures))


def _space(run: RunFolder) -> Section:
    from autospace.drawing import space_svg

    key, title = "space", "The search space"
    if run.space is None:
        return _missing(run, key, title, "space.json", "no search space was written yet")
    space = run.space
    cells = sum(len(row) for row in space.layers)
    facts = [
        ("layers", f"{len(space.layers)} for {len(space.skeleton.blocks)} blocks"),
        ("cells", str(cells)),
        ("hash", space.hash),
    ]
    for name in ("source", "cells_tried", "cells_per_minute"):
        if space.provenance.get(name) is not None:
            facts.append((name.replace("_", " "), _plain(space.provenance[name])))
    caption = (
        f"The space: {len(space.layers)} layers with {cells} cells in all, best first; cells on "
        "blue ground are the references, numbers are fitness."
    )
    return Section(
        key, title, (), tuple(facts), figures=(Figure(_inline(space_svg(space)), caption, True),)
    )


def _search(run: RunFolder) -> Section:
    key, title = "search", "The search"
    log = run.search
    if not log:
        return _missing(run, key, title, "search.jsonl", "the space was not searched yet")
    x = "step"
    metrics = _metrics(log, "multipliers")
    figures = [
        *_plot("search-loss", log, x,
               {"training": ("train_loss",), "held out": ("validation_loss",)},
               "cross-entropy", "Losses of the sampled paths."),
        *_cost_plots(run, "search", log, x),
        *_plot("search-multiplier", log, x,
               {_METRICS.get(metric, metric): ("multipliers", metric) for metric in metrics},
               "multiplier", "Multiplier of each limit: how hard it pulls."),
        *_plot("search-entropy", log, x, {"entropy": ("entropy",)},
               "nats", "Mean entropy of the choice in a block: it falls as the search decides."),
    ]  # fmt: skip
    facts = [
        ("weight steps", _plain(log[-1].get("step"))),
        ("architecture steps", str(len(log))),
    ]
    return Section(key, title, facts=tuple(facts), figures=tuple(figures))


def _candidates(run: RunFolder) -> Section:
    from autospace.report import plots

    key, title = "candidates", "Candidates measured"
    if run.verification is None:
        return _missing(run, key, title, "verification.json", "no candidate was verified yet")
    chosen = run.verification.get("chosen")
    rows, points, tried, any_kept = [], [], 0, False
    rounds = records(run.verification.get("rounds"))
    for entry in rounds:
        for one in records(entry.get("candidates")):
            tried += 1
            measured = one.get("measured")
            measured = measured if isinstance(measured, Mapping) else {}
            kept = one.get("kept") is True
            any_kept = any_kept or kept
            mine = chosen is not None and one.get("hash") == chosen
            predicted, latency = number(one.get("predicted_ms")), number(measured.get("latency_ms"))
            ends = _range(measured.get("low_ms"), measured.get("high_ms"))
            role = "" if not mine else " (chosen)" if kept else " (nearest)"
            rows.append(
                (
                    Cell(_plain(entry.get("round"))),
                    Cell(
                        f"{one.get('hash')}{role}",
                        "mark" if mine else "",
                    ),
                    Cell("✓ kept" if kept else "✗ missed", "good" if kept else "bad"),
                    Cell(_plain(number(one.get("log_probability")))),
                    Cell(_percent(one.get("validation_accuracy"))),
                    Cell(_count(one.get("madds"))),
                    Cell(_ms(predicted)),
                    Cell(_ms(latency)),
                    Cell(ends),
                )
            )
            if predicted is not None and latency is not None:
                low, high = number(measured.get("low_ms")), number(measured.get("high_ms"))
                points.append(
                    plots.Point(
                        predicted,
                        latency,
                        latency if low is None else low,
                        latency if high is None else high,
                        kept,
                    )
                )
    factors = ", ".join(_plain(entry.get("factor")) for entry in rounds)
    notes = [
        f"{tried} candidates in {len(rounds)} rounds."
        + (f" The cost table was scaled by {factors} in turn." if factors else "")
    ]
    if not any_kept:
        notes.append("None of them keeps every limit.")
    headings = (
        "round", "network", "limits", "log p", "validation", "multiply-adds",
        "predicted", "measured", "90 % interval",
    )  # fmt: skip
    tables = (Table("Candidates of each round", headings, tuple(rows), left=3),) if rows else ()
    figures: tuple[Figure, ...] = ()
    if points:
        bound = next((e["value"] for e in run.limits if e["metric"] == "latency_ms"), None)
        limit = None if bound is None else (float(bound), "limit")
        caption = "Predicted against measured latency of the candidates, with 90 % intervals."
        figures = (Figure(plots.scatter("candidates", points, limit), caption),)
    return Section(key, title, tuple(notes), tables=tables, figures=figures)


def _final(run: RunFolder) -> Mapping[str, Any] | None:
    """The entry of benchmark.json for the run's own network."""
    models = records((run.benchmark or {}).get("models"))
    own = {run.architecture.hash, "model.onnx", "model"} if run.architecture else {"model.onnx"}
    named = [one for one in models if str(one.get("name")) in own]
    return next(iter(named or models), None)


def _prediction(run: RunFolder) -> Mapping[str, Any] | None:
    final = _final(run)
    found = final.get("predicted") if final else None
    return found if isinstance(found, Mapping) and records(found.get("kernels")) else None


def _network(run: RunFolder) -> Section:
    from autospace.drawing import architecture_svg

    key, title = "network", "The network"
    if run.architecture is None:
        return _missing(run, key, title, "architecture.json", "no network was chosen yet")
    architecture, prediction = run.architecture, _prediction(run)
    times: dict[str, float] | None = None
    if prediction is not None:
        try:
            times = times_by_owner(prediction)
        except (KeyError, TypeError, ValueError, AttributeError):
            times = None
    table = layer_table(architecture, times)
    most = max((row["madds"] for row in table), default=0) or 1
    slowest = max((row.get("latency_ms", 0.0) for row in table), default=0.0) or 1.0
    rows = []
    for row in table:
        cells = [
            Cell(row["part"]),
            Cell(row["label"]),
            Cell(f"{row['in_channels']} → {row['out_channels']}"),
            Cell(f"{row['in_size']}²"),
            Cell(str(row["stride"])),
            Cell(_count(row["params"])),
            Cell(_count(row["madds"]), bar=row["madds"] / most),
        ]
        if times is not None:
            cells.append(Cell(f"{row['latency_ms']:.4f}", bar=row["latency_ms"] / slowest))
        rows.append(tuple(cells))
    total = [
        *_row("whole", "", "", "", ""),
        Cell(_count(architecture.params)),
        Cell(_count(architecture.madds)),
    ]
    notes = []
    if times is not None and prediction is not None:
        total.append(Cell(f"{number(prediction.get('latency_ms')) or 0.0:.4f}"))
        rest = times.get("other", 0.0) + (number(prediction.get("fixed_ms")) or 0.0)
        notes.append(f"{format_ms(rest)} of the predicted latency belongs to no single part.")
    rows.append(tuple(total))
    headings = ["part", "holds", "channels", "size in", "stride", "parameters", "multiply-adds"]
    if times is not None:
        headings.append("predicted ms")
    costs = times if times and any(times.values()) else None
    caption = (
        f"The network, stage by stage; bars are "
        f"{'predicted milliseconds' if costs else 'multiply-adds'}, /2 marks stride 2."
    )
    return Section(
        key,
        title,
        tuple(notes),
        (("hash", architecture.hash), ("kernel reading", architecture.kernel_reading)),
        (Table("Parts of the network", tuple(headings), tuple(rows), left=2),),
        (Figure(_inline(architecture_svg(architecture, costs)), caption, True),),
    )


def _training(run: RunFolder) -> Section:
    key, title = "training", "Training"
    log = run.train
    if not log:
        return _missing(run, key, title, "train.jsonl", "the network was not trained yet")
    _, scores = _column(log, "epoch", "validation_accuracy")
    facts = [
        ("epochs", str(len(log))),
        ("last training loss", _plain(number(log[-1].get("train_loss")))),
        ("best validation accuracy", _percent(max(scores)) if scores else _NONE),
    ]
    if run.verdict is not None:
        facts.append(("test accuracy", _percent(run.verdict.get("accuracy"))))
    figures = [
        *_plot("train-loss", log, "epoch", {"training": ("train_loss",)},
               "cross-entropy", "Training loss."),
        *_plot("train-accuracy", log, "epoch", {"validation": ("validation_accuracy",)},
               "accuracy", "Accuracy on held-out images.", percent=True),
        *_plot("train-rate", log, "epoch", {"learning rate": ("learning_rate",)},
               "learning rate", "Learning rate."),
    ]  # fmt: skip
    return Section(key, title, facts=tuple(facts), figures=tuple(figures))


def _export(run: RunFolder) -> Section:
    key, title = "export", "Export"
    if not (run.path / "model.onnx").is_file():
        return _missing(run, key, title, "model.onnx", "nothing was exported yet")
    check = numbers((run.verdict or {}).get("export"))
    if "max_error" not in check:
        return Section(
            key, title, ("model.onnx is there, but no comparison with PyTorch is recorded.",)
        )
    facts = [
        ("images compared", f"{check.get('images', 0):.0f}"),
        ("largest error of a logit", f"{check['max_error']:.2g}"),
        ("the same, of the largest logit", f"{check.get('relative_error', 0):.2g}"),
        ("same class", _percent(check.get("agreement"))),
    ]
    note = "The outputs of model.onnx were compared with PyTorch's on real images."
    return Section(key, title, (note,), tuple(facts))


def _benchmark(run: RunFolder) -> Section:
    from autospace.report import plots

    key, title = "benchmark", "Benchmark"
    models = records((run.benchmark or {}).get("models"))
    if not models:
        return _missing(run, key, title, "benchmark.json", "the model was not measured yet")
    rows = []
    for one in models:
        predicted, measured = one.get("predicted"), one.get("measured")
        predicted = predicted if isinstance(predicted, Mapping) else {}
        measured = measured if isinstance(measured, Mapping) else {}
        guess, found = number(predicted.get("latency_ms")), number(measured.get("latency_ms"))
        off = None if guess is None or not found else guess / found - 1
        rows.append(
            (
                Cell(_plain(one.get("name"))),
                Cell(_ms(guess)),
                Cell(_ms(found)),
                Cell(_range(measured.get("low_ms"), measured.get("high_ms"))),
                Cell(_NONE if off is None else f"{off * 100:+.1f} %"),
                *(Cell(_ms(measured.get(name))) for name in ("p50_ms", "p90_ms", "p99_ms")),
                Cell(_percent(measured.get("repeatability"))),
                Cell("disturbed" if measured.get("disturbed") else "", "bad"),
            )
        )
    headings = (
        "model", "predicted", "measured", "90 % interval", "prediction off by", "p50 seen",
        "p90 seen", "p99 seen", "repeatability", "",
    )  # fmt: skip
    notes = [
        "Measured is the latency of the undisturbed device; p50, p90 and p99 are of all runs as "
        "they were seen, slow phases included; a run that lost its core to another program is not."
    ]
    figures: tuple[Figure, ...] = ()
    final = _final(run)
    raw = final.get("measured") if final else None
    if isinstance(raw, Mapping):
        visits = [v.get("samples_ms") for v in records(raw.get("visits"))]
        samples = [
            found
            for listed in visits
            if isinstance(listed, list)
            for value in listed
            if (found := number(value)) is not None
        ]
        if len(samples) >= 4:
            marks = [
                (found, label)
                for name, label in (
                    ("latency_ms", "undisturbed"),
                    ("p50_ms", "p50"),
                    ("p90_ms", "p90"),
                    ("p99_ms", "p99"),
                )
                if (found := number(raw.get(name))) is not None
            ]
            svg = plots.histogram("benchmark", samples, marks, "latency of one run (ms)")
            caption = f"All {len(samples)} runs of the final model, in {len(visits)} visits."
            figures = (Figure(svg, caption),)
    table = Table("Models measured on this device", headings, tuple(rows))
    alarm = "Simulated: these latencies were computed, not measured." if run.simulated else ""
    return Section(key, title, tuple(notes), tables=(table,), figures=figures, alarm=alarm)


def _kernels(run: RunFolder) -> Section:
    key, title = "kernels", "Costliest kernels"
    prediction = _prediction(run)
    if prediction is None:
        note = (
            "benchmark.json holds no prediction by kernel: nothing can be said of single kernels."
        )
        return Section(key, title, (note,))
    kernels = [
        (latency, entry)
        for entry in records(prediction.get("kernels"))
        if (latency := number(entry.get("latency_ms"))) is not None
    ]
    total = number(prediction.get("latency_ms")) or sum(latency for latency, _ in kernels) or 1.0
    # Equal times keep the order of execution, so that the page does not depend on chance.
    kernels.sort(key=lambda pair: -pair[0])
    shown = kernels[:12]
    rows = []
    for latency, entry in shown:
        spec = entry.get("kernel")
        spec = spec if isinstance(spec, Mapping) else {}
        names = _strings(entry.get("nodes"))
        rows.append(
            (
                Cell(owner_of(names) or _NONE),
                Cell(names[0] if names else _NONE),
                Cell(_plain(spec.get("family"))),
                Cell(_shapes(spec)),
                Cell(_plain(entry.get("source"))),
                Cell(f"{latency:.4f}", bar=latency / shown[0][0] if shown[0][0] else None),
                Cell(_percent(latency / total)),
            )
        )
    headings = ("part", "node", "family", "shapes", "source", "ms", "share")
    table = Table("Predicted time by kernel", headings, tuple(rows), left=5)
    notes = [
        f"The {len(shown)} costliest of {len(kernels)} kernels take "
        f"{_percent(sum(latency for latency, _ in shown) / total, 0)} of the predicted latency."
    ]
    uncovered = prediction.get("uncovered")
    if uncovered:
        notes.append(f"Never measured on the device, estimated widely: {_plain(uncovered)}.")
    return Section(key, title, tuple(notes), tables=(table,))


def _shapes(spec: Mapping[str, Any]) -> str:
    """First input and output of a kernel: ``16×8×8 → 48×8×8``; the batch is left out."""

    def one(name: str) -> str:
        value = spec.get(name)
        if not isinstance(value, list) or not value or not isinstance(value[0], list):
            return "?"
        return "×".join(map(str, value[0][1:])) or "?"

    window = spec.get("kernel")
    text = f"{one('inputs')} → {one('outputs')}"
    return text + (f", {'×'.join(map(str, window))}" if isinstance(window, list) and window else "")


def _warnings(run: RunFolder) -> Section:
    lines = _strings((run.verdict or {}).get("warnings"))
    prediction = _prediction(run)
    lines += _strings(prediction.get("warnings")) if prediction else []
    lines += list(run.faults)
    if run.simulated:
        lines.insert(0, "The device is simulated: no latency here was measured.")
    folder = f"{run.path}/"
    distinct = tuple(dict.fromkeys(line.replace(folder, "") for line in lines))
    return Section("warnings", "Warnings", distinct or ("None.",))


def _reproduce(run: RunFolder) -> Section:
    facts = [("seed", str(run.state.get("seed", run.said("seed") or "unknown")))]
    if run.architecture is not None:
        facts.append(("network", run.architecture.hash))
    versions = run.state.get("versions")
    if isinstance(versions, Mapping):
        facts += [(str(name), _plain(value)) for name, value in sorted(versions.items())]
    stages = run.state.get("stages")
    tables: tuple[Table, ...] = ()
    if isinstance(stages, Mapping) and stages:
        rows = tuple(
            _row(str(name), _duration(entry.get("seconds") if isinstance(entry, Mapping) else None))
            for name, entry in stages.items()
        )
        tables = (Table("Time by stage", ("stage", "took"), rows),)
    notes = ["Run the same configuration with the same seed and versions:"]
    text: list[tuple[str, str]] = []
    if run.config is None:
        notes = [*_missing(run, "", "", "config.toml", "the run cannot be repeated from it").notes]
    else:
        text = [("command", "autospace run config.toml"), ("config.toml", run.config.strip())]
    made = run.architecture or run.space
    options = made.provenance.get("options") if made else None
    if isinstance(options, Mapping):
        text.append(("options", json.dumps(options, indent=1, sort_keys=True, default=str)))
    return Section(
        "reproduce", "How to reproduce", tuple(notes), tuple(facts), tables, (), tuple(text)
    )
