"""The scripts, run as a user runs them: in a process of their own, small enough to end within seconds."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
SMALL = ["--images", "400", "--held-out", "100", "--epochs", "2", "--dim", "16", "--depth", "1", "--mlp-dim", "16"]
SMALL += ["--dropout", "0.1", "--batch-size", "64", "--shards", "2", "--distort", "0.5", "--mixup", "0.4"]
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(SCRIPTS.parent)}


def run(script, *options, cwd, status=0):
    result = subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, options)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished small run: its output and its folder."""
    cwd = tmp_path_factory.mktemp("finished")
    return run("train_digits.py", *SMALL, cwd=cwd), cwd / "runs" / "digits"


def test_last_line_is_the_test_accuracy(finished):
    last = finished[0].stdout.splitlines()[-1]
    assert re.match(r"test accuracy \d+\.\d\d %  \(2000 images; \d+\.\d s in all\)$", last)


def test_printed_accuracy_is_that_of_the_saved_weights(finished):
    import vitnp
    from vitnp.data import load_digits, normalize

    output, folder = finished
    loaded = vitnp.load_checkpoint(folder / "checkpoint.safetensors")
    test = load_digits(2000, seed=1_000_000)
    logits = loaded.model.forward(normalize(test.images, loaded.progress["mean"], loaded.progress["std"]))
    accuracy = 100 * (logits.argmax(-1) == test.labels).mean()
    assert f"test accuracy {accuracy:.2f} %" in output.stdout


def test_one_table_row_an_epoch(finished):
    rows = [line for line in finished[0].stdout.splitlines() if re.match(r" +\d+ +\d\.\d{4} ", line)]
    assert [row.split()[0] for row in rows] == ["1", "2"]


def test_a_pipe_gets_no_progress_bar(finished):
    assert finished[0].stderr == ""


def test_metrics_hold_one_line_a_step_and_the_epochs(finished):
    lines = metrics(finished[1])
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, 15))
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2]
    assert "test_accuracy" in lines[-1]


def test_attention_is_pictured(finished):
    assert size_of(finished[1] / "attention.png")[0] > 500


def test_curves_are_pictured_where_matplotlib_is(finished):
    pytest.importorskip("matplotlib", reason="curves.png needs the extra `plots`")
    assert size_of(finished[1] / "curves.png") == (1200, 480)


