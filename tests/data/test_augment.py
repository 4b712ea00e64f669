"""Augmentation: each change does what its paper says, draws only from its generator, and leaves its argument alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.data import Augmentation, DataError
from vitnp.data.augment import (
    OPERATIONS,
    cutmix,
    distort,
    erase,
    flip,
    mixup,
    one_hot,
    rand_augment,
    random_resized_crop,
    shift,
)
from vitnp.data.warp import Warp

CHANGES = {
    "distort": lambda images, rng: distort(images, rng, 0.5),
    "crop": lambda images, rng: random_resized_crop(images, rng, 0.3),
    "shift": lambda images, rng: shift(images, rng, 3),
    "flip": flip,
    "rand_augment": lambda images, rng: rand_augment(images, rng, 9),
    "erase": lambda images, rng: erase(images, rng, 0.9),
}
FULL = Augmentation(distort=0.5, crop=0.5, shift=2, flip=True, rand_augment=5, erase=0.5, mixup=0.4, cutmix=1.0)


def generator(seed=0):
    return np.random.default_rng(seed)


def pictures(n=23, channels=3, height=9, width=12):
    return generator(7).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


# what holds for every change


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_shape_and_type(name, channels):
    images = pictures(channels=channels)
    changed = CHANGES[name](images, generator())
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_changes_most_images_or_every_second(name):
    images = pictures(200)
    changed = (CHANGES[name](images, generator()) != images).any((1, 2, 3)).mean()
    assert 0.35 < changed <= 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leaves_its_argument_as_it_was(name):
    images = pictures()
    before = images.copy()
    CHANGES[name](images, generator())
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_function_of_the_generator_alone(name):
    images = pictures()
    np.random.seed(1)  # noqa: NPY002 — a change that drew from the global generator would notice
    first = CHANGES[name](images, generator(3))
    np.random.seed(2)  # noqa: NPY002
    again, other = CHANGES[name](images, generator(3)), CHANGES[name](images, generator(4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("name", CHANGES)
def test_a_batch_of_one_small_image_works(name):
    images = pictures(n=1, height=4, width=4)
    assert CHANGES[name](images, generator()).shape == images.shape


# the geometry


def moved(image, dy, dx):
    """The plain definition, for one image (H, W, C)."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - dy < height and 0 <= x - dx < width:
                out[y, x] = image[y - dy, x - dx]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_shifted_by_whole_pixels_within_the_limit(channels):
    images = pictures(channels=channels)
    distances = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for before, after in zip(images, shift(images, generator(), 2), strict=True):
        assert sum(np.array_equal(moved(before, *distance), after) for distance in distances) == 1


def test_every_shift_occurs_about_as_often():
    images = np.zeros((25_000, 5, 5, 1), np.uint8)
    images[:, 2, 2] = 255
    landed = shift(images, generator(), 2).astype(bool).sum(axis=0)
    assert abs(landed - 1_000).max() < 150  # 4.8 standard deviations


@pytest.mark.parametrize("max_shift", [-1, 9, 1.5])
def test_a_shift_out_of_the_picture_is_refused(max_shift):
    with pytest.raises(DataError, match=f"max_shift is {max_shift}; expected an integer from 0 to 8"):
        shift(pictures(), generator(), max_shift)


