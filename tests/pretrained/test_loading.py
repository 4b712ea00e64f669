"""A network of another program computes here what it computes there, and a file that does not fit is refused whole."""

import io
import json
import math
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import error, hard_model, same_bits, worst_error
from resident import add_bomb, taken_by
from safetensors.numpy import load_file, save_file

import vitnp
from vitnp.config import SIZES
from vitnp.pretrained import read_class_names, read_scale

REFERENCE = Path(__file__).parent.parent / "reference" / "pretrained"
# what the files do not tell
ASKED = {
    "google": {},
    "google-pre-logits": {},
    "google-mean": {},
    "timm": {"num_heads": 3, "grid": (2, 4)},
    "timm-mean": {"num_heads": 3, "grid": (2, 4)},
    "timm-mean-norm": {"num_heads": 3, "grid": (2, 4)},  # after which comes the norm; with registers
    "timm-later": {"grid": (2, 4)},  # layer scale, registers, norms of q and k, which tell the number of heads
    "timm-later-mean": {"grid": (2, 4)},
    "huggingface": {},
    "huggingface-tanh": {},
    "torchvision": {"num_heads": 3},
    "torchvision-pre-logits": {"num_heads": 3},
}


# hybrids, of whose convolutions' gradients the files have every so many-th channel
HYBRIDS = {
    "google-root": ({"grid": (2, 3), "image_size": (15, 12)}, 4),
    "google-hybrid": ({"grid": (6, 2), "image_size": (41, 30)}, 16),
}
ASKED |= {case: asked for case, (asked, _) in HYBRIDS.items()}
MEANS = ("mean", "mean-norm")
WHOLE = [case for case in ASKED if case not in HYBRIDS]


def file_of(case, name="model"):
    (path,) = REFERENCE.glob(f"{case}/{name}*")
    return path


def load(case, name="model", **changes):
    return vitnp.load_pretrained(file_of(case, name), "float64", **{**ASKED[case], **changes})


def npy(array):
    """The content of a file .npy."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def data_of(case):
    with np.load(REFERENCE / case / "data.npz") as file:
        return dict(file)


def change(path, target, edit):
    """Write the arrays of a file anew after `edit(arrays)`, as the same kind of file."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        edit(arrays)
        np.savez(target, **arrays)
    else:
        arrays = load_file(path)
        edit(arrays)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, target)
    return target


@pytest.fixture
def google(tmp_path):
    """A way to change the original's file and read it."""

    def changed(edit, **options):
        return vitnp.load_pretrained(change(file_of("google"), tmp_path / "m.npz", edit), "float64", **options)

    return changed


@pytest.fixture
def timm(tmp_path):
    """A way to change timm's file and read it."""

    def changed(edit, **options):
        path = change(file_of("timm"), tmp_path / "m.safetensors", edit)
        return vitnp.load_pretrained(path, "float64", **{**ASKED["timm"], **options})

    return changed


@pytest.fixture
def folder(tmp_path):
    """A way to change the config.json of transformers and read the folder."""

    def changed(**entries):
        shutil.copytree(file_of("huggingface"), tmp_path / "m", dirs_exist_ok=True)
        path = tmp_path / "m" / "config.json"
        config = {**json.loads(path.read_text()), **entries}
        path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))
        return vitnp.load_pretrained(tmp_path / "m", "float64")

    return changed


def same_parameters(a, b):
    found, truth = a.parameters(), b.parameters()
    return found.keys() == truth.keys() and all(same_bits(found[name], truth[name]) for name in truth)


# -- the same network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ASKED)
def test_logits_are_those_of_the_program_that_wrote_the_file(case):
    data = data_of(case)
    assert error(load(case).forward(data["images"]), data["logits"]) < 1e-12


@pytest.mark.parametrize("case", WHOLE)
def test_every_gradient_is_that_of_the_program_that_wrote_the_file(case):
    data, model, ctx = data_of(case), load(case), vitnp.Context(train=True, rng=0)
    model.forward(data["images"], ctx)
    found = {"image": model.backward(data["cotangent"], ctx), **model.gradients(ctx)}
    truth = {"image": data["image_gradient"], **load(case, "gradients").parameters()}
    if case == "timm-later":  # whose registers have positions, with the same gradients: loaded, it is the sum of both
        truth["reg_token"] = truth["reg_token"] / 2
    assert worst_error(found, truth) < 1e-12


@pytest.mark.parametrize("case", HYBRIDS)
def test_every_gradient_of_a_hybrid_is_that_of_flax(case, tmp_path):
    data, model, ctx = data_of(case), load(case), vitnp.Context(train=True, rng=0)
    model.forward(data["images"], ctx)
    found = {"image": model.backward(data["cotangent"], ctx)}
    for name, gradient in model.gradients(ctx).items():
        model.parameters()[name][...] = gradient
    vitnp.save_pretrained(model, tmp_path / "m.npz", "google")  # the gradients, in flax' shapes and by its names
    with np.load(tmp_path / "m.npz") as ours, np.load(file_of(case, "gradients")) as theirs:
        truth = {"image": data["image_gradient"], **theirs}
        found |= {_published(name): ours[_published(name)] for name in theirs}
    truth = {_published(name): array for name, array in truth.items()}
    for name in [name for name in truth if name.endswith("key/bias")]:  # 0, as softmax sees no shift of all scores
        assert max(abs(found.pop(name)).max(), abs(truth.pop(name)).max()) < 1e-12
    thin = HYBRIDS[case][1]
    found = {name: array[..., ::thin] if "conv" in name else array for name, array in found.items()}
    assert sum("conv" in name for name in found) == 1 + 3 * sum(model.config.stem_blocks) + len(
        model.config.stem_blocks
    )
    assert worst_error(found, truth) < 1e-12


def _published(name):
    """The published numbers of sub-modules, from flax' newer ones."""
    for newer, published in (
        ("Attention_0", "Attention_1"),
        ("LayerNorm_1", "LayerNorm_2"),
        ("MlpBlock_0", "MlpBlock_3"),
    ):
        name = name.replace(newer, published)
    return name


def test_what_the_shapes_of_a_hybrids_file_say_is_taken():
    config = load("google-hybrid", image_size=None).config
    assert (config.stem_blocks, config.stem_width, config.channels) == ((2, 1), 0.5, 2)
    assert (config.image_size, config.patch_size, config.grid) == ((48, 32), (1, 2), (6, 2))
    config = load("google-root", image_size=None).config
    assert (config.stem_blocks, config.image_size, config.grid) == ((), (16, 12), (2, 3))


def test_all_that_a_folder_of_transformers_says_is_taken():
    config = load("huggingface").config
    assert (config.gelu, config.layer_norm_eps, config.num_heads) == ("erf", 1e-12, 3)
    assert (config.image_size, config.patch_size) == ((6, 8), (3, 2))
    config = load("huggingface-tanh").config
    assert (config.gelu, config.layer_norm_eps) == ("tanh", 1e-5)


def test_what_the_shapes_of_the_originals_file_say_is_taken():
    config = load("google-pre-logits").config
    assert (config.num_heads, config.representation_size, config.pool, config.gelu) == (3, 11, "token", "tanh")
    assert (config.image_size, config.patch_size, config.channels, config.depth) == ((9, 6), (3, 2), 2, 2)
    assert load("google-mean").config.pool == "mean"