def test_a_second_run_leaves_the_first_as_it_is(finished):
    _, folder = finished
    before = (folder / "checkpoint.safetensors").read_bytes()
    second = run("train_digits.py", *SMALL, "--epochs", 1, cwd=folder.parent.parent)
    assert "results in runs/digits-2" in second.stdout
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_the_same_command_gives_the_same_bits(finished, tmp_path):
    run("train_digits.py", *SMALL, cwd=tmp_path)
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (finished[1], tmp_path / "runs" / "digits"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_resume_and_resumes_to_the_same_bits(finished, tmp_path, number, status):
    command = [sys.executable, str(SCRIPTS / "train_digits.py"), *SMALL]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "digits"
    deadline = time.monotonic() + 60
    while not ((folder / "metrics.jsonl").exists() and len(metrics_so_far(folder)) > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == status
    resume = shlex.split(re.search(r"resume with: (.+)", output)[1])
    subprocess.run(resume, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    a, b = (load_file(f / "checkpoint.safetensors") for f in (finished[1], folder))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert metrics(folder) == metrics(finished[1])


def metrics_so_far(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_resuming_with_another_setting_is_refused(finished):
    path = finished[1] / "checkpoint.safetensors"
    failed = run("train_digits.py", "--resume", path, "--lr", "0.5", cwd=finished[1], status=1)
    assert failed.stderr == "error: --lr is 0.5, but the run to resume has 0.002: leave it out\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "5"], "dim 64 is not divisible by num_heads 5"),
        (["--patch-size", "5"], "image height 28 is not divisible by patch height 5: use an image of 25 or 30"),
        (["--lr", "-1"], "--lr is -1.0; it must be above 0"),
        (["--lr", "inf"], "--lr is inf; it must be above 0, and finite"),
        (["--out", __file__], f"--out is {__file__}, which is a file; it must be a folder, or one that can be made"),
        (["--epochs", "0"], "--epochs is 0; it must be 1 or more, and finite"),
        (["--dropout", "1"], "dropout is 1.0; it must be at least 0 and below 1"),
        (["--resume", "no/such/file"], "no/such/file: there is no such checkpoint"),
        (["--batch-size", "0"], "--batch-size is 0; it must be 1 or more, and finite"),
        (["--warmup-epochs", "nan"], "--warmup-epochs is nan; it must be 0 or more, and finite"),
        (["--label-smoothing", "1"], "--label-smoothing is 1.0; it must be below 1"),
        (["--crop", "2"], "crop is 2.0; expected a number from 0.01 to 1"),
        (["--clip-norm", "0"], "--clip-norm is 0.0; it must be above 0"),
        (["--save-every", "-1"], "--save-every is -1.0; it must be 0 or more, and finite"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(tmp_path, options, message):
    failed = run("train_digits.py", "--images", 200, "--held-out", 10, *options, cwd=tmp_path, status=1)
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("script", "most"), [("train_mnist.py", 59_999), ("train_cifar.py", 49_999)])
def test_too_many_validation_images_are_refused_before_any_is_looked_for(tmp_path, script, most):
    failed = run(script, "--held-out", most + 1, "--data", "nowhere", "--no-download", cwd=tmp_path, status=1)
    assert failed.stderr == f"error: --held-out is {most + 1}; expected an integer from 1 to {most}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_on_a_full_disk_ends_no_run_and_is_missed_at_the_end(finished, tmp_path):
    command = [sys.executable, str(SCRIPTS / "train_digits.py"), *SMALL]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1
    assert process.stderr == "error: not everything could be printed (No space left on device): make room\n"
    assert metrics(tmp_path / "runs" / "digits") == metrics(finished[1])


def test_the_default_of_a_setting_is_refused_too_where_the_run_has_another(finished):
    path = finished[1] / "checkpoint.safetensors"
    failed = run("train_digits.py", "--resume", path, "--epochs", "5", cwd=finished[1], status=1)
    assert failed.stderr == "error: --epochs is 5, but the run to resume has 2: leave it out\n"


def test_a_copy_of_a_checkpoint_does_not_go_on_in_the_folder_of_the_run(finished):
    copy = finished[1] / "kept.safetensors"
    shutil.copy(finished[1] / "checkpoint.safetensors", copy)
    before = {path: path.read_bytes() for path in finished[1].iterdir()}
    failed = run("train_digits.py", "--resume", copy, cwd=finished[1], status=1)
    copy.unlink()
    assert "put it into another folder, under that name" in failed.stderr
    assert all(path.read_bytes() == content for path, content in before.items() if path != copy)


def changed_copy(folder, to, **changes):
    """A copy of a run's checkpoint, alone in a folder, that says other things of its run."""
    import vitnp

    loaded = vitnp.load_checkpoint(folder / "checkpoint.safetensors")
    progress = {**loaded.progress, **changes}
    progress = {name: value for name, value in progress.items() if value is not None}
    vitnp.save_checkpoint(to / "checkpoint.safetensors", loaded.model, loaded.optimizer, progress)


@pytest.mark.parametrize("part", ["training", "test"])
def test_a_run_is_not_resumed_on_other_images(finished, tmp_path, part):
    import vitnp

    data = vitnp.load_checkpoint(finished[1] / "checkpoint.safetensors").progress["data"]
    changed_copy(finished[1], tmp_path, data={**data, part: "other"})
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    failed = run("train_digits.py", "--resume", "checkpoint.safetensors", cwd=tmp_path, status=1)
    expected = f"a run on other images: the {part} set has SHA-256 {data[part]}, expected other"
    assert failed.stderr.startswith(f"error: checkpoint.safetensors: {expected}")
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("missing", ["script", "settings", "seen", "images", "seconds", "data", "best", "metrics"])
def test_a_checkpoint_that_lacks_a_part_of_its_run_is_not_resumed(finished, tmp_path, missing):
    changed_copy(finished[1], tmp_path, **{missing: None})
    failed = run("train_digits.py", "--resume", "checkpoint.safetensors", cwd=tmp_path, status=1)
    assert failed.stderr == "error: checkpoint.safetensors: holds a model, but no run that could be resumed\n"


def test_another_scripts_run_is_not_resumed(finished):
    path = finished[1] / "checkpoint.safetensors"
    failed = run("train_mnist.py", "--resume", path, cwd=finished[1], status=1)
    assert "a run of train_digits.py, which alone can resume it" in failed.stderr


def test_a_model_without_a_run_is_not_resumed(tmp_path):
    import vitnp

    vitnp.save_checkpoint(tmp_path / "m", vitnp.VisionTransformer(vitnp.ViTConfig(depth=1)))
    failed = run("train_digits.py", "--resume", "m", cwd=tmp_path, status=1)
    assert failed.stderr == "error: m: holds a model, but no run that could be resumed\n"


def test_a_cut_last_line_of_the_metrics_is_dropped_on_resuming(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    run("train_digits.py", "--resume", folder / "checkpoint.safetensors", cwd=tmp_path)
    assert metrics(folder) == metrics(finished[1])


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path):
    command = shlex.join([sys.executable, str(SCRIPTS / "train_digits.py"), *SMALL])
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (141, "")


def test_a_run_that_diverges_says_at_which_step(tmp_path):
    failed = run("train_digits.py", *SMALL, "--lr", "1e30", cwd=tmp_path, status=1)
    assert re.match(r"error: step \d: .+\n$", failed.stderr)


def test_micro_batches_train_alike_to_rounding(tmp_path):
    short = [*SMALL, "--epochs", 1, "--images", 400, "--held-out", 50]
    losses = []
    for options in ([], ["--micro-batch", 9]):
        run("train_digits.py", *short, *options, "--out", "run", cwd=tmp_path)
        losses.append([line["loss"] for line in metrics(tmp_path / "run") if "lr" in line])
        shutil.rmtree(tmp_path / "run")
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_without_clipping_is_saved_and_resumed(tmp_path):
    run("train_digits.py", *SMALL, "--epochs", 1, "--clip-norm", "inf", "--out", "run", cwd=tmp_path)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    run("train_digits.py", "--resume", checkpoint, "--clip-norm", "inf", cwd=tmp_path)
    refused = run("train_digits.py", "--resume", checkpoint, "--clip-norm", "2", cwd=tmp_path, status=1)
    assert "--clip-norm is 2.0, but the run to resume has inf" in refused.stderr
    assert "invalid norm value: 'x'" in run("train_digits.py", "--clip-norm", "x", cwd=tmp_path, status=2).stderr


def test_one_epoch_is_enough_for_a_warm_up(tmp_path):
    run("train_digits.py", *SMALL, "--epochs", 1, "--warmup-epochs", 1, cwd=tmp_path)


def test_a_traceback_is_shown_on_demand(tmp_path):
    assert "Traceback" in run("train_digits.py", "--heads", "5", "--debug", cwd=tmp_path, status=1).stderr


@pytest.mark.parametrize(
    "script", ["train_digits.py", "train_mnist.py", "train_cifar.py", "train_folder.py", "evaluate.py", "gradcheck.py"]
)
def test_help_tells_every_option_with_its_default(tmp_path, script):
    text = run(script, "--help", cwd=tmp_path).stdout
    options = re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
    assert len(options) > 4
    assert "None" not in " ".join(text.split()).replace("(default: None)", "")


@pytest.mark.parametrize("script", ["train_digits.py", "gradcheck.py"])
def test_cuda_without_a_gpu_is_one_line_that_says_what_to_install(tmp_path, script):
    try:
        import cupy
    except ImportError:
        pass
    else:
        if cupy.cuda.is_available():
            pytest.skip("this machine has a GPU")
    failed = run(script, "--device", "cuda", cwd=tmp_path, status=1)
    assert failed.stderr.count("\n") == 1
    assert "install" in failed.stderr
