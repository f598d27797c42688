"""Macro layouts: shapes, sharing, scaling, and their JSON."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospace.skeleton import SKELETONS, BlockShape, Skeleton, Stage, find_skeleton
from devices.errors import InvalidInputError, UsageError


def test_the_mobile_layout_is_the_released_one() -> None:
    mobile = SKELETONS["mobile"]
    assert len(mobile.blocks) == 21
    assert mobile.num_layers == 11
    assert [mobile.layer_of(block) for block in (0, 1, 2, 19, 20)] == [0, 0, 1, 9, 10]
    assert mobile.blocks[0] == BlockShape(16, 24, 2, 112)
    assert mobile.blocks[20] == BlockShape(192, 320, 1, 7)
    assert sum(not shape.has_shortcut for shape in mobile.blocks) == 6


@pytest.mark.parametrize("name", SKELETONS)
def test_shapes_follow_each_other(name: str) -> None:
    blocks = SKELETONS[name].blocks
    for before, after in itertools.pairwise(blocks):
        assert (before.out_channels, before.out_size) == (after.in_channels, after.in_size)


@given(st.integers(4, 300))
def test_sizes_are_those_of_a_padded_convolution(resolution: int) -> None:
    skeleton = replace(SKELETONS["mobile"], resolution=resolution)
    size = (resolution + 2 - 3) // 2 + 1
    assert skeleton.stem_size == size
    for shape in skeleton.blocks:
        assert shape.in_size == size
        size = (size + 2 - 3) // shape.stride + 1
        assert shape.out_size == size


@given(st.integers(1, 2000), st.floats(0.05, 20))
def test_scaled_widths(width: int, mult: float) -> None:
    scaled = replace(SKELETONS["tiny"], width_mult=mult).scaled(width)
    if mult == 1.0:
        assert scaled == width
    else:
        assert scaled % 8 == 0
        assert scaled >= max(8, 0.9 * width * mult - 1e-6)
        assert scaled <= max(8, width * mult + 8)


def test_other_data_changes_only_input_and_classes() -> None:
    changed = SKELETONS["small"].for_data(resolution=48, in_channels=3, num_classes=7)
    assert (changed.resolution, changed.in_channels, changed.num_classes) == (48, 3, 7)
    assert [shape.out_channels for shape in changed.blocks] == [
        shape.out_channels for shape in SKELETONS["small"].blocks
    ]


@pytest.mark.parametrize("name", SKELETONS)
def test_json_round_trip(name: str) -> None:
    skeleton = replace(SKELETONS[name], width_mult=1.4, sharing=3)
    assert Skeleton.from_json(json.loads(json.dumps(skeleton.to_json()))) == skeleton


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"resolution": 3}, "resolution is 3; must be 4 to 4096"),
        ({"resolution": 10**30}, "must be 4 to 4096"),
        ({"resolution": "16"}, "wrong type"),
        ({"resolution": 16.0}, "wrong type"),
        ({"resolution": True}, "wrong type"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": 1}, "num_classes"),
        ({"stem_width": -1}, "stem_width"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"first_width": -8}, "first_width"),
        ({"head_width": 0}, "head_width"),
        ({"sharing": 0}, "sharing"),
        ({"width_mult": 0}, "width_mult"),
        ({"width_mult": float("nan")}, "width_mult"),
        ({"width_mult": None}, "wrong type"),
        ({"name": 3}, "wrong type"),
        ({"stages": []}, "no stages"),
        ({"stages": 3}, "must be a list"),
        ({"stages": [[24, 2]]}, "must be a list"),
        ({"stages": [[24, 2, "2"]]}, "must be a list"),
        ({"stages": [[24, 0, 1]]}, "blocks 1 to 100"),
        ({"stages": [[0, 1, 1]]}, "width at least 1"),
        ({"stages": [[24, 1, 3]]}, "stride 1 or 2"),
        ({"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_invalid_documents(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        Skeleton.from_json({**SKELETONS["tiny"].to_json(), **change})


@pytest.mark.parametrize("field", SKELETONS["tiny"].to_json())
def test_every_field_is_needed(field: str) -> None:
    document = SKELETONS["tiny"].to_json()
    del document[field]
    with pytest.raises(InvalidInputError, match=f"field '{field}' is missing"):
        Skeleton.from_json(document)


@pytest.mark.parametrize("document", [None, [], "tiny", 3])
def test_not_an_object(document: object) -> None:
    with pytest.raises(InvalidInputError, match="must be a JSON object"):
        Skeleton.from_json(document)


def test_names() -> None:
    assert find_skeleton("tiny") is SKELETONS["tiny"]
    with pytest.raises(UsageError, match="did you mean 'mobile'"):
        find_skeleton("mobil")
    with pytest.raises(UsageError, match="known: mobile, small, tiny"):
        find_skeleton("xyz")


def test_a_stage_strides_once() -> None:
    skeleton = replace(SKELETONS["tiny"], stages=(Stage(24, 3, 2),))
    assert [shape.stride for shape in skeleton.blocks] == [2, 1, 1]
    assert [shape.has_shortcut for shape in skeleton.blocks] == [False, True, True]
