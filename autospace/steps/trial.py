"""Some networks of a space are measured before it is searched, to see what its card is off by.

A card knows kernels from networks of all kinds. What it is off by for the networks of one space
would come out in the verification, but by then α has learned for a limit that was another one: a
search under a card that says a third too much ends with networks of the tail of α, hardly trained.
(Ours; neither paper measures before it searches.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autospace.corrected_cost import CorrectedCost
from autospace.cost import Cost, CostTable
from autospace.events import Progress
from autospace.files import content_hash, read_document, write_json
from autospace.recalibration import Choice, Recalibration
from autospace.seeding import Seed
from autospace.space import SearchSpace
from autospace.steps.device import Device
from devices.errors import InvalidInputError

if TYPE_CHECKING:
    from autospace.distributed import Ranks
    from devices.measurement import Measurement

__all__ = ["trial_file", "tried_latency"]

_NETWORKS = 8
_VISITS = 24
_JITTER = 0.2
"""Standard deviation of a candidate's rank around its network's, as a share of all."""
_WORTH_SAYING = 0.05


def trial_file(state: Path) -> Path:
    """What was found for one search, beside the state of the search."""
    return state.with_name(f"{state.name}.trial")


def tried_latency(
    cost: Cost,
    space: SearchSpace,
    device: Device,
    seed: int,
    state: Path | None,
    ranks: Ranks,
    progress: Progress,
) -> tuple[Cost, tuple[str, ...]]:
    """Latency corrected by eight networks of the space, from small to large ones.

    Args:
        cost: by the card.
        space: that will be searched.
        device: on this machine.
        seed: of the networks and the order of visits.
        state: of the search; what was found is kept beside it, so that a resumed search sees the
            same table.
        ranks: only the first measures; several need a state to share it.
        progress: is told.

    Returns:
        The cost, and a line where the card is off by more than a twentieth.
    """
    if ranks.size > 1 and state is None:
        return cost, ()
    digest = content_hash([space.hash, device.card.fingerprint, seed])
    if not ranks.first:
        ranks.wait()  # then it was measured
    found = _found_before(state, digest)
    if found is None:
        found = _measured(cost.table(space.candidates_by_block), space, device, seed, progress)
        if state is not None and ranks.first:
            write_json(trial_file(state), {"digest": digest, **found})
    if ranks.first and ranks.size > 1:
        ranks.wait()
    predicted, measured = np.array(found["predicted_ms"]), np.array(found["measured_ms"])
    ratios = measured / predicted
    middle = float(np.median(ratios))
    said: tuple[str, ...] = ()
    if abs(middle - 1) > _WORTH_SAYING:
        said = (
            f"{len(ratios)} networks of the space, measured before the search, take {middle:.2f} "
            f"times what {device.card.path.name} predicts ({ratios.min():.2f} to "
            f"{ratios.max():.2f}): its predictions were corrected for this search",
        )
    return CorrectedCost(cost, Recalibration.from_json(found["recalibration"]), space), said


def _measured(
    table: CostTable, space: SearchSpace, device: Device, seed: int, progress: Progress
) -> dict[str, Any]:
    """The networks' times, and how they correct the table."""
    from autospace.onnx_export import onnx_for_cost

    progress(0.0, f"measuring {_NETWORKS} networks of the space")
    networks = {
        architecture.hash: (choice, architecture)
        for choice in _spread(table, Seed(seed).generator("trial"))
        for architecture in [space.architecture(choice)]
    }
    batch = device.card.settings.batch
    models = {name: onnx_for_cost(own, batch) for name, (_, own) in networks.items()}
    measured: Mapping[str, Measurement] = device.measure(models, visits=_VISITS, seed=seed)
    choices = [choice for choice, _ in networks.values()]
    times_ms = [measured[name].latency_ms for name in networks]
    return {
        "choices": choices,
        "predicted_ms": [table.total(choice) for choice in choices],
        "measured_ms": times_ms,
        "recalibration": Recalibration.fit(table, choices, times_ms).to_json(),
    }


def _spread(table: CostTable, random: np.random.Generator) -> list[Choice]:
    """Networks from small to large ones: of each block a candidate of about the same rank."""
    orders = [np.argsort(row, kind="stable") for row in table.values]
    choices = []
    for place in np.linspace(0, 1, _NETWORKS):
        ranks = np.clip(place + _JITTER * random.standard_normal(len(orders)), 0, 1)
        choices.append(
            tuple(
                int(order[round(rank * (len(order) - 1))])
                for order, rank in zip(orders, ranks, strict=True)
            )
        )
    return list(dict.fromkeys(choices))


def _found_before(state: Path | None, digest: str) -> dict[str, Any] | None:
    """What was measured for the same search, space and card."""
    if state is None or not trial_file(state).exists():
        return None
    try:
        document = dict(read_document(trial_file(state), "measured networks of a space"))
        Recalibration.from_json(document["recalibration"])
        whole = len(document["predicted_ms"]) == len(document["measured_ms"]) > 0
        return document if whole and document["digest"] == digest else None
    except (InvalidInputError, KeyError, TypeError, ValueError):
        return None
