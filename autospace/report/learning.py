"""Sections of what was learned: evolution, space, search, candidates, training."""

from __future__ import annotations

from collections.abc import Mapping

from autospace.report import words
from autospace.report.absent import missing
from autospace.report.curves import column, cost_plots, log_plot, metrics_of
from autospace.report.parts import Cell, Figure, Section, Table
from autospace.report.run import RunFolder, number, records

__all__ = [
    "candidates_section",
    "evolution_section",
    "search_section",
    "space_section",
    "training_section",
]


def evolution_section(run: RunFolder) -> Section:
    """How the space was evolved."""
    key, title = "evolution", "Evolution of the space"
    log = run.evolve
    if not log:
        return missing(
            run, key, title, "evolve.jsonl", "no space was evolved here, or one was given"
        )
    last, x = log[-1], "generation"
    facts = [
        ("generations", str(len(log))),
        ("cells tried", words.plain(last.get("cells_tried"))),
        ("distinct cells at the end", words.plain(last.get("distinct_cells"))),
        ("layers led by a reference cell", words.percent(last.get("reference_share"), 0)),
    ]
    figures = [
        *log_plot("evolve-loss", log, x,
               {"training": ("train_loss",), "held out": ("validation_loss",)},
               "cross-entropy", "Losses of the stacked cells."),
        *log_plot("evolve-fitness", log, x,
               {"best": ("best_fitness",), "median": ("median_fitness",)},
               "fitness", "Best and median fitness over all populations."),
        *cost_plots(run, "evolve", log, x),
        *log_plot("evolve-price", log, x,
               {words.METRICS.get(metric, metric): ("prices", metric)
                for metric in metrics_of(log, "prices")},
               "price", "Price of each limit: fitness that a cell loses if it takes all allowed."),
        *log_plot("evolve-reference", log, x, {"reference share": ("reference_share",)},
               "share of layers", "Share of layers whose fittest cell is a reference cell.",
               percent=True),
        *log_plot("evolve-distinct", log, x, {"distinct cells": ("distinct_cells",)},
               "cells", "Distinct cells in all populations."),
        *log_plot("evolve-entropy", log, x, {"entropy": ("operation_entropy_bits",)},
               "bits", "Entropy of the operations on all edges: how varied the cells are."),
    ]  # fmt: skip
    return Section(key, title, facts=tuple(facts), figures=tuple(figures))


def space_section(run: RunFolder) -> Section:
    """The cells of the space."""
    from autospace.drawing import space_svg

    key, title = "space", "The search space"
    if run.space is None:
        return missing(run, key, title, "space.json", "no search space was written yet")
    space = run.space
    cells = sum(len(row) for row in space.layers)
    facts = [
        ("layers", f"{len(space.layers)} for {len(space.skeleton.blocks)} blocks"),
        ("cells", str(cells)),
        ("hash", space.hash),
    ]
    for name in ("source", "cells_tried", "cells_per_minute"):
        if space.provenance.get(name) is not None:
            facts.append((name.replace("_", " "), words.plain(space.provenance[name])))
    caption = (
        f"The space: {len(space.layers)} layers with {cells} cells in all, best first; cells on "
        "blue ground are the references, numbers are fitness."
    )
    return Section(
        key,
        title,
        (),
        tuple(facts),
        figures=(Figure(words.inline(space_svg(space)), caption, True),),
    )


def search_section(run: RunFolder) -> Section:
    """How the space was searched."""
    key, title = "search", "The search"
    log = run.search
    if not log:
        return missing(run, key, title, "search.jsonl", "the space was not searched yet")
    x = "step"
    metrics = metrics_of(log, "multipliers")
    figures = [
        *log_plot("search-loss", log, x,
               {"training": ("train_loss",), "held out": ("validation_loss",)},
               "cross-entropy", "Losses of the sampled paths."),
        *cost_plots(run, "search", log, x),
        *log_plot("search-multiplier", log, x,
               {words.METRICS.get(metric, metric): ("multipliers", metric) for metric in metrics},
               "multiplier", "Multiplier of each limit: how hard it pulls."),
        *log_plot("search-entropy", log, x, {"entropy": ("entropy",)},
               "nats", "Mean entropy of the choice in a block: it falls as the search decides."),
    ]  # fmt: skip
    facts = [
        ("weight steps", words.plain(log[-1].get("step"))),
        ("architecture steps", str(len(log))),
    ]
    return Section(key, title, facts=tuple(facts), figures=tuple(figures))


def candidates_section(run: RunFolder) -> Section:
    """The networks that were proposed, ranked and measured."""
    from autospace.report import plots

    key, title = "candidates", "Candidates measured"
    if run.verification is None:
        return missing(run, key, title, "verification.json", "no candidate was verified yet")
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
            ends = words.range_ms(measured.get("low_ms"), measured.get("high_ms"))
            role = "" if not mine else " (chosen)" if kept else " (nearest)"
            rows.append(
                (
                    Cell(words.plain(entry.get("round"))),
                    Cell(
                        f"{one.get('hash')}{role}",
                        "mark" if mine else "",
                    ),
                    Cell("✓ kept" if kept else "✗ missed", "good" if kept else "bad"),
                    Cell(words.plain(number(one.get("log_probability")))),
                    Cell(words.percent(one.get("validation_accuracy"))),
                    Cell(words.count(one.get("madds"))),
                    Cell(words.ms(predicted)),
                    Cell(words.ms(latency)),
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
    factors = ", ".join(words.plain(entry.get("factor")) for entry in rounds)
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


def training_section(run: RunFolder) -> Section:
    """How the network was trained."""
    key, title = "training", "Training"
    log = run.train
    if not log:
        return missing(run, key, title, "train.jsonl", "the network was not trained yet")
    _, scores = column(log, "epoch", "validation_accuracy")
    facts = [
        ("epochs", str(len(log))),
        ("last training loss", words.plain(number(log[-1].get("train_loss")))),
        ("best validation accuracy", words.percent(max(scores)) if scores else words.NONE),
    ]
    if run.verdict is not None:
        facts.append(("test accuracy", words.percent(run.verdict.get("accuracy"))))
    figures = [
        *log_plot("train-loss", log, "epoch", {"training": ("train_loss",)},
               "cross-entropy", "Training loss."),
        *log_plot("train-accuracy", log, "epoch", {"validation": ("validation_accuracy",)},
               "accuracy", "Accuracy on held-out images.", percent=True),
        *log_plot("train-rate", log, "epoch", {"learning rate": ("learning_rate",)},
               "learning rate", "Learning rate."),
    ]  # fmt: skip
    return Section(key, title, facts=tuple(facts), figures=tuple(figures))
