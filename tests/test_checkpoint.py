"""A checkpoint holds everything, is written whole or not at all, and is refused when it is not what it should be."""

import copy
import hashlib
import json
import math
import os
import re
import stat
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from resident import taken_by
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vitnp
from vitnp.checkpoint import LONGEST, MASKED, _digest
from vitnp.environment import environment

OF_FORMAT_1 = Path(__file__).parent / "reference" / "checkpoint_format_1.safetensors"
CONFIG = vitnp.ViTConfig(image_size=(6, 8), patch_size=(3, 2), channels=2, num_classes=5, dim=6, depth=2, num_heads=2)


def trained_model(dtype="float32"):
    """A model and its optimizer after two steps, so that the moments are not zero."""
    rng = np.random.default_rng(0)
    model = vitnp.VisionTransformer(CONFIG, rng=0, dtype=dtype)
    optimizer = vitnp.Adam(model, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1)
    step = vitnp.ShardedStep(model, optimizer, shards=1)
    for _ in range(2):
        step.step(rng.standard_normal((4, 6, 8, 2)).astype(dtype), rng.integers(0, 5, 4))
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    model, optimizer = trained_model()
    path = tmp_path / "model.safetensors"
    vitnp.save_checkpoint(path, model, optimizer, {"seconds": 1.5, "classes": ["a", "b"]})
    return path, model, optimizer


def rewrite(path, change):
    """Write the checkpoint anew after `change(tensors, meta)`, with the digests that belong to it."""
    meta, tensors = read(path)
    change(tensors, meta)
    meta["sha256"] = {name: _digest(tensor) for name, tensor in tensors.items()}
    description = json.dumps(meta)
    save_file(tensors, path, {"vitnp": description, "sha256": hashlib.sha256(description.encode()).hexdigest()})