def test_flip_mirrors_about_half_left_to_right_and_keeps_the_rest():
    images = pictures(2000)
    changed = flip(images, generator())
    mirrored = (changed == images[:, :, ::-1]).all((1, 2, 3))
    kept = (changed == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 0.44 < mirrored.mean() < 0.56


def ramps(n, height=16, width=24):
    """Images whose grey level tells the place: channel 0 is 10 times the column, channel 1 10 times the row."""
    y, x = np.mgrid[:height, :width]
    return np.broadcast_to(np.stack([10 * x, 10 * y, 0 * x], -1).astype(np.uint8), (n, height, width, 3)).copy()


def test_a_random_crop_is_a_rectangle_enlarged_to_the_whole():
    """On a ramp, enlarging keeps it a ramp: slopes tell the sides of the part, corners where it lies."""
    height, width = 16, 24
    crops = random_resized_crop(ramps(500), generator(), 0.25).astype(float)
    columns = (crops[:, 8, 18, 0] - crops[:, 8, 6, 0]) / 10 / 12 * width  # away from the border, where pixels repeat
    rows = (crops[:, 12, 12, 1] - crops[:, 4, 12, 1]) / 10 / 8 * height
    area, aspect = columns * rows / (height * width), columns / width / (rows / height)
    assert 0.22 < area.min() < 0.3
    assert area.max() > 0.9
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.43
    assert abs(np.log(aspect).mean()) < 0.05


def test_a_random_crop_lies_anywhere_in_the_image():
    """On a ramp the grey in the middle tells where the middle of the part lies; a quarter can move by half a side."""
    crops = random_resized_crop(ramps(2000), generator(), 0.25).astype(float)
    x, y = crops[:, 8, 12, 0] / 10, crops[:, 8, 12, 1] / 10
    for place, side in ((x, 24), (y, 16)):
        assert place.min() < 0.33 * side
        assert place.max() > 0.67 * side
        assert abs(place.mean() - side / 2) < 0.03 * side
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.1


def test_a_crop_of_all_of_the_image_and_its_aspect_changes_nothing(monkeypatch):
    monkeypatch.setattr("vitnp.data.augment.ASPECT", (1.0, 1.0))
    images = pictures()
    np.testing.assert_array_equal(random_resized_crop(images, generator(), 1.0), images)


def test_a_distortion_of_strength_zero_changes_nothing():
    images = pictures()
    np.testing.assert_array_equal(distort(images, generator(), 0.0), images)


def test_a_distortion_turns_by_up_to_15_degrees_times_its_strength():
    """A horizontal bar, turned: the slope of its centre line is the tangent of the angle. Only the rotation is on."""
    bars = np.zeros((400, 41, 41, 1), np.uint8)
    bars[:, 19:22] = 255
    turned = distort(bars, generator(), 1.0)[..., 0].astype(float)
    rows = np.arange(41)[:, None]
    left, right = ((rows * turned[:, :, x]).sum((1, 2)) / turned[:, :, x].sum((1, 2)) for x in ([12], [28]))
    angle = np.rad2deg(np.arctan((right - left) / 16))
    assert 14 < np.abs(angle).max() < 35  # slant and stretch and bend add theirs
    assert np.abs(angle).mean() > 5


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_what_comes_in_from_outside_a_distorted_image_is_zero_on_every_side(corner):
    white = np.full((600, 16, 16, 1), 255, np.uint8)
    shown = distort(white, generator(), 2.0)[(slice(None), *corner)]
    assert (shown == 0).mean() > 0.05
    assert not ((shown > 0) & (shown < 8)).any() or (shown == 0).sum() > 10 * ((shown > 0) & (shown < 8)).sum()


def test_the_bend_grows_with_the_image(monkeypatch):
    asked = []
    monkeypatch.setattr(
        Warp, "points", lambda self, rng, n, h, w: asked.append(self) or (np.zeros((n, h * w), "f"),) * 2
    )
    for side in (28, 56):
        distort(pictures(height=side, width=side), generator(), 1.0)
    assert asked[1].bend == 2 * asked[0].bend


def test_a_distortion_has_all_parts_and_each_grows_with_its_strength(monkeypatch):
    asked = []
    monkeypatch.setattr(Warp, "points", lambda self, *_: asked.append(self) or (np.zeros((23, 108), "f"),) * 2)
    distort(pictures(), generator(), 0.5)
    distort(pictures(), generator(), 1.0)
    half, whole = asked
    for part in ("rotation", "shear", "bend"):
        assert 0 < getattr(half, part) == getattr(whole, part) / 2
    np.testing.assert_allclose(np.log(whole.scale), 2 * np.log(half.scale))
    assert half.scale[0] == 1 / half.scale[1] < 1


def test_grey_levels_between_two_are_rounded_not_cut():
    """A ramp of whole levels, moved by a part of a pixel: rounding keeps the mean, cutting loses half a level."""
    images = np.broadcast_to(np.arange(0, 120, 3, dtype=np.uint8)[None, None, :, None], (200, 40, 40, 1))
    inside = slice(12, 28)
    changed = distort(images, generator(), 0.2)[:, inside, inside].astype(float)
    assert abs((changed - images[:, inside, inside]).mean()) < 0.3


# RandAugment


def test_rand_augment_has_the_fourteen_operations_of_the_paper():
    expected = "identity autocontrast equalize rotate solarize posterize color contrast brightness sharpness"
    assert list(OPERATIONS) == [*expected.split(), "shear_x", "shear_y", "translate_x", "translate_y"]


def through(name, strength, images):
    from PIL import Image

    return np.asarray(OPERATIONS[name](Image.fromarray(images), strength))


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_an_operation_of_strength_zero_changes_nothing(name):
    image = pictures(1)[0]
    np.testing.assert_array_equal(through(name, 0.0, image), image)


@pytest.mark.parametrize("name", ["solarize", "posterize"])
def test_an_operation_without_a_direction_is_as_strong_with_either_sign(name):
    image = pictures(1)[0]
    assert not np.array_equal(through(name, -0.9, image), image)
    np.testing.assert_array_equal(through(name, -0.9, image), through(name, 0.9, image))


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"identity", "solarize", "posterize", "equalize"}))
def test_an_operation_with_a_direction_has_two(name):
    image = pictures(1, height=16, width=16)[0] // 2 + 30
    one, other = through(name, 0.9, image), through(name, -0.9, image)
    assert np.array_equal(one, other) == (name == "autocontrast")


