"""predict.py, as a user runs it."""

import importlib.util
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import vitnp
from vitnp.data import load_digits, normalize, read_image

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three digits, one of them on white and as a photograph of another size, and a file that is no image."""
    folder = tmp_path_factory.mktemp("files")
    digits = load_digits(3, seed=5).images[..., 0]
    Image.fromarray(digits[0]).save(folder / "a.png")
    Image.fromarray(digits[1]).save(folder / "longer name.png")
    Image.fromarray(255 - digits[2]).convert("RGB").resize((90, 70)).save(folder / "paper.jpg")
    (folder / "bad.png").write_bytes(b"nonsense")
    return folder


def probabilities(checkpoint, image):
    found = vitnp.load_classifier(checkpoint)
    logits = found.model.forward(normalize(image[None], found.mean, found.std))[0].astype(float)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def answers(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_image_has_a_line_with_its_classes_and_probabilities(run, digits_run, files):
    line = run("predict.py", digits_run[1], "a.png", "--top", 2, cwd=files).stdout
    expected = probabilities(digits_run[1], read_image(files / "a.png", channels=1))
    first, second = np.argsort(-expected)[:2]
    assert line == f"a.png  {first} {100 * expected[first]:5.1f} %   {second} {100 * expected[second]:5.1f} %\n"


def test_lines_are_aligned(run, digits_run, files):
    lines = run("predict.py", digits_run[1], "a.png", "longer name.png", cwd=files).stdout.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith("a.png            ")


def test_json_has_the_same_numbers(run, digits_run, files):
    (answer,) = answers(run("predict.py", digits_run[1], "a.png", "--json", "--top", 10, cwd=files))
    expected = probabilities(digits_run[1], read_image(files / "a.png", channels=1))
    assert answer["image"] == "a.png"
    assert {int(each["class"]): each["probability"] for each in answer["classes"]} == pytest.approx(
        dict(enumerate(expected)), abs=1e-5
    )


def test_a_photograph_goes_to_a_grey_model_of_another_size_and_can_be_inverted(run, digits_run, files):
    (answer,) = answers(run("predict.py", digits_run[1], "paper.jpg", "--invert", "--json", cwd=files))
    expected = probabilities(digits_run[1], 255 - read_image(files / "paper.jpg", size=28, channels=1))
    assert answer["classes"][0]["probability"] == pytest.approx(expected.max(), abs=1e-5)


def test_a_bad_image_is_one_line_and_the_others_go_on(run, digits_run, files):
    result = run("predict.py", digits_run[1], "a.png", "bad.png", "gone.png", "paper.jpg", cwd=files, status=1)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["a.png", "paper.jpg"]
    first, second = result.stderr.splitlines()
    assert first.startswith("error: bad.png: not an image; expected one of")
    assert second.startswith("error: gone.png: cannot be read (No such file or directory)")


def test_images_that_cannot_be_are_one_line_each_and_the_others_go_on(run, digits_run, files, tmp_path):
    chunk = struct.pack(">I", 2**31 - 1) + b"abCd"  # an unknown chunk that claims 2 GB
    whole = (files / "a.png").read_bytes()
    (tmp_path / "claims.png").write_bytes(whole[:33] + chunk + whole[33:])
    (tmp_path / "folder.png").mkdir()
    given = [tmp_path / "claims.png", tmp_path / "folder.png", "a.png"]
    result = run("predict.py", digits_run[1], *given, cwd=files, status=1)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["a.png"]
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [f" {path}" for path in given[:2]]


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot be there")
@pytest.mark.parametrize("options", [[], ["--json"], ["--picture", "p.png"]], ids=["lines", "json", "picture"])
def test_every_name_of_a_file_can_be_told_on_any_terminal(run, digits_run, files, tmp_path, monkeypatch, options):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    names = [os.fsdecode(b"\xff\n.png"), "ö.png"]
    for name in names:
        shutil.copy(files / "a.png", tmp_path / name)
    lines = run("predict.py", digits_run[1], *names, *options, cwd=tmp_path).stdout.splitlines()
    if options == ["--json"]:
        assert [json.loads(line)["image"] for line in lines] == names
    else:
        assert [line.split()[0] for line in lines] == [r"\udcff\n.png", r"\xf6.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is where even root cannot write")
def test_a_place_where_no_picture_can_be_is_told_before_the_work(run, digits_run, files):
    failed = run("predict.py", digits_run[1], "a.png", "--picture", "/proc/p.png", cwd=files, status=1)
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: /proc/p.png: cannot be written (No such file or directory); expected a")


def test_nothing_but_bad_images_is_an_error_and_no_picture(run, digits_run, files, tmp_path):
    picture = tmp_path / "p.png"
    result = run("predict.py", digits_run[1], "bad.png", "--picture", picture, cwd=files, status=1)
    assert result.stdout == ""
    assert not picture.exists()


def test_many_images_are_all_answered_in_order(run, digits_run, files):
    given = ["a.png", "longer name.png", "paper.jpg"] * 30
    result = run("predict.py", digits_run[1], *given, "--json", cwd=files)
    assert [answer["image"] for answer in answers(result)] == given


def test_a_picture_is_drawn_and_is_wider_with_attention(run, digits_run, files, tmp_path):
    sizes = []
    for name, options in (("p.png", []), ("q.png", ["--attention"])):
        run("predict.py", digits_run[1], "a.png", "--picture", tmp_path / name, *options, cwd=files)
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > sizes[0][0] > 300
    assert sizes[1][1] == sizes[0][1]


def test_a_picture_is_not_written_over_the_images(run, digits_run, files):
    before = (files / "a.png").read_bytes()
    failed = run("predict.py", digits_run[1], "longer name.png", "--picture", "a.png", cwd=files, status=1)
    assert failed.stderr == "error: a.png: exists already; expected a new file: choose another name or remove it\n"
    assert (failed.stdout, (files / "a.png").read_bytes()) == ("", before)


def test_a_colour_model_names_its_folders(run, folder_run, photographs, tmp_path):
    image = next((photographs / "one").iterdir())
    (answer,) = answers(run("predict.py", folder_run[1], image, "--json", cwd=tmp_path))
    assert {each["class"] for each in answer["classes"]} == {"nought", "one", "two"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", 0], "--top is 0; it must be at least 1"),
        (["--attention"], "--attention is drawn in the picture: name one with --picture"),
        (["--picture", "p.jpg"], "p.jpg: pictures are written as PNG; expected a name that ends in .png"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(run, digits_run, files, options, message):
    failed = run("predict.py", digits_run[1], "a.png", *options, cwd=files, status=1)
    assert (failed.stdout, failed.stderr) == ("", f"error: {message}\n")


def test_a_missing_checkpoint_is_one_line_and_a_traceback_on_demand(run, files):
    assert run("predict.py", "no", "a.png", cwd=files, status=1).stderr == "error: no: there is no such checkpoint\n"
    assert "Traceback" in run("predict.py", "no", "a.png", "--debug", cwd=files, status=1).stderr


# -- published models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model in the original's layout, in timm's without what vitnp notes in it, and its labels."""
    folder = tmp_path_factory.mktemp("published")
    model = vitnp.VisionTransformer(vitnp.ViTConfig(image_size=12, patch_size=4, channels=3, num_classes=3), rng=0)
    model.classifier.head.weight[...] = np.random.default_rng(0).standard_normal((64, 3))
    vitnp.save_pretrained(model, folder / "vit.npz", "google")
    vitnp.save_pretrained(model, folder / "vit.safetensors", "timm")
    save_file(load_file(folder / "vit.safetensors"), folder / "bare.safetensors")
    (folder / "labels.txt").write_text("cat\ndog\nowl\n")
    return folder, model


