from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospace.drawing import architecture_svg, cell_svg, cell_text, space_svg
from autospace.genotype import EDGES, EXPANSIONS, REFERENCE_CELLS, Cell, MBConv, Mix, Zero
from autospace.operations import Operation
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"

ALL_EDGES = Cell(
    (
        Operation.DEPTHWISE,
        Operation.DENSE,
        Operation.IDENTITY,
        Operation.IDENTITY,
        Operation.DEPTHWISE_FIELD_5,
        Operation.DEPTHWISE,
    ),
    3,
    (Mix.GATE, Mix.ADD),
)
CHAIN = {(1, 0), (2, 1), (3, 2)}


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    edges = tuple(
        draw(st.sampled_from([o for o in Operation if edge not in CHAIN or o != Operation.NONE]))
        for edge in EDGES
    )
    mixes = (draw(st.sampled_from(Mix)), draw(st.sampled_from(Mix)))
    return Cell(edges, draw(st.sampled_from(EXPANSIONS)), mixes)


def released(name: str) -> Path:
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"the released file {name} is not beside this checkout")
    return path


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter()]


def test_text_of_a_cell_with_every_edge() -> None:
    assert cell_text(ALL_EDGES).splitlines() == [
        "      ┌────────────────── id ──────────────────┐",
        "      │┌────────── 1x1 ──────────┐             │",
        "      ││                         ▼             ▼",
        "×3 ═▶ (0) ──dw3──▶ (1) ──id───▶ (2×) ──dw3──▶ (3+) ═▶ project",
        "                    │                          ▲",
        "                    └────────── dw5 ───────────┘",
        "node 2 gates; node 3 adds",
    ]


@given(cells())
def test_text_names_every_edge(cell: Cell) -> None:
    text = cell_text(cell)
    for operation in set(cell.edges) - {Operation.NONE}:
        drawn = sum(text.count(word) for word in (operation.label,))
        assert drawn >= cell.edges.count(operation)
    assert ("gates" in text) == any(
        mix is Mix.GATE and len(cell.inputs(node)) > 1
        for node, mix in zip((2, 3), cell.mixes, strict=True)
    )
    assert not any(line != line.rstrip() for line in text.splitlines())


@given(cells())
def test_cell_picture_is_valid_and_repeatable(cell: Cell) -> None:
    svg = cell_svg(cell)
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert cell.label in root.attrib["aria-label"]
    assert svg == cell_svg(cell)
    # One head an edge; the wedges, the legend's included, are polygons too.
    edges = sum(operation is not Operation.NONE for operation in cell.edges)
    wedges = 2 + (cell.expansion != 1)
    assert svg.count("<polygon") == edges + wedges


def test_pictures_ask_for_nothing_from_outside() -> None:
    space = SearchSpace(SKELETONS["tiny"], (REFERENCE_CELLS,) * 3)
    svg = space_svg(space).replace('xmlns="http://www.w3.org/2000/svg"', "")
    for word in ("http", "href", "url(", "<style", "<script", "@import", "id="):
        assert word not in svg


def test_architecture_shows_each_block_and_its_cost() -> None:
    blocks = (ALL_EDGES, Zero(), MBConv(5, 3), *REFERENCE_CELLS)
    network = Architecture(SKELETONS["tiny"], blocks)
    shown = texts(architecture_svg(network))
    for block in blocks:
        assert any(block.label in text for text in shown)
    assert any("2 channels" not in text and "24 channels" in text for text in shown)
    assert "left out" in shown
    timed = texts(architecture_svg(network, {"block0": 0.125}))
    assert "0.125 ms" in timed


def test_space_marks_references_and_shows_fitness() -> None:
    cells = (ALL_EDGES, *REFERENCE_CELLS)
    space = SearchSpace(SKELETONS["tiny"], (cells,) * 3, ((0.5, 0.25, 0.125, 0.0625),) * 3)
    shown = texts(space_svg(space))
    assert shown.count("reference") == 9
    assert shown.count("0.250") == 3


def test_released_files() -> None:
    network = Architecture.load(released("net_340M.config"))
    root = ElementTree.fromstring(architecture_svg(network))
    assert "21 blocks" in root.attrib["aria-label"]
    space = SearchSpace.load(released("search_space.config"))
    shown = texts(space_svg(space))
    assert shown.count("reference") == 33
    assert "Layer 10" in shown