def test_rotation_goes_to_30_degrees():
    from PIL import Image

    image = pictures(1, height=16, width=16)[0]
    expected = np.asarray(Image.fromarray(image).rotate(30, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(through("rotate", 1.0, image), expected)


def test_translation_goes_to_45_percent_of_the_side():
    image = pictures(1, height=20, width=40)[0]
    np.testing.assert_array_equal(through("translate_x", 1.0, image)[:, :22], image[:, 18:])
    np.testing.assert_array_equal(through("translate_y", -1.0, image)[9:], image[:11])


def test_a_shear_keeps_the_middle_where_it_was():
    """On a ramp of columns, a slant of 0.3 moves row y by 0.3 (y − middle) columns."""
    image = ramps(1, 16, 24)[0]
    slanted = through("shear_x", 1.0, image)[:, 12, 0].astype(float)
    np.testing.assert_allclose(slanted, 120 + 10 * 0.3 * (np.arange(16) - 7.5), atol=1)
    slanted = through("shear_y", 1.0, image)[8, :, 1].astype(float)
    np.testing.assert_allclose(slanted, 80 + 10 * 0.3 * (np.arange(24) - 11.5), atol=1)


def test_solarize_inverts_what_is_at_or_above_the_threshold():
    levels = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(through("solarize", 0.5, levels), np.where(levels < 128, levels, 255 - levels))


def test_posterize_leaves_four_bits_at_full_strength():
    levels = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(through("posterize", 1.0, levels), levels & 0xF0)


def test_brightness_goes_from_a_tenth_to_almost_twice():
    levels = np.full((3, 3, 3), 100, np.uint8)
    assert through("brightness", -1.0, levels).max() == 10
    assert through("brightness", 1.0, levels).min() == 190


def test_every_image_gets_its_own_two_operations():
    chosen = []
    original = dict(OPERATIONS)
    try:
        for name in OPERATIONS:
            OPERATIONS[name] = lambda image, s, name=name: chosen.append((name, s)) or image
        rand_augment(pictures(700), generator(), 9)
    finally:
        OPERATIONS.update(original)
    counts = [sum(name == which for name, _ in chosen) for which in OPERATIONS]
    assert len(chosen) == 1400
    assert min(counts) > 60  # 100 expected, standard deviation 9.6
    assert {s for _, s in chosen} == {-0.9, 0.9}


@pytest.mark.parametrize("change", [CHANGES["rand_augment"], CHANGES["crop"]])
def test_images_of_two_channels_cannot_go_through_pillow(change):
    with pytest.raises(DataError, match="images have 2 channels; expected 1"):
        change(pictures(channels=2), generator())


# erasing


def erased_rectangles(n=3000, height=30, width=40, probability=1.0):
    """(tall, wide) of what changed in each image; the noise is never the image's grey by less than 1 in 256."""
    images = np.zeros((n, height, width, 3), np.uint8)
    changed = erase(images, generator(), probability).any(-1)
    tall, wide = changed.any(2).sum(1), changed.any(1).sum(1)
    assert (changed.sum((1, 2)) <= tall * wide).all()
    assert changed.sum() > 0.999 * (tall * wide).sum()  # one rectangle, full of noise
    return tall, wide


def test_erasing_takes_a_rectangle_of_2_to_33_percent():
    tall, wide = erased_rectangles()
    area = tall * wide / (30 * 40)
    assert 0.01 < area.min() < 0.03
    assert 0.3 < area.max() < 0.36
    assert abs(np.log(tall / 30) - np.log(wide / 40)).max() < np.log(1 / 0.3) + 0.2


def test_what_is_erased_becomes_noise_of_its_own_in_every_pixel_and_channel():
    noise = erase(np.zeros((1, 30, 40, 3), np.uint8), generator(1), 1.0)
    noise = noise[noise.any(-1)]
    assert len(noise) > 20
    assert len(np.unique(noise, axis=0)) > 0.9 * len(noise)
    assert np.std(noise) > 50
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.5


def test_images_are_erased_as_often_as_asked():
    tall, _ = erased_rectangles(probability=0.25)
    assert abs((tall > 0).mean() - 0.25) < 0.04  # 5 standard deviations


def test_a_rectangle_may_touch_every_border():
    images = np.zeros((2000, 10, 12, 1), np.uint8)
    touched = erase(images, generator(), 1.0)[..., 0].astype(bool)
    edges = touched[:, 0].any(1), touched[:, -1].any(1), touched[:, :, 0].any(1), touched[:, :, -1].any(1)
    assert all(0.05 < edge.mean() < 0.5 for edge in edges)


# mixing


def batch(n=400, classes=10):
    images = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 8, 6, 2)).copy()
    return images, one_hot(np.arange(n) % classes, classes)


