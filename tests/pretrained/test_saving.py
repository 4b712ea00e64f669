"""A model written in any layout is the same when it is read again, bit for bit, and as its program writes it."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import HYBRID, LATER, hard_model, same_bits
from safetensors import safe_open
from safetensors.numpy import load_file

import vitnp

REFERENCE = Path(__file__).parent.parent / "reference" / "pretrained"
LAYOUTS = ("google", "timm", "huggingface", "torchvision")
NETWORKS = {
    "token": {},
    "erf": {"gelu": "erf", "layer_norm_eps": 1e-5},
    "noted": {"stochastic_depth": 0.25, "pos_init": "sincos", "dim": 8},
    "mean": {"pool": "mean"},
    "mean-norm": {"pool": "mean-norm"},
    "pre-logits": {"representation_size": 11},
    "later": LATER,
    "later-mean": {**LATER, "pool": "mean"},
    "hybrid": {**HYBRID, "stem_blocks": (2, 1), "patch_size": (1, 2), "image_size": (21, 15)},
    "root": {**HYBRID, "stem_blocks": (), "pool": "mean"},
}
LACKS = {("mean", "huggingface"), ("mean", "torchvision"), ("pre-logits", "huggingface")}
LACKS |= {
    (network, layout) for network in ("later", "later-mean", "mean-norm") for layout in LAYOUTS if layout != "timm"
}
LACKS |= {(network, layout) for network in ("hybrid", "root") for layout in ("huggingface", "torchvision")}
PAIRS = [(network, layout) for network in NETWORKS for layout in LAYOUTS]


def same_model(a, b):
    found, truth = a.parameters(), b.parameters()
    assert found.keys() == truth.keys()
    return a.config == b.config and all(same_bits(found[name], truth[name]) for name in truth)


def arrays_of(path):
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    return load_file(path / "model.safetensors" if path.is_dir() else path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("network", "layout"), [pair for pair in PAIRS if pair not in LACKS])
def test_what_is_written_is_read_bit_for_bit_with_all_of_the_configuration(network, layout, dtype, tmp_path):
    model = hard_model(dtype, **NETWORKS[network])
    vitnp.save_pretrained(model, tmp_path / "m", layout)
    assert same_model(vitnp.load_pretrained(tmp_path / "m", dtype), model)


@pytest.mark.parametrize(("network", "layout"), sorted(LACKS))
def test_a_network_that_a_layout_has_no_place_for_is_refused_and_nothing_written(network, layout, tmp_path):
    with pytest.raises(ValueError, match=f"the layout {layout} has (no|its final norm before) "):
        vitnp.save_pretrained(hard_model(**NETWORKS[network]), tmp_path / "m", layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_goes_through_all_layouts_and_back_bit_for_bit(layout, tmp_path):
    model = first = hard_model("float32")
    for number, step in enumerate((layout, *LAYOUTS)):
        vitnp.save_pretrained(model, tmp_path / f"{number}", step)
        model = vitnp.load_pretrained(tmp_path / f"{number}")
    assert same_model(model, first)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("timm", {"num_heads": 3, "grid": (2, 4)}),
        ("timm-mean", {"num_heads": 3, "grid": (2, 4)}),
        ("timm-later", {"grid": (2, 4)}),
        ("huggingface", {}),
        ("torchvision", {"num_heads": 3}),
        ("torchvision-pre-logits", {"num_heads": 3}),
    ],
)
def test_a_file_of_another_program_is_written_back_array_for_array(case, options, tmp_path):
    (path,) = REFERENCE.glob(f"{case}/model*")
    vitnp.save_pretrained(vitnp.load_pretrained(path, "float64", **options), tmp_path / "m", case.partition("-")[0])
    found, truth = arrays_of(tmp_path / "m"), arrays_of(path)
    if "reg_token" in truth:  # whose positions are the registers' own here
        truth["reg_token"] = truth["reg_token"] + truth["pos_embed"][:, 1:3]
        truth["pos_embed"][:, 1:3] = 0
    assert found.keys() == truth.keys()
    assert all(same_bits(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("case", ["google", "google-pre-logits", "google-mean", "google-root", "google-hybrid"])
def test_the_originals_file_is_written_with_the_published_numbers_of_sub_modules(case, tmp_path):
    path = REFERENCE / case / "model.npz"
    grid = {"google-root": (2, 3), "google-hybrid": (6, 2)}.get(case)
    vitnp.save_pretrained(vitnp.load_pretrained(path, "float64", grid=grid), tmp_path / "m.npz", "google")
    found, truth = arrays_of(tmp_path / "m.npz"), arrays_of(path)
    for newer, published in (
        ("Attention_0", "Attention_1"),
        ("LayerNorm_1", "LayerNorm_2"),
        ("MlpBlock_0", "MlpBlock_3"),
    ):
        truth = {name.replace(newer, published): array for name, array in truth.items()}
    assert found.keys() == truth.keys()
    assert all(same_bits(found[name], truth[name]) for name in truth)


def test_config_json_says_what_that_of_transformers_says(tmp_path):
    path = REFERENCE / "huggingface-tanh" / "model"
    vitnp.save_pretrained(vitnp.load_pretrained(path, "float64"), tmp_path / "m", "huggingface")
    found, truth = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "m", path))
    assert found.pop("torch_dtype") == truth.pop("dtype")
    for name in ("encoder_stride", "initializer_range", "pooler_act", "pooler_output_size", "transformers_version"):
        del truth[name]  # of no meaning for a classifier
    assert found == truth
    with safe_open(tmp_path / "m" / "model.safetensors", framework="numpy") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("network", ["hybrid", "root"])
def test_names_of_a_hybrid_are_timms(network, tmp_path):
    vitnp.save_pretrained(hard_model(**NETWORKS[network]), tmp_path / "m", "timm")
    found = load_file(tmp_path / "m")
    backbone = {
        name.removeprefix("patch_embed.backbone."): array.shape for name, array in found.items() if "backbone" in name
    }
    root = "stem." if network == "hybrid" else ""
    assert backbone[f"{root}conv.weight"] == (32, 3, 7, 7)
    assert backbone[f"{root}norm.bias"] == (32,)
    if network == "root":
        assert len(backbone) == 3
    else:
        assert backbone["stages.1.blocks.0.downsample.conv.weight"] == (256, 128, 1, 1)
        assert backbone["stages.0.blocks.1.conv2.weight"] == (32, 32, 3, 3)
        assert backbone["stages.1.blocks.0.norm3.weight"] == (256,)
        assert len(backbone) == 3 * (1 + 4 + 3 + 4)


def test_a_register_of_negative_zeros_stays_so(tmp_path):
    model = hard_model(registers=2)
    model.parameters()["reg_token"][...] = -0.0
    vitnp.save_pretrained(model, tmp_path / "m", "timm")
    assert np.signbit(vitnp.load_pretrained(tmp_path / "m", "float64").parameters()["reg_token"]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_model_makes_the_same_bytes(layout, tmp_path):
    model, found = hard_model(), set()
    for i in range(8):
        vitnp.save_pretrained(model, tmp_path / f"{i}", layout)
        path = tmp_path / f"{i}"
        found.add((path / "model.safetensors" if path.is_dir() else path).read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("blocked", ["config.json", "model.safetensors"])
def test_a_folder_of_which_one_file_cannot_be_written_stays_as_it_was(blocked, first, tmp_path):
    folder, (other,) = tmp_path / "m", {"config.json", "model.safetensors"} - {blocked}
    if first:
        folder.mkdir()
    else:
        vitnp.save_pretrained(hard_model(layer_norm_eps=1e-3), folder, "huggingface")
        (folder / blocked).unlink()
    (folder / blocked).mkdir()
    before = None if first else (folder / other).read_bytes()
    with pytest.raises(OSError, match=blocked):
        vitnp.save_pretrained(hard_model("float32"), folder, "huggingface")
    assert sorted(path.name for path in folder.iterdir()) == sorted({blocked} if first else {blocked, other})
    assert first or (folder / other).read_bytes() == before


def test_the_names_of_the_classes_in_a_folder_stay_where_their_number_fits(tmp_path):
    def labels(num_classes):
        vitnp.save_pretrained(hard_model(num_classes=num_classes), tmp_path / "m", "huggingface")
        config = json.loads(path.read_text())
        return config["id2label"], config["label2id"]

    path = tmp_path / "m" / "config.json"
    labels(2)
    names = {"0": "cat", "1": "dog"}, {"cat": 0, "dog": 1}
    config = {**json.loads(path.read_text()), "id2label": names[0], "label2id": names[1]}
    path.write_text(json.dumps(config))
    assert labels(2) == names
    assert labels(3)[0] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    for damaged in ("{", "[]", "3", '{"id2label": [1], "label2id": {}}'):
        path.write_text(damaged)
        assert labels(2)[0] == {"0": "LABEL_0", "1": "LABEL_1"}


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="layout is 'keras'; choose one of 'google', 'timm', 'huggingface', 'torchvi"):
        vitnp.save_pretrained(hard_model(), tmp_path / "m", "keras")


@pytest.mark.parametrize("layout", ["google", "timm", "huggingface", "torchvision"])
@pytest.mark.parametrize("changes", [{"positions": "relative"}, {"pos_at": "layers"}, {"positions": "none"}], ids=str)
def test_positions_that_a_layout_has_no_place_for_are_refused(changes, layout, tmp_path):
    with pytest.raises(
        ValueError, match=f"the layout {layout} has no positions '(relative|learned|none)' at '(stem|layers)'"
    ):
        vitnp.save_pretrained(hard_model(**changes), tmp_path / "m", layout)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("name", "layout", "written_as"),
    [
        ("m.npz", "timm", r"a file \.safetensors"),
        ("m.npz", "huggingface", "a folder"),
        ("m.safetensors", "google", r"a file \.npz"),
        ("m.safetensors", "huggingface", "a folder"),
    ],
)
def test_a_name_that_says_another_kind_of_file_is_refused(tmp_path, name, layout, written_as):
    with pytest.raises(ValueError, match=rf"{name}: the layout {layout} is {written_as}: choose another name"):
        vitnp.save_pretrained(hard_model(), tmp_path / name, layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "pytorch_model.bin"])
@pytest.mark.parametrize(("layout", "written_as"), [("timm", r"a file \.safetensors"), ("huggingface", "a folder")])
def test_a_name_of_a_pickle_is_refused(tmp_path, name, layout, written_as):
    with pytest.raises(ValueError, match=f"{name}: so PyTorch calls a pickle, and the layout {layout} is {written_as}"):
        vitnp.save_pretrained(hard_model(), tmp_path / name, layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["layer_scale", "registers", "qk_norm"])
@pytest.mark.parametrize("layout", ["google", "huggingface", "torchvision"])
def test_what_later_papers_added_is_refused_by_name_where_there_is_no_place_for_it(option, layout, tmp_path):
    name = {"layer_scale": "blocks.0.ls1.gamma", "registers": "reg_token", "qk_norm": "blocks.0.attn.q_norm.gamma"}[
        option
    ]
    with pytest.raises(ValueError, match=f"the layout {layout} has no place for {name}.*: save_checkpoint keeps any"):
        vitnp.save_pretrained(hard_model(**{option: LATER[option]}), tmp_path / "m", layout)
    assert not list(tmp_path.iterdir())


def test_a_note_from_before_there_was_stochastic_depth_is_read(tmp_path):
    vitnp.save_pretrained(hard_model(), tmp_path / "m", "google")
    content = (tmp_path / "m").read_bytes()
    start = content.index(b', "stochastic_depth"')
    note = content[start:].partition(b"}")[0]
    (tmp_path / "m").write_bytes(content.replace(note, b" " * len(note)))
    assert same_model(vitnp.load_pretrained(tmp_path / "m", "float64"), hard_model())


def test_what_is_not_finite_is_not_written_and_the_old_file_stays(tmp_path):
    model = hard_model()
    vitnp.save_pretrained(model, tmp_path / "m", "timm")
    before = (tmp_path / "m").read_bytes()
    model.parameters()["norm.beta"][1] = np.inf
    with pytest.raises(ValueError, match=r"norm\.beta holds NaN or infinity"):
        vitnp.save_pretrained(model, tmp_path / "m", "timm")
    assert (tmp_path / "m").read_bytes() == before


def test_complex_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the model is complex128; expected float32 or float64"):
        vitnp.save_pretrained(hard_model("complex128"), tmp_path / "m", "google")


def test_a_note_that_is_damaged_is_refused(tmp_path):
    vitnp.save_pretrained(hard_model(), tmp_path / "m", "timm")
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content.replace(b"num_heads", b"num_heabs"))
    with pytest.raises(vitnp.CheckpointError, match="damaged or cut short: 'num_heads'"):
        vitnp.load_pretrained(tmp_path / "m")


def test_a_model_on_a_device_is_written_as_on_the_host(backend, tmp_path):
    model = hard_model("float32")
    vitnp.save_pretrained(model.to_device(backend.device), tmp_path / "m", "timm")
    assert same_model(vitnp.load_pretrained(tmp_path / "m"), model)
