"""Spaces and architectures as files, and the released ones read exactly."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import blocks_for, search_cells

from autospace.genotype import REFERENCE_CELLS, Cell, MBConv, Mix, Zero
from autospace.operations import KERNEL_READINGS, KernelReading
from autospace.skeleton import SKELETONS
from autospace.space import PLAIN_BLOCK, SCHEMA_VERSION, Architecture, SearchSpace
from devices.errors import InvalidInputError

TINY = SKELETONS["tiny"]
SPACE = SearchSpace(
    TINY,
    (REFERENCE_CELLS,) * 3,
    fitness=((0.5, 0.25, 0.25),) * 3,
    provenance={"seed": 3},
)
ARCHITECTURE = Architecture(
    TINY,
    (REFERENCE_CELLS[0], Zero(), MBConv(5, 3), REFERENCE_CELLS[1].fused(), MBConv(), Zero()),
    "dilated",
    {"kept": True},
)


@settings(max_examples=30)
@given(st.data(), st.sampled_from(KERNEL_READINGS))
def test_an_architecture_is_read_back(data: st.DataObject, reading: KernelReading) -> None:
    blocks = tuple(data.draw(blocks_for(shape)) for shape in TINY.blocks)
    made = Architecture(TINY, blocks, reading, {"seed": 1})
    read = Architecture.from_json(json.loads(json.dumps(made.to_json())))
    assert read == made
    assert (read.hash, read.madds, read.params) == (made.hash, made.madds, made.params)
    assert read.provenance == made.provenance


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(search_cells, min_size=1, max_size=4, unique_by=Cell.canonical).map(tuple),
        min_size=3,
        max_size=3,
    )
)
def test_a_space_is_read_back(layers: list[tuple[Cell, ...]]) -> None:
    made = SearchSpace(TINY, tuple(layers))
    read = SearchSpace.from_json(json.loads(json.dumps(made.to_json())))
    assert read == made
    assert read.hash == made.hash


def test_round_trip_through_files(tmp_path: Path) -> None:
    SPACE.save(tmp_path / "space.json")
    ARCHITECTURE.save(tmp_path / "arch.json")
    space = SearchSpace.load(tmp_path / "space.json")
    assert space == SPACE
    assert (space.fitness, space.provenance) == (SPACE.fitness, SPACE.provenance)
    assert Architecture.load(tmp_path / "arch.json") == ARCHITECTURE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arch.json", "space.json"]


def test_hashes_cover_the_network_and_nothing_else() -> None:
    assert replace(ARCHITECTURE, provenance={}).hash == ARCHITECTURE.hash
    assert replace(ARCHITECTURE, kernel_reading="kernel").hash != ARCHITECTURE.hash
    assert replace(ARCHITECTURE, skeleton=replace(TINY, num_classes=7)).hash != ARCHITECTURE.hash
    blocks = (*ARCHITECTURE.blocks[:-1], MBConv(3, 1))
    assert replace(ARCHITECTURE, blocks=blocks).hash != ARCHITECTURE.hash
    assert replace(SPACE, provenance={}, fitness=()).hash == SPACE.hash
    assert replace(SPACE, layers=SPACE.layers[::-1]).hash == SPACE.hash
    assert replace(SPACE, layers=(REFERENCE_CELLS[::-1],) * 3).hash != SPACE.hash


def test_hashes_are_stable_across_versions() -> None:
    assert SPACE.hash == "56c2cd75fa3b45ab"
    assert ARCHITECTURE.hash == "0fbc6b81f1fb2ad7"


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"layer 1: the cell .* stands twice"):
        replace(SPACE, layers=(REFERENCE_CELLS, REFERENCE_CELLS[:1] * 2, REFERENCE_CELLS))
    # The mode of a node with one input means nothing, so this is the same cell too.
    twin = replace(REFERENCE_CELLS[0], mixes=(Mix.GATE, Mix.GATE))
    with pytest.raises(InvalidInputError, match="stands twice"):
        SearchSpace(TINY, ((REFERENCE_CELLS[0], twin), REFERENCE_CELLS, REFERENCE_CELLS))


def test_layers_and_blocks_are_counted() -> None:
    with pytest.raises(InvalidInputError, match="2 layers of cells; the tiny skeleton needs 3"):
        SearchSpace(TINY, (REFERENCE_CELLS,) * 2)
    with pytest.raises(InvalidInputError, match="layer 2: no cells"):
        SearchSpace(TINY, (REFERENCE_CELLS, REFERENCE_CELLS, ()))
    with pytest.raises(InvalidInputError, match="fitness"):
        replace(SPACE, fitness=((0.5,),) * 3)
    with pytest.raises(InvalidInputError, match="7 blocks for the tiny skeleton, which has 6"):
        Architecture(TINY, (MBConv(),) * 7)
    with pytest.raises(InvalidInputError, match="block0: skip where the shape changes"):
        Architecture(TINY, (Zero(),) * 6)


def test_candidates() -> None:
    at_stride_2, inside = SPACE.candidates(0), SPACE.candidates(1)
    fused = tuple(cell.fused() for cell in REFERENCE_CELLS)
    assert at_stride_2 == (*fused, PLAIN_BLOCK)
    # Inside a stage the third reference cell is the plain block.
    assert inside == (*fused, Zero())
    two = SearchSpace(TINY, (REFERENCE_CELLS[:2],) * 3)
    assert two.candidates(1) == (*fused[:2], PLAIN_BLOCK, Zero())


def test_another_skeleton() -> None:
    wide = ARCHITECTURE.for_skeleton(replace(TINY, width_mult=2.0))
    assert wide.blocks == ARCHITECTURE.blocks
    assert wide.params > ARCHITECTURE.params


def _space_document(**change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SPACE.to_json()), **change}


def _architecture_document(**change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(ARCHITECTURE.to_json()), **change}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "autospace.architecture"}, "not a search space .format 'autospace.archi"),
        ({"format": None}, "JSON file of another kind"),
        ({"schema_version": SCHEMA_VERSION + 1}, "schema version 2; this version .* reads 1"),
        ({"schema_version": None}, "schema version None"),
        ({"skeleton": None}, "skeleton: must be a JSON object"),
        ({"layers": None}, "'layers' is missing"),
        ({"layers": [3]}, "layer 0: must be a list"),
        ({"layers": [[3]]}, "layer 0, cell 0: cell: not a 4×4 matrix"),
        ({"layers": []}, "0 layers of cells"),
        ({"kernel_reading": "round"}, "kernel_reading 'round'"),
        ({"kernel_reading": None}, "kernel_reading None"),
        ({"fitness": [["high"]]}, "must be lists of numbers"),
        ({"fitness": 3}, "must be lists of numbers"),
        ({"fitness": [[1.0]]}, "not one value for each cell"),
        ({"provenance": []}, "provenance: must be a JSON object"),
    ],
)
def test_foreign_and_damaged_spaces(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps(_space_document(**change)))
    with pytest.raises(InvalidInputError, match=why) as caught:
        SearchSpace.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "autospace.space"}, "not an architecture .format 'autospace.space'"),
        ({"schema_version": 99}, "schema version 99"),
        ({"blocks": None}, "'blocks' is missing"),
        ({"blocks": [{"pool": 3}]}, "block 0: block .* unknown"),
        ({"blocks": [{"zero": True}]}, "1 blocks for the tiny skeleton"),
        ({"blocks": [{"zero": True}] * 6}, "skip where the shape changes"),
        ({"skeleton": {}}, "skeleton: field 'name' is missing"),
        ({"kernel_reading": 3}, "kernel_reading 3"),
        ({"provenance": None}, "provenance"),
    ],
)
def test_foreign_and_damaged_architectures(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(_architecture_document(**change)))
    with pytest.raises(InvalidInputError, match=why) as caught:
        Architecture.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_cells_in_files_are_checked_to_the_entry(tmp_path: Path) -> None:
    document = _space_document()
    document["layers"][1][2][1][2] = 5
    with pytest.raises(InvalidInputError, match=r"layer 1, cell 2: cell: .*not acyclic"):
        SearchSpace.from_json(document)
    document = _architecture_document()
    document["blocks"][0]["cell"][1][0] = 4
    with pytest.raises(InvalidInputError, match="block 0: cell: unknown operation 4"):
        Architecture.from_json(document)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.999))
def test_files_cut_anywhere_are_refused(tmp_path_factory: Any, share: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "space.json"
    text = json.dumps(SPACE.to_json())
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(InvalidInputError, match=r"empty|truncated"):
        SearchSpace.load(path)


def test_the_released_network_counts_as_released(reference_folder: Path) -> None:
    network = Architecture.load(reference_folder / "net_340M.config")
    assert network.kernel_reading == "dilated"
    assert network.params == 4_305_552
    assert network.madds == 339_685_760
    assert replace(network, kernel_reading="kernel").params > network.params


def test_the_released_space_has_99_cells(reference_folder: Path) -> None:
    space = SearchSpace.load(reference_folder / "search_space.config")
    # One layer of the file holds a reference cell twice; reading drops the repetition and says so.
    dropped = space.provenance["repeats_dropped"]
    assert sum(map(len, space.layers)) + dropped == 99
    assert dropped == 1
    assert len(space.layers) == 11
    for cells in space.layers:
        assert set(REFERENCE_CELLS) <= {cell.canonical() for cell in cells}
    at_the_end = [tuple(c.canonical() for c in cells[-3:]) for cells in space.layers]
    assert sum(cells == REFERENCE_CELLS for cells in at_the_end) >= len(space.layers) - dropped


def cells_of(space: SearchSpace, block: int) -> list[Cell]:
    """The cells among what a block can hold when a network is derived from the space."""
    return [one for one in space.candidates(block) if isinstance(one, Cell)]


def test_the_fusion_rule_replays_the_released_network(reference_folder: Path) -> None:
    network = Architecture.load(reference_folder / "net_340M.config")
    space = SearchSpace.load(reference_folder / "search_space.config")
    evolved = [(b, one) for b, one in enumerate(network.blocks) if isinstance(one, Cell)]
    replayed = [
        block
        for block, cell in evolved
        if cell.canonical()
        in {one.fused().canonical() for one in space.layers[space.skeleton.layer_of(block)]}
        and space.skeleton.layer_of(block) == block // 2
        and cell.canonical() in {one.canonical() for one in cells_of(space, block)}
    ]
    assert len(evolved) == 13
    assert len(replayed) == 13
    kinds = [block.kind for block in network.blocks]
    assert (kinds.count("mbconv"), kinds.count("zero")) == (2, 6)


def test_the_released_files_become_ours(reference_folder: Path, tmp_path: Path) -> None:
    network = Architecture.load(reference_folder / "net_340M.config")
    network.save(tmp_path / "network.json")
    assert Architecture.load(tmp_path / "network.json") == network
    space = SearchSpace.load(reference_folder / "search_space.config")
    space.save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == space


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (None, "unknown layer None"),
        ({"mobile_inverted_conv": {"name": "Motif", "build_graph": "[["}}, "not a matrix"),
        ({"mobile_inverted_conv": {"name": "Motif"}}, "not a matrix"),
        ({"mobile_inverted_conv": {"name": "Motif", "build_graph": "[]"}}, "not a 4×4 matrix"),
        ({"mobile_inverted_conv": {"name": "MBInvertedConvLayer"}}, "incomplete"),
        ({"mobile_inverted_conv": {"name": "Pool"}}, "unknown layer 'Pool'"),
    ],
)
def test_damaged_released_networks(block: Any, why: str) -> None:
    with pytest.raises(InvalidInputError, match=f"block 0: .*{why}"):
        Architecture.from_json({"name": "ProxylessNASNets", "blocks": [None, block]})
