"""What surrounds a kernel: ages and footprints by hand, and on a real graph with a residual."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.runtimes import RuntimeSettings, get_runtime
from latency.context import Context, contexts
from latency.graph_builder import GraphBuilder
from latency.kernel import Kernel
from latency.kernel_reading import read_kernels


def kernel(*inputs: int, out: int, weights: int = 0, dtype: str = "float32") -> Kernel:
    """A kernel of so many numbers in, out and in its weights."""
    return Kernel(
        family="other",
        op="Op",
        inputs=tuple((1, n) for n in inputs),
        outputs=((1, out),),
        weights=((weights,),) if weights else (),
        dtype=dtype,
    )


def test_by_hand_with_a_residual() -> None:
    """input → a (10 numbers, 5 weights) → b (20, 7 weights) → c = b + a."""
    kernels = [
        kernel(8, out=10, weights=5),
        kernel(10, out=20, weights=7),
        kernel(20, 10, out=20),
    ]
    a, b, c = contexts(kernels, [(-1,), (0,), (1, 0)], [0.5, 2.0, 1.0])
    # Touched by a: 15 numbers, by b: 27, by c: 20; together 62.
    assert {x.footprint_bytes for x in (a, b, c)} == {4 * 62}
    # The network's input was made before everything: as old as a whole run, and itself.
    assert a.input_age_bytes == a.oldest_age_bytes == 4 * (0 + 8) + 4 * 62
    # a's output has just been made: nothing but itself lies in between.
    assert b.input_age_bytes == b.oldest_age_bytes == 4 * 10
    # c's first input is b's output; the residual from a has waited while b was touched.
    assert c.input_age_bytes == 4 * 20
    assert c.oldest_age_bytes == 4 * (27 + 10)
    assert [x.absence_ms for x in (a, b, c)] == [3.0, 1.5, 2.5]


def test_time_since_the_same_operation_ran() -> None:
    """conv, pool, conv, conv, and again from the beginning."""
    conv, pool = kernel(4, out=4), Kernel("pool", "MaxPool", ((1, 4),), ((1, 4),))
    times = [1.0, 2.0, 4.0, 8.0]
    found = contexts([conv, pool, conv, conv], [(i - 1,) for i in range(4)], times)
    # The first convolution follows the last of the run before; the pool waits a whole run.
    assert [x.kin_ms for x in found] == [0.0, 13.0, 2.0, 0.0]
    (alone,) = contexts([conv], [(-1,)], [3.0])
    assert alone.kin_ms == alone.absence_ms == 0.0


def test_missing_sources_count_as_inputs_of_the_network() -> None:
    known = contexts([kernel(4, 4, out=4)], [(-1, -1)], [1.0])
    assert contexts([kernel(4, 4, out=4)], [()], [1.0]) == known
    assert contexts([kernel(4, 4, out=4)], [(-1,)], [1.0]) == known


def test_the_type_counts() -> None:
    (single,), (half,) = (
        contexts([kernel(4, out=4, weights=2, dtype=dtype)], [(-1,)], [1.0])
        for dtype in ("float32", "float16")
    )
    assert single.footprint_bytes == 2 * half.footprint_bytes
    assert single.input_age_bytes == 2 * half.input_age_bytes


def test_nothing() -> None:
    assert contexts([], [], []) == ()
    bare = Kernel("other", "Constant", (), ((2,),))
    assert contexts([bare], [()], [1.0]) == (Context(8, 0, 0, 0.0, 0.0),)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="argument"):
        contexts([kernel(1, out=1)], [], [1.0])


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_a_chain_has_no_waiting_inputs(sizes: list[tuple[int, int]]) -> None:
    widths = [3, *(out for out, _ in sizes)]
    chain = [kernel(n, out=out, weights=w) for n, (out, w) in zip(widths, sizes, strict=False)]
    found = contexts(chain, [(place - 1,) for place in range(len(chain))], [1.0] * len(chain))
    for item, around in zip(chain[1:], found[1:], strict=True):
        assert around.input_age_bytes == around.oldest_age_bytes == item.bytes_in
    assert len({around.footprint_bytes for around in found}) == 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "simulated"])
def test_a_residual_of_a_real_graph_is_the_older_input(runtime: str) -> None:
    g = GraphBuilder((1, 16, 14, 14), np.random.default_rng(0))
    x = g.activation("a/act", g.conv("a", "input", 16, 3), "relu")
    y = g.activation("b/act", g.conv("b", x, 64), "relu")
    y = g.activation("c/act", g.conv("c", y, 64, 3), "relu")
    model = g.finish(g.add("d", g.conv("e", y, 16), x))
    compiled = get_runtime(runtime).compile(model.SerializeToString(), RuntimeSettings())
    nodes = read_kernels(model, compiled.data).kernels
    found = contexts([n.kernel for n in nodes], [n.sources for n in nodes], [1.0] * len(nodes))
    place = next(i for i, n in enumerate(nodes) if "d/Add" in n.nodes)
    assert len(nodes[place].kernel.inputs) == 2
    waited = found[place].oldest_age_bytes - found[place].input_age_bytes
    assert waited >= 4 * (64 * 14 * 14 + 64 * 64 * 9)
    touched = sum(n.kernel.bytes_weights + n.kernel.bytes_out for n in nodes)
    assert found[0].footprint_bytes == touched > 4 * 64 * 64 * 9
