"""The sections of the page, in order."""

from __future__ import annotations

import json
from collections.abc import Mapping

from autospace.inspecting import layer_table, times_by_owner
from autospace.quantities import format_ms
from autospace.report import words
from autospace.report.absent import missing
from autospace.report.learning import (
    candidates_section,
    evolution_section,
    search_section,
    space_section,
    training_section,
)
from autospace.report.measuring import (
    benchmark_section,
    device_section,
    kernels_section,
    predicted_model,
)
from autospace.report.parts import Cell, Figure, Section, Table
from autospace.report.run import RunFolder, number, numbers

__all__ = ["all_sections"]


def _row(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)


def all_sections(run: RunFolder) -> tuple[Section, ...]:
    """Every section of the page, in order; one without its file says so."""
    return (
        _asked(run),
        device_section(run),
        evolution_section(run),
        space_section(run),
        search_section(run),
        candidates_section(run),
        _network(run),
        training_section(run),
        _export(run),
        benchmark_section(run),
        kernels_section(run),
        _warnings(run),
        _reproduce(run),
    )


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
            f"limit on {words.METRICS.get(entry['metric'], entry['metric'])}",
            f"at most {words.cost(entry['metric'], entry['value'])}",
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


def _network(run: RunFolder) -> Section:
    from autospace.drawing import architecture_svg

    key, title = "network", "The network"
    if run.architecture is None:
        return missing(run, key, title, "architecture.json", "no network was chosen yet")
    architecture, prediction = run.architecture, predicted_model(run)
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
            Cell(words.count(row["params"])),
            Cell(words.count(row["madds"]), bar=row["madds"] / most),
        ]
        if times is not None:
            cells.append(Cell(f"{row['latency_ms']:.4f}", bar=row["latency_ms"] / slowest))
        rows.append(tuple(cells))
    total = [
        *_row("whole", "", "", "", ""),
        Cell(words.count(architecture.params)),
        Cell(words.count(architecture.madds)),
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
        (Figure(words.inline(architecture_svg(architecture, costs)), caption, True),),
    )


def _export(run: RunFolder) -> Section:
    key, title = "export", "Export"
    if not (run.path / "model.onnx").is_file():
        return missing(run, key, title, "model.onnx", "nothing was exported yet")
    check = numbers((run.verdict or {}).get("export"))
    if "max_error" not in check:
        return Section(
            key, title, ("model.onnx is there, but no comparison with PyTorch is recorded.",)
        )
    facts = [
        ("images compared", f"{check.get('images', 0):.0f}"),
        ("largest error of a logit", f"{check['max_error']:.2g}"),
        ("the same, of the largest logit", f"{check.get('relative_error', 0):.2g}"),
        ("same class", words.percent(check.get("agreement"))),
    ]
    note = "The outputs of model.onnx were compared with PyTorch's on real images."
    return Section(key, title, (note,), tuple(facts))


def _warnings(run: RunFolder) -> Section:
    lines = words.strings((run.verdict or {}).get("warnings"))
    prediction = predicted_model(run)
    lines += words.strings(prediction.get("warnings")) if prediction else []
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
        facts += [(str(name), words.plain(value)) for name, value in sorted(versions.items())]
    stages = run.state.get("stages")
    tables: tuple[Table, ...] = ()
    if isinstance(stages, Mapping) and stages:
        rows = tuple(
            _row(
                str(name),
                words.duration(entry.get("seconds") if isinstance(entry, Mapping) else None),
            )
            for name, entry in stages.items()
        )
        tables = (Table("Time by stage", ("stage", "took"), rows),)
    notes = ["Run the same configuration with the same seed and versions:"]
    text: list[tuple[str, str]] = []
    if run.config is None:
        notes = [*missing(run, "", "", "config.toml", "the run cannot be repeated from it").notes]
    else:
        text = [("command", "autospace run config.toml"), ("config.toml", run.config.strip())]
    made = run.architecture or run.space
    options = made.provenance.get("options") if made else None
    if isinstance(options, Mapping):
        text.append(("options", json.dumps(options, indent=1, sort_keys=True, default=str)))
    return Section(
        "reproduce", "How to reproduce", tuple(notes), tuple(facts), tables, (), tuple(text)
    )
