"""A run folder as the pipeline leaves it, made up: small, fast and the same every time."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autospace.genotype import REFERENCE_CELLS, Cell, Mix, Zero
from autospace.operations import Operation
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace
from devices.measurement import Measurement
from devices.visits import Visit

GATED = Cell(
    (
        Operation.DEPTHWISE,
        Operation.DENSE,
        Operation.IDENTITY,
        Operation.NONE,
        Operation.DEPTHWISE,
        Operation.DEPTHWISE,
    ),
    3,
    (Mix.GATE, Mix.ADD),
)
LIMITS = [
    {"metric": "madds", "value": 2_500_000, "text": "2.5M"},
    {"metric": "latency_ms", "value": 0.5, "text": "500us"},
]
PROVENANCE = {
    "limits": LIMITS,
    "data": "digits at 16×16, 10 classes, 1077/360/360 images (train/validation/test)",
    "target": "tiny at 16×16",
    "seed": 7,
}
CONFIG = '[limits]\nbudget = "2.5M"\nlatency = "500us"\n\n[data]\nname = "digits"\n'


def space() -> SearchSpace:
    cells = (GATED, *REFERENCE_CELLS)
    layers = SKELETONS["tiny"].num_layers
    return SearchSpace(
        SKELETONS["tiny"],
        (cells,) * layers,
        fitness=((0.91, 0.88, 0.71, 0.4),) * layers,
        provenance=PROVENANCE,
    )


def architecture() -> Architecture:
    blocks = (GATED, Zero(), REFERENCE_CELLS[2], GATED, Zero(), REFERENCE_CELLS[0].fused())
    return Architecture(SKELETONS["tiny"], blocks, provenance=PROVENANCE)


def measurement(name: str, latency_ms: float) -> dict[str, Any]:
    random = np.random.default_rng(round(latency_ms * 1e6))
    visits = []
    for _ in range(12):
        slow = 1 + max(0.0, float(random.normal(0, 0.08)))
        samples = latency_ms * slow * (1 + random.gamma(1.5, 0.01, 20))
        visits.append(Visit(tuple(map(float, samples)), 1.4 * slow, 1.4 * slow))
    return Measurement(name, tuple(visits), 1.4, "onnxruntime", "1.31.0").to_json()


@cache
def card_bytes() -> bytes:
    """A small simulated card."""
    from tempfile import TemporaryDirectory

    from latency.profile import profile_device

    with TemporaryDirectory() as folder:
        path = Path(folder) / "device.card"
        profile_device(path, runtime="simulated", rounds=4, probes=6)
        return path.read_bytes()


@cache
def prediction() -> str:
    from tempfile import TemporaryDirectory

    from autospace.onnx_export import onnx_for_cost
    from latency.card import DeviceCard
    from latency.predictor import Predictor

    with TemporaryDirectory() as folder:
        path = Path(folder) / "device.card"
        path.write_bytes(card_bytes())
        predictor = Predictor.from_card(DeviceCard.open(path))
        found = predictor.predict(onnx_for_cost(architecture())).to_json()
    return json.dumps(found | {"warnings": []})


def evolve_lines() -> list[dict[str, Any]]:
    return [
        {
            "generation": g,
            "train_loss": 2.3 * math.exp(-g / 25) + 0.15 + 0.03 * math.sin(g * 3),
            "validation_loss": 2.3 * math.exp(-g / 25) + 0.22 + 0.05 * math.sin(g * 2),
            "best_fitness": 1 - math.exp(-g / 20),
            "median_fitness": 0.6 - 0.6 * math.exp(-g / 30),
            "reference_share": max(0.0, 1 - g / 40),
            "distinct_cells": 50 + g,
            "operation_entropy_bits": 1.2 + 0.5 * (1 - math.exp(-g / 15)),
            "cells_tried": 12 * g,
            "expected": {"madds": 2.2e6 + 9e5 * math.exp(-g / 12), "latency_ms": 0.45},
            "allowed": {"madds": 3.75e6, "latency_ms": 0.75},
            "prices": {"madds": 4 - 4 * math.exp(-g / 10), "latency_ms": 0.0},
        }
        for g in range(1, 61)
    ]


def search_lines() -> list[dict[str, Any]]:
    return [
        {
            "step": 5 * s,
            "train_loss": 0.9 * math.exp(-s / 80) + 0.2 + 0.06 * math.sin(s * 1.7),
            "validation_loss": 0.9 * math.exp(-s / 80) + 0.26 + 0.08 * math.sin(s * 1.3),
            "expected": {
                "madds": 2.45e6 + 6e5 * math.exp(-s / 60),
                "latency_ms": 0.48 + 0.2 * math.exp(-s / 60),
            },
            "multipliers": {"madds": 0.2 * (1 - math.exp(-s / 50)), "latency_ms": 0.1},
            "entropy": 1.3 * math.exp(-s / 120) + 0.1,
        }
        for s in range(1, 401)
    ]


def candidate(number: int, latency_ms: float, kept: bool) -> dict[str, Any]:
    return {
        "hash": architecture().hash if number == 0 else f"{number:016x}",
        "log_probability": -1.5 - number,
        "validation_accuracy": 0.981 - 0.003 * number,
        "madds": 2_300_000 - 40_000 * number,
        "predicted_ms": latency_ms * (0.97 + 0.02 * number),
        "measured": measurement(f"candidate {number}", latency_ms),
        "kept": kept,
    }


def make_run(folder: Path, kept: bool = True, simulated: bool = False) -> Path:
    """Writes every file of a finished run; with ``kept`` false, of one that missed its budget."""
    network = architecture()
    found = 0.462 if kept else 0.531
    measured = measurement("model.onnx", found)
    guess = json.loads(prediction())
    limits = [
        {**LIMITS[0], "found": network.madds, "bound": network.madds, "kept": True},
        {**LIMITS[1], "found": measured["latency_ms"], "bound": measured["high_ms"], "kept": kept},
    ]
    documents: dict[str, Any] = {
        "state.json": {
            "stages": {
                name: {"seconds": 31.5 * place}
                for place, name in enumerate(
                    ("profile", "evolve", "search", "verify", "train", "export", "benchmark"), 1
                )
            },
            "versions": {"autospace": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.0"},
            "seed": 7,
        },
        "verification.json": {
            "rounds": [
                {
                    "round": 1,
                    "factor": 1.0,
                    "candidates": [candidate(3, 0.522, False), candidate(2, 0.535, False)],
                },
                {
                    "round": 2,
                    "factor": 1.06,
                    "candidates": [candidate(0, 0.462, True), candidate(1, 0.447, True)],
                },
            ],
            "chosen": network.hash,
        },
        "benchmark.json": {
            "models": [
                {"name": "model.onnx", "predicted": guess, "measured": measured},
                {
                    "name": "reference",
                    "predicted": None,
                    "measured": measurement("reference", 0.71),
                },
            ]
        },
        "verdict.json": {
            "kept": kept,
            "accuracy": 0.9806,
            "params": network.params,
            "madds": network.madds,
            "predicted_ms": guess["latency_ms"],
            "predicted_low_ms": guess["low_ms"],
            "predicted_high_ms": guess["high_ms"],
            "coverage": guess["coverage"],
            "measured_ms": measured["latency_ms"],
            "measured_low_ms": measured["low_ms"],
            "measured_high_ms": measured["high_ms"],
            "limits": limits,
            "data": "digits at 16×16",
            "target": "tiny at 16×16",
            "device": "Some CPU · onnxruntime 1.31 · 1 thread · fp32 · batch 1",
            "simulated": simulated,
            "export": {
                "images": 64,
                "max_error": 2.1e-6,
                "relative_error": 3.4e-7,
                "agreement": 1.0,
            },
            "seed": 7,
            "hash": network.hash,
            "warnings": ["only 6 networks in the card; profile for longer."],
            "seconds": 882.0,
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    logs = {
        "evolve.jsonl": evolve_lines(),
        "search.jsonl": search_lines(),
        "train.jsonl": [
            {
                "epoch": e,
                "train_loss": 2.0 * math.exp(-e / 6) + 0.05,
                "learning_rate": 0.05 * (1 + math.cos(math.pi * e / 30)) / 2,
                "validation_accuracy": None if e % 2 else 0.985 - 0.6 * math.exp(-e / 4),
            }
            for e in range(1, 31)
        ],
    }
    for name, lines in logs.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    (folder / "device.card").write_bytes(card_bytes())
    (folder / "model.onnx").write_bytes(b"only its presence is looked at")
    space().save(folder / "space.json")
    network.save(folder / "architecture.json")
    return folder