def expected_of(model, image, mean, std):
    return vitnp.predict(model, image[None], mean=mean, std=std)[0]


def test_a_published_model_answers_with_the_labels_of_the_file(run, published, files):
    folder, model = published
    result = run("predict.py", "--pretrained", folder / "vit.npz", "--labels", folder / "labels.txt", "--json",
                 "paper.jpg", cwd=files)  # fmt: skip
    (answer,) = answers(result)
    expected = expected_of(model, read_image(files / "paper.jpg", size=12, channels=3), [0.5] * 3, [0.5] * 3)
    truth = dict(zip(("cat", "dog", "owl"), expected, strict=True))
    assert {each["class"]: each["probability"] for each in answer["classes"]} == pytest.approx(truth, abs=1e-6)
    assert result.stderr == "--mean and --std are 0.5 where they are not told, as in the original\n"


def test_heads_mean_and_std_can_be_told(run, published, files):
    folder, model = published
    told = ["--num-heads", 4, "--mean", "0.1,0.2,0.3", "--std", "1,2,3", "--json"]
    result = run("predict.py", "--pretrained", folder / "bare.safetensors", *told, "paper.jpg", cwd=files)
    (answer,), image = answers(result), read_image(files / "paper.jpg", size=12, channels=3)
    changed = vitnp.load_pretrained(folder / "bare.safetensors", num_heads=4)
    expected = expected_of(changed, image, [0.1, 0.2, 0.3], [1, 2, 3])
    assert {int(each["class"]): each["probability"] for each in answer["classes"]} == pytest.approx(
        dict(enumerate(expected)), abs=1e-6
    )
    assert np.abs(expected - expected_of(model, image, [0.5] * 3, [0.5] * 3)).max() > 1e-4
    assert result.stderr == ""