def read(path):
    """The description and the tensors of a checkpoint, unchecked."""
    with safe_open(path, framework="numpy") as file:
        meta = json.loads(file.metadata()["vitnp"])
    return meta, load_file(path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_parameter_comes_back_bit_for_bit(tmp_path, dtype):
    model, _ = trained_model(dtype)
    vitnp.save_checkpoint(tmp_path / "m", model)
    again = vitnp.load_checkpoint(tmp_path / "m").model
    assert again.config == model.config
    assert again.flat.dtype == dtype
    for name, parameter in model.parameters().items():
        np.testing.assert_array_equal(again.parameters()[name], parameter, err_msg=name)


def test_optimizer_and_progress_come_back(saved):
    path, _, optimizer = saved
    loaded = vitnp.load_checkpoint(path)
    assert loaded.progress == {"seconds": 1.5, "classes": ["a", "b"]}
    assert loaded.optimizer.steps == 2
    assert (loaded.optimizer.lr, tuple(loaded.optimizer.betas)) == (0.01, (0.8, 0.99))
    assert (loaded.optimizer.eps, loaded.optimizer.weight_decay) == (1e-8, 0.1)
    np.testing.assert_array_equal(loaded.optimizer.m, optimizer.m)
    np.testing.assert_array_equal(loaded.optimizer.v, optimizer.v)


def test_training_goes_on_with_the_same_bits(saved):
    path, model, optimizer = saved
    loaded = vitnp.load_checkpoint(path)
    images, labels = np.ones((3, 6, 8, 2), "float32"), np.array([0, 1, 2])
    for m, o in ((model, optimizer), (loaded.model, loaded.optimizer)):
        vitnp.ShardedStep(m, o, shards=1).step(images, labels)
    np.testing.assert_array_equal(loaded.model.flat, model.flat)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sgd_and_an_average_come_back_and_go_on_with_the_same_bits(tmp_path, monkeypatch, device):
    monkeypatch.setattr("vitnp.checkpoint.to_device", lambda vector, device: vector)  # "cuda" is here a second copy
    monkeypatch.setattr(vitnp.VisionTransformer, "to_device", lambda model, device: copy.deepcopy(model))
    model = trained_model()[0]
    optimizer, average = vitnp.SGD(model, 0.1, momentum=0.7, weight_decay=0.2), vitnp.MovingAverage(model, 0.8)
    images, labels = np.random.default_rng(0).standard_normal((3, 6, 8, 2)).astype("float32"), np.array([0, 1, 2])
    step = vitnp.ShardedStep(model, optimizer, shards=1, average=average)
    for _ in range(4):
        step.step(images, labels)
    vitnp.save_checkpoint(tmp_path / "m", model, optimizer, average=average)
    loaded = vitnp.load_checkpoint(tmp_path / "m", device)
    assert type(loaded.optimizer) is vitnp.SGD
    assert (loaded.optimizer.lr, loaded.optimizer.momentum, loaded.optimizer.weight_decay) == (0.1, 0.7, 0.2)
    assert (loaded.average.decay, loaded.average.updates, loaded.optimizer.steps) == (0.8, 4, 4)
    again = vitnp.ShardedStep(loaded.model, loaded.optimizer, shards=1, average=loaded.average)
    for one in (step, again):
        one.step(images, labels)
    np.testing.assert_array_equal(loaded.model.flat, model.flat)
    np.testing.assert_array_equal(loaded.optimizer.u, optimizer.u)
    np.testing.assert_array_equal(loaded.average.averaged.flat, average.averaged.flat)


def test_sums_and_averages_stand_under_names_of_their_own(tmp_path):
    model = trained_model()[0]
    vitnp.save_checkpoint(tmp_path / "m", model, vitnp.SGD(model, 0.1), average=vitnp.MovingAverage(model))
    tensors = load_file(tmp_path / "m")
    assert {name.removesuffix("head.bias") for name in tensors if name.endswith("head.bias")} == {"", "sgd.u.", "ema."}
    np.testing.assert_array_equal(tensors["ema.norm.gamma"], model.parameters()["norm.gamma"])


def test_an_average_of_another_model_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="the average is of another model"):
        vitnp.save_checkpoint(tmp_path / "m", trained_model()[0], average=vitnp.MovingAverage(trained_model()[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda meta: meta["sgd"].pop("momentum"),
            r"the optimizer's settings are .* expected lr, momentum, weight_decay",
        ),
        (lambda meta: meta["sgd"].update(momentum=1.0), "damaged: momentum is 1.0"),
        (lambda meta: meta["ema"].pop("decay"), r"the average's settings are .* expected decay, updates"),
        (lambda meta: meta["ema"].update(updates=-1), "the average's settings are"),
        (lambda meta: meta["ema"].update(decay=1.0), "damaged: decay is 1.0"),
        (lambda meta: meta.pop("ema"), r"not expected \['ema.blocks.0"),
    ],
)
def test_settings_of_sgd_or_an_average_that_cannot_be_are_refused(tmp_path, change, message):
    model = trained_model()[0]
    vitnp.save_checkpoint(tmp_path / "m", model, vitnp.SGD(model, 0.1), average=vitnp.MovingAverage(model))
    rewrite(tmp_path / "m", lambda tensors, meta: change(meta))
    with pytest.raises(vitnp.CheckpointError, match=message):
        vitnp.load_checkpoint(tmp_path / "m")


def test_parameters_stand_under_their_own_names(saved):
    path, model, _ = saved
    tensors = load_file(path)
    np.testing.assert_array_equal(tensors["blocks.1.attn.qkv.weight"], model.parameters()["blocks.1.attn.qkv.weight"])


def test_a_model_without_optimizer_loads_without_one(tmp_path):
    vitnp.save_checkpoint(tmp_path / "m", trained_model()[0])
    assert vitnp.load_checkpoint(tmp_path / "m").optimizer is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing_here.*no such checkpoint"):
        vitnp.load_checkpoint(tmp_path / "nothing_here")


