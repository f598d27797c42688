"""Pictures of cells, architectures and spaces: text for a terminal, SVG for pages.

The SVG is written by hand, so that it is small, equal for equal input, and stands alone: no
fonts, scripts, styles or ids that could clash when several pictures share a page. Every picture
brings its own white card and so reads on a dark page too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from autospace.genotype import EDGES, REFERENCE_CELLS, Block, Cell, Mix, Zero
from autospace.operations import Operation
from autospace.quantities import format_count
from autospace.skeleton import BlockShape
from autospace.space import Architecture, SearchSpace

__all__ = ["architecture_svg", "cell_svg", "cell_text", "space_svg"]

_INK = "#1f2933"
_SOFT = "#5f6c7b"
_LINE = "#d5dbe3"
_GATE = "#b45309"
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"

# Colours that stay apart for colour-blind readers (after Okabe and Ito); labels repeat them.
_COLOURS = {
    Operation.IDENTITY: "#6b7785",
    Operation.DENSE: "#d55e00",
    Operation.DEPTHWISE: "#0072b2",
    Operation.DEPTHWISE_FIELD_5: "#009e73",
    Operation.DEPTHWISE_FIELD_7: "#9b4f96",
}
_MEANINGS = {
    Operation.IDENTITY: "identity (average pool where the stride is)",
    Operation.DENSE: "dense 1×1",
    Operation.DEPTHWISE: "depthwise 3×3",
    Operation.DEPTHWISE_FIELD_5: "depthwise, field 5×5",
    Operation.DEPTHWISE_FIELD_7: "depthwise, field 7×7",
}


# -- text -----------------------------------------------------------------------------------------


def cell_text(cell: Cell) -> str:
    """A cell's graph as a few lines for a terminal.

    Args:
        cell: what to draw.

    Returns:
        Lines without a trailing newline: the edges 0→2 and 0→3 above the chain, 1→3 below; ``+``
        and ``×`` say how a node with several inputs mixes them.

    >>> from autospace.genotype import REFERENCE_CELLS
    >>> print(cell_text(REFERENCE_CELLS[2]))
    ×6 ═▶ (0) ──dw3──▶ (1) ──id───▶ (2) ──id───▶ (3) ═▶ project
    """
    chain = "in ═▶ " if cell.expansion == 1 else f"×{cell.expansion} ═▶ "
    at: list[int] = []
    for node in range(4):
        if node:
            chain += f" ──{cell[node, node - 1].label:─<3}──▶ "
        at.append(len(chain) + 1)
        chain += f"({node}{_sign(cell, node)})"
    over = [to for to in (3, 2) if cell[to, 0] is not Operation.NONE]
    grid = _Grid()
    # Two arcs leave node 0 side by side, the outer one to the left.
    for place, to in enumerate(over):
        start = at[0] + place - (len(over) - 1)
        grid.arc(place, start, at[to], cell[to, 0].label, "┌┐")
        for row in range(place + 1, len(over)):
            grid.put(row, start, "│")
            grid.put(row, at[to], "│")
        grid.put(len(over), start, "│")
        grid.put(len(over), at[to], "▼")
    chain_row = len(over) + bool(over)
    grid.put(chain_row, 0, chain + " ═▶ project")
    if cell[3, 1] is not Operation.NONE:
        grid.put(chain_row + 1, at[1], "│")
        grid.put(chain_row + 1, at[3], "▲")
        grid.arc(chain_row + 2, at[1], at[3], cell[3, 1].label, "└┘")
    modes = _modes(cell)
    return "\n".join([*grid.lines(), *(["; ".join(modes)] if modes else [])])


class _Grid:
    """Characters by row and column."""

    def __init__(self) -> None:
        self._rows: dict[int, list[str]] = {}

    def put(self, row: int, column: int, text: str) -> None:
        line = self._rows.setdefault(row, [])
        line += [" "] * (column + len(text) - len(line))
        line[column : column + len(text)] = text

    def arc(self, row: int, left: int, right: int, label: str, ends: str) -> None:
        bar = f" {label} ".center(right - left - 1, "─")
        self.put(row, left, f"{ends[0]}{bar}{ends[1]}")

    def lines(self) -> list[str]:
        return ["".join(self._rows[row]).rstrip() for row in sorted(self._rows)]


def _sign(cell: Cell, node: int) -> str:
    if node < 2 or len(cell.inputs(node)) < 2:
        return ""
    return "×" if cell.mixes[node - 2] is Mix.GATE else "+"


def _modes(cell: Cell) -> list[str]:
    words = {Mix.ADD: "adds", Mix.GATE: "gates"}
    return [
        f"node {node} {words[cell.mixes[node - 2]]}"
        for node in (2, 3)
        if len(cell.inputs(node)) > 1
    ]


# -- pieces of SVG --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Style:
    """Measures of a drawn cell, in pixels.

    Attributes:
        step: from node to node.
        radius: of a node.
        arc: how high the control points of an arc stand.
        width: of an edge's line.
        head: length of an arrow's head.
        labelled: whether edges and nodes carry their names.
    """

    step: float
    radius: float
    arc: float
    width: float
    head: float
    labelled: bool


_MINI = _Style(step=26, radius=5, arc=25, width=1.8, head=5, labelled=False)
_FULL = _Style(step=110, radius=15, arc=92, width=2.6, head=9, labelled=True)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: float = 11,
    fill: str = _INK,
    anchor: str = "start",
    weight: int = 400,
    halo: bool = False,
) -> str:
    extra = f' font-weight="{weight}"' if weight != 400 else ""
    if anchor != "start":
        extra += f' text-anchor="{anchor}"'
    if halo:
        extra += ' stroke="#fff" stroke-width="4" stroke-linejoin="round" paint-order="stroke"'
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{fill}"{extra}>'
        f"{escape(text)}</text>"
    )


def _rect(
    x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "", rx: float = 8
) -> str:
    line = f' stroke="{stroke}"' if stroke else ""
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(rx)}" '
        f'fill="{fill}"{line}/>'
    )


def _polygon(points: Sequence[tuple[float, float]], fill: str) -> str:
    text = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return f'<polygon points="{text}" fill="{fill}"/>'


def _path(d: str, colour: str, width: float, dashed: bool = False) -> str:
    dash = f' stroke-dasharray="{_n(width * 2)} {_n(width * 1.6)}"' if dashed else ""
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{_n(width)}"{dash}/>'


def _arrow_right(x1: float, x2: float, y: float, colour: str, style: _Style, dashed: bool) -> str:
    h = style.head
    return _path(f"M{_n(x1)} {_n(y)}H{_n(x2 - h)}", colour, style.width, dashed) + _polygon(
        [(x2, y), (x2 - h, y - h * 0.55), (x2 - h, y + h * 0.55)], colour
    )


def _arc_edge(
    x1: float, x2: float, y: float, side: int, height: float, colour: str, style: _Style, dash: bool
) -> str:
    """An arc that leaves and enters its nodes vertically; side -1 is above."""
    r, h = style.radius, style.head
    begin, tip = y + side * r, y + side * (r + 1)
    end, top = tip + side * h, y + side * height
    d = f"M{_n(x1)} {_n(begin)}C{_n(x1)} {_n(top)} {_n(x2)} {_n(top)} {_n(x2)} {_n(end)}"
    return _path(d, colour, style.width, dash) + _polygon(
        [(x2, tip), (x2 - h * 0.55, end), (x2 + h * 0.55, end)], colour
    )


def _node(cell: Cell, node: int, x: float, y: float, style: _Style) -> str:
    sign, r = _sign(cell, node), style.radius
    fill, ink = ("#fff", _INK) if sign != "×" else (_GATE, "#fff")
    stroke = _GATE if sign == "×" else _INK
    if not sign and not style.labelled:
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r * 0.65)}" fill="{_INK}"/>'
    circle = (
        f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="{_n(style.width * 0.7)}"/>'
    )
    if style.labelled:
        return circle + _text(
            x, y + 5, f"{node}{sign}", size=14, fill=ink, anchor="middle", weight=600
        )
    a = r * 0.6 if sign == "+" else r * 0.42
    d = (
        f"M{_n(x - a)} {_n(y)}H{_n(x + a)}M{_n(x)} {_n(y - a)}V{_n(y + a)}"
        if sign == "+"
        else f"M{_n(x - a)} {_n(y - a)}L{_n(x + a)} {_n(y + a)}"
        f"M{_n(x - a)} {_n(y + a)}L{_n(x + a)} {_n(y - a)}"
    )
    return circle + _path(d, ink, 1.4)


def _wedge(x: float, y: float, expansion: int, opens: bool, style: _Style) -> str:
    """The expanding or projecting 1×1 convolution: a trapezoid as wide as its channels are many."""
    unit = style.radius / 5
    length, narrow, wide = 9 * unit, 3 * unit, (3 + 1.6 * min(expansion, 7)) * unit
    left, right = (narrow, wide) if opens else (wide, narrow)
    return _polygon(
        [(x, y - left), (x + length, y - right), (x + length, y + right), (x, y + left)], "#b9c3cf"
    )


def _graph(cell: Cell, x: float, y: float, style: _Style) -> str:
    """A cell; x is where its input enters, y the height of the chain."""
    unit = style.radius / 5
    first = x + 22 * unit
    at = [first + node * style.step for node in range(4)]
    parts: list[str] = []
    if cell.expansion != 1:
        parts.append(_wedge(x + 4 * unit, y, cell.expansion, True, style))
    else:
        parts.append(_path(f"M{_n(x + 4 * unit)} {_n(y)}H{_n(first)}", "#b9c3cf", style.width))
    parts.append(_wedge(at[3] + 9 * unit, y, cell.expansion, False, style))
    # Far arcs first, so that near ones lie on top where they cross.
    for to, source in sorted(EDGES, key=lambda edge: edge[1] - edge[0]):
        operation = cell[to, source]
        if operation is Operation.NONE:
            continue
        colour, dashed = _COLOURS[operation], operation is Operation.IDENTITY
        r = style.radius
        if to - source == 1:
            parts.append(_arrow_right(at[source] + r, at[to] - r - 1, y, colour, style, dashed))
            if style.labelled:
                middle = (at[source] + at[to]) / 2
                parts.append(
                    _text(middle, y - 8, operation.label, size=13, fill=colour, anchor="middle")
                )
            continue
        side = 1 if source == 1 else -1
        height = style.arc * (1.38 if to - source == 3 else 1.0)
        shift = -r * 0.45 if to - source == 3 else 0.0
        parts.append(
            _arc_edge(at[source] + shift, at[to] - shift, y, side, height, colour, style, dashed)
        )
        if style.labelled:
            peak = y + side * (r + 0.75 * (height - r))
            parts.append(
                _text(
                    (at[source] + at[to]) / 2,
                    peak + 4,
                    operation.label,
                    size=13,
                    fill=colour,
                    anchor="middle",
                    halo=True,
                )
            )
    parts += [_node(cell, node, at[node], y, style) for node in range(4)]
    return "".join(parts)


def _mini_block(block: Block, x: float, y: float) -> str:
    """A block's small picture, `_MINI_WIDTH` wide around the height y."""
    if isinstance(block, Cell):
        return _graph(block, x, y, _MINI)
    if isinstance(block, Zero):
        return _arrow_right(x + 14, x + 108, y, "#6b7785", _MINI, True)
    colour = {
        3: _COLOURS[Operation.DEPTHWISE],
        5: _COLOURS[Operation.DEPTHWISE_FIELD_5],
        7: _COLOURS[Operation.DEPTHWISE_FIELD_7],
    }[block.kernel]
    parts = [_path(f"M{_n(x + 4)} {_n(y)}H{_n(x + 118)}", "#b9c3cf", 1.8)]
    if block.expansion != 1:
        parts.append(_wedge(x + 4, y, block.expansion, True, _MINI))
    parts += [
        _wedge(x + 109, y, block.expansion, False, _MINI),
        _rect(x + 33, y - 12, 56, 24, fill=colour, rx=5),
        _text(
            x + 61,
            y + 4,
            f"dw {block.kernel}×{block.kernel}",
            size=11,
            fill="#fff",
            anchor="middle",
            weight=600,
        ),
    ]
    return "".join(parts)