def test_grid_gelu_and_epsilon_can_be_told(run, files, tmp_path):
    config = vitnp.ViTConfig(
        image_size=(8, 12), patch_size=4, channels=3, num_classes=3, dim=8, num_heads=2, gelu="erf", layer_norm_eps=0.1
    )
    model = vitnp.VisionTransformer(config, rng=0, dtype="float32")
    model.flat[...] = np.random.default_rng(0).standard_normal(model.flat.shape)
    vitnp.save_pretrained(model, tmp_path / "noted.npz", "google")
    with np.load(tmp_path / "noted.npz") as arrays:
        np.savez(tmp_path / "vit.npz", **arrays)
    told = ["--grid", "2x3", "--gelu", "erf", "--layer-norm-eps", 0.1, "--pool", "token", "--json"]
    result = run("predict.py", "--pretrained", tmp_path / "vit.npz", *told, "paper.jpg", cwd=files)
    (answer,), image = answers(result), read_image(files / "paper.jpg", size=(8, 12), channels=3)
    assert {int(each["class"]): each["probability"] for each in answer["classes"]} == pytest.approx(
        dict(enumerate(expected_of(model, image, [0.5] * 3, [0.5] * 3))), abs=1e-6
    )
    result = run("predict.py", "--pretrained", "x.npz", "--grid", "2x3x4", "a.png", cwd=files, status=2)
    assert "argument --grid: invalid grid value: '2x3x4'" in result.stderr


def test_a_folder_of_transformers_tells_mean_and_std(run, published, files, tmp_path):
    _, model = published
    vitnp.save_pretrained(model, tmp_path / "m", "huggingface")
    scale = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(scale))
    result = run("predict.py", "--pretrained", tmp_path / "m", "--json", "paper.jpg", cwd=files)
    (answer,), image = answers(result), read_image(files / "paper.jpg", size=12, channels=3)
    assert {int(each["class"]): each["probability"] for each in answer["classes"]} == pytest.approx(
        dict(enumerate(expected_of(model, image, [0.1, 0.2, 0.3], [1, 2, 3]))), abs=1e-6
    )
    assert result.stderr == ""


def test_a_folder_of_transformers_tells_the_names_of_the_classes_unless_labels_do(run, published, files, tmp_path):
    folder, model = published
    vitnp.save_pretrained(model, tmp_path / "m", "huggingface")
    given = ["--pretrained", tmp_path / "m", "--json", "paper.jpg"]

    def names(*options):
        (answer,) = answers(run("predict.py", *given, *options, cwd=files))
        return {each["class"] for each in answer["classes"]}

    assert names() == {"0", "1", "2"}  # LABEL_0 is none
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text()) | {"id2label": {"0": "cow", "1": "bat\n", "2": "ape"}}
    path.write_text(json.dumps(config))
    assert names() == {"cow", "bat\\n", "ape"}
    assert names("--labels", folder / "labels.txt") == {"cat", "dog", "owl"}
    path.write_text(json.dumps(config | {"id2label": {"0": "cow", "1": "bat"}}))
    assert names() == {"0", "1", "2"}


def test_what_a_published_model_lacks_is_one_line(run, published, files, tmp_path):
    folder, _ = published
    result = run("predict.py", "--pretrained", folder / "bare.safetensors", "a.png", cwd=files, status=1)
    assert result.stderr.startswith(f"error: {folder / 'bare.safetensors'}: the file does not tell the number of heads")
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    given = ["--pretrained", folder / "vit.npz", "--labels", tmp_path / "two.txt"]
    result = run("predict.py", *given, "a.png", cwd=files, status=1)
    assert result.stderr == f"error: {tmp_path / 'two.txt'}: 2 lines; expected 3, a name for each class of the model\n"


# -- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("predict", SCRIPTS / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("content", ["käse\nowl\n", "\ufeffkäse\nowl", "käse\r\nowl\r\n\r\n \n"], ids=ascii)
def test_marks_and_blank_lines_at_the_end_of_labels_are_no_names(script, content, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content.encode())
    assert script.read_labels(tmp_path / "labels.txt", 2) == ["käse", "owl"]


def test_labels_that_are_not_utf_8_are_told_by_their_file(script, tmp_path):
    (tmp_path / "labels.txt").write_bytes("käse\nowl\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt: no text in UTF-8 \(invalid .* at byte 1\): save it as that"):
        script.read_labels(tmp_path / "labels.txt", 2)
    (tmp_path / "labels.txt").write_text("cat\n\nowl\n")
    with pytest.raises(ValueError, match=r"labels\.txt: 3 lines; expected 2, a name for each class of the model"):
        script.read_labels(tmp_path / "labels.txt", 2)


def test_options_of_a_published_model_do_not_go_with_a_checkpoint(run, digits_run, files):
    result = run("predict.py", digits_run[1], "a.png", "--num-heads", 4, cwd=files, status=2)
    assert "--num-heads goes with --pretrained: a checkpoint tells it itself" in result.stderr
    result = run("predict.py", digits_run[1], cwd=files, status=2)
    assert "no image: name one or more after the checkpoint" in result.stderr