@pytest.mark.parametrize("case", ["timm-later", "timm-later-mean"])
def test_what_later_papers_added_is_found_in_timms_file(case):
    config = load(case).config
    assert (config.registers, config.layer_scale, config.qk_norm, config.num_heads) == (2, 1e-5, True, 2)
    assert (config.pool, config.num_tokens) == (("mean", 10) if case.endswith("mean") else ("token", 11))


def test_layer_scale_in_some_blocks_alone_is_refused(timm):
    with pytest.raises(
        vitnp.CheckpointError, match=r"missing: blocks\.0\.ls2\.gamma, blocks\.1\.ls1\.gamma, blocks\.1"
    ):
        timm(lambda arrays: arrays.update({"blocks.0.ls1.gamma": np.ones(6)}))


def test_a_norm_of_q_alone_is_refused(timm):
    def edit(arrays):
        for i in range(2):
            arrays |= {f"blocks.{i}.attn.q_norm.{name}": np.ones(2) for name in ("weight", "bias")}

    with pytest.raises(
        vitnp.CheckpointError, match=r"missing: blocks\.0\.attn\.k_norm\.bias, blocks\.0\.attn\.k_norm\.we"
    ):
        timm(edit)


@pytest.mark.parametrize("of_patches_alone", [False, True])
def test_a_square_of_patches_is_found_beside_registers_with_and_without_positions(of_patches_alone, tmp_path):
    def edit(arrays):  # writes no note of vitnp's either
        arrays["pos_embed"] = arrays["pos_embed"][:, 5 * of_patches_alone :]

    vitnp.save_pretrained(hard_model(registers=4, image_size=(12, 8)), tmp_path / "m", "timm")
    found = vitnp.load_pretrained(change(tmp_path / "m", tmp_path / "n.safetensors", edit), num_heads=2)
    assert (found.config.grid, found.config.registers) == ((4, 4), 4)


def test_a_grid_is_asked_for_where_two_numbers_of_patches_are_square(tmp_path):
    model = hard_model(registers=4, image_size=(6, 6), patch_size=(2, 2))  # 9 patches
    vitnp.save_pretrained(model, tmp_path / "m", "timm")

    def edit(arrays):
        arrays["pos_embed"] = arrays["pos_embed"][:, 5:]

    path = change(tmp_path / "m", tmp_path / "n.safetensors", edit)
    with pytest.raises(vitnp.CheckpointError, match=r"9 positions may be of 4 or 9 patches, as the 5 tokens .* grid="):
        vitnp.load_pretrained(path, num_heads=2)
    for side in (2, 3):
        assert vitnp.load_pretrained(path, num_heads=2, grid=side).config.grid == (side, side)


def test_one_patch_is_a_square(tmp_path):
    vitnp.save_pretrained(hard_model(image_size=(3, 2), patch_size=(3, 2)), tmp_path / "m.npz", "google")
    path = change(tmp_path / "m.npz", tmp_path / "n.npz", lambda arrays: None)  # writes no note of vitnp's
    assert vitnp.load_pretrained(path).config.grid == (1, 1)


@pytest.mark.parametrize(("registers", "positions"), [(0, 1), (4, 2)])
def test_fewer_positions_than_tokens_are_of_no_patch(registers, positions, tmp_path):
    def edit(arrays):
        arrays["pos_embed"] = arrays["pos_embed"][:, :positions]

    vitnp.save_pretrained(hard_model(registers=registers), tmp_path / "m", "timm")
    path, either = change(tmp_path / "m", tmp_path / "n.safetensors", edit), f"no square, or of {positions} if what is"
    with pytest.raises(vitnp.CheckpointError, match=f"the positions are of 0 patches, which are {either} in front of"):
        vitnp.load_pretrained(path, num_heads=2)


def test_gelu_and_epsilon_can_be_others_than_the_layouts():
    config = load("timm", gelu="tanh", layer_norm_eps=1e-5).config
    assert (config.gelu, config.layer_norm_eps) == ("tanh", 1e-5)


def test_parameters_are_of_the_dtype_that_is_asked_for():
    model = vitnp.load_pretrained(file_of("google"))
    assert model.flat.dtype == "float32"
    np.testing.assert_array_equal(model.flat, load("google").flat.astype("float32"))


# -- other forms of the same files ------------------------------------------------------------------------------------


def rename(*pairs):
    def edit(arrays):
        for name in list(arrays):
            new = name
            for old, replacement in pairs:
                new = new.replace(old, replacement)
            arrays[new] = arrays.pop(name)

    return edit


def test_the_published_numbers_of_sub_modules_are_the_newer_ones(google):
    counted = rename(("Attention_0", "Attention_1"), ("LayerNorm_1", "LayerNorm_2"), ("MlpBlock_0", "MlpBlock_3"))
    assert same_parameters(google(counted), load("google"))


@pytest.mark.parametrize(("act", "gelu"), [("gelu_python", "erf"), ("gelu_fast", "tanh")])
def test_other_names_of_a_gelu_are_known(act, gelu, folder):
    assert folder(hidden_act=act).config.gelu == gelu