_MINI_WIDTH = 122


def _document(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    text = escape(label)
    named = escape(label, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(width)}" height="{_n(height)}" '
        f'viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{named}" '
        f'font-family="{_FONT}">'
        f"<title>{text}</title>"
        + _rect(0.5, 0.5, width - 1, height - 1, fill="#fff", stroke=_LINE, rx=10)
        + "".join(parts)
        + "</svg>"
    )


def _legend(
    operations: Sequence[Operation], x: float, y: float, limit: float, gates: bool, wedges: bool
) -> tuple[list[str], float]:
    """A line or more of what the colours and marks mean; returns it and its height."""
    parts, column, row = [], x, y
    entries: list[tuple[str, str]] = []
    for operation in operations:
        colour = _COLOURS[operation]
        mark = _path("M0 0H20", colour, 2.6, operation is Operation.IDENTITY)
        entries.append((mark, f"{operation.label}: {_MEANINGS[operation]}"))
    if gates:
        ring = '<circle cx="12" cy="0" r="5.5" fill="#fff" stroke="{}" stroke-width="1.3"/>'
        add = ring.format(_INK) + _path("M9 0H15M12 -3V3", _INK, 1.4)
        gate = f'<circle cx="12" cy="0" r="5.5" fill="{_GATE}"/>' + _path(
            "M10 -2L14 2M10 2L14 -2", "#fff", 1.4
        )
        entries += [(add, "add"), (gate, "gate: times sigmoid of the other's average")]
    if wedges:
        wedge = _polygon([(4, -3), (16, -7), (16, 7), (4, 3)], "#b9c3cf")
        entries.append((wedge, "1×1 expansion or projection"))
    for mark, meaning in entries:
        wide = 26 + 5.8 * len(meaning) + 16
        if column > x and column + wide > limit:
            column, row = x, row + 20
        parts.append(f'<g transform="translate({_n(column)} {_n(row)})">{mark}</g>')
        parts.append(_text(column + 26, row + 4, meaning, size=11, fill=_SOFT))
        column += wide
    return parts, row - y + 20