def test_mixup_blends_images_and_labels_with_the_same_share():
    images, targets = batch()
    mixed, soft = mixup(images, targets, generator(), 1.0)
    shares = []
    for row, (image, target) in enumerate(zip(mixed, soft, strict=True)):
        value = image[0, 0, 0]
        assert (image == value).all()
        share = target[row % 10]
        if target.max() > 0.999:
            continue  # the other has the same class
        other = int(np.argsort(target)[-2]) if target.argmax() == row % 10 else int(target.argmax())
        partner = (value - share * row) / (1 - share) if share < 0.99 else other
        if share < 0.9:
            assert abs(partner - round(partner)) < 0.02
            assert round(partner) % 10 == other
        shares.append(share)
    assert 0.25 < np.mean(shares) < 0.75
    assert np.std(shares) > 0.2  # every pair has a ratio of its own


def test_cutmix_pastes_a_rectangle_and_mixes_labels_by_its_area():
    images, targets = batch()
    mixed, soft = cutmix(images, targets, generator(), 1.0)
    for row, (image, target) in enumerate(zip(mixed, soft, strict=True)):
        own = (image == row).all(-1)
        pasted = np.unique(image[~own])
        assert len(pasted) <= 1
        expected = own.mean() * targets[row] + (1 - own.mean()) * (targets[int(pasted[0])] if len(pasted) else 0)
        np.testing.assert_allclose(target, expected, atol=1e-6)
        rectangle = (~own).any(1)[:, None] & (~own).any(0)[None]
        assert np.array_equal(rectangle, ~own)


