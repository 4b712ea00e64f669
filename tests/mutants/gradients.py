"""The wrong gradients by the gradient check alone: is each one seen, and is the place that is named the right one?

Six networks between them have every layer: the hard model of the tests with a class token and the tanh form, one with
mean pooling, the exact form and a hidden layer in the head, three of other architectures, and a hybrid. All have
dropout, and labels are smoothed.

Where Richardson's differences see nothing wrong in a whole network, each of its layers is checked alone. Walking from
the loss backwards, the first wrong tensor is one of the faulty layer's own, or one of the layer before it,
which is fed its dx.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mutants.seeded import MUTANTS, Mutant
from mutants.trial import Job, Workshop, patched

LATER = {"stochastic_depth": 0.3, "layer_scale": 0.1, "registers": 2, "qk_norm": True}
NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"pool": "mean", "gelu": "erf", "representation_size": 11},
    {"pool": "mean", "positions": "relative", **LATER},
    {"positions": "learned-2d", "pos_at": "shared"},
    {"pool": "mean-norm", "positions": "relative-1d", "registers": 2},
    {"image_size": (22, 15), "patch_size": (2, 4), "stem_blocks": (2,), "stem_width": 0.5},
)
INLINE = {
    "embeddings": ("cls_token", "pos_embed", "reg_token"),
    "positions": ("pos_embed",),
    "classifier": ("norm.", "pre_logits.", "head."),
    "loss": (),
}
MISSED = {"complex": 0, "richardson": 2}  # at most: a difference cannot see what is below its own error bar


def check(copy: Path) -> str:
    """Check the copy's networks: -> JSON, for each the names of its tensors, and what both methods say."""
    sys.path.insert(0, str(copy / "tests"))
    from helpers import hard_model, images_for, labels_for

    import vitnp

    found = []
    for changes in NETWORKS:
        model = hard_model(**changes)
        names: list[str] = ["input", *model.parameters()]
        entry: dict[str, Any] = {"names": names}
        data = images_for(model), labels_for(model)
        for method in MISSED:
            report = vitnp.gradcheck(model, *data, method=method, mode="directions", label_smoothing=0.1)
            wrong = {row.name for row in report.rows if row.verdict == "FAIL"}
            first = next((name for name in reversed(names) if name in wrong), "")
            entry[method] = {"verdict": report.verdict, "first": first, "start": report.start_here}
            if report.verdict != "FAIL" and method == "richardson":
                # Its error bars are narrower where one layer moves alone; at kinks there may be none to compare with.
                by_layer = vitnp.check_layers(model, *data, method=method, label_smoothing=0.1)
                entry[method]["verdict"] = "FAIL" if by_layer.verdict == "FAIL" else report.verdict
        found.append(entry)
        if all(entry[method]["verdict"] == "FAIL" for method in MISSED):
            break  # both have seen it: another network, of which the hybrid takes seconds, tells no more
    return json.dumps(found)


def is_near(layer: str, first: str, names: list[str]) -> bool:
    """Whether the tensor `first` is one of the layer's own, or of the layer before it."""
    prefixes = INLINE.get(layer, (f"{layer}.",))
    own = [i for i, name in enumerate(names) if name.startswith(prefixes)] if prefixes else [len(names)]
    before = _layer(names[own[0] - 1])
    return (bool(prefixes) and first.startswith(prefixes)) or _layer(first) == before


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def check_all(workshop: Workshop, workers: int, only: str, part: tuple[int, int]) -> bool:
    """Print a line for each gradient mutant, and totals; return whether the totals are what they must be."""
    clean = json.loads(workshop.try_clean(check))
    if any(entry[method]["verdict"] != "PASS" for entry in clean for method in MISSED):
        print(f"the package as it is does not pass: {clean}")
        return False
    wrong = [mutant for mutant in MUTANTS if mutant.kind == "gradient" and only in mutant.name]
    mutants = {mutant.name: mutant for mutant in wrong[part[0] - 1 :: part[1]]}
    if not mutants:
        print(f"there is no gradient mutant with {only!r} in its name")
        return False
    jobs = [Job(name, patched(mutant.edits), check) for name, mutant in mutants.items()]
    answers = {job.name: answer for job, answer in workshop.run(jobs, workers)}
    totals = {**dict.fromkeys(MISSED, 0), "near": 0}
    print(f"{'mutant':34} complex  richardson  near  first wrong tensor, and where the report says to start")
    for name, mutant in mutants.items():
        for key, value in _line(mutant, json.loads(answers[name])).items():
            totals[key] += value
    print(", ".join(f"{key}: {value} of {len(mutants)}" for key, value in totals.items()))
    return all(totals[key] >= len(mutants) - missed for key, missed in {**MISSED, "near": 0}.items())


def _line(mutant: Mutant, found: list[dict[str, Any]]) -> dict[str, bool]:
    """Print what was found for one mutant, and return it in numbers."""
    caught = {method: any(entry[method]["verdict"] == "FAIL" for entry in found) for method in MISSED}
    entry = next((entry for entry in found if entry["complex"]["first"]), found[0])
    first, start = entry["complex"]["first"], entry["complex"]["start"]
    near = bool(first) and is_near(mutant.layer, first, entry["names"])
    yes = {True: "y", False: "n"}
    print(f"{mutant.name:34} {yes[caught['complex']]:7}  {yes[caught['richardson']]:10}  {yes[near]:4}", end="  ")
    print(f"{first}  ({start})")
    return {**caught, "near": near}
