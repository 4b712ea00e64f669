"""finetune.py, from a model that has learned already to one that has learned another thing."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import vitnp

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "finetune.py"
OPTIONS = ["--epochs", 2, "--batch-size", 16, "--held-out", 6, "--lr", 0.1, "--shards", 1, "--warmup-epochs", 0.5]
LEARNED = ["--pretrained", "HERE", "--dataset", "mnist"]
CHECKPOINT = Path("runs", "finetune", "checkpoint.safetensors")


def last_line(output):
    return output.splitlines()[-1].split("(")[0]


@pytest.fixture(scope="module")
def pretrained(digits_run):
    return digits_run[1]


@pytest.fixture(scope="module")
def finetuned(run, pretrained, photographs, tmp_path_factory):
    """What a run at a higher resolution with an average printed, and the folder where it ran."""
    cwd = tmp_path_factory.mktemp("finetuned")
    more = ["--image-size", "35x28", "--ema", 0.8, "--save-every", 0]
    return run("finetune.py", "--pretrained", pretrained, "--data", photographs, *OPTIONS, *more, cwd=cwd).stdout, cwd


def test_the_network_is_the_learned_one_with_more_patches_and_the_new_classes(finetuned, pretrained):
    output, cwd = finetuned
    assert re.match(r"test accuracy \d+\.\d\d % +$", last_line(output))
    found, start = vitnp.load_classifier(cwd / CHECKPOINT), vitnp.load_classifier(pretrained)
    assert found.class_names == ("nought", "one", "two")
    assert (found.mean, found.std) == (start.mean, start.std)
    assert (found.model.config.grid, found.model.config.channels, found.model.config.dim) == ((5, 4), 1, 16)
    assert type(vitnp.load_checkpoint(cwd / CHECKPOINT).optimizer) is vitnp.SGD


def test_a_run_that_goes_on_from_its_last_but_one_step_ends_with_the_same_bits(run, finetuned, photographs, tmp_path):
    before = finetuned[1] / CHECKPOINT
    shutil.copy(before.with_name("checkpoint.previous.safetensors"), tmp_path / "checkpoint.safetensors")
    again = run("finetune.py", "--resume", "checkpoint.safetensors", "--data", photographs, cwd=tmp_path)
    assert last_line(again.stdout) == last_line(finetuned[0])
    a, b = load_file(before), load_file(tmp_path / "checkpoint.safetensors")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_evaluate_finds_the_test_images_and_comes_to_the_same_accuracy(run, finetuned, photographs):
    output = run("evaluate.py", finetuned[1] / CHECKPOINT, "--data", photographs, cwd=finetuned[1]).stdout
    assert last_line(output) == last_line(finetuned[0])


def test_a_frozen_published_model_keeps_its_bits_but_for_the_head(run, pretrained, photographs, tmp_path):
    start = vitnp.load_checkpoint(pretrained).model
    vitnp.save_pretrained(start, tmp_path / "vit.safetensors", layout="timm")
    options = ["--data", photographs, *OPTIONS, "--freeze", "--mean", "0.2", "--num-heads", 4]
    run("finetune.py", "--pretrained", "vit.safetensors", *options, cwd=tmp_path)
    found = vitnp.load_classifier(tmp_path / CHECKPOINT)
    assert (found.mean, found.std) == ((0.2,), (0.5,))
    learned = start.parameters()
    changed = {name for name, p in found.model.parameters().items() if not np.array_equal(p, learned[name])}
    assert changed == {"head.weight", "head.bias"}


# -- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("finetune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(script, *options):
    args = script.make_parser().parse_args([str(option) for option in options])
    return args, script.make_model(args)


def test_from_scratch_it_is_the_same_network_and_scale_with_random_weights(script, pretrained):
    options = ["--pretrained", pretrained, "--dataset", "mnist", "--image-size", 56]
    (args, learned), (others, scratch) = made(script, *options), made(script, *options, "--scratch", "--seed", 3)
    assert scratch.config == learned.config
    assert (args.mean, args.std, args.held_out) == (others.mean, others.std, 1000)
    random = vitnp.VisionTransformer(learned.config, rng=3)
    assert np.array_equal(scratch.flat, random.flat)
    assert not np.array_equal(learned.flat, random.flat)


@pytest.mark.parametrize(("option", "setting", "grid"), [("14x21", [14, 21], (2, 3)), ("35", 35, (5, 5))])
def test_an_image_size_is_a_number_or_height_and_width(script, pretrained, option, setting, grid):
    args, model = made(script, "--pretrained", pretrained, "--dataset", "mnist", "--image-size", option)
    assert args.image_size == setting
    assert model.config.grid == grid


def test_an_image_size_of_three_sides_is_none(script, capsys):
    with pytest.raises(SystemExit):
        script.make_parser().parse_args(["--image-size", "14x21x3"])
    assert "argument --image-size: invalid size value: '14x21x3'" in capsys.readouterr().err


def test_grid_gelu_and_epsilon_of_a_published_model_can_be_told(script, tmp_path):
    config = vitnp.ViTConfig(image_size=(8, 12), patch_size=4, dim=8, depth=1, num_heads=2)
    vitnp.save_pretrained(vitnp.VisionTransformer(config, rng=0), tmp_path / "noted.npz", "google")
    with np.load(tmp_path / "noted.npz") as arrays:
        np.savez(tmp_path / "vit.npz", **arrays)
    told = ["--grid", "2x3", "--gelu", "erf", "--layer-norm-eps", 0.1]
    args, model = made(script, "--pretrained", tmp_path / "vit.npz", "--dataset", "mnist", *told)
    assert (model.config.grid, model.config.gelu, model.config.layer_norm_eps) == ((2, 3), "erf", 0.1)
    assert args.grid == [2, 3]


def test_the_recipe_is_the_paper_s(script):
    args = script.make_parser().parse_args([])
    assert (args.optimizer, args.weight_decay, args.clip_norm, args.decay) == ("sgd", 0.0, 1.0, "cosine")
    assert (args.batch_size, args.lr, args.resize) == (512, 0.03, "align-corners")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--pretrained is missing: name a published model, or a checkpoint"),
        (["--pretrained", "x", "--freeze", "--scratch"], "--freeze with --scratch"),
        (["--pretrained", "x", "--freeze", "--weight-decay", "0.1"], "--weight-decay is 0.1, but would move what"),
        (["--pretrained", "x"], "--data is missing: name the folder of images, or a data set with --dataset"),
        (["--pretrained", "x", "--dataset", "mnist"], "x: there is no such file"),
        (["--pretrained", "HERE", "--dataset", "mnist", "--image-size", "30"], "image height 30 is not divisible"),
        ([*LEARNED, "--shift", "28"], "--shift is 28; expected an integer from 0 to 27"),
        ([*LEARNED, "--held-out", "60000"], "--held-out is 60000; expected an integer from 1 to 59999"),
        ([*LEARNED, "--mean", "0.5,0.5,0.5"], "--mean is 0.5,0.5,0.5; expected 1 finite numbers, one a channel"),
        ([*LEARNED, "--mean", "nan"], "--mean is nan; expected 1 finite"),
        ([*LEARNED, "--std", "0"], "--std is 0.0; expected 1 finite numbers, one a channel, above 0"),
        (["--pretrained", "HERE", "--dataset", "mnist", "--image-size", "0"], "image_size is .*0"),
        (["--pretrained", "HERE", "--dataset", "mnist", "--num-heads", "2"], "--num-heads is 2, which a checkpoint"),
        (
            ["--pretrained", "x", "--dataset", "mnist", "--test-data", "y"],
            "--test-data is .*y, but mnist has a test set",
        ),
        (
            ["--pretrained", "x", "--dataset", "mnist", "--test-share", "0.9"],
            "--test-share is 0.9, but mnist has a test",
        ),
    ],
)
def test_a_mistake_is_told_before_any_image_is_loaded(script, pretrained, options, message):
    options = [pretrained if option == "HERE" else option for option in options]
    with pytest.raises((ValueError, OSError), match=message):
        made(script, *options)
