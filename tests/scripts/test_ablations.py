"""ablations.py: every variant changes one thing and trains once, even if stopped; the table says what was found."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

import vitnp
from vitnp.data import load_digits

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        module = importlib.import_module("ablations")
        module.really_draw = module.draw
        yield module
    finally:
        sys.path.remove(str(SCRIPTS))
        sys.modules.pop("ablations", None)


@pytest.fixture(autouse=True)
def small(script, monkeypatch):
    """Digits, but few of them, and a network that trains in no time."""
    network = vitnp.ViTConfig(**{**script.GREY, "dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32})
    recipe = {**script.RECIPE, "batch_size": 40, "epochs": 2, "lr": 3e-3, "shift": 1, "held_out": 20}
    sizes = {"patch": (7, 14), "depth": (1, 2), "width": (16, 32)}
    sets = load_digits(140, seed=0), load_digits(50, seed=1)
    monkeypatch.setitem(script.BENCHES, "digits", script.Bench(lambda args: sets, network, recipe, sizes))
    monkeypatch.setattr(script.train, "_draw_curves", lambda folder: None)  # which takes longer than training
    monkeypatch.setattr(script, "draw", lambda rows, path, dataset: path.write_text(f"{len(rows)} rows of {dataset}"))


def ablate(script, out, *options):
    """Run the command in this process: -> its exit status."""
    args = script.make_parser().parse_args(["digits", "--out", str(out), "--shards", "1", *map(str, options)])
    return script.report_errors(lambda: script.run(args), debug=False)


def accuracies(out):
    rows = json.loads((out / "ablations.json").read_text())["rows"]
    return {(row["ablation"], row["value"]): row["test_accuracies"] for row in rows}


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The folder of three ablations with two seeds, made once: filled by the first test that wants it."""
    return tmp_path_factory.mktemp("ablations") / "all"


@pytest.fixture
def out(script, finished):
    if not (finished / "ablations.json").exists():
        assert ablate(script, finished, "--only", "pooling,depth,patch", "--seeds", 2) == 0
    return finished


def test_every_value_has_a_line_and_the_base_is_trained_once(out):
    rows = json.loads((out / "ablations.json").read_text())["rows"]
    found = [(row["ablation"], row["value"], row["base"]) for row in rows]
    assert found == [
        ("pooling", "token", True),
        ("pooling", "mean", False),
        ("patch", "7", True),
        ("patch", "14", False),
        ("depth", "1", False),
        ("depth", "2", True),
    ]
    runs = {str(path.relative_to(out).parent) for path in out.rglob("result.json")}
    names = ("base", "pooling-mean", "depth-1", "patch-14")
    assert runs == {f"{name}/seed-{seed}" for name in names for seed in (0, 1)}


def test_an_accuracy_is_that_of_the_final_weights_on_the_test_images(out):
    for name, key in (("patch-14", ("patch", "14")), ("base", ("depth", "2"))):
        for seed in (0, 1):
            trained = vitnp.load_classifier(out / name / f"seed-{seed}" / "checkpoint.safetensors")
            test = load_digits(50, seed=1)
            found = vitnp.evaluate(trained.model, test.images, test.labels, mean=trained.mean, std=trained.std)
            assert accuracies(out)[key][seed] == found.accuracy


def test_costs_are_those_of_the_summary_and_the_spread_is_that_of_the_seeds(out, script):
    for row in json.loads((out / "ablations.json").read_text())["rows"]:
        (variant,) = (v for v in _variants(script) if (v.ablation, v.value) == (row["ablation"], row["value"]))
        costs = vitnp.summary(variant.config)
        assert (row["parameters"], row["flops"]) == (costs.parameters, costs.flops)
        a, b = row["test_accuracies"]
        assert row["mean"] == pytest.approx((a + b) / 2)
        assert row["deviation"] == pytest.approx(abs(a - b) / 2**0.5)
        assert row["images_per_s"] > 0


def test_the_picture_is_of_all_lines(out):
    assert (out / "ablations.png").read_text() == "6 rows of digits"


def _variants(script, only=None, dataset="digits"):
    options = [dataset, *(["--only", only] if only else [])]
    return script.choose(script.make_parser().parse_args(options))[1]


def test_the_table_is_markdown_whose_lines_are_equally_long(out):
    lines = (out / "ablations.md").read_text().splitlines()
    assert len(lines) == 2 + 6
    assert len({len(line) for line in lines}) == 1
    assert all(line.count("|") == 8 for line in lines)
    assert re.match(r"\| pooling  \| token \(base\) +\| +\d+\.\d\d ± \d+\.\d\d \| +2 \| +\d,\d{3} \|", lines[2])


