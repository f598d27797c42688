"""The steps of the chain as functions: what the commands call, and notebooks can.

Each takes and returns the frozen data classes that the files hold. Limits and sizes are given as
people write them (``"500M"``, ``"5ms"``, ``"70%"``).
"""

from autospace.steps.asked import measuring_on
from autospace.steps.benchmarking import (
    Benchmark,
    BenchmarkedModel,
    benchmark,
    compare,
)
from autospace.steps.covering import card_copy
from autospace.steps.device import Device, describe_card, open_device
from autospace.steps.evolving import evolve
from autospace.steps.exporting import Exported, export, read_network
from autospace.steps.found import FamilyResult, SearchResult
from autospace.steps.limits import STATISTICS, check_limit_texts, costs_of, limits_of
from autospace.steps.predicting import predict
from autospace.steps.profiling import profile, space_networks
from autospace.steps.searching import family_state, search, search_pareto
from autospace.steps.target import data_of, load_proxy, target_skeleton
from autospace.steps.training import train
from autospace.steps.trial import trial_file, tried_latency

__all__ = [
    "STATISTICS",
    "Benchmark",
    "BenchmarkedModel",
    "Device",
    "Exported",
    "FamilyResult",
    "SearchResult",
    "benchmark",
    "card_copy",
    "check_limit_texts",
    "compare",
    "costs_of",
    "data_of",
    "describe_card",
    "evolve",
    "export",
    "family_state",
    "limits_of",
    "load_proxy",
    "measuring_on",
    "open_device",
    "predict",
    "profile",
    "read_network",
    "search",
    "search_pareto",
    "space_networks",
    "target_skeleton",
    "train",
    "trial_file",
    "tried_latency",
]
