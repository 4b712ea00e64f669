"""Warps: bilinear interpolation by its plain definition, and points that obey q = A (p − t + b)."""

import numpy as np
import pytest

from vitnp.data.warp import KNOTS, Warp, interpolate

STILL = {"rotation": 0.0, "shear": 0.0, "scale": (1.0, 1.0), "translation": 0.0, "bend": 0.0}


def generator(seed=0):
    return np.random.default_rng(seed)


def points(count=300, height=9, width=13, **changes):
    """(y, x) of each pixel and where it looks: two (count, 2, height, width), from the centre."""
    y, x = Warp(**(STILL | changes)).points(generator(), count, height, width)
    p = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    return np.broadcast_to(p, (count, *p.shape)), np.stack([y, x], 1).reshape(count, 2, height, width)


def test_a_warp_of_nothing_looks_where_it_is():
    p, q = points()
    np.testing.assert_allclose(q, p, atol=1e-6)


def matrices(p, q):
    """The A of each picture, by least squares of q = A p."""
    p, q = (side.reshape(len(side), 2, -1) for side in (p, q))
    return q @ p.swapaxes(1, 2) @ np.linalg.inv(p @ p.swapaxes(1, 2))


def test_rotations_keep_lengths_and_reach_the_limit_both_ways():
    a = matrices(*points(rotation=20.0))
    np.testing.assert_allclose(a @ a.swapaxes(1, 2), np.broadcast_to(np.eye(2), a.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(a), 1, atol=1e-5)
    angles = np.rad2deg(np.arctan2(a[:, 1, 0], a[:, 0, 0]))
    assert -20 < angles.min() < -19
    assert 19 < angles.max() < 20


def test_a_shear_moves_columns_by_a_share_of_the_row_both_ways():
    a = matrices(*points(shear=0.3))
    np.testing.assert_allclose(a[:, [0, 0, 1], [0, 1, 1]], np.broadcast_to([1.0, 0, 1], (300, 3)), atol=1e-5)
    assert -0.3 < a[:, 1, 0].min() < -0.28
    assert 0.28 < a[:, 1, 0].max() < 0.3


def test_a_scale_above_1_enlarges_height_and_width_each_by_its_own():
    a = matrices(*points(scale=(0.5, 2.0)))
    enlarged = 1 / a[:, [0, 1], [0, 1]]
    np.testing.assert_allclose(a[:, [0, 1], [1, 0]], 0, atol=1e-5)
    assert 0.5 < enlarged.min() < 0.53
    assert 1.95 < enlarged.max() < 2.0
    assert abs(np.corrcoef(enlarged.T)[0, 1]) < 0.2


def test_translation_moves_the_picture_not_the_view():
    p, q = points(translation=3.0)
    t = p - q
    np.testing.assert_allclose(t, np.broadcast_to(t[:, :, :1, :1], t.shape), atol=1e-5)
    assert -3 < t.min() < -2.9
    assert 2.9 < t.max() < 3


def test_bending_is_random_at_the_knots_and_smooth_between():
    p, q = points(count=2000, height=10, width=13, bend=0.7)
    b = q - p
    knots = b[:, :, :: 9 // (KNOTS - 1), :: 12 // (KNOTS - 1)]
    assert knots.shape[2:] == (KNOTS, KNOTS)
    np.testing.assert_allclose(knots.std(0), 0.7, rtol=0.1)
    assert abs(np.corrcoef(knots.reshape(2000, -1).T) - np.eye(2 * KNOTS * KNOTS)).max() < 0.12
    assert b[:, :, 1].std() < 0.7  # a mean of knots
    assert abs(np.diff(b, axis=2)).mean() < 0.35


def test_all_of_them_together_are_scale_after_shear_after_rotation():
    changes = {"rotation": 20.0, "shear": 0.3, "scale": (0.5, 2.0), "translation": 3.0}
    p, q = points(**changes)
    rng = generator()
    angle, slant = np.deg2rad(rng.uniform(-20, 20, 300)), rng.uniform(-0.3, 0.3, 300)
    scale, t = rng.uniform(0.5, 2.0, (300, 2, 1)), rng.uniform(-3, 3, (300, 2, 1))
    for i in range(300):
        turn = [[np.cos(angle[i]), -np.sin(angle[i])], [np.sin(angle[i]), np.cos(angle[i])]]
        a = np.diag(1 / scale[i, :, 0]) @ [[1, 0], [slant[i], 1]] @ turn
        np.testing.assert_allclose(q[i].reshape(2, -1), a @ (p[i].reshape(2, -1) - t[i]), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_interpolation_is_bilinear(channels):
    pictures = generator().integers(0, 256, (4, 7, 9, channels)).astype(np.float32)
    which = np.array([2, 0, 3])
    y, x = generator(1).uniform(-3, 3, (3, 20)).astype("f"), generator(2).uniform(-4, 4, (3, 20)).astype("f")
    grey = interpolate(pictures, which, y, x)
    assert (grey.shape, grey.dtype) == ((3, 20, channels), np.float32)
    for row in range(3):
        for point in range(20):
            v, u = y[row, point] + 3, x[row, point] + 4
            top, left = int(v), int(u)
            v, u = v - top, u - left
            a, b, c, d = (pictures[which[row], top + i, left + j] for i in (0, 1) for j in (0, 1))
            expected = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
            np.testing.assert_allclose(grey[row, point], expected, atol=1e-3)


def test_points_outside_show_the_nearest_border_pixel():
    pictures = generator().integers(0, 256, (1, 5, 5, 1), dtype=np.uint8)
    far = np.array([[-100, 100]], np.float32)
    grey = interpolate(pictures, np.array([0]), far, far)
    assert grey[0, :, 0].tolist() == [pictures[0, 0, 0, 0], pictures[0, 4, 4, 0]]