def _operations(cells: Sequence[Cell]) -> list[Operation]:
    used = {operation for cell in cells for operation in cell.edges}
    return [operation for operation in _COLOURS if operation in used]


# -- pictures -------------------------------------------------------------------------------------


def cell_svg(cell: Cell) -> str:
    """One cell, large, with every edge named.

    Args:
        cell: what to draw.

    Returns:
        An SVG document that needs nothing else.
    """
    width = 560.0
    above = cell[2, 0] is not Operation.NONE or cell[3, 0] is not Operation.NONE
    far = cell[3, 0] is not Operation.NONE
    y = 66.0 + (114 if far else 80 if above else 44)
    below = y + (96 if cell[3, 1] is not Operation.NONE else 64)
    mixed = any(len(cell.inputs(node)) > 1 for node in (2, 3))
    parts = [_text(20, 32, cell.label, size=16, weight=600)]
    if cell.expansion == 1:
        about = "no expanding convolution"
    else:
        about = f"expansion ×{cell.expansion}"
    parts.append(_text(20, 52, " · ".join([about, *_modes(cell)]), size=12, fill=_SOFT))
    parts.append(_graph(cell, 28, y, _FULL))
    legend, height = _legend(_operations([cell]), 20, below, width - 20, mixed, True)
    return _document(width, below + height + 4, f"Cell {cell.label}", [*parts, *legend])


