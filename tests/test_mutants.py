"""The mutants that `python -m tests.mutants` tries are real: every patch fits the sources as they are today."""

import ast
from collections import Counter

import pytest
from mutants.automatic import TARGETS, changes
from mutants.equivalent import EQUIVALENT
from mutants.gradients import is_near
from mutants.seeded import MUTANTS
from mutants.trial import ROOT, Edit, PatchError, patched


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_patch_fits_once_and_is_python(mutant):
    for file, source in patched(mutant.edits).items():
        ast.parse(source)
        assert source != (ROOT / file).read_text("utf-8")


def test_there_are_as_many_of_each_kind_as_promised():
    kinds = Counter(mutant.kind for mutant in MUTANTS)
    assert kinds == {
        "gradient": 90,
        "forward": 27,
        "optimizer": 20,
        "structural": 4,
        "costs": 8,
        "masked": 12,
        "probe": 8,
    }


def test_no_two_mutants_are_the_same():
    assert len({mutant.name for mutant in MUTANTS}) == len({mutant.edits for mutant in MUTANTS}) == len(MUTANTS)


def test_a_patch_of_what_is_not_there_is_refused():
    with pytest.raises(PatchError, match=r"vitnp/layers/linear\.py: expected once, found 0 times: 'y \+= self\.cat'"):
        patched([Edit("vitnp/layers/linear.py", "y += self.cat", "y -= self.cat")])


def test_a_patch_of_what_is_there_twice_is_refused():
    with pytest.raises(PatchError, match="expected once, found 2 times"):
        patched([Edit("vitnp/layers/tanh.py", "Context)", "Any)")])


def test_a_patch_that_changes_nothing_is_refused():
    with pytest.raises(PatchError, match="a patch that changes nothing"):
        patched([Edit("vitnp/layers/tanh.py", "super().__init__()", "super().__init__()")])


def test_the_backward_of_every_layer_is_changed():
    layers = {path for path in (ROOT / "vitnp" / "layers").glob("*.py") if "def backward(" in path.read_text("utf-8")}
    assert {str(path.relative_to(ROOT)) for path in layers} <= TARGETS.keys()
    assert all("backward" in TARGETS[str(path.relative_to(ROOT))] for path in layers)


def test_small_changes_are_python_and_differ_from_the_sources():
    found = changes()
    assert len(found) > 500
    for change in found:
        ast.parse(change.source)
        assert change.source != (ROOT / change.file).read_text("utf-8")


def test_every_equivalent_change_is_one_that_is_made_and_has_a_reason():
    assert EQUIVALENT.keys() <= {change.key for change in changes()}
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())


NAMES = [
    "input",
    "patch_embed.weight",
    "cls_token",
    "blocks.0.mlp.fc2.bias",
    "blocks.1.norm1.beta",
    "norm.beta",
    "head.bias",
]


@pytest.mark.parametrize(
    ("layer", "first", "near"),
    [
        ("norm", "norm.beta", True),
        ("norm", "blocks.1.norm1.beta", True),
        ("norm", "blocks.0.mlp.fc2.bias", False),
        ("norm", "head.bias", False),
        ("blocks.1", "blocks.0.mlp.fc2.bias", True),
        ("embeddings", "patch_embed.weight", True),
        ("embeddings", "input", False),
        ("patch_embed", "input", True),
        ("loss", "head.bias", True),
        ("loss", "norm.beta", False),
    ],
)
def test_near_is_the_layer_itself_and_the_one_that_it_feeds(layer, first, near):
    assert is_near(layer, first, NAMES) == near
