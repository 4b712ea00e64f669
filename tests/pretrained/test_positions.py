"""Position grids are resized as scipy and torch resize them."""

from pathlib import Path

import numpy as np
import pytest
from helpers import error

from vitnp.pretrained.positions import RULES, resize_grid, resize_matrix

with np.load(Path(__file__).parent.parent / "reference" / "pretrained" / "positions.npz") as file:
    POSITIONS = dict(file)


@pytest.mark.parametrize("key", [key for key in POSITIONS if key != "grid"])
def test_a_grid_is_resized_as_scipy_and_torch_do_it(key):
    rule, _, size = key.partition("/")
    found = resize_grid(POSITIONS["grid"], tuple(map(int, size.split("x"))), rule)
    assert error(found, POSITIONS[key]) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_the_same_size_changes_nothing(rule):
    assert error(resize_matrix(5, 5, rule), np.eye(5)) < 1e-15


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 1), (3, 8), (8, 3)])
def test_equal_positions_stay_equal(rule, n, m):
    assert resize_matrix(n, m, rule).sum(1) == pytest.approx(np.ones(m), abs=1e-14)


def test_aligned_corners_keep_the_corners():
    grid = POSITIONS["grid"]
    found = resize_grid(grid, (9, 10), "align-corners")
    np.testing.assert_array_equal(found[[0, 0, -1, -1], [0, -1, 0, -1]], grid[[0, 0, -1, -1], [0, -1, 0, -1]])


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="resize is 'zoom'; choose one of 'align-corners'"):
        resize_grid(POSITIONS["grid"], (3, 3), "zoom")
