"""Sections of what was measured: the device, the benchmark, the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autospace.onnx_export import owner_of
from autospace.report import words
from autospace.report.absent import missing
from autospace.report.parts import Cell, Figure, Section, Table
from autospace.report.run import RunFolder, number, numbers, records

__all__ = ["benchmark_section", "device_section", "kernels_section", "predicted_model"]

_LABELS = {"memory_gib": "memory (GiB)", "clock_mhz": "clock (MHz)", "cpu": "processor"}


def device_section(run: RunFolder) -> Section:
    """The device, and how good its card is."""
    title = "The device"
    card = run.card
    if card is None:
        return missing(
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
        ("settings", words.plain(card.get("settings"))),
    ]
    if isinstance(environment, Mapping):
        found += [
            (_LABELS.get(k, str(k).replace("_", " ")), words.plain(v))
            for k, v in environment.items()
        ]
    found.append(
        ("measured", f"{card.get('kernels')} kernels in {words.plain(card.get('networks'))} "
         f"networks, {card.get('visits')} visits")
    )  # fmt: skip
    sentinel = card.get("sentinel")
    if isinstance(sentinel, Mapping):
        rounds = sentinel.get("disturbed_rounds")
        disturbed = len(rounds) if isinstance(rounds, list) else 0
        found.append(
            (
                "sentinel",
                f"{words.ms(sentinel.get('reference_ms'))} undisturbed, median "
                f"{words.ms(sentinel.get('median_ms'))}, 90th percentile "
                f"{words.ms(sentinel.get('p90_ms'))}; "
                f"{disturbed} of {words.plain(sentinel.get('rounds'))} rounds disturbed; "
                f"{words.percent(sentinel.get('preempted'))} of the runs lost their core",
            )
        )
    repeat = numbers(card.get("repeatability"))
    if "median" in repeat:
        found.append(
            (
                "repeatability",
                f"two halves of the visits differ by {words.percent(repeat['median'])} in the "
                f"median, {words.percent(repeat.get('p90'))} at the 90th percentile "
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
                f"median error {words.percent(validation['median_error'])}, "
                f"{words.percent(validation.get('within_10_percent'), 0)} of networks within 10 %, "
                f"each predicted by a fit that left it out ({validation.get('networks', 0):.0f} "
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
                    Cell(words.percent(row.get("share"))),
                    Cell(words.percent(row.get("median_error"))),
                    Cell(words.percent(row.get("p90_error"))),
                )
                for name, row in rows
            ),
        ),
    )


def _final(run: RunFolder) -> Mapping[str, Any] | None:
    """The entry of benchmark.json for the run's own network."""
    models = records((run.benchmark or {}).get("models"))
    own = {run.architecture.hash, "model.onnx", "model"} if run.architecture else {"model.onnx"}
    named = [one for one in models if str(one.get("name")) in own]
    return next(iter(named or models), None)


def predicted_model(run: RunFolder) -> Mapping[str, Any] | None:
    """What was predicted of the run's own network, kernel by kernel."""
    final = _final(run)
    found = final.get("predicted") if final else None
    return found if isinstance(found, Mapping) and records(found.get("kernels")) else None


def benchmark_section(run: RunFolder) -> Section:
    """What was measured at the end."""
    from autospace.report import plots

    key, title = "benchmark", "Benchmark"
    models = records((run.benchmark or {}).get("models"))
    if not models:
        return missing(run, key, title, "benchmark.json", "the model was not measured yet")
    rows = []
    for one in models:
        predicted, measured = one.get("predicted"), one.get("measured")
        predicted = predicted if isinstance(predicted, Mapping) else {}
        measured = measured if isinstance(measured, Mapping) else {}
        guess, found = number(predicted.get("latency_ms")), number(measured.get("latency_ms"))
        off = None if guess is None or not found else guess / found - 1
        rows.append(
            (
                Cell(words.plain(one.get("name"))),
                Cell(words.ms(guess)),
                Cell(words.ms(found)),
                Cell(words.range_ms(measured.get("low_ms"), measured.get("high_ms"))),
                Cell(words.NONE if off is None else f"{off * 100:+.1f} %"),
                *(Cell(words.ms(measured.get(name))) for name in ("p50_ms", "p90_ms", "p99_ms")),
                Cell(words.percent(measured.get("repeatability"))),
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


def kernels_section(run: RunFolder) -> Section:
    """Where the network's time goes."""
    key, title = "kernels", "Costliest kernels"
    prediction = predicted_model(run)
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
        names = words.strings(entry.get("nodes"))
        rows.append(
            (
                Cell(owner_of(names) or words.NONE),
                Cell(names[0] if names else words.NONE),
                Cell(words.plain(spec.get("family"))),
                Cell(_shapes(spec)),
                Cell(words.plain(entry.get("source"))),
                Cell(f"{latency:.4f}", bar=latency / shown[0][0] if shown[0][0] else None),
                Cell(words.percent(latency / total)),
            )
        )
    headings = ("part", "node", "family", "shapes", "source", "ms", "share")
    table = Table("Predicted time by kernel", headings, tuple(rows), left=5)
    notes = [
        f"The {len(shown)} costliest of {len(kernels)} kernels take "
        f"{words.percent(sum(latency for latency, _ in shown) / total, 0)} of the predicted "
        "latency."
    ]
    uncovered = prediction.get("uncovered")
    if uncovered:
        notes.append(f"Never measured on the device, estimated widely: {words.plain(uncovered)}.")
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