def test_every_truncation_is_refused(saved):
    path, *_ = saved
    content = path.read_bytes()
    for length in [*range(0, 2000, 37), *range(2000, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(vitnp.CheckpointError, match=path.name):
            vitnp.load_checkpoint(path)


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "m").touch()
    with pytest.raises(vitnp.CheckpointError, match="the file is empty"):
        vitnp.load_checkpoint(tmp_path / "m")


def test_a_folder_is_named_with_the_file_that_it_may_hold(tmp_path):
    with pytest.raises(vitnp.CheckpointError, match=r"is a folder; expected .* checkpoint.safetensors in it"):
        vitnp.load_checkpoint(tmp_path)


def test_a_file_that_may_not_be_read_is_named(saved, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(vitnp.CheckpointError, match=r"model.safetensors: cannot be read \(Permission denied\)"):
        vitnp.load_checkpoint(saved[0])


def test_a_link_to_nothing_is_no_checkpoint(tmp_path):
    (tmp_path / "m").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        vitnp.load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x80\x04K\x01.", bytes(range(64))])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "m"
    path.write_bytes(content)
    with pytest.raises(vitnp.CheckpointError, match="no readable checkpoint"):
        vitnp.load_checkpoint(path)


def test_every_flipped_bit_is_noticed(saved):
    path, *_ = saved
    content = path.read_bytes()
    positions = np.random.default_rng(0).integers(0, 8 * len(content), 400)
    for position in [*range(0, 8 * 200, 3), *positions.tolist()]:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(vitnp.CheckpointError, match=path.name):
            vitnp.load_checkpoint(path)


@pytest.mark.parametrize("name", ["head.bias", "adam.v.blocks.1.mlp.fc1.weight"])
def test_a_damaged_tensor_is_named_with_the_digest_found_and_expected(saved, name):
    path, *_ = saved
    meta, tensors = read(path)
    description, digest = json.dumps(meta), hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    tensors[name].reshape(-1)[1] += 1
    save_file(tensors, path, {"vitnp": description, "sha256": digest})
    found, expected = _digest(tensors[name]), meta["sha256"][name]
    with pytest.raises(vitnp.CheckpointError, match=f"{name} has SHA-256 {found}, expected {expected}: damaged"):
        vitnp.load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b'{"w":{"dtype":"F32","shape":[300000000],"data_offsets":[0,1200000000]}}',
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    ],
    ids=["4 TB", "1.2 GB", "twice the same name"],
)
def test_a_header_that_promises_what_is_not_there_is_refused(tmp_path, content):
    path = tmp_path / "m"
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(vitnp.CheckpointError, match="no readable checkpoint"):
        vitnp.load_checkpoint(path)


def with_header(path, header, data=b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def peak_of(path):
    """The bytes that a load takes at most, whether it ends well or is refused, and what it says."""
    tracemalloc.start()
    try:
        vitnp.load_checkpoint(path)
        said = ""
    except vitnp.CheckpointError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, said


def test_loading_takes_the_memory_of_what_is_loaded_and_no_more(tmp_path):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(dim=256, depth=2), rng=0)
    vitnp.save_checkpoint(tmp_path / "m", model, vitnp.Adam(model))
    vitnp.load_checkpoint(tmp_path / "m")  # imports
    assert peak_of(tmp_path / "m")[0] < 1.5 * (tmp_path / "m").stat().st_size


def test_of_a_huge_file_no_tensor_is_read_before_it_is_expected(saved, tmp_path):
    of_others = b'{"w":{"dtype":"F32","shape":[67108864],"data_offsets":[0,268435456]}}'
    with_header(tmp_path / "m", of_others)
    os.truncate(tmp_path / "m", 8 + len(of_others) + 2**28)  # a file with a hole: it takes no room
    peak, said = peak_of(tmp_path / "m")
    assert "not one of vitnp's" in said
    assert peak < 1 << 20
    content = saved[0].read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    header["w"] = {"dtype": "F32", "shape": [2**26], "data_offsets": [end, end + 2**28]}
    with_header(saved[0], json.dumps(header).encode())
    os.truncate(saved[0], saved[0].stat().st_size + end + 2**28)
    peak, said = peak_of(saved[0])
    assert "not expected ['w']" in said
    assert peak < 1 << 20


@pytest.mark.parametrize("masked", [False, True])
def test_a_description_of_a_huge_network_takes_no_memory(tmp_path, masked):
    """Each names a tensor of 64 MB or more, and the file has its own, of some bytes."""
    config = vitnp.ViTConfig(image_size=(6, 8), patch_size=2, dim=8, depth=1, num_heads=2, mlp_dim=4)
    model = (vitnp.MaskedPatchPrediction if masked else vitnp.VisionTransformer)(config)
    kept = {"optimizer": vitnp.Adam(model)}, {"average": vitnp.MovingAverage(model)}
    sizes = {"mlp_dim": 2**22}, {"image_size": [6, 2**21]}, {"registers": 2**22}
    sizes += ({"channels": 7} if masked else {"num_classes": 2**22},)
    calls, names = [], []
    for i, size in enumerate(sizes):
        for j, beside in enumerate([{}, *kept, kept[0] | kept[1]]):
            path = tmp_path / f"{i}{j}"
            vitnp.save_checkpoint(path, model, **beside)
            rewrite(path, lambda tensors, meta, size=size: meta["config"].update(size))
            calls.append(f"load_checkpoint({str(path)!r})")
            names.append(("fc1.weight is", "pos_embed is", "missing .*'reg_token'", "(patch|head).* is")[i])
    for taken, name in zip(taken_by(calls, "from vitnp.checkpoint import load_checkpoint"), names, strict=True):
        assert re.search(rf"CheckpointError: .*{name}", taken.said)
        assert taken.bytes < 16 << 20