def test_a_mask_token_has_no_part_in_a_classifier(tmp_path):
    shutil.copytree(file_of("huggingface"), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    change(path, path, lambda arrays: arrays.update({"vit.embeddings.mask_token": np.ones((1, 1, 6))}))
    assert same_parameters(vitnp.load_pretrained(tmp_path / "m", "float64"), load("huggingface"))


def test_a_model_that_completes_masked_images_is_read_with_a_head_of_zeros(tmp_path):
    def edit(arrays):
        del arrays["classifier.weight"], arrays["classifier.bias"]
        arrays |= {"decoder.0.weight": np.ones((12, 6, 1, 1)), "decoder.0.bias": np.ones(12)}
        arrays["vit.embeddings.mask_token"] = np.ones((1, 1, 6))

    shutil.copytree(file_of("huggingface"), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    change(path, path, edit)
    found, truth = vitnp.load_pretrained(tmp_path / "m", "float64", num_classes=5), load("huggingface")
    truth.classifier.head.weight[...] = truth.classifier.head.bias[...] = 0
    assert same_parameters(found, truth)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/"])
def test_positions_may_have_another_name_with_the_class_tokens_among_them(prefix, google):
    def edit(arrays):
        arrays["Transformer/pos_embedding"] = arrays.pop("Transformer/posembed_input/pos_embedding")
        rename_all(arrays, prefix)

    assert same_parameters(google(edit), load("google"))


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/"])
def test_positions_of_patches_alone_are_known_behind_any_prefix(prefix, google):
    def edit(arrays):
        arrays["pos_embedding"] = arrays.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
        rename_all(arrays, prefix)

    found = google(edit).parameters()["pos_embed"]
    assert not found[:, 0].any()
    assert same_bits(found[:, 1:], load("google").parameters()["pos_embed"][:, 1:])


@pytest.mark.parametrize("prefix", ["", "params/img/"])
@pytest.mark.parametrize(("patches", "grid"), [(8, (2, 4)), (10, (2, 5))], ids=str)  # 9 and 10 with the class token
def test_the_class_token_beside_positions_of_patches_alone_never_has_one(patches, grid, prefix, google):
    positions = np.random.default_rng(0).standard_normal((1, patches, 6))

    def edit(arrays):
        del arrays["Transformer/posembed_input/pos_embedding"]
        arrays["pos_embedding"] = positions
        rename_all(arrays, prefix)

    asked = rf"the positions are of {patches} patches, which are no square: give grid=\(rows, columns\)"
    with pytest.raises(vitnp.CheckpointError, match=asked):
        google(edit)
    with pytest.raises(
        vitnp.CheckpointError, match=rf"a grid of .*; expected one of {patches} patches: give the right"
    ):
        google(edit, grid=(patches + 1, 1))
    model = google(edit, grid=grid)
    assert model.config.grid == grid
    assert not model.embeddings.pos_embed[:, 0].any()
    assert same_bits(model.embeddings.pos_embed[:, 1:], positions)


def test_the_clock_of_a_training_and_a_network_for_text_are_left_out(google):
    def edit(arrays):
        rename_all(arrays, "params/img/")
        for name in ("chrono/accum_train_time", "extra/seed", "opt/0/count", "params/t", "params/txt/head/bias"):
            arrays[name] = np.ones(2)

    assert same_parameters(google(edit), load("google"))


def rename_all(arrays, prefix):
    for name in list(arrays):
        arrays[prefix + name] = arrays.pop(name)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_a_prefix_is_taken_off_and_an_optimizers_state_left_out(google, prefix):
    def edit(arrays):
        for name in list(arrays):
            arrays[prefix + name] = arrays.pop(name)
        arrays["opt/state/step"] = np.array(7)

    assert same_parameters(google(edit), load("google"))


def test_stacked_blocks_are_taken_apart(google):
    def edit(arrays):
        for name in [name for name in arrays if "encoderblock_0" in name]:
            both = [arrays.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(2)]
            arrays[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)

    assert same_parameters(google(edit), load("google"))


def test_bfloat16_is_the_upper_half_of_float32(google):
    def edit(arrays):
        for name, array in arrays.items():
            arrays[name] = (array.astype("<f4").view("<u4") >> 16).astype("<u2").view("V2")

    found, truth = google(edit).flat, load("google").flat
    assert 1e-4 < np.abs(found - truth).max() / np.abs(truth).max() < 2**-7
    assert (found.astype("<f4").view("<u4") & 0xFFFF == 0).all()


def test_bfloat16_in_safetensors_is_read(tmp_path):
    arrays = load_file(file_of("timm"))
    entries, content = {}, b""
    for name, array in arrays.items():
        half = (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        entries[name] = {
            "dtype": "BF16",
            "shape": array.shape,
            "data_offsets": [len(content), len(content) + len(half)],
        }
        content += half
    header = json.dumps(entries).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
    found = vitnp.load_pretrained(tmp_path / "m.safetensors", "float64", **ASKED["timm"]).flat
    truth = load("timm").flat
    assert 1e-4 < np.abs(found - truth).max() / np.abs(truth).max() < 2**-7


def test_positions_without_one_for_the_class_token_leave_it_as_it_is(google):
    def edit(arrays):
        positions = arrays.pop("Transformer/posembed_input/pos_embedding")
        arrays["cls"] = arrays["cls"] + positions[:, :1]
        arrays["pos_embedding"] = positions[:, 1:]

    data = data_of("google")
    assert error(google(edit).forward(data["images"]), data["logits"]) < 1e-12


def test_a_grid_tells_that_the_class_token_has_no_position(timm):
    def edit(arrays):
        arrays["cls_token"] = arrays["cls_token"] + arrays["pos_embed"][:, :1]
        arrays["pos_embed"] = arrays["pos_embed"][:, 1:]

    data = data_of("timm")
    assert error(timm(edit).forward(data["images"]), data["logits"]) < 1e-12


def test_the_names_of_transformers_in_memory_are_those_on_the_disk(tmp_path):
    shutil.copytree(file_of("huggingface"), tmp_path / "m")
    pairs = [("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj")]
    pairs += [("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj")]
    pairs += [("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1")]
    pairs += [("output.dense", "mlp.fc2")]
    path = tmp_path / "m" / "model.safetensors"
    change(path, path, rename(*pairs))
    assert "vit.layers.1.mlp.fc2.bias" in load_file(path)
    assert same_parameters(vitnp.load_pretrained(tmp_path / "m", "float64"), load("huggingface"))


def test_a_model_of_transformers_without_classifier_has_its_pooler_and_a_head_of_zeros(tmp_path):
    shutil.copytree(file_of("huggingface"), tmp_path / "m")
    path, rng = tmp_path / "m" / "model.safetensors", np.random.default_rng(0)

    def edit(arrays):
        del arrays["classifier.weight"], arrays["classifier.bias"]
        rename(("vit.", ""))(arrays)
        arrays["pooler.dense.weight"], arrays["pooler.dense.bias"] = rng.standard_normal((6, 6)), np.ones(6)

    change(path, path, edit)
    with pytest.raises(vitnp.CheckpointError, match="no classifier: num_classes makes one of zeros, to be trained, as"):
        vitnp.load_pretrained(tmp_path / "m")
    model = vitnp.load_pretrained(tmp_path / "m", "float64", num_classes=4)
    np.testing.assert_array_equal(model.classifier.pre_logits.weight, load_file(path)["pooler.dense.weight"].T)
    assert not model.classifier.head.weight.any()
    assert same_bits(model.blocks[1].mlp.fc2.weight, load("huggingface").blocks[1].mlp.fc2.weight)


def test_torchvisions_older_names_are_the_newer_ones(tmp_path):
    path = change(
        file_of("torchvision"), tmp_path / "m", rename((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2."))
    )
    assert same_parameters(vitnp.load_pretrained(path, "float64", num_heads=3), load("torchvision"))


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_norms_of_a_stem_may_have_the_four_axes_of_older_files(prefix, tmp_path):
    def edit(arrays):
        for name in list(arrays):
            array = arrays.pop(name)
            arrays[prefix + name] = array.reshape(1, 1, 1, -1) if re.search(r"gn\w+/", name) else array

    path = change(file_of("google-hybrid"), tmp_path / "m.npz", edit)
    with np.load(path) as file:
        assert file[f"{prefix}block2/unit1/gn_proj/scale"].shape == (1, 1, 1, 256)
    found = vitnp.load_pretrained(path, "float64", **ASKED["google-hybrid"])
    assert same_parameters(found, load("google-hybrid"))


# -- another number of classes, another size --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["google", "google-pre-logits", "google-root", "timm"])
def test_another_number_of_classes_gives_a_head_of_zeros_and_keeps_the_rest(case):
    found, truth = load(case, num_classes=8), load(case)
    assert found.classifier.head.weight.shape[1] == 8
    for name, parameter in found.parameters().items():
        if name.startswith("head."):
            assert not parameter.any()
        else:
            assert same_bits(parameter, truth.parameters()[name])


def test_dropout_is_what_a_folder_says_and_none_where_it_says_none(folder):
    said = folder(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2).config
    assert (said.dropout, said.attention_dropout) == (0.1, 0.2)
    said = folder(hidden_dropout_prob="absent", attention_probs_dropout_prob="absent").config
    assert (said.dropout, said.attention_dropout) == (0, 0)


def test_the_same_number_of_classes_keeps_the_head():
    assert same_parameters(load("google", num_classes=5), load("google"))


def test_another_image_size_resizes_the_positions_of_patches_and_keeps_the_rest():
    found, truth = load("google", image_size=(15, 4), resize="align-corners"), load("google")
    assert found.config.grid == (5, 2)
    grid = truth.embeddings.pos_embed[0, 1:].reshape(3, 3, 6)
    rows = np.stack([grid[0], (grid[0] + grid[1]) / 2, grid[1], (grid[1] + grid[2]) / 2, grid[2]])
    np.testing.assert_allclose(
        found.embeddings.pos_embed[0, 1:], rows[:, [0, 2]].reshape(10, 6), rtol=1e-12, atol=1e-12
    )
    assert same_bits(found.embeddings.pos_embed[:, :1], truth.embeddings.pos_embed[:, :1])
    for name, parameter in found.parameters().items():
        assert name == "pos_embed" or same_bits(parameter, truth.parameters()[name])


def test_another_image_size_of_a_hybrid_resizes_the_positions_and_keeps_the_stem():
    found, truth = load("google-hybrid", image_size=(50, 64), resize="bilinear"), load("google-hybrid")
    assert found.config.grid == (7, 4)
    for name, parameter in found.parameters().items():
        assert name == "pos_embed" or same_bits(parameter, truth.parameters()[name])


def test_another_image_size_without_a_rule_is_refused_with_the_rules():
    with pytest.raises(
        vitnp.CheckpointError, match=r"3 x 3 patches, and the model has 5 x 2: .*'align-corners' or 'bili"
    ):
        load("google", image_size=(15, 4))


def test_an_unknown_rule_is_refused_with_the_rules():
    with pytest.raises(ValueError, match="resize is 'nearest'; choose one of 'align-corners', 'bilinear', 'bicubic', "):
        load("google", image_size=(15, 4), resize="nearest")
    with pytest.raises(ValueError, match="resize is 'bicubik'; choose one of"):
        load("google", resize="bicubik")  # though there is nothing to resize


def test_an_image_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(vitnp.CheckpointError, match=r"model\.npz: image height 10 is not divisible by patch height 3"):
        load("google", image_size=(10, 4), resize="bilinear")


# -- what a file does not tell ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """A way to lay a file of timm's in a folder as its hub does, with a config.json, and read it."""

    def laid(case="timm", name="model.safetensors", told=None, **entries):
        shutil.copy(file_of(case), tmp_path / name)
        config = {"architecture": "vit_base_patch16_224", "num_classes": 5, **entries}
        (tmp_path / "config.json").write_text(json.dumps(config))
        asked = {"num_heads": 3, "grid": (2, 4)} if told is None else told
        return vitnp.load_pretrained(tmp_path if name == "model.safetensors" else tmp_path / name, "float64", **asked)

    return laid


def test_what_the_config_of_timms_hub_says_is_taken(hub, tmp_path):
    arguments = {"img_size": [6, 8], "num_heads": 3, "act_layer": "gelu_tanh", "drop_path_rate": 0.1, "fc_norm": None}
    found = hub(told={}, global_pool="token", model_args=arguments).config
    assert (found.num_heads, found.grid, found.gelu, found.pool) == (3, (2, 4), "tanh", "token")
    for case in ("timm-mean", "timm-mean-norm"):
        assert hub(case, global_pool="avg").config.pool == case.removeprefix("timm-")
    assert hub("timm-mean-norm", global_pool="avg", model_args={"fc_norm": True}).config.pool == "mean-norm"
    later = hub("timm-later", told={"grid": (2, 4)}, model_args={"init_values": 0.1, "reg_tokens": 2, "qk_norm": True})
    assert later.config.layer_scale == 0.1
    assert read_scale(tmp_path) == (None, None)
    hub(pretrained_cfg={"mean": [0.1, 0.2], "std": [0.3, 0.4], "global_pool": "token"})
    assert read_scale(tmp_path) == read_scale(tmp_path / "model.safetensors") == ([0.1, 0.2], [0.3, 0.4])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"global_pool": "avg"}, "pools the mean beside a class token"),
        ({"pretrained_cfg": {"global_pool": "avg"}}, "pools the mean beside a class token"),
        (
            {"global_pool": "token", "model_args": {"global_pool": "max"}},
            "global_pool is 'max'; vitnp has token or avg",
        ),
        ({"case": "timm-mean", "global_pool": "token"}, "that pools 'token', and the arrays are of one .* 'mean'"),
        (
            {"case": "timm-mean", "global_pool": "avg", "model_args": {"fc_norm": True}},
            "that pools 'mean-norm', and the arrays are of one that pools 'mean'",
        ),
        ({"model_args": {"fc_norm": 1.5}}, r"fc_norm is 1\.5; vitnp has True or False"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "act_layer is 'quick_gelu'; vitnp has gelu or gelu_tanh"),
        ({"model_args": {"rope": 1}}, "model_args has rope, of which vitnp knows nothing"),
        ({"model_args": {"num_heads": 2}}, "num_heads is said to be 3, but the file says 2"),
        ({"model_args": 3}, "model_args is 3; expected an object"),
        ({"num_classes": 7}, "num_classes is said to be 7, but the arrays have 5"),
    ],
)
def test_what_the_config_of_timms_hub_says_and_vitnp_cannot_do_is_refused(hub, entries, message):
    with pytest.raises(vitnp.CheckpointError, match=message):
        hub(**entries)


def test_a_config_that_may_be_of_another_file_is_left_alone(hub):
    entries = {"global_pool": "max", "architecture": "eva_large_patch14_196"}
    assert same_parameters(hub(name="other.safetensors", **entries), load("timm"))


@pytest.fixture
def wide(tmp_path):
    """A way to lay a network of a width in a folder as timm's hub has it, under the name of an architecture."""

    def laid(width, architecture, **told):
        config = vitnp.ViTConfig(image_size=4, patch_size=2, dim=width, depth=1, num_heads=1, mlp_dim=1, gelu="erf")
        vitnp.save_pretrained(vitnp.VisionTransformer(config, rng=0), tmp_path / "m", "timm")
        change(tmp_path / "m", tmp_path / "model.safetensors", lambda arrays: None)  # writes no note of vitnp's
        (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
        return vitnp.load_pretrained(tmp_path, **told)

    return laid


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("vit_tiny_patch16_224", "Ti"),
        ("deit_small_patch16_224", "S"),
        ("deit3_base_patch16_384", "B"),
        ("vit_large_patch32_384", "L"),
        ("vit_huge_patch14_224", "H"),
    ],
)
def test_a_plain_name_of_timms_hub_tells_the_heads(architecture, size, wide):
    width, heads = SIZES[size]["dim"], SIZES[size]["num_heads"]
    assert wide(width, architecture).config.num_heads == heads
    with pytest.raises(vitnp.CheckpointError, match=f"num_heads is said to be 1, but the file says {heads}: leave it"):
        wide(width, architecture, num_heads=1)