def test_the_area_that_cutmix_pastes_is_uniform_at_an_alpha_of_1():
    images = np.broadcast_to(np.arange(2000, dtype=np.float32)[:, None, None, None], (2000, 40, 60, 1))
    mixed, _ = cutmix(images, one_hot(np.arange(2000) % 10, 10), generator(), 1.0)
    pasted = np.sort((mixed != images).mean((1, 2, 3)))
    np.testing.assert_allclose(pasted, np.linspace(0, 1, 2000), atol=0.06)  # Kolmogorov and Smirnov, far beyond 1 %


@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_mixing_leaves_its_arguments_as_they_were(mixing):
    images, targets = batch()
    before = images.copy(), targets.copy()
    mixing(images, targets, generator(), 1.0)
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(targets, before[1])


@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_a_small_alpha_mostly_keeps_one_of_the_two(mixing):
    images, targets = batch(2000)
    top = {alpha: mixing(images, targets, generator(), alpha)[1].max(1).mean() for alpha in (0.1, 10)}
    assert top[0.1] > 0.9 > top[10]


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_soft_labels_are_distributions_in_the_dtype_of_the_images(mixing, dtype):
    images, _ = batch()
    mixed, soft = Augmentation(**mixing).mix(images.astype(dtype), np.arange(400) % 7, 7, generator())
    assert (mixed.dtype, soft.dtype, soft.shape) == (dtype, dtype, (400, 7))
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    assert (soft >= 0).all()


def test_with_both_each_batch_is_mixed_in_one_of_the_two_ways():
    images, _ = batch()
    mixing = Augmentation(mixup=1.0, cutmix=1.0)
    flat = [
        np.ptp(mixing.mix(images, np.arange(400) % 10, 10, generator(seed))[0], axis=(1, 2, 3)).max() == 0
        for seed in range(40)
    ]
    assert 8 < sum(flat) < 32


def test_without_mixing_labels_stay_integers():
    images, _ = batch()
    labels = np.arange(400) % 10
    mixed, same = Augmentation(flip=True).mix(images, labels, 10, generator())
    assert mixed is images
    assert same is labels


# all of them together


def test_nothing_happens_to_images_unless_said():
    images = pictures()
    assert Augmentation().change(images, generator()) is images


@pytest.mark.parametrize("field", ["distort", "shift", "flip", "rand_augment", "erase", "mixup", "cutmix", "crop"])
def test_every_field_turns_its_own_change_on(field):
    images, labels = pictures(60), np.arange(60) % 5
    value = {"shift": 2, "flip": True, "rand_augment": 9}.get(field, 0.5)
    augmentation, rng = Augmentation(**{field: value}), generator()
    changed = augmentation.change(images, rng)
    mixed, _ = augmentation.mix(changed.astype(np.float32), labels, 5, rng)
    assert not np.array_equal(mixed, images)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("distort", -0.1, "distort is -0.1; expected a number from 0 to 5"),
        ("crop", 0.0, "crop is 0.0; expected a number from 0.01 to 1"),
        ("crop", 1.5, "crop is 1.5; expected a number from 0.01 to 1"),
        ("shift", -1, "shift is -1; expected an integer of at least 0"),
        ("shift", 1.5, "shift is 1.5; expected an integer of at least 0"),
        ("rand_augment", 11, "rand_augment is 11; expected a number from 0 to 10"),
        ("flip", "no", "flip is 'no'; expected True or False"),
        ("erase", 1.1, "erase is 1.1; expected a number from 0 to 1"),
        ("mixup", -1, "mixup is -1; expected a number of at least 0"),
        ("cutmix", float("inf"), "cutmix is inf; expected a number of at least 0"),
        ("cutmix", float("nan"), "cutmix is nan; expected a number of at least 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, expected):
    with pytest.raises(DataError, match=expected):
        Augmentation(**{field: value})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**40))
def test_the_whole_of_it_is_a_function_of_the_generator_alone(seed):
    images, labels = pictures(6), np.arange(6) % 3

    def augmented():
        rng = generator(seed)
        mixed, soft = FULL.mix(FULL.change(images, rng).astype(np.float32), labels, 3, rng)
        return mixed.tobytes(), soft.tobytes()

    assert augmented() == augmented()