def test_the_header_of_a_bomb_is_read_to_a_bound(tmp_path):
    with_header(tmp_path / "m", b'{"w":[' + (LONGEST // 3 - 9) * b"{}," + b"0]}")
    peak, said = peak_of(tmp_path / "m")
    assert "no readable checkpoint" in said
    assert peak < 160e6  # what a process takes that trains a small network
    with_header(tmp_path / "m", b'{"w":[' + LONGEST * b"{}," + b"0]}")
    peak, said = peak_of(tmp_path / "m")
    assert "its header would have" in said
    assert peak < 1e6


def test_a_progress_that_no_header_can_hold_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"the description has .* bytes, expected at most 4,194,304: make `progress`"):
        vitnp.save_checkpoint(tmp_path / "m", trained_model()[0], progress={"notes": "x" * LONGEST})
    assert not (tmp_path / "m").exists()


def test_a_name_that_is_there_twice_is_refused_though_both_say_the_same(saved):
    path, *_ = saved
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length].rstrip(), content[8 + length :]
    entry = json.dumps(json.loads(header)["head.bias"])
    with_header(path, header[:-1] + f',"head.bias":{entry}}}'.encode(), rest)
    with pytest.raises(vitnp.CheckpointError, match=r"no readable checkpoint, .*: a name is there twice among"):
        vitnp.load_checkpoint(path)


@pytest.mark.parametrize(
    "description", ["[" * 200_000, '{"format": 2, "format": 2}', "5", "[]", '{"format": []}', "{}", '"x"', "null"]
)
def test_a_description_that_is_none_is_refused(tmp_path, description):
    digest = hashlib.sha256(description.encode()).hexdigest()
    save_file({"w": np.zeros(3, "float32")}, tmp_path / "m", {"vitnp": description, "sha256": digest})
    with pytest.raises(vitnp.CheckpointError, match=f"{tmp_path / 'm'}: "):
        vitnp.load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(data_offsets=[4, 20]), "expected it to begin at"),
        (lambda entry: entry.update(data_offsets=[0, 10**9]), "expected it to begin at"),
        (lambda entry: entry.update(dtype="I32"), r"head.bias is I32 \(5,\), 20 bytes; expected float32 \(5,\)"),
        (lambda entry: entry.update(shape=[5.0, 1]), r"head.bias is float32 \(5.0, 1\), 20 bytes"),
        (lambda entry: entry.pop("dtype"), "no readable checkpoint"),
        (lambda entry: entry.update(data_offsets="ab"), "no readable checkpoint"),
    ],
)
def test_a_header_that_does_not_fit_its_tensors_is_refused(saved, change, message):
    path, *_ = saved
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["head.bias"])
    with_header(path, json.dumps(header).encode(), content[8 + length :])
    with pytest.raises(vitnp.CheckpointError, match=message):
        vitnp.load_checkpoint(path)