def test_what_is_finished_is_not_trained_again(out, script, monkeypatch):
    before = (out / "ablations.json").read_bytes()
    monkeypatch.setattr(script, "Run", None)
    assert ablate(script, out, "--only", "pooling,depth,patch", "--seeds", 2) == 0
    assert (out / "ablations.json").read_bytes() == before


def test_the_tables_have_all_that_is_finished_whatever_is_asked_for(out, script, monkeypatch):
    monkeypatch.setattr(script, "Run", None)
    names = "ablations.json", "ablations.md", "ablations.png"
    before = [(out / name).read_bytes() for name in names]
    assert ablate(script, out, "--only", "depth", "--seeds", 1) == 0
    assert [(out / name).read_bytes() for name in names] == before


def test_seeds_are_in_their_order_and_those_that_are_not_asked_for_are_there_too(out, script, monkeypatch, tmp_path):
    shutil.copytree(out, tmp_path / "copy")
    first, other = (tmp_path / "copy" / "depth-1" / f"seed-{seed}" / "result.json" for seed in (0, 10))
    result = script.read_sealed(first, "")
    other.parent.mkdir()
    script.write_sealed(other, {**result, "seed": 10, "test_accuracy": 0.125})
    monkeypatch.setattr(script, "Run", None)
    assert ablate(script, tmp_path / "copy", "--only", "pooling", "--seeds", 1) == 0
    found, before = accuracies(tmp_path / "copy"), accuracies(out)
    assert found.pop(("depth", "1")) == [*before.pop(("depth", "1")), 0.125]
    assert found == before


class _Killed(BaseException):
    pass


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_numbers(out, script, monkeypatch, tmp_path):
    steps, original = [], script.Run._one_step

    def die(self, images, labels):
        if len(steps) == 8:  # the second step of the second network's second epoch
            raise _Killed
        steps.append(self.folder)
        original(self, images, labels)

    options = ["--only", "pooling", "--seeds", 1, "--save-every", 0]
    monkeypatch.setattr(script.Run, "_one_step", die)
    with pytest.raises(_Killed):
        ablate(script, tmp_path, *options)
    monkeypatch.setattr(script.Run, "_one_step", lambda *a: (steps.append("again"), original(*a)))
    assert not (tmp_path / "pooling-mean" / "seed-0" / "result.json").exists()
    assert ablate(script, tmp_path, *options) == 0
    assert steps.count("again") == 2 * 6 - 8
    assert accuracies(tmp_path) == {key: values[:1] for key, values in accuracies(out).items() if key[0] == "pooling"}
    killed, whole = (folder / "pooling-mean" / "seed-0" / "best.safetensors" for folder in (tmp_path, out))
    assert vitnp.load_checkpoint(killed).model.flat.tobytes() == vitnp.load_checkpoint(whole).model.flat.tobytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_and_says_that_the_same_command_goes_on(
    script, monkeypatch, tmp_path, capsys, number, status
):
    original = script.Run._one_step
    monkeypatch.setattr(script.Run, "_one_step", lambda *a: (original(*a), os.kill(os.getpid(), number)))
    assert ablate(script, tmp_path, "--only", "pooling") == status
    assert capsys.readouterr().out == "stopped in base, seed 0: the same command goes on\n"
    assert (tmp_path / "base" / "seed-0" / "checkpoint.safetensors").exists()
    assert "resume with" not in (tmp_path / "base" / "seed-0" / "log.txt").read_text()


def test_one_seed_has_no_spread(script):
    result = {"test_accuracy": 0.5, "images_per_s": 10.0}
    (row,) = script.tabulate(_variants(script, "pooling")[:1], {"base": {0: result}})
    assert row["deviation"] is None
    assert "| 50.00 |" in re.sub(" +", " ", script.markdown([row]))


def test_training_on_fewer_images_says_so_in_the_log(script, tmp_path):
    assert ablate(script, tmp_path, "--only", "pooling", "--seeds", 1, "--images", 60, "--epochs", 1) == 0
    assert "60 training, 20 validation and 50 test images" in (tmp_path / "base" / "seed-0" / "log.txt").read_text()


