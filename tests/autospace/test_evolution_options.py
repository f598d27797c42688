from __future__ import annotations

from dataclasses import replace

import pytest

from autospace.evolution_options import EvolutionOptions
from devices.errors import UsageError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 3}, "population 3"),
        ({"population": 501}, "population 501: at most 500"),
        ({"single": 1.5}, "single 1.5"),
        ({"inherit": -0.1}, "inherit -0.1"),
        ({"settling": 1.0}, "settling 1.0"),
        ({"study": -1.0}, "study -1.0"),
        ({"study": float("nan")}, "study nan"),
        ({"exam": -1}, "exam -1"),
        ({"headroom": 0.9}, "headroom 0.9"),
        ({"headroom": float("inf")}, "headroom inf"),
        ({"references": "stay", "kept": 3}, "kept 3: above 3"),
        ({"references": "some"}, "references 'some'"),
        ({"generations": 0}, "generations 0"),
        ({"warmup": 4}, "warmup 4"),
        ({"sampled": 1}, "sampled 1"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"fitness": "none"}, "fitness 'none'"),
    ],
)
def test_contradicting_options_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        replace(EvolutionOptions(generations=4, warmup=2), **change).check()