@pytest.mark.parametrize("vector", ["flat", "m", "v"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_not_finite_is_not_saved_and_the_old_file_stays(saved, vector, bad):
    path, model, optimizer = saved
    before = path.read_bytes()
    model.layout.view(model.flat if vector == "flat" else getattr(optimizer, vector), "norm.gamma")[3] = bad
    with pytest.raises(ValueError, match=r"norm.gamma holds NaN or infinity"):
        vitnp.save_checkpoint(path, model, optimizer)
    with pytest.raises(ValueError, match="not JSON compliant"):
        vitnp.save_checkpoint(path, trained_model()[0], progress={"loss": bad})
    assert path.read_bytes() == before


def test_a_checkpoint_says_where_it_was_made(saved):
    found = vitnp.load_checkpoint(saved[0]).environment
    assert found == environment()
    assert found["numpy"] == np.__version__


def test_a_file_of_format_1_still_loads():
    """It was written by the code before format 2: element e of tensor i of vector k is i + k / 4 + e / 128."""
    loaded = vitnp.load_checkpoint(OF_FORMAT_1)
    names = loaded.model.layout.names
    assert (loaded.model.config.dim, loaded.model.config.image_size, len(names)) == (6, (6, 8), 20)
    for k, vector in enumerate((loaded.model.flat, loaded.optimizer.m, loaded.optimizer.v)):
        for i, name in enumerate(names):
            found = loaded.model.layout.view(vector, name).reshape(-1)
            np.testing.assert_array_equal(found, i + k / 4 + np.arange(found.size) / 128)
    settings = loaded.optimizer
    assert (settings.steps, settings.lr, settings.betas, settings.eps) == (7, 0.01, (0.8, 0.99), 1e-7)
    assert loaded.progress == {"classes": list("abcde"), "mean": [0.25, 0.5], "std": [1.0, 2.0]}
    assert loaded.environment == {}


def test_a_damaged_file_of_format_1_is_refused(tmp_path):
    content = bytearray(OF_FORMAT_1.read_bytes())
    content[-100] ^= 1
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(vitnp.CheckpointError, match=r"its content has SHA-256 .* expected .*: damaged"):
        vitnp.load_checkpoint(tmp_path / "m")


def test_a_failed_load_changes_nothing(saved):
    path, model, optimizer = saved
    vectors = (model.flat, optimizer.m, optimizer.v)
    before = [vector.copy() for vector in vectors]
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(vitnp.CheckpointError):
        vitnp.load_checkpoint(path)
    assert path.read_bytes() == content[:-7]
    assert all(np.array_equal(vector, old) for vector, old in zip(vectors, before, strict=True))
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_before_is_kept_as_the_predecessor(saved, tmp_path):
    path, model, optimizer = saved
    older, previous = path.read_bytes(), tmp_path / "previous"
    optimizer.steps += 1
    vitnp.save_checkpoint(path, model, optimizer, previous=previous)
    assert previous.read_bytes() == older
    assert vitnp.load_checkpoint(path).optimizer.steps == vitnp.load_checkpoint(previous).optimizer.steps + 1


def test_a_learning_rate_of_zero_comes_back(saved):
    path, model, optimizer = saved
    optimizer.lr = 0.0  # where schedules end
    vitnp.save_checkpoint(path, model, optimizer)
    assert vitnp.load_checkpoint(path).optimizer.lr == 0


def test_an_optimizer_of_another_model_is_not_saved(saved):
    path, _, optimizer = saved
    with pytest.raises(ValueError, match="made for another model"):
        vitnp.save_checkpoint(path, trained_model()[0], optimizer)


def test_another_programs_safetensors_file_is_refused(tmp_path):
    save_file({"w": np.zeros(3)}, tmp_path / "m")
    with pytest.raises(vitnp.CheckpointError, match="not one of vitnp's"):
        vitnp.load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, meta: t.pop("head.bias"), r"missing \['head.bias'\]"),
        (lambda t, meta: t.update(other=np.zeros(1, "float32")), r"not expected \['other'\]"),
        (lambda t, meta: t.update({"head.bias": np.zeros((1, 5), "float32")}), r"head.bias is float32 \(1, 5\)"),
        (lambda t, meta: t.update({"head.bias": np.zeros(5)}), r"head.bias is float64 .* expected float32"),
        (lambda t, meta: t["adam.v.head.bias"].__setitem__(2, np.nan), r"adam.v.head.bias .* not finite"),
        (lambda t, meta: meta.update(format=99, vitnp="7.0"), r"format 99, written by vitnp 7.0"),
        (lambda t, meta: meta["config"].update(dim=7), r"description of the model is damaged: dim 7"),
        (lambda t, meta: meta["config"].update(colour="red"), r"description of the model is damaged"),
        (lambda t, meta: meta["config"].update(depth=3), r"missing \['adam.m.blocks.2"),
        (lambda t, meta: meta["config"].update(dim=2**40), r"description of the model is damaged"),
        (lambda t, meta: meta["adam"].pop("lr"), r"damaged: the optimizer's settings are"),
        (lambda t, meta: meta["adam"].update(steps="x"), r"damaged: the optimizer's settings are"),
        (lambda t, meta: meta["adam"].update(steps=-1), r"damaged: the optimizer's settings are"),
        (lambda t, meta: meta["adam"].update(lr="abc"), r"description of the model is damaged: .*abc"),
        (lambda t, meta: meta["adam"].update(lr=-1.0), r"description of the model is damaged: lr is -1.0"),
        (lambda t, meta: meta["adam"].update(lr=math.nan), r"damaged or cut short: NaN in the description"),
        (lambda t, meta: meta["progress"].update(loss=math.inf), r"damaged or cut short: Infinity in the description"),
        (lambda t, meta: meta["config"].update(depth=9), r"damaged: depth 9 does not go with 96 tensors"),
        (
            lambda t, meta: meta["config"].update(stem_blocks=[4, 7], image_size=80, patch_size=1),
            r"damaged: stem_blocks of 11 units do not go with 96 tensors",
        ),
        (
            lambda t, meta: meta["config"].update(num_heads=10**9),
            r"dim 6 is not divisible .*: use one of \[1, 2, 3, 6\]",
        ),
        (lambda t, meta: meta["config"].update(dim=10**30), r"description of the model is damaged"),
        (lambda t, meta: meta["adam"].update(steps=2**63), r"damaged: the optimizer's settings are"),
        (lambda t, meta: meta["adam"].update(steps=True), r"damaged: the optimizer's settings are"),
        (lambda t, meta: meta["adam"].update(eps=True), r"damaged: the optimizer's settings are"),
        (lambda t, meta: meta.update(model=MASKED) or meta["config"].update(channels=10**9), r"expected at most 20: a"),
        (lambda t, meta: meta.update(progress=None), r"description of the model is damaged"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(saved, change, message):
    path, *_ = saved
    rewrite(path, change)
    with pytest.raises(vitnp.CheckpointError, match=message):
        vitnp.load_checkpoint(path)


def test_a_number_beyond_all_floats_is_refused(saved):
    path, *_ = saved
    meta, tensors = read(path)
    description = json.dumps(meta).replace('"lr": 0.01', '"lr": 1e999')
    save_file(tensors, path, {"vitnp": description, "sha256": hashlib.sha256(description.encode()).hexdigest()})
    with pytest.raises(vitnp.CheckpointError, match="1e999 in the description; expected finite numbers"):
        vitnp.load_checkpoint(path)


@pytest.mark.parametrize(
    "place",
    [
        *(("config", name) for name in ("layer_norm_eps", "dropout", "stem_width", "layer_scale", "dim", "channels")),
        *(("adam", name) for name in ("lr", "eps", "weight_decay", "steps")),
        *(("ema", name) for name in ("decay", "updates")),
        ("progress", "seconds"),
    ],
    ids=".".join,
)
def test_an_integer_beyond_all_floats_is_refused(tmp_path, place):
    model, optimizer = trained_model()
    vitnp.save_checkpoint(tmp_path / "m", model, optimizer, average=vitnp.MovingAverage(model))
    rewrite(tmp_path / "m", lambda tensors, meta: meta[place[0]].update({place[1]: -(10**400)}))
    with pytest.raises(vitnp.CheckpointError, match=r"an integer of 401 digits in the description"):
        vitnp.load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("progress", [{"seconds": 10**400}, {1: "one", "1": "one"}])
def test_a_progress_that_could_not_be_read_again_is_not_saved(tmp_path, progress):
    with pytest.raises(ValueError, match=r"an integer of 401 digits in the desc|a name is there twice among"):
        vitnp.save_checkpoint(tmp_path / "m", trained_model()[0], progress=progress)
    assert not (tmp_path / "m").exists()


def test_saving_costs_a_few_readings_of_the_file(tmp_path):
    """Processor time, which other programs do not take away, in units of the digest of all bytes, which is needed."""
    model = vitnp.VisionTransformer(vitnp.ViTConfig(dim=384, depth=2), rng=0)
    optimizer, path = vitnp.Adam(model), tmp_path / "m"

    def seconds(work):
        started = time.process_time()
        work()
        return time.process_time() - started

    vitnp.save_checkpoint(path, model, optimizer)
    content = path.read_bytes()
    saving = min(seconds(lambda: vitnp.save_checkpoint(path, model, optimizer)) for _ in range(5))
    assert saving < 6 * min(seconds(lambda: hashlib.sha256(content)) for _ in range(5))


def test_a_failed_write_leaves_the_old_file_and_no_other(saved, monkeypatch):
    path, model, _ = saved
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        vitnp.save_checkpoint(path, model)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_new_file_has_the_permissions_that_the_umask_gives(tmp_path):
    mask = os.umask(0o027)
    try:
        vitnp.save_checkpoint(tmp_path / "m", trained_model()[0])
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_permissions(saved):
    path, model, _ = saved
    path.chmod(0o604)
    vitnp.save_checkpoint(path, model)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_link_is_written_through(saved, tmp_path):
    path, model, _ = saved
    link = tmp_path / "link"
    link.symlink_to(path)
    vitnp.save_checkpoint(link, model)
    assert link.is_symlink()
    assert vitnp.load_checkpoint(path).optimizer is None