def test_a_picture_is_drawn_with_matplotlib_and_asked_for_without(script, tmp_path, monkeypatch, capsys):
    row = {"ablation": "depth", "value": "2", "base": True, "test_accuracies": [0.5, 0.6], "mean": 0.55}
    if importlib.util.find_spec("matplotlib") is not None:
        script.really_draw([row, {**row, "ablation": "width"}], tmp_path / "ablations.png", "digits")
        assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    script.really_draw([row], tmp_path / "none.png", "digits")
    assert capsys.readouterr().out == "for none.png: pip install matplotlib\n"
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_a_variant_changes_what_its_ablation_says_and_nothing_else(script, dataset):
    fields = {
        "positions": {"positions"},
        "places": {"pos_at"},
        "start": {"pos_init"},
        "pooling": {"pool"},
        "patch": {"patch_size"},
        "depth": {"depth"},
        "width": {"dim", "num_heads", "mlp_dim"},
    }
    base, variants = script.BENCHES[dataset].network, _variants(script, dataset=dataset)
    assert {variant.ablation for variant in variants} == fields.keys()
    for variant in variants:
        changed = {name for name, value in vars(variant.config).items() if value != getattr(base, name)}
        assert changed == (set() if variant.name == "base" else fields[variant.ablation]), variant
        assert variant.config.dim // variant.config.num_heads == base.dim // base.num_heads
    for ablation in fields:
        assert [variant.name for variant in variants if variant.ablation == ablation].count("base") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["digits", "--only", "depht"],
            "--only is 'depht'; choose from positions,places,start,pooling,patch,depth,width",
        ),
        (["minst"], "there is no data set 'minst'; choose one of digits, mnist, cifar10"),
        (["digits", "--seeds", "0"], "--seeds is 0; it must be 1 or more, and finite"),
        (["digits", "--epochs", "0"], "--epochs is 0; it must be 1 or more, and finite"),
        (["digits", "--save-every", "inf"], "--save-every is inf; it must be 0 or more, and finite"),
        (["digits", "--out", "FILE"], "--out is FILE, which is a file; it must be a folder, or one that can be made"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(script, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    args = script.make_parser().parse_args(options)
    assert script.report_errors(lambda: script.run(args), debug=False) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_results_of_another_recipe_or_network_are_not_mixed(out, script, capsys, monkeypatch):
    assert ablate(script, out, "--epochs", 3) == 1
    assert capsys.readouterr().err == f"error: {out} holds results with epochs 2: give the same, or another --out\n"
    wider = script.BENCHES["digits"]._replace(network=vitnp.ViTConfig(**script.GREY))
    monkeypatch.setitem(script.BENCHES, "digits", wider)
    assert ablate(script, out, "--only", "pooling") == 1
    assert re.match(r"error: \S+result\.json: a result of another network, .*: choose", capsys.readouterr().err)


def with_accuracy(value):
    return lambda text: re.sub(r'"test_accuracy": [^,]+', f'"test_accuracy": {value}', text)


@pytest.mark.parametrize(
    "change", [with_accuracy(0.999), with_accuracy("NaN"), lambda text: text[:9], lambda text: "", "{}", "[]"]
)
@pytest.mark.parametrize("name", ["base/seed-0/result.json", "recipe.json"])
def test_a_file_that_was_changed_or_cut_is_not_believed(out, script, tmp_path, capsys, name, change):
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    text = (folder / name).read_text()
    changed = change if isinstance(change, str) else change(text)
    if changed == text:  # a recipe has no accuracy
        changed = text.replace('"epochs": 2', '"epochs": 3')
    (folder / name).write_text(changed)
    capsys.readouterr()
    assert ablate(script, folder, "--only", "pooling") == 1
    told = f"error: {folder / name}: is damaged, or was changed after it was written: "
    assert capsys.readouterr().err.startswith(told)


def test_a_run_without_data_stands_in_nobody_s_way(script, tmp_path, monkeypatch, capsys):
    def load(args):
        raise OSError("no data there")

    bench = script.BENCHES["digits"]
    monkeypatch.setitem(script.BENCHES, "digits", bench._replace(load=load))
    assert ablate(script, tmp_path / "out", "--epochs", 3) == 1
    assert list((tmp_path / "out").iterdir()) == []
    script.write_sealed(tmp_path / "out" / "recipe.json", {"epochs": 3})  # nothing was trained by it
    capsys.readouterr()
    assert ablate(script, tmp_path / "out") == 1
    assert capsys.readouterr().err == "error: no data there\n"


def test_the_recipe_is_read_and_written_under_the_lock(script, tmp_path, monkeypatch):
    locked = []
    monkeypatch.setattr(script, "check_recipe", lambda out, *_: locked.append((out / ".lock").exists()) or {})
    monkeypatch.setattr(script, "train_all", lambda *_: 0)
    assert ablate(script, tmp_path / "out") == 0
    assert locked == [True]


def test_help_tells_every_option(run, tmp_path):
    text = " ".join(run("ablations.py", "--help", cwd=tmp_path).stdout.split())
    assert "digits, mnist, cifar10" in text
    assert "some of positions,places,start,pooling,patch,depth,width; all unless given" in text