@pytest.mark.parametrize(
    ("width", "architecture"),
    [
        (768, "vit_base_patch16_gap_224"),  # which has 16
        (768, "vit_small_patch16_224"),
        (192, "my_vit_tiny_patch16_224"),
        (192, "vit_tiny_patch16_224_more"),
    ],
)
def test_no_other_name_and_none_of_another_width_tells_the_heads(width, architecture, wide):
    known = architecture.startswith("vit_")
    asked = "does not tell the number of heads: give num_heads" if known else "expected one of timm's vit_, deit_"
    with pytest.raises(vitnp.CheckpointError, match=asked):
        wide(width, architecture)


@pytest.mark.parametrize("architecture", ["eva_large_patch14_196", "beit3_base_patch16_224", "resnet50", None, 3])
def test_a_network_of_timms_that_is_no_vit_is_refused(architecture, hub):
    with pytest.raises(vitnp.CheckpointError, match=f"config.json: architecture is '?{architecture}'?; expected one"):
        hub(architecture=architecture)


def test_the_gelu_of_timms_siglip_is_asked_for_unless_it_is_told(hub):
    name = {"architecture": "vit_so400m_patch14_siglip_gap_224"}
    with pytest.raises(vitnp.CheckpointError, match=rf"{name['architecture']} may have either .* give gelu, 'tanh' or"):
        hub(**name)
    for gelu in ("tanh", "erf"):
        assert hub(**name, told={**ASKED["timm"], "gelu": gelu}).config.gelu == gelu
    assert hub(**name, model_args={"act_layer": "gelu_tanh"}).config.gelu == "tanh"
    assert hub(**name, model_args={"act_layer": "gelu"}).config.gelu == "erf"


