"""A run directory that no search wrote: every figure in it is made up, to develop and test what shows a run."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import yaml

from autocomp.front import non_dominated
from autocomp.journal import Entry, Journal
from autocomp.outcome import Outcome, Status
from autocomp.policy import Activation, LayerPolicy, Policy

HOSTILE = "<script>alert('name')</script>"
PROVENANCE = "made up for tests: simulated, Fantasy-A1 at 1 GHz, no runtime, 1 thread, 2000-01-01"
FLOAT_BYTES, FLOAT_MS, FLOAT_ACCURACY = 9_012_345, 6.2, 0.9867

_COLUMNS = (
    "id", "controller", "accuracy", "test_accuracy", "float_accuracy", "size_bytes",
    "latency_ms", "latency_low_ms", "latency_high_ms", "provenance", "file",
)  # fmt: skip


def _layers(count: int) -> list[dict[str, Any]]:
    layers = [
        {
            "name": f"features.{index // 3}.conv.{index % 3}",
            "op": ("conv", "depthwise", "conv")[index % 3],
            "weights": 400 * (index + 1) * (1 if index % 3 == 1 else 12),
            "channels": 16 * (1 + index // 3),
            "group": f"g{index // 3}",
        }
        for index in range(count)
    ]
    layers[-1] = {"name": HOSTILE, "op": "linear", "weights": 12_800, "channels": 10, "group": ""}
    return layers


def fabricate(run: Path, *, trials: int = 140, layers: int = 36, status: str = "done", seed: int = 0) -> Path:
    """Write a run directory and return it. The same arguments write the same figures."""
    rng = random.Random(seed)
    run.mkdir(parents=True)
    (run / "policies").mkdir()
    (run / "models").mkdir()
    facts = _layers(layers)
    (run / "network.json").write_text(json.dumps({"name": "made_up", "layers": facts}))
    entries = []
    for index in range(trials):
        depth = rng.random()
        activation: Activation = "int8" if rng.random() < 0.8 else "float"
        decided = {
            layer["name"]: LayerPolicy(
                rng.choice((2, 3, 4) if depth > 0.6 else (4, 5, 6, 8)), activation, rng.choice((0.0, 0.0, 0.5, 0.75))
            )
            for layer in facts
        }
        keep = 1 - 0.7 * depth * rng.random()
        policy = Policy(decided, {layer["group"]: max(8, int(layer["channels"] * keep)) for layer in facts[:-1]})
        size = int(FLOAT_BYTES * (0.02 + 0.25 * (1 - depth) ** 1.5 * keep))
        latency = FLOAT_MS * (0.05 + (0.3 if activation == "int8" else 0.9) * keep**2)
        loss = 0.004 * rng.random() + 0.08 * depth**4 + 0.05 * (1 - keep) ** 3
        if rng.random() < 0.05:
            loss += 0.6
        outcome = Outcome(Status.COMPLETE, FLOAT_ACCURACY - loss + 0.002, size, latency)
        if index % 37 == 5:
            outcome = Outcome(Status.FAILED, reason=f"calibration of {HOSTILE} saw a value that is not finite")
        if index % 53 == 7:
            outcome = Outcome(
                Status.INFEASIBLE, size_bytes=size, latency_ms=latency, reason="size: 4,210,004 bytes & more"
            )
        entries.append(
            Entry(index, (index,), policy, outcome, latency * 0.93, latency * 1.11, 1.5, {}, "2000-01-01T00:00:00")
        )
    with Journal(run) as journal:
        for entry in entries:
            journal.append(entry)
    complete = [entry for entry in entries if entry.outcome.status is Status.COMPLETE]
    keepers = non_dominated([entry.outcome.costs for entry in complete]) if complete else []
    with (run / "front.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, _COLUMNS)
        writer.writeheader()
        for entry, kept in zip(complete, keepers, strict=True):
            if kept:
                assert entry.outcome.accuracy is not None
                test = entry.outcome.accuracy - 0.001
                row = (entry.id, "tpe", entry.outcome.accuracy, test, FLOAT_ACCURACY, entry.outcome.size_bytes,
                       entry.outcome.latency_ms, entry.latency_low_ms, entry.latency_high_ms, PROVENANCE,
                       f"models/{entry.id}.onnx")  # fmt: skip
                writer.writerow(dict(zip(_COLUMNS, row, strict=True)))
                (run / "policies" / f"{entry.id}.json").write_text(entry.policy.to_json())
    references = [
        _reference("float", FLOAT_ACCURACY, FLOAT_BYTES, FLOAT_MS),
        _reference("int8", FLOAT_ACCURACY - 0.0013, FLOAT_BYTES // 4 + 30_000, FLOAT_MS / 2.9),
    ]
    (run / "references.json").write_text(json.dumps(references))
    counts = {state: sum(e.outcome.status == state for e in entries) for state in ("complete", "infeasible", "failed")}
    settings = {
        "task": "made_up", "network": "made_up", "hw": "fantasy_a1", "controller": "tpe", "space": "made_up",
        "budget": {"size_bytes": 4_000_000, "latency_ms": None, "accuracy_drop": None},
        "seed": seed, "trials": trials, "minutes": None, "workers": 2, "versions": {"autocomp": "0", "torch": "0.0"},
        "profile_digest": "0" * 16, "provenance": PROVENANCE, "started_at": "2000-01-01T00:00:00", "seconds": 251.0,
        "status": status, "counts": counts, "float_accuracy": FLOAT_ACCURACY,
        "left_alone": [
            {"name": HOSTILE, "what": "prune", "reason": "its channels are the network's output"},
            {"name": "classifier", "what": "quantize", "reason": "<img src=x onerror=alert(1)>"},
        ],
        "removed_choices": [[f"{layer['name']}: w4", "no kernel for <i>float</i> activations"] for layer in facts],
    }  # fmt: skip
    (run / "run.yaml").write_text(yaml.safe_dump(settings))
    return run


def _reference(name: str, accuracy: float, size_bytes: int, latency_ms: float) -> dict[str, Any]:
    return {
        "name": name, "accuracy": accuracy, "test_accuracy": accuracy - 0.002, "size_bytes": size_bytes,
        "latency_ms": latency_ms, "latency_low_ms": latency_ms * 0.9, "latency_high_ms": latency_ms * 1.1,
    }  # fmt: skip
