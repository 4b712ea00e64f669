"""benchmark.py: what it times is the same work on every side, and its numbers are those that it says."""

import contextlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy

import vitnp

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
TINY = "cifar-96:batch=4,depth=1,dim=12,mlp_dim=8,num_classes=3"
QUICK = ["--seconds", "0.01"]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("benchmark")
    finally:
        sys.path.remove(str(SCRIPTS))
        sys.modules.pop("benchmark", None)
        sys.modules.pop("peers", None)


def sides_of(benchmark, text, *names, device="cpu"):
    _, batch, config = benchmark.parse_workload(text)
    model, images, labels = benchmark.make_batch(batch, config)
    for parameter in model.parameters().values():
        parameter += 0.1 * np.random.default_rng(2).standard_normal(parameter.shape).astype("float32")
    return {name: benchmark.SIDES[name](model.astype("float32"), images, labels, device) for name in names}


@pytest.mark.parametrize("inference", [[], ["--inference"]], ids=["training", "inference"])
def test_numbers_of_a_row_belong_together(run, tmp_path, inference, benchmark):
    (result,) = json.loads(run("benchmark.py", TINY, *QUICK, *inference, "--json", cwd=tmp_path).stdout)
    row = result["sides"]["vitnp"]
    assert result["batch"] == 4
    assert row["images_per_s"] == pytest.approx(4000 / row["ms"])
    flops = vitnp.summary(benchmark.parse_workload(TINY)[2], 4).flops * (1 if inference else 3)
    assert row["gflop_per_s"] == pytest.approx(flops / row["ms"] / 1e6)
    assert result["square_gflop_per_s"] > 1


def test_a_table_and_a_picture_have_each_side_and_the_picture_is_written_once(run, tmp_path):
    options = [TINY, *QUICK, "--compare", "shift-flip,rand-augment"]
    picture = ["--picture", "speed.png"] if importlib.util.find_spec("matplotlib") else []  # of the extra `plots`
    output = run("benchmark.py", *options, *picture, cwd=tmp_path).stdout.splitlines()
    assert [re.match(r"(?:cifar\S+ +4| {30}) (\S+) ", line)[1] for line in output[1:4]] == [
        "vitnp",
        "shift-flip",
        "rand-augment",
    ]
    if picture:
        before = (tmp_path / "speed.png").read_bytes()
        assert "speed.png" in run("benchmark.py", *options, *picture, cwd=tmp_path, status=1).stderr
        assert (tmp_path / "speed.png").read_bytes() == before


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_peers_compute_the_same_losses_and_answers(benchmark, peer, pool):
    pytest.importorskip(peer, reason=f"{peer} is not installed")
    sides = sides_of(benchmark, f"{TINY},pool={pool}", "vitnp", peer)
    answers = {name: side.infer() for name, side in sides.items()}
    assert answers["vitnp"] == pytest.approx(benchmark._softmax(answers[peer]), abs=1e-5)
    losses = {name: [side.train() for _ in range(4)] for name, side in sides.items()}
    assert losses[peer] == pytest.approx(losses["vitnp"], rel=1e-5)
    assert losses["vitnp"][3] < losses["vitnp"][0]


def test_a_side_that_does_other_work_is_not_timed(benchmark):
    sides = sides_of(benchmark, TINY, "vitnp")
    sides["torch"] = sides_of(benchmark, TINY.replace("depth=1", "depth=2"), "vitnp")["vitnp"]
    for inference, what in ((False, "losses"), (True, "probabilities")):
        with pytest.raises(ValueError, match=f"torch computes other {what}"):
            benchmark.compare_results(sides, inference)


def test_a_profile_names_every_kind_of_layer(run, tmp_path):
    output = run("benchmark.py", "--layers", TINY, *QUICK, cwd=tmp_path).stdout
    shares = {m[1]: float(m[2]) for m in re.finditer(r"^    (\S+(?: \w+)?) +[\d.]+ +[\d.]+ +([\d.]+) %$", output, re.M)}
    assert {
        "Attention",
        "Softmax",
        "LayerNorm",
        "GELU",
        "Block",
        "PatchEmbed",
        "Linear qkv",
        "Linear fc2",
    } < shares.keys()
    assert 30 < sum(shares.values()) < 101  # the rest is the loss and the optimizer