@pytest.mark.parametrize(("case", "right"), [(f"timm{pool and '-'}{pool}", pool or "token") for pool in ("", *MEANS)])
@pytest.mark.parametrize("said", ["token", *MEANS])
def test_a_pool_that_is_said_must_be_that_of_the_arrays(case, right, said):
    if said == right:
        assert load(case, pool=said).config == load(case).config
        return
    refused = (
        "the mean beside a class token" if right == "token" else f"'{said}', and the arrays are of one .* '{right}'"
    )
    with pytest.raises(vitnp.CheckpointError, match=f"a network that pools {refused}"):
        load(case, pool=said)


def test_an_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="pool is 'max'; choose one of 'token', 'mean', 'mean-norm'"):
        load("timm", pool="max")


def test_a_norm_after_the_mean_beside_a_class_token_is_refused(timm):
    def edit(arrays):
        for name in ("weight", "bias"):
            arrays[f"fc_norm.{name}"] = arrays.pop(f"norm.{name}")

    with pytest.raises(vitnp.CheckpointError, match="a network that pools the mean beside a class token"):
        timm(edit)
    assert same_parameters(timm(edit, pool="token"), load("timm"))  # of a token it is the same norm


def test_an_array_that_is_there_twice_is_refused(google, tmp_path):
    path = change(file_of("google"), tmp_path / "m.npz", lambda arrays: None)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("cls.npy", archive.read("cls.npy"))
    with pytest.raises(vitnp.CheckpointError, match=r"cls\.npy is there 2 times; expected every array once: damaged"):
        vitnp.load_pretrained(path)


@pytest.mark.parametrize("case", ["timm", "torchvision"])
def test_heads_that_a_file_does_not_tell_are_asked_for(case):
    with pytest.raises(
        vitnp.CheckpointError, match=r"does not tell the number of heads: give num_heads, a divisor of 6$"
    ):
        load(case, num_heads=None)


@pytest.mark.parametrize("size", ["Ti", "H"])
def test_heads_that_the_originals_networks_of_a_width_have_are_told(size, tmp_path):
    width, heads = SIZES[size]["dim"], SIZES[size]["num_heads"]
    config = vitnp.ViTConfig(image_size=4, patch_size=2, dim=width, depth=1, num_heads=heads, mlp_dim=1)
    vitnp.save_pretrained(vitnp.VisionTransformer(config, rng=0), tmp_path / "m", "timm")
    path = change(tmp_path / "m", tmp_path / "n.safetensors", lambda arrays: None)  # writes no note of vitnp's
    told = f"give num_heads, a divisor of {width}; the original's of this width have {heads}$"
    with pytest.raises(vitnp.CheckpointError, match=told):
        vitnp.load_pretrained(path)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(vitnp.CheckpointError, match="dim 6 is not divisible by num_heads 4"):
        load("timm", num_heads=4)


def test_an_epsilon_that_is_no_number_is_refused():
    with pytest.raises(vitnp.CheckpointError, match="layer_norm_eps is nan; it must be above 0"):
        load("timm", layer_norm_eps=float("nan"))


def test_a_grid_that_is_no_square_is_asked_for():
    with pytest.raises(
        vitnp.CheckpointError,
        match=r"are of 8 patches, which are no square, or of 9 if what is in front of them has no .*grid=\(rows, col",
    ):
        load("timm", grid=None)


@pytest.mark.parametrize("grid", [(2, 4, 1), "wide", (2.0, 4.0), (-2, -4)])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(vitnp.CheckpointError, match=r"grid is .*; expected an int"):
        load("timm", grid=grid)


def test_a_grid_may_be_a_list_and_a_square_one_an_int():
    assert load("timm", grid=[2, 4]).config.grid == (2, 4)
    assert vitnp.load_pretrained(file_of("torchvision"), num_heads=3, grid=2).config.grid == (2, 2)


def test_a_grid_of_another_number_of_patches_is_refused():
    with pytest.raises(
        vitnp.CheckpointError, match=r"the positions do not go with a grid of \(3, 4\); expected one of 8 or 9 pa"
    ):
        load("timm", grid=(3, 4))


@pytest.mark.parametrize(
    ("case", "told", "message"),
    [
        ("google", {"num_heads": 2}, "num_heads is said to be 2, but the arrays have 3"),
        ("huggingface", {"grid": (4, 2)}, r"grid is said to be \(4, 2\), but the file says \(2, 4\): leave it out"),
        ("huggingface", {"num_heads": 2}, "num_heads is said to be 2, but the file says 3: leave it out"),
        ("huggingface-tanh", {"gelu": "erf"}, "gelu is said to be erf, but the file says tanh: leave it out"),
    ],
)
def test_what_contradicts_the_file_is_refused(case, told, message):
    with pytest.raises(vitnp.CheckpointError, match=message):
        load(case, **told)


