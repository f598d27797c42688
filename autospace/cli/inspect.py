"""``autospace inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options

__all__ = ["command"]

_MANY_KERNELS = 10


@click.command("inspect")
@click.argument("file", type=FILE)
@click.option(
    "--svg", type=OUTPUT, metavar="OUT.svg", help="Write a picture of the space or network."
)
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Print a table as CSV: the card's lookup table, or a network's layers.",
)
@common_options
def command(session: Session, file: Path, svg: Path | None, as_csv: bool) -> None:
    """Show what is in a space, architecture, checkpoint, device card or ONNX file.

    The kind is read from the content, not from the name.

    \b
    Examples:
      autospace inspect network.json --svg network.svg
      autospace inspect laptop.card --csv > laptop.csv
    """
    from autospace.files import write_text
    from autospace.inspecting import inspect_file, table_csv
    from devices.errors import UsageError

    if as_csv and session.json:
        raise UsageError("--csv and --json: two formats for one output; choose one")
    found = inspect_file(file)
    if svg is not None:
        write_text(svg, _picture(file, found) + "\n")
        session.note(f"wrote {svg}")
    if as_csv:
        click.echo(table_csv(_rows(found)), nl=False)
        return
    if not session.json:
        _SHOWN[found["kind"]](session, found)
    session.result(found)


def _picture(file: Path, found: Mapping[str, Any]) -> str:
    from autospace.drawing import architecture_svg, space_svg
    from autospace.inspecting import network_of
    from autospace.space import SearchSpace
    from devices.errors import UsageError

    if found["kind"] == "space":
        return space_svg(SearchSpace.load(file))
    architecture = network_of(file, found["kind"])
    if architecture is None:
        raise UsageError(
            f"--svg: {file} holds no space and no network to draw; name a file that does"
        )
    return architecture_svg(architecture)


def _rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of a file, flat."""
    if found["kind"] == "card":
        return list(found["table"])
    if found["kind"] == "space":
        return [
            {
                "layer": layer["layer"],
                **{name: value for name, value in cell.items() if name != "matrix"},
            }
            for layer in found["layers"]
            for cell in layer["cells"]
        ]
    shapes = ("input", "weight", "output")
    return [
        {
            name: "x".join(map(str, value)) if name in shapes else value
            for name, value in row.items()
        }
        for row in found.get("layers", [])
    ]


def _show_space(session: Session, found: Mapping[str, Any]) -> None:
    from autospace.drawing import cell_text
    from autospace.genotype import Cell
    from autospace.quantities import format_count

    skeleton = found["skeleton"]
    session.say(
        f"search space {found['hash']}: {skeleton['name']} at {skeleton['resolution']}×"
        f"{skeleton['resolution']}, {len(found['layers'])} layers, {found['cells']} cells, "
        f"about 10^{found['networks_log10']:.0f} networks"
    )
    session.say(
        f"networks of {format_count(found['smallest_madds'])} to "
        f"{format_count(found['largest_madds'])} multiply-adds; kernel reading "
        f"{found['kernel_reading']}"
    )
    for layer in found["layers"]:
        blocks = layer["blocks"]
        span = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]}–{blocks[-1]}"
        session.say(f"\nlayer {layer['layer']} ({span})")
        session.table(
            ("rank", "cell", "fitness", "parameters", "multiply-adds", "kind"),
            [
                (
                    cell["rank"],
                    cell["label"],
                    "–" if cell["fitness"] is None else f"{cell['fitness']:.3f}",
                    format_count(cell["params"]),
                    format_count(cell["madds"]),
                    "reference" if cell["reference"] else "evolved",
                )
                for cell in layer["cells"]
            ],
        )
        session.say()
        session.say(cell_text(Cell.from_matrix(layer["cells"][0]["matrix"])))


def _show_network(session: Session, found: Mapping[str, Any]) -> None:
    from autospace.quantities import format_count

    skeleton = found["skeleton"]
    session.say(
        f"network {found['hash']}: {skeleton['name']} at {skeleton['resolution']}×"
        f"{skeleton['resolution']}, {format_count(found['params'])} parameters, "
        f"{format_count(found['madds'])} multiply-adds"
    )
    session.table(
        ("part", "holds", "channels", "size", "stride", "parameters", "multiply-adds"),
        [
            (
                row["part"],
                row["label"],
                f"{row['in_channels']} → {row['out_channels']}",
                row["in_size"],
                row["stride"],
                format_count(row["params"]),
                format_count(row["madds"]),
            )
            for row in found["layers"]
        ],
    )


