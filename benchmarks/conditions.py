"""Where results go: file names that tell the conditions."""

from __future__ import annotations

from pathlib import Path

from latency import DeviceCard

__all__ = ["RESULTS", "results_file"]

RESULTS = Path(__file__).parent / "results"
"""Kept with the code, so that a figure in the documentation can be looked up."""


def results_file(benchmark: str, card: DeviceCard) -> Path:
    """The JSON file for what a benchmark found with a card.

    Args:
        benchmark: its name, with hyphens.
        card: of the device that it ran on.
    """
    short = {"onnxruntime": "ort"}.get(card.runtime, card.runtime)
    version = ".".join(card.runtime_version.split(".")[:2])
    own = card.settings
    conditions = f"{short}{version}-cpu-{own.threads}t-{own.precision}-b{own.batch}"
    return RESULTS / f"{benchmark}-{conditions}.json"
