"""Features: as many as their names, finite for the oddest kernels, and right where it counts."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kernel import MODELS, graph_of

from latency.context import Context, contexts
from latency.features import (
    FEATURES,
    context_features,
    kernel_features,
    kernel_labels,
    own_features,
)
from latency.kernel import FAMILIES, Kernel

AROUND = Context(
    footprint_bytes=4000, input_age_bytes=40, oldest_age_bytes=80, absence_ms=2.0, kin_ms=0.1
)

shapes = st.lists(st.integers(0, 3000), max_size=5).map(tuple)
some = st.lists(shapes, max_size=3).map(tuple)
short = st.lists(st.integers(0, 12), max_size=4).map(tuple)
attributes = st.sampled_from(
    ["", '{"perm":[0,2,1]}', '{"perm":[]}', '{"transB":1}', '{"channels_last":1}', '{"axis":-1}']
)
odd_kernels = st.builds(
    Kernel,
    family=st.sampled_from(FAMILIES),
    op=st.text("aBc.", max_size=6),
    inputs=some,
    outputs=some,
    weights=some,
    kernel=short,
    strides=short,
    dilations=short,
    pads=short,
    groups=st.integers(0, 64),
    activation=st.sampled_from(["", "Relu"]),
    fused_add=st.booleans(),
    dtype=st.sampled_from(["float32", "float16", "int8", "bool"]),
    attributes=attributes,
)
bytes_ = st.integers(0, 10**12)
surroundings = st.builds(Context, bytes_, bytes_, bytes_, *[st.floats(0, 1e6)] * 2)


def feature(kernel: Kernel, name: str) -> float:
    return kernel_features(kernel, AROUND)[FEATURES.index(name)]


def moved(
    family: str, source: tuple[int, ...], target: tuple[int, ...], **options: list[int]
) -> Kernel:
    text = json.dumps(options) if options else ""
    return Kernel(family, family, (source,), (target,), attributes=text)


class TestAll:
    @given(odd_kernels, surroundings)
    def test_odd_kernels(self, kernel: Kernel, around: Context) -> None:
        found = kernel_features(kernel, around)
        assert len(found) == len(FEATURES) and all(map(math.isfinite, found))
        assert found == own_features(kernel) + context_features([around])[0].tolist()
        assert all(isinstance(label, str) for label in kernel_labels(kernel))

    def test_names_are_different(self) -> None:
        assert len(set(FEATURES)) == len(FEATURES)

    @pytest.mark.parametrize("name", list(MODELS))
    def test_kernels_of_real_networks(self, name: str) -> None:
        nodes = graph_of(MODELS[name]).kernels
        times = [1.0] * len(nodes)
        around = contexts([n.kernel for n in nodes], [n.sources for n in nodes], times)
        found = [kernel_features(n.kernel, a) for n, a in zip(nodes, around, strict=True)]
        array = np.array(found)
        assert array.shape == (len(nodes), len(FEATURES)) and np.isfinite(array).all()

    def test_scalars_and_nothing(self) -> None:
        for kernel in (
            Kernel("other", "Op", (), ()),
            Kernel("elementwise", "Add", ((), ()), ((),)),
            Kernel("activation", "Relu", ((5,),), ((5,),)),
            Kernel("transpose", "Transpose", ((2, 3, 4, 5, 6),), ((6, 5, 4, 3, 2),)),
        ):
            assert len(kernel_features(kernel, AROUND)) == len(FEATURES)


class TestConvolution:
    kernel = Kernel(
        family="conv_grouped",
        op="nchwc.Conv",
        inputs=((1, 24, 10, 13), (1, 40, 10, 13)),
        outputs=((1, 40, 10, 13),),
        weights=((40, 6, 3, 5), (40,)),
        kernel=(3, 5),
        strides=(2, 1),
        dilations=(1, 1),
        pads=(1, 2, 1, 2),
        groups=4,
        activation="Relu",
        fused_add=True,
    )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("channels in", math.log2(25)),
            ("channels in a group", math.log2(7)),
            ("channels out", math.log2(41)),
            ("pixels", math.log2(131)),
            ("row length", math.log2(14)),
            ("inner size", math.log2(6 * 15 + 1)),
            ("window", 15.0),
            ("window width", 5.0),
            ("stride", 2.0),
            ("dilation", 1.0),
            ("groups", math.log2(5)),
            ("padded", 1.0),
            ("residual", 1.0),
            ("inputs", 2.0),
            ("rank", 4.0),
            ("channels in short of 16", 0.5),
            ("channels out short of 16", 0.5),
            ("channels out short of 32", 24 / 32),
            ("channels out short of 64", 24 / 64),
            ("row length short of 6", 5 / 6),
            ("row length short of 8", 3 / 8),
            ("footprint", math.log2(4001)),
            ("age of the input", math.log2(41)),
            ("age of the oldest input", math.log2(81)),
        ],
    )
    def test_by_hand(self, name: str, value: float) -> None:
        assert feature(self.kernel, name) == pytest.approx(value)

    def test_labels(self) -> None:
        assert kernel_labels(self.kernel) == ("op nchwc.Conv float32", "activation Relu")

    def test_padding_of_blocked_channels_shows(self) -> None:
        plain = Kernel(
            "conv_dense", "Conv", ((1, 16, 8, 8),), ((1, 20, 8, 8),), ((20, 16, 3, 3),), (3, 3)
        )
        padded = Kernel(
            "conv_dense", "Conv", ((1, 16, 8, 8),), ((1, 20, 8, 8),), ((32, 16, 3, 3),), (3, 3)
        )
        assert feature(plain, "padding") == pytest.approx(0.0, abs=0.01)
        assert feature(padded, "padding") == pytest.approx(math.log2(32 / 20), abs=0.01)


class TestSurroundings:
    def test_they_level_off(self) -> None:
        """Beyond the caches it makes no difference how far beyond; see the docstring."""
        sizes = [10**n for n in range(3, 12)]
        many = [Context(n, n, n, n * 1e-6, n * 1e-6) for n in sizes]
        found = context_features(many).tolist()
        assert found == sorted(found) and found[0] < found[1] < found[2]
        assert found[-1] == found[-2] == found[-3]


class TestRunLength:
    @pytest.mark.parametrize(
        ("kernel", "run"),
        [
            # A transpose keeps together what lies behind the last axis that moves.
            (moved("transpose", (1, 8, 4, 6), (1, 4, 8, 6), perm=[0, 2, 1, 3]), 6),
            (moved("transpose", (1, 8, 4, 6), (1, 4, 6, 8), perm=[0, 2, 3, 1]), 1),
            (moved("transpose", (2, 3, 4, 6), (3, 2, 4, 6), perm=[1, 0, 2, 3]), 24),
            (moved("transpose", (2, 3), (2, 3), perm=[0, 1]), 6),
            # A concatenation or a slice copies from the axis that changes to the end.
            (moved("concat", (1, 8, 4, 6), (1, 20, 4, 6)), 8 * 4 * 6),
            (moved("concat", (1, 8, 4, 6), (1, 8, 4, 9)), 6),
            (moved("split", (1, 8, 8, 12), (1, 8, 5, 12)), 5 * 12),
            (moved("split", (1, 9, 8, 12), (1, 4, 8, 12)), 4 * 8 * 12),
            # An axis that is dropped: a part of the whole, in one piece.
            (moved("split", (2, 3, 12), (3, 12)), 36),
            # Nothing moves.
            (moved("reshape", (1, 8, 4), (1, 8, 4)), 1),
            (Kernel("other", "Op", (), ((3,),)), 1),
            (Kernel("other", "Op", ((3,),), ()), 1),
        ],
    )
    def test_by_hand(self, kernel: Kernel, run: int) -> None:
        assert feature(kernel, "run length") == pytest.approx(math.log2(run + 1))