def _show_checkpoint(session: Session, found: Mapping[str, Any]) -> None:
    session.say(f"checkpoint ({found['of']}): {found['tensors']} tensors, {found['values']} values")
    for name, value in found["meta"].items():
        session.say(f"{name}: {value}")
    if "layers" in found:
        _show_network(session, found)


def _show_card(session: Session, found: Mapping[str, Any]) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    state = "complete" if found["complete"] else "UNFINISHED"
    session.say(
        f"device card {found['fingerprint'][:16]} ({state}): {found['runtime']} "
        f"{found['runtime_version']}, {settings}"
    )
    if found["simulated"]:
        session.say("SIMULATED: its times were computed, not measured")
    for name, value in found["environment"].items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        session.say(f"  {name.replace('_', ' ')}: {shown}")
    session.say(
        f"{found['kernels']} kernels in {sum(found['networks'].values())} networks, "
        f"{found['visits']} visits"
    )
    sentinel, repeat = found["sentinel"], found["repeatability"]
    if sentinel is not None:
        session.say(
            f"sentinel {sentinel['reference_ms']:.3g} ms undisturbed; "
            f"{len(sentinel['disturbed_rounds'])} of {sentinel['rounds']} rounds disturbed; "
            f"{sentinel['preempted']:.1%} of the runs lost their core to another program"
        )
    if repeat["median"] is not None:
        session.say(
            f"repeatability {repeat['median']:.1%} in the median, {repeat['p90']:.1%} at the "
            "90th percentile"
        )
    validation = found["validation"]
    if validation is not None and "median_error" in validation:
        session.say(
            f"predictor, each network left out: median error {validation['median_error']:.1%}, "
            f"{validation['within_10_percent']:.0%} within 10 %, interval "
            f"±{validation['interval_half_width']:.1%} in the median"
        )
        session.say()
        session.table(
            ("family", "kernels", "share of time", "median error", "90th percentile"),
            [
                (
                    family,
                    row["kernels"],
                    f"{row['share']:.1%}",
                    f"{row['median_error']:.1%}",
                    f"{row['p90_error']:.1%}",
                )
                for family, row in sorted(
                    validation["by_family"].items(), key=lambda item: -item[1]["share"]
                )
            ],
        )
    session.say()
    slowest = sorted(found["table"], key=lambda row: -row["latency_ms"])[:_MANY_KERNELS]
    session.table(
        ("ms", "family", "operation", "input", "output", "networks"),
        [
            (
                f"{row['latency_ms']:.4f}",
                row["family"],
                row["op"],
                row["inputs"],
                row["outputs"],
                row["networks"],
            )
            for row in slowest
        ],
    )
    if len(found["table"]) > len(slowest):
        session.say(f"the slowest {len(slowest)} of {len(found['table'])} kernels; all: --csv")


def _show_onnx(session: Session, found: Mapping[str, Any]) -> None:
    from autospace.quantities import format_count

    unknown = f" ({found['uncounted']} layers not counted)" if found["uncounted"] else ""
    session.say(
        f"ONNX model by {found['producer'] or 'unknown'}: {found['nodes']} nodes, "
        f"{format_count(found['params'])} parameters, {format_count(found['madds'])} "
        f"multiply-adds{unknown}"
    )
    for what in ("inputs", "outputs"):
        for value in found[what]:
            shape = "×".join(map(str, value["shape"])) or "no shape"
            session.say(f"  {what[:-1]} {value['name']}: {shape}")
    session.say("  " + ", ".join(f"{op} ×{count}" for op, count in found["ops"].items()))
    architecture = found["architecture"]
    if architecture is not None:
        session.say()
        _show_network(session, architecture)
        return
    session.table(
        ("layer", "operation", "input", "output", "stride", "groups", "multiply-adds"),
        [
            (
                row["name"],
                row["op"],
                "×".join(map(str, row["input"])),
                "×".join(map(str, row["output"])),
                row["stride"],
                row["groups"],
                "?" if row["madds"] is None else format_count(row["madds"]),
            )
            for row in found["layers"]
        ],
    )


_SHOWN = {
    "space": _show_space,
    "architecture": _show_network,
    "checkpoint": _show_checkpoint,
    "card": _show_card,
    "onnx": _show_onnx,
}