def test_what_the_file_says_may_be_said_again():
    assert load("huggingface", num_heads=3, gelu="erf").config == load("huggingface").config


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"hidden_act": "relu"},
            r"config\.json: hidden_act is 'relu'; vitnp has gelu_python or gelu or gelu_fast or gelu_new or gelu_py",
        ),
        ({"model_type": "deit"}, "model_type is 'deit'; vitnp has vit"),
        ({"qkv_bias": False}, "qkv_bias is False; vitnp has True"),
        ({"hidden_size": 12}, "dim is said to be 12, but the arrays have 6"),
        ({"num_hidden_layers": 3}, "depth is said to be 3, but the arrays have 2"),
        ({"image_size": "large"}, "image_size is 'large'; expected an integer of at least 1"),
        ({"image_size": 224}, r"the positions do not go with a grid of \(74, 112\)"),
        ({"num_attention_heads": 4}, "dim 6 is not divisible by num_heads 4"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'; expected a number"),
    ],
)
def test_a_config_that_does_not_go_with_the_arrays_is_refused(folder, entries, message):
    with pytest.raises(vitnp.CheckpointError, match=message):
        folder(**entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no readable JSON: Expecting"), ("[]", r"\[\]; expected the configuration of a model")],
)
def test_a_config_that_is_none_is_refused(content, message, tmp_path):
    shutil.copytree(file_of("huggingface"), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(content)
    with pytest.raises(vitnp.CheckpointError, match=rf"config\.json: {message}"):
        vitnp.load_pretrained(tmp_path / "m")


def test_what_a_config_leaves_out_is_what_transformers_takes(folder):
    assert folder(layer_norm_eps="absent", hidden_act="absent").config == load("huggingface").config


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_all_that_is_missing_extra_or_misshaped_is_listed(timm):
    def edit(arrays):
        del arrays["norm.bias"], arrays["blocks.0.attn.qkv.weight"]
        arrays["last_norm.weight"] = arrays["blocks.1.attn.norm.weight"] = np.ones(6)
        arrays["blocks.1.mlp.fc1.weight"] = arrays["blocks.1.mlp.fc1.weight"].T
        arrays["head.bias"] = np.arange(5)
        arrays["cls_token"] = np.ones((1, 1, 8))

    with pytest.raises(vitnp.CheckpointError) as caught:
        timm(edit)
    assert str(caught.value).split("layout timm has; ")[1] == (
        "missing: blocks.0.attn.qkv.weight, norm.bias; not expected: blocks.1.attn.norm.weight, last_norm.weight; "
        "misshaped: cls_token is float64 (1, 1, 8), expected floats (1, 1, 6), "
        "head.bias is int64 (5,), expected floats (5,), "
        "blocks.1.mlp.fc1.weight is float64 (6, 7), expected floats (7, 6)"
    )


def test_all_that_is_not_finite_is_listed(timm):
    def edit(arrays):
        arrays["norm.weight"][2], arrays["head.bias"][0] = np.nan, np.inf

    with pytest.raises(vitnp.CheckpointError, match=r"not finite: (head.bias, norm.weight|norm.weight, head.bias)$"):
        timm(edit)


def test_an_array_without_which_no_size_is_known_is_listed_as_missing(google):
    with pytest.raises(vitnp.CheckpointError, match=r"missing: embedding/kernel$"):
        google(lambda arrays: arrays.pop("embedding/kernel"))


def test_heads_that_are_wider_than_the_network_are_refused(google):
    def edit(arrays):
        for name in [name for name in arrays if "DotProductAttention" in name and "out/bias" not in name]:
            shape = [4 if n == 2 else n for n in arrays[name].shape]
            arrays[name] = np.ones(shape)

    with pytest.raises(vitnp.CheckpointError, match=r"m\.npz: 3 heads of 4 columns in a width of 6; expected heads"):
        google(edit)


@pytest.mark.parametrize(("case", "channels"), [("google-hybrid", 256), ("google-root", 32)])
@pytest.mark.parametrize("kept", [1, 7])
def test_patches_of_another_number_of_channels_than_the_stem_makes_are_misshaped(case, channels, kept, tmp_path):
    def edit(arrays):
        arrays["embedding/kernel"] = arrays["embedding/kernel"][:, :, :kept]

    path = change(file_of(case), tmp_path / "m.npz", edit)
    with pytest.raises(
        vitnp.CheckpointError, match=rf"misshaped: embedding/kernel is .*, {kept}, 6\), expected .*, {channels}, 6\)$"
    ):
        vitnp.load_pretrained(path, "float64", **ASKED[case])


def test_patches_behind_a_stage_that_is_missing_are_misshaped(tmp_path):
    def edit(arrays):
        for name in [name for name in arrays if name.startswith("block2/")]:
            del arrays[name]

    path = change(file_of("google-hybrid"), tmp_path / "m.npz", edit)
    with pytest.raises(
        vitnp.CheckpointError, match=r"misshaped: embedding/kernel is .*, 256, 6\), expected .*, 128, 6"
    ):
        vitnp.load_pretrained(path, "float64", **ASKED["google-hybrid"])


def test_numbers_that_the_dtype_cannot_hold_are_refused(google, tmp_path):
    def edit(arrays):
        arrays["cls"][0, 0, 1] = 1e300

    assert google(edit).parameters()["cls_token"].max() == 1e300
    path = change(file_of("google"), tmp_path / "n.npz", edit)
    with pytest.raises(vitnp.CheckpointError, match=r"n\.npz: cls_token has numbers too large for float32"):
        vitnp.load_pretrained(path)


def test_an_array_of_too_few_axes_is_listed(google):
    def edit(arrays):
        arrays["embedding/kernel"] = arrays["embedding/kernel"].reshape(12, 6)

    with pytest.raises(vitnp.CheckpointError, match=r"embedding/kernel is float64 \(12, 6\), expected floats P Q C D$"):
        google(edit)


def test_a_block_that_is_missing_is_listed_and_a_number_out_of_range_is_not_expected(timm):
    def edit(arrays):
        rename(("blocks.1.", "blocks.2."))(arrays)
        arrays["blocks.1000000.norm1.weight"] = np.ones(6)

    with pytest.raises(vitnp.CheckpointError) as caught:
        timm(edit)
    assert str(caught.value).count("blocks.1.") == 12
    assert "not expected: blocks.1000000.norm1.weight" in str(caught.value)


def test_a_name_that_is_there_twice_is_refused(google):
    def edit(arrays):
        arrays["params/cls"] = arrays["cls"]

    with pytest.raises(vitnp.CheckpointError, match="cls is there twice"):
        google(edit)


@pytest.mark.parametrize("case", ["google", "timm", "huggingface"])
def test_every_truncation_is_refused(case, tmp_path):
    path = file_of(case)
    target = tmp_path / path.name
    if path.is_dir():
        shutil.copytree(path, target)
        path, file = path / "model.safetensors", target / "model.safetensors"
    else:
        file = target
    content = path.read_bytes()
    for length in [0, 1, 2, 9, *range(10, len(content), 499), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(vitnp.CheckpointError, match=file.name):
            vitnp.load_pretrained(target, **ASKED[case])


def test_a_flipped_bit_of_a_npz_file_is_noticed(tmp_path):
    content = bytearray(file_of("google").read_bytes())
    content[content.index(b"\x93NUMPY") + 200] ^= 1
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(vitnp.CheckpointError, match="damaged or cut short: Bad CRC-32"):
        vitnp.load_pretrained(tmp_path / "m.npz")


@pytest.mark.parametrize(("at", "value", "message"), [(8, 1, "encrypted"), (10, 99, "compression method")])
def test_a_npz_file_that_cannot_be_unpacked_is_refused(at, value, message, tmp_path):
    content = bytearray(file_of("google").read_bytes())
    content[content.index(b"PK\x01\x02") + at] = value  # of the first entry of the archive's directory
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(vitnp.CheckpointError, match=rf"m\.npz: cannot be unpacked: .*{message}"):
        vitnp.load_pretrained(tmp_path / "m.npz")


LARGE = 2**26  # floats, of 256 MB


def packed(path, **headers):
    """The original's file, deflated, where the arrays that are named have other shapes and are zero."""
    with (
        np.load(file_of("google")) as file,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in dict.fromkeys([*file.files, *headers]):
            with archive.open(f"{name}.npy", "w") as member:
                if name not in headers:
                    np.save(member, file[name])
                    continue
                header = {"descr": "<f4", "fortran_order": False, "shape": headers[name]}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(4 * math.prod(headers[name]) >> 20):
                    member.write(bytes(1 << 20))


def test_what_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path):
    wrong = [
        ({"other": (LARGE,)}, "not expected: other"),
        ({"cls": (LARGE,)}, r"misshaped: cls is float32 \(67108864,\)"),
        ({"Transformer/posembed_input/pos_embedding": (1, 2**13, 2**13)}, "misshaped: "),
        ({"pos_embedding": (1, 2**13, 2**13)}, "there twice"),  # which is padded
        ({"Transformer/encoderblock/LayerNorm_0/bias": (2**50, 0)}, "not expected: Transformer/encoderblock/LayerN"),
        ({"Transformer/encoderblock/LayerNorm_0/bias": (2, LARGE // 2)}, "there twice"),
        ({"gn_root/bias": (1, 1, 1, LARGE)}, "not expected: .*gn_root"),
    ]
    calls = []
    for i, (headers, _) in enumerate(wrong):
        packed(tmp_path / f"{i}.npz", **headers)
        calls.append(f"load_pretrained({str(tmp_path / f'{i}.npz')!r})")
    for taken, (_, said) in zip(taken_by(calls, "from vitnp import load_pretrained"), wrong, strict=True):
        assert re.search(f"CheckpointError: .*npz: .*{said}", taken.said)
        assert taken.bytes < 16 << 20


def test_an_array_that_goes_on_behind_what_it_claims_is_read_no_further(tmp_path):
    with np.load(file_of("google")) as file, zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in file.files:
            add_bomb(archive, f"{name}.npy", npy(file[name]), megabytes=100 * (name == "cls"))
    call = f"load_pretrained({str(tmp_path / 'm.npz')!r})"
    (taken,) = taken_by([call], "from vitnp import load_pretrained")
    assert "m.npz: damaged or cut short: Bad CRC-32 for file 'cls.npy'" in taken.said
    assert taken.bytes < 16 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x93NUMPY\2\0\xff\xff\xff\xff{",
            r"cls\.npy begins with b'.x93NUMPY.*'; expected an array in NumPy's format 1.0",
        ),
        (npy(np.zeros(3)).replace(b"<f8", b"x,y"), "damaged or cut short: "),
        (npy(np.zeros(3))[:-1], r"cls\.npy has 151 bytes, expected 152 for float64 \(3,\): damaged"),
        (npy(np.zeros(3)) + b"x", r"cls\.npy has 153 bytes, expected 152"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(" * 9 + b"3"), "expected an array in NumPy's format 1.0"),
        (b"text", r"cls\.npy begins with b'text'; expected an array in NumPy's format 1.0"),
    ],
)
def test_an_array_whose_header_is_wrong_is_refused(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("cls.npy", content)
    with pytest.raises(vitnp.CheckpointError, match=rf"m\.npz: .*{message}"):
        vitnp.load_pretrained(tmp_path / "m.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_array_that_unpacks_without_a_bound_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "m.npz", "w", method) as archive:
        archive.writestr("cls.npy", npy(np.zeros(3)))
    with pytest.raises(vitnp.CheckpointError, match=r"cls\.npy cannot be unpacked: expected it stored or deflated"):
        vitnp.load_pretrained(tmp_path / "m.npz")


def test_pickles_are_refused_with_the_line_that_converts_them(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02.")
    for content in (archive.getvalue(), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
        path = tmp_path / "vit.pth"
        path.write_bytes(content)
        with pytest.raises(vitnp.CheckpointError) as caught:
            vitnp.load_pretrained(path)
        assert "a pickle of PyTorch" in str(caught.value)
        assert "s.save_file(" in str(caught.value)
        assert str(caught.value).endswith(f"{path} {tmp_path / 'vit.safetensors'}")


@pytest.mark.parametrize(
    ("case", "pickle", "given", "converted", "key"),
    [
        ("timm", "vit.pth", "vit.pth", "vit.safetensors", "model"),
        ("timm", "vit.pth", "vit.pth", "vit.safetensors", "state_dict"),
        ("huggingface", "pytorch_model.bin", "", "", None),
    ],
)
def test_the_line_that_converts_a_pickle_does_so(case, pickle, given, converted, key, tmp_path, monkeypatch):
    torch, folder = pytest.importorskip("torch", reason="PyTorch is not installed"), tmp_path / "a folder"
    source = next((REFERENCE / case).rglob("model.safetensors"))
    shutil.copytree(source.parent, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: torch.from_numpy(array) for name, array in load_file(source).items()}
    torch.save(state if key is None else {"epoch": 3, key: state}, folder / pickle)
    with pytest.raises(vitnp.CheckpointError) as caught:
        vitnp.load_pretrained(folder / given)
    _, _, line = str(caught.value).partition(": python -c ")
    code, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    exec(code, {})
    assert same_parameters(vitnp.load_pretrained(folder / converted, "float64", **ASKED[case]), load(case))


def test_an_archive_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("readme.txt", b"hello")
    with pytest.raises(vitnp.CheckpointError, match=r"other things than arrays, as readme\.txt; expected a \.npz file"):
        vitnp.load_pretrained(tmp_path / "m.npz")


def test_an_array_of_objects_is_refused(google):
    def edit(arrays):
        arrays["cls"] = np.array([[[None] * 6]])

    with pytest.raises(
        vitnp.CheckpointError, match=r"cls\.npy holds objects, which could run anything; expected floats"
    ):
        google(edit)


def test_an_unknown_layout_is_refused_with_some_of_its_names(tmp_path):
    save_file({"weight": np.ones(3), "bias": np.ones(3)}, tmp_path / "m")
    with pytest.raises(vitnp.CheckpointError, match=r"layout is unknown: none of its 2 arrays .*\['bias', 'weight'\]"):
        vitnp.load_pretrained(tmp_path / "m")


def test_all_that_is_wrong_with_a_stem_is_listed(tmp_path):
    def edit(arrays):
        del arrays["block1/unit2/conv2/kernel"], arrays["block2/unit1/gn_proj/bias"]
        arrays["block1/unit2/conv_proj/kernel"] = arrays["block1/unit1/conv_proj/kernel"]
        arrays["block1/unit1/conv1/kernel"] = np.ones((1, 1, 32, 64))
        arrays["gn_root/scale"] = np.ones(16)

    path = change(file_of("google-hybrid"), tmp_path / "m.npz", edit)
    with pytest.raises(vitnp.CheckpointError) as caught:
        vitnp.load_pretrained(path, **ASKED["google-hybrid"])
    assert str(caught.value).split("layout google has; ")[1] == (
        "missing: block1/unit2/conv2/kernel, block2/unit1/gn_proj/bias; not expected: block1/unit2/conv_proj/kernel; "
        "misshaped: gn_root/scale is float64 (16,), expected floats (32,), "
        "block1/unit1/conv1/kernel is float64 (1, 1, 32, 64), expected floats (1, 1, 32, 32)"
    )


@pytest.mark.parametrize("shape", [(7, 7, 2, 33), (7, 2, 32)], ids=str)
def test_a_root_of_another_shape_is_refused(shape, tmp_path):
    path = change(
        file_of("google-root"), tmp_path / "m.npz", lambda arrays: arrays.update({"conv_root/kernel": np.ones(shape)})
    )
    with pytest.raises(
        vitnp.CheckpointError, match=r"misshaped: .*conv_root/kernel is float64|misshaped: gn_root/scale"
    ):
        vitnp.load_pretrained(path, **ASKED["google-root"])


def test_a_stem_without_its_root_is_missing_it(tmp_path):
    path = change(file_of("google-hybrid"), tmp_path / "m.npz", lambda arrays: arrays.pop("conv_root/kernel"))
    with pytest.raises(vitnp.CheckpointError, match=r"missing: conv_root/kernel"):
        vitnp.load_pretrained(path, **ASKED["google-hybrid"])


def test_a_checkpoint_of_vitnp_is_sent_to_its_own_reader(tmp_path):
    vitnp.save_checkpoint(tmp_path / "m", load("google"))
    with pytest.raises(
        vitnp.CheckpointError, match=r"vitnp\.load_checkpoint reads it, and scripts take it without --pr"
    ):
        vitnp.load_pretrained(tmp_path / "m")


@pytest.mark.parametrize("length", [0x1280, 0x4B50])
def test_a_header_whose_length_begins_as_a_pickle_or_an_archive_does_is_read(length, tmp_path):
    content = file_of("timm").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].ljust(length)  # with blanks, as its writer does, too
    assert len(header) == length
    (tmp_path / "m").write_bytes(length.to_bytes(8, "little") + header + content[end:])
    assert (tmp_path / "m").read_bytes()[:2] in (b"\x80\x12", b"PK")
    assert same_parameters(vitnp.load_pretrained(tmp_path / "m", "float64", **ASKED["timm"]), load("timm"))


@pytest.fixture
def shards(tmp_path):
    """A model of transformers in two files, and a way to change their index and read them."""
    (tmp_path / "m").mkdir()
    shutil.copy(file_of("huggingface") / "config.json", tmp_path / "m")
    arrays, places = load_file(file_of("huggingface") / "model.safetensors"), {}
    for number, names in enumerate((sorted(arrays)[:20], sorted(arrays)[20:]), start=1):
        part = f"model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in names}, tmp_path / "m" / part)
        places |= dict.fromkeys(names, part)

    def read(change=lambda places: places, path=tmp_path / "m"):
        index = {"metadata": {}, "weight_map": change(dict(places))}
        (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
        return vitnp.load_pretrained(path, "float64")

    read.folder = tmp_path / "m"
    return read


def test_a_model_in_several_files_is_read_by_its_index(shards):
    assert same_parameters(shards(), load("huggingface"))
    assert same_parameters(shards(path=shards.folder / "model.safetensors.index.json"), load("huggingface"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: [*places], r"weight_map is \['.*; expected the file of each array by its name"),
        (lambda places: {**places, "vit.layernorm.bias": 3}, "weight_map is {'.*; expected the file of each array"),
        (lambda places: {**places, "more": "model-3.safetensors"}, r"model-3\.safetensors is not beside it: copy all"),
        (lambda places: {**places, "more": "../m.safetensors"}, r"\.\./m\.safetensors is not beside it"),
        (lambda places: {**places, "more": places["classifier.bias"]}, "more is in none of its files: copy them anew"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(shards, change, message):
    save_file({"more": np.ones(1)}, shards.folder.parent / "m.safetensors")
    with pytest.raises(vitnp.CheckpointError, match=rf"model\.safetensors\.index\.json: {message}"):
        shards(change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0.5]", r"\[0\.5\]; expected how transformers prepares an image"),
        ("{", "no readable JSON: Expecting"),
        ("[" * 200_000 + "]" * 200_000, "no readable JSON: "),
        ('{"image_mean": [1' + 400 * "0" + "]}", r"image_mean is \[1000.*; expected a list of numbers"),
        ('{"rescale_factor": 1' + 400 * "0" + "}", "rescale_factor is 1000.*; expected a number above 0"),
        ('{"image_mean": 0.5}', "image_mean is 0.5; expected a list of numbers, one a channel"),
        ('{"image_std": ["half"]}', r"image_std is \['half'\]; expected a list of numbers"),
        ('{"do_normalize": "no"}', "do_normalize is 'no'; expected true or false"),
        ('{"do_rescale": 0}', "do_rescale is 0; expected true or false"),
        ('{"rescale_factor": "1/255"}', "rescale_factor is '1/255'; expected a number above 0"),
        ('{"rescale_factor": true}', "rescale_factor is True; expected a number above 0"),
        ('{"rescale_factor": 0}', "rescale_factor is 0; expected a number above 0"),
        ('{"rescale_factor": Infinity}', "rescale_factor is inf; expected a number above 0"),
    ],
)
def test_a_scale_that_is_none_is_refused(content, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(vitnp.CheckpointError, match=rf"preprocessor_config\.json: {message}"):
        read_scale(tmp_path)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"1": "dog", "0": "cat", "10": "x", **{f"{i}": f"LABEL_{i}" for i in range(2, 10)}}, "all"),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        ({"0": "cat", "2": "dog"}, None),
        ({"0": "cat", "1": 2}, None),
        ([], None),
        (["cat", "dog"], None),
        (3, None),
        ({}, None),
    ],
    ids=str,
)
def test_names_of_classes_are_read_from_a_folder_of_transformers_where_it_has_any(labels, names, tmp_path):
    assert read_class_names(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    if names == "all":
        names = ["cat", "dog", *[f"LABEL_{i}" for i in range(2, 10)], "x"]
    assert read_class_names(tmp_path) == read_class_names(tmp_path / "model.safetensors") == names
    assert read_class_names(tmp_path / "model.npz") is None


@pytest.mark.parametrize(
    "told",
    [
        {"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"do_normalize": False, "do_rescale": False},
        {"do_rescale": False, "image_mean": [120.0, 130.0], "image_std": [60, 70.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.5], "image_std": [0.3, 0.7]},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"rescale_factor": 0.01},
        {"rescale_factor": None, "do_rescale": None, "do_normalize": None, "image_mean": [0, 1], "image_std": [1, 2]},
    ],
    ids=str,
)
def test_pixels_are_scaled_as_transformers_scales_them(told, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    (tmp_path / "config.json").write_text(json.dumps({"num_channels": 2}))
    told = {name: value for name, value in told.items() if value is not None}
    pixels = np.arange(256.0).repeat(2).reshape(-1, 2)
    truth = pixels * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else pixels
    if told.get("do_normalize", True):
        truth = (truth - told.get("image_mean", [0.5] * 2)) / told.get("image_std", [0.5] * 2)
    mean, std = read_scale(tmp_path)
    assert (len(mean), len(std)) == (2, 2)
    assert error((pixels / 255 - mean) / std, truth) < 1e-14


def test_the_channels_that_are_not_normalised_are_the_networks_or_three(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert read_scale(tmp_path) == ([0] * 3, [1] * 3)
    (tmp_path / "config.json").write_text('{"num_channels": "two"}')
    with pytest.raises(
        vitnp.CheckpointError, match=r"config\.json: num_channels is 'two'; expected an integer from 1 to 1024"
    ):
        read_scale(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"rescale_factor": 0.00392156862745098}'
    )  # as it writes 1 / 255
    assert read_scale(tmp_path) == (None, None)


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: there is no such file$"):
        vitnp.load_pretrained(tmp_path / "nothing")
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: .*it has \['config\.json'\]"):
        vitnp.load_pretrained(tmp_path)


def test_a_model_of_transformers_without_its_config_is_refused(tmp_path):
    shutil.copy(file_of("huggingface") / "model.safetensors", tmp_path)
    with pytest.raises(vitnp.CheckpointError, match=r"without its config\.json, which must be beside it"):
        vitnp.load_pretrained(tmp_path)