def test_memory_is_that_of_a_whole_process(run, tmp_path):
    (result,) = json.loads(run("benchmark.py", "--memory", TINY, "--json", cwd=tmp_path).stdout)
    assert 30 < result["peak_mb"]["vitnp"] < 1000  # Python with NumPy has 30 MB at least


def test_a_gpu_is_timed_at_the_precision_that_was_asked_for(benchmark, double, monkeypatch, capsys):
    allowed, compare = [], benchmark.compare_results
    monkeypatch.setattr(benchmark, "compare_results", lambda *args: allowed.append(args[-1]) or compare(*args))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    for options, tf32 in ((["--tf32"], "1"), ([], "0")):
        monkeypatch.setenv("CUPY_TF32", "1")
        assert benchmark.benchmark(benchmark.parse([TINY, *QUICK, "--device", "cuda", "--json", *options])) == 0
        (result,) = json.loads(capsys.readouterr().out)
        assert (result["square_gflop_per_s"], os.environ["CUPY_TF32"]) == (None, tf32)
        assert result["sides"]["vitnp"]["ms"] > 0
    assert allowed == [1e-2, 1e-4]
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


@pytest.mark.parametrize("name", ["vitnp", "shift-flip"])
def test_a_gpu_is_done_before_the_clock_stops(benchmark, double, name):
    side = sides_of(benchmark, TINY, name, device="cuda")[name]
    for call in side:
        with strict_cupy.count_syncs() as syncs:
            call()
        assert len(syncs) == 1


@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_a_peer_that_finds_no_gpu_says_so(benchmark, peer):
    module = pytest.importorskip(peer, reason=f"{peer} is not installed")
    with contextlib.suppress(RuntimeError):
        if module.cuda.is_available() if peer == "torch" else module.devices("gpu"):
            pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=f"^{peer} finds no GPU: .*install"):
        sides_of(benchmark, TINY, peer, device="cuda")


@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_peers_may_round_to_tf32_where_cupy_may(benchmark, monkeypatch, peer):
    module = pytest.importorskip(peer, reason=f"{peer} is not installed")
    for allowed in (True, False):
        monkeypatch.setenv("CUPY_TF32", str(int(allowed)))
        sides_of(benchmark, TINY, peer)
        if peer == "torch":
            assert module.backends.cuda.matmul.allow_tf32 is allowed
        else:
            assert module.config.jax_default_matmul_precision == ("tensorfloat32" if allowed else "float32")


def test_memory_on_a_gpu_is_what_it_has_no_longer_free(benchmark, double, monkeypatch):
    free = iter([(9e9, 10e9), (7e9, 10e9)])
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "memGetInfo", lambda: next(free))
    sent = []
    args = benchmark.parse([TINY, "--device", "cuda", "--memory"])
    benchmark._use_memory(SimpleNamespace(send=sent.append), "vitnp", TINY, args)
    assert sent == [2000]


@pytest.mark.parametrize(
    ("options", "message", "status"),
    [
        (["nothing"], "there is no workload 'nothing': choose one of mnist-p7, .* or a size as B/16", 1),
        (["cifar-96:width=3"], "there is no field 'width'", 1),
        (["cifar-96:batch=0"], "batch is 0; it must be an integer of at least 1", 1),
        (["cifar-96:batch=x"], "batch is 'x'; it must be", 1),
        (["cifar-96:dim=97"], "dim 97 is not divisible by num_heads 3", 1),
        (["--compare", "tensorflow"], "--compare is 'tensorflow'; choose from torch, torch-compile, jax", 2),
        (["--tf32"], "--tf32 is a way of GPUs; it needs --device cuda", 2),
        (["--layers", "--device", "cuda"], "--layers times one core; leave out --device cuda", 2),
        (["--seconds", "-1"], "--seconds is -1.0; it must be above 0", 2),
        (["--picture", "nowhere/speed.png"], "nowhere", 1),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, options, message, status):
    failed = run("benchmark.py", *options, cwd=tmp_path, status=status)
    assert re.search(message, failed.stderr.splitlines()[-1])
    assert "Traceback" not in failed.stderr