def architecture_svg(
    architecture: Architecture, costs: Mapping[str, float] | None = None, unit: str = "ms"
) -> str:
    """A network as rows of blocks, a row a stage, each block with its small picture.

    Args:
        architecture: what to draw.
        costs: what each part takes, by ``stem``, ``first``, ``block0`` …, ``head``, ``pool``,
            ``classifier``; multiply-adds when not given. The bars are drawn from them.
        unit: of the costs.

    Returns:
        An SVG document that needs nothing else.
    """
    skeleton, shapes = architecture.skeleton, architecture.skeleton.blocks
    if costs is None:
        counted: dict[str, float] = {}
        for node in architecture.nodes:
            owner = node.name.partition("/")[0]
            counted[owner] = counted.get(owner, 0.0) + node.madds
        costs, unit = counted, "MAdds"
    largest = max(costs.values(), default=0.0) or 1.0

    def said(owner: str) -> tuple[str, float]:
        value = costs.get(owner, 0.0)
        text = _short(value) if unit == "MAdds" else f"{value:.3g} {unit}"
        return text, value / largest

    left, card_w, card_h, gap, per_row = 164.0, 162.0, 116.0, 12.0, 5
    widest = max(stage.blocks for stage in skeleton.stages)
    per_row = min(per_row, max(widest, 3))
    width = left + per_row * (card_w + gap) + 10
    name = f"{skeleton.name} at {skeleton.resolution}×{skeleton.resolution}"
    parts = [
        _text(20, 34, name, size=17, weight=600),
        _text(
            20,
            54,
            f"{len(shapes)} blocks · {format_count(architecture.params)} parameters · "
            f"{format_count(architecture.madds)} multiply-adds · {architecture.hash} · "
            f"bars: {'multiply-adds' if unit == 'MAdds' else 'predicted ' + unit}",
            size=12,
            fill=_SOFT,
        ),
    ]
    y = 76.0

    def heading(title: str, *lines: str) -> None:
        parts.append(_text(20, y + 22, title, size=13, weight=600))
        parts.extend(
            _text(20, y + 40 + 16 * place, line, size=12, fill=_SOFT)
            for place, line in enumerate(lines)
        )

    def plain_cards(entries: Sequence[tuple[str, str, str]]) -> None:
        for place, (owner, title, detail) in enumerate(entries):
            x = left + place * (card_w + gap)
            parts.append(_rect(x, y, card_w, 66, fill="#f6f8fa", stroke=_LINE))
            parts.append(_text(x + 10, y + 20, title, size=12, weight=600))
            parts.append(_text(x + 10, y + 36, detail, size=11, fill=_SOFT))
            parts.append(_cost_bar(x + 10, y + 46, card_w - 20, *said(owner)))

    stem = architecture.nodes[0]
    entries = [("stem", "stem 3×3", f"→ {stem.shape[0]} ch, stride {skeleton.stem_stride}")]
    if skeleton.first_width:
        entries.append(("first", "MBConv1 3×3", f"→ {skeleton.scaled(skeleton.first_width)} ch"))
    heading("Input", f"{skeleton.resolution}×{skeleton.resolution}, {skeleton.in_channels} ch")
    plain_cards(entries)
    y += 66 + 18
    index = 0
    for number, stage in enumerate(skeleton.stages, 1):
        shape = shapes[index]
        size = f"{shape.out_size}×{shape.out_size}"
        step = f"from {shape.in_size}×{shape.in_size}" if shape.stride > 1 else "size kept"
        parts.append(_path(f"M20 {_n(y - 9)}H{_n(width - 20)}", "#eef1f5", 1))
        heading(f"Stage {number}", f"{shape.out_channels} channels", size, step)
        for place in range(stage.blocks):
            row, column = divmod(place, per_row)
            block, shape = architecture.blocks[index], shapes[index]
            parts.append(
                _block_card(
                    left + column * (card_w + gap),
                    y + row * (card_h + gap),
                    card_w,
                    card_h,
                    index,
                    block,
                    shape,
                    *said(f"block{index}"),
                )
            )
            index += 1
        y += -(-stage.blocks // per_row) * (card_h + gap) + 4
    parts.append(_path(f"M20 {_n(y - 9)}H{_n(width - 20)}", "#eef1f5", 1))
    last = architecture.nodes[-3]
    heading("Output", f"{skeleton.num_classes} classes")
    plain_cards(
        [
            ("head", "head 1×1", f"→ {last.shape[0]} ch at {last.shape[1]}×{last.shape[1]}"),
            ("pool", "global average", f"{last.shape[0]} values"),
            ("classifier", "linear", f"→ {skeleton.num_classes} classes"),
        ]
    )
    y += 66 + 26
    cells = [block for block in architecture.blocks if isinstance(block, Cell)]
    legend, height = _legend(_operations(cells), 20, y, width - 20, bool(cells), True)
    label = (
        f"Network {name}: {len(shapes)} blocks, {format_count(architecture.params)} parameters, "
        f"{format_count(architecture.madds)} multiply-adds"
    )
    return _document(width, y + height + 4, label, [*parts, *legend])


def _short(count: float) -> str:
    """A count with three significant digits: the bars have room for no more."""
    return format_count(float(f"{count:.3g}"))


def _cost_bar(x: float, y: float, width: float, text: str, share: float) -> str:
    filled = max(1.0, width * 0.45 * share) if share > 0 else 0.0
    bar = _rect(x, y, width * 0.45, 7, fill="#e8ecf1", rx=3.5)
    if filled:
        bar += _rect(x, y, filled, 7, fill="#52789c", rx=min(3.5, filled / 2))
    return bar + _text(x + width, y + 8, text, size=10.5, fill=_SOFT, anchor="end")


def _block_card(
    x: float,
    y: float,
    width: float,
    height: float,
    index: int,
    block: Block,
    shape: BlockShape,
    cost: str,
    share: float,
) -> str:
    left_out = isinstance(block, Zero)
    full = (
        f"block {index}: {block.label}; {shape.in_channels} to {shape.out_channels} channels, "
        f"{shape.in_size}×{shape.in_size}, stride {shape.stride}"
    )
    short = block.label.split(" ", 2)
    title = " ".join(short[:2]) if isinstance(block, Cell) else block.label
    parts = [
        f"<g><title>{escape(full)}</title>",
        _rect(x, y, width, height, fill="#fafbfc" if left_out else "#fff", stroke=_LINE, rx=8),
        _text(x + 10, y + 18, str(index), size=11, fill=_SOFT),
        _text(x + 28, y + 18, title, size=11, weight=600, fill=_SOFT if left_out else _INK),
        _mini_block(block, x + (width - _MINI_WIDTH) / 2, y + 54),
    ]
    if shape.stride > 1:
        parts.append(_rect(x + width - 31, y + 6, 24, 16, fill="#fde8d7", rx=4))
        parts.append(
            _text(x + width - 19, y + 18, f"/{shape.stride}", size=11, fill=_GATE, anchor="middle")
        )
    if left_out:
        parts.append(_text(x + 10, y + height - 12, "left out", size=10.5, fill=_SOFT))
    else:
        parts.append(_cost_bar(x + 10, y + height - 20, width - 20, cost, share))
    return "".join(parts) + "</g>"


def space_svg(space: SearchSpace) -> str:
    """A space as a grid: a row a layer, its cells best first, with fitness; references marked.

    Args:
        space: what to draw.

    Returns:
        An SVG document that needs nothing else.
    """
    skeleton = space.skeleton
    most = max(len(cells) for cells in space.layers)
    left, card_w, card_h, gap = 142.0, 130.0, 96.0, 8.0
    width = left + most * (card_w + gap) + 12
    name = f"Search space of {skeleton.name} at {skeleton.resolution}×{skeleton.resolution}"
    counts = f"{len(space.layers)} layers, up to {most} cells each, best first"
    parts = [
        _text(20, 34, name, size=17, weight=600),
        _text(20, 54, f"{counts} · {space.hash}", size=12, fill=_SOFT),
    ]
    y = 72.0
    for layer, cells in enumerate(space.layers):
        blocks = [i for i in range(len(skeleton.blocks)) if skeleton.layer_of(i) == layer]
        shapes = [skeleton.blocks[index] for index in blocks]
        span = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]}–{blocks[-1]}"
        widths = "→".join(map(str, [shapes[0].in_channels, *(s.out_channels for s in shapes)]))
        sizes = f"{shapes[0].in_size}×{shapes[0].in_size}"
        if any(shape.stride > 1 for shape in shapes):
            sizes += f" → {shapes[-1].out_size}×{shapes[-1].out_size}"
        parts.append(_text(20, y + 24, f"Layer {layer}", size=13, weight=600))
        parts += [
            _text(20, y + 42 + 16 * place, line, size=11.5, fill=_SOFT)
            for place, line in enumerate((span, f"{widths} ch", sizes))
        ]
        for place, cell in enumerate(cells):
            x = left + place * (card_w + gap)
            reference = cell in REFERENCE_CELLS
            fitness = space.fitness[layer][place] if space.fitness else None
            parts.append(f"<g><title>{escape(cell.label)}</title>")
            parts.append(
                _rect(
                    x,
                    y,
                    card_w,
                    card_h,
                    fill="#eef4fa" if reference else "#fff",
                    stroke="#9fbbd6" if reference else _LINE,
                )
            )
            parts.append(_text(x + 8, y + 15, f"e{cell.expansion}", size=10.5, weight=600))
            if reference:
                parts.append(
                    _text(
                        x + card_w - 8, y + 15, "reference", size=10, fill="#33628f", anchor="end"
                    )
                )
            parts.append(_mini_block(cell, x + (card_w - _MINI_WIDTH) / 2, y + 46))
            if fitness is not None:
                parts.append(
                    _text(
                        x + card_w - 8,
                        y + card_h - 7,
                        f"{fitness:.3f}",
                        size=10.5,
                        fill=_SOFT,
                        anchor="end",
                    )
                )
            parts.append(_text(x + 8, y + card_h - 7, f"#{place + 1}", size=10.5, fill=_SOFT))
            parts.append("</g>")
        y += card_h + gap
    y += 16
    everyone = [cell for cells in space.layers for cell in cells]
    legend, height = _legend(_operations(everyone), 20, y, width - 20, True, True)
    return _document(width, y + height + 4, f"{name}: {counts}", [*parts, *legend])
