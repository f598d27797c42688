"""Streams depend on the seed and their names, never on what was drawn before."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from autospace.seeding import Seed

_NAMES = st.lists(st.one_of(st.integers(0, 2**31), st.text(max_size=5)), max_size=3)


@given(st.integers(0, 2**31 - 1), _NAMES)
def test_the_same_names_give_the_same_stream(root: int, names: list[str | int]) -> None:
    seed = Seed(root)
    first = seed.generator(*names).integers(2**60, size=4)
    seed.generator("other").random(100)
    assert (seed.generator(*names).integers(2**60, size=4) == first).all()
    assert (seed.child(*names).generator().integers(2**60, size=4) == first).all()


def test_other_seeds_names_and_numbers_give_other_streams() -> None:
    streams = [
        Seed(0).generator(),
        Seed(1).generator(),
        Seed(0).generator("a"),
        Seed(0).generator("b"),
        Seed(0).generator("a", 1),
        Seed(0).generator("a", 2),
        Seed(0).generator("a", "a"),
        Seed(0).child("c").generator("a"),
    ]
    assert len({int(stream.integers(2**60)) for stream in streams}) == len(streams)


def test_streams_are_stable_across_versions() -> None:
    assert Seed(0).child("split").integer("x") == Seed(0).integer("split", "x")
    assert Seed(7).integer("stable") == 286851552


def test_torch_streams() -> None:
    one, two = (torch.rand(3, generator=Seed(3).torch_generator("w")) for _ in range(2))
    assert torch.equal(one, two)
    assert 0 <= Seed(3).integer("w") < 2**31


def test_a_zero_at_the_end_makes_another_stream() -> None:
    seed = Seed(5)
    draws = {
        tuple(seed.generator(*names).integers(0, 2**62, 2).tolist())
        for names in ((), (0,), ("a",), ("a", 0), ("a", 0, 0))
    }
    assert len(draws) == 5
