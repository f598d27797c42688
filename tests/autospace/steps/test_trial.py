"""Networks measured before a search: what a card is off by is corrected before α learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autospace.cost import SMALLEST_CELL, reference_cost
from autospace.distributed import ALONE
from autospace.events import silent
from autospace.genotype import REFERENCE_CELLS
from autospace.search_options import SearchOptions
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import Device, costs_of, open_device, search, trial_file, tried_latency
from devices.measurement import Measurement
from devices.visits import Visit
from latency import DeviceCard

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
CANDIDATES = SPACE.candidates_by_block
OFF = 0.7


@dataclass(frozen=True)
class Faster(Device):
    """A device that takes seven tenths of what its card says."""

    series: list[int] = field(default_factory=list)

    def measure(self, models: Mapping[str, Any], **options: Any) -> dict[str, Measurement]:
        self.series.append(len(models))
        found = super().measure(models, **options)
        return {name: replace(one, visits=tuple(map(_faster, one.visits)))
                for name, one in found.items()}  # fmt: skip


def _faster(visit: Visit) -> Visit:
    return replace(visit, samples_ms=tuple(OFF * one for one in visit.samples_ms))


@pytest.fixture
def faster(simulated_card: DeviceCard) -> Faster:
    device = open_device(simulated_card.path, allow_mismatch=True)
    return Faster(device.card, device.warnings, here=True)


def test_what_a_card_is_off_by_is_corrected_and_kept(faster: Faster, tmp_path: Path) -> None:
    plain = costs_of(SPACE.skeleton, faster)["latency_ms"]
    state = tmp_path / "search.state"
    arguments = (plain, SPACE, faster, 3, state, ALONE, silent)
    cost, (line,) = tried_latency(*arguments)
    assert "0.70 times" in line and faster.card.path.name in line
    before, after = plain.table(CANDIDATES), cost.table(CANDIDATES)
    random = np.random.default_rng(0)
    for _ in range(20):
        choice = [int(random.integers(len(row))) for row in before.values]
        # The simulated device adds up; a tenth is drawn towards the plain ratio.
        assert after.total(choice) == pytest.approx(OFF * before.total(choice), rel=0.03)
    assert reference_cost(cost) == pytest.approx(OFF * reference_cost(plain), rel=0.03)
    assert tried_latency(*arguments)[0].table(CANDIDATES) == after
    assert len(faster.series) == 1 and faster.series[0] > 5, "it is measured once for a state"
    for text in ("{", '{"digest": "of another search", "recalibration": 3}'):
        trial_file(state).write_text(text)
        assert tried_latency(*arguments)[0].table(CANDIDATES).total(choice) == pytest.approx(
            after.total(choice), rel=0.02
        )
    assert len(faster.series) == 3


def test_a_card_that_is_right_stays_as_it_is(simulated_card: DeviceCard) -> None:
    device = open_device(simulated_card.path, allow_mismatch=True)
    plain = costs_of(SPACE.skeleton, device)["latency_ms"]
    cost, said = tried_latency(plain, SPACE, device, 0, None, ALONE, silent)
    assert said == ()
    assert cost.table(CANDIDATES).largest == pytest.approx(
        plain.table(CANDIDATES).largest, rel=0.03
    )


def test_a_search_fills_the_limit_at_once_though_its_card_is_off(
    faster: Faster, tmp_path: Path
) -> None:
    table = costs_of(SPACE.skeleton, faster)["latency_ms"].table(CANDIDATES)
    limit_ms = OFF * (0.4 * table.smallest + 0.6 * table.largest)
    result = search(
        SPACE, latency=f"{limit_ms:.6f}ms", device=faster, seed=1,
        options=SearchOptions(steps=20, warmup=5, batch=8, proposals=4, alpha_every=1),
        state=tmp_path / "search.state",
    )  # fmt: skip
    assert result.chosen.kept and result.chosen.best.use > 0.95
    assert result.expected[0] == pytest.approx(limit_ms, rel=0.02)
    assert all(0.93 < one.use < 1.05 for one in result.chosen.rounds[0][:3])
    assert sum("0.70 times" in line for line in result.warnings) == 1
    # Not to be measured: nothing is corrected, and nothing is written beside the state.
    result = search(
        SPACE, latency=f"{limit_ms / OFF:.6f}ms", device=faster, measure=False,
        options=SearchOptions(steps=4, warmup=1, batch=8, proposals=2),
        state=tmp_path / "other.state",
    )  # fmt: skip
    assert not trial_file(tmp_path / "other.state").exists()
    assert not any("0.70 times" in line for line in result.warnings)
