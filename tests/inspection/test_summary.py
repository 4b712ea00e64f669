"""A summary says what a real pass does: shapes, parameters and saved bytes to the byte, and published totals."""

import itertools
import tracemalloc

import numpy as np
import pytest
from helpers import LAYERS, hard_model, images_for, labels_for, make_layer, one_pass

import vitnp
from vitnp.inspection.outlines import UnknownOperation
from vitnp.inspection.summary import trace
from vitnp.layers import MLP, Attention, Linear

# Numbers of parameters as timm 1.0 builds the networks with 1000 classes at 224 pixels; thousand millions of
# multiply-adds of a forward as timm tells them, which counts a little of what is done element by element.
PUBLISHED = {
    "Ti/16": (5_717_416, 1.26),
    "S/32": (22_878_952, 1.15),
    "S/16": (22_050_664, 4.61),
    "B/32": (88_224_232, 4.41),
    "B/16": (86_567_656, 17.58),
    "L/32": (306_535_400, 15.39),
    "L/16": (304_326_632, 61.60),
    "H/14": (632_045_800, 167.40),
}
OPTIONS = [
    {},
    {"pool": "mean"},
    {"representation_size": 11},
    {"dropout": 0.0, "attention_dropout": 0.0},
    {"gelu": "erf", "patch_size": (6, 8)},
    {"patch_size": (3, 8)},
    {"positions": "learned-2d", "pos_at": "layers"},
    {"positions": "sincos", "dim": 8, "pos_at": "shared"},
    {"positions": "none", "pool": "mean"},
    {"positions": "relative"},
    {"registers": 3, "layer_scale": 0.1, "qk_norm": True, "stochastic_depth": 0.3},
]


def owner(array):
    """The array whose memory it is."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def really_saved(layer, ctx):
    """Path of each layer in a recorded pass -> bytes that it was the first to save."""
    seen = {id(owner(parameter)) for parameter in layer.parameters().values()}
    bytes_of = {}
    for saver, tensors in ctx._saved.items():
        bytes_of[saver] = 0
        for array in vars(tensors).values():
            if array is not None and id(owner(array)) not in seen:
                seen.add(id(owner(array)))
                bytes_of[saver] += owner(array).nbytes
    return [bytes_of.get(part, 0) for part in layer.layers()]


def outputs(layer):
    """Note the shape of what every layer returns, in a dict that the next pass fills."""
    found = {}

    def watch(part, forward):
        def watched(x, ctx):
            y = forward(x, ctx)
            found[part] = y.shape
            return y

        part.forward = watched

    for part in layer.layers():
        watch(part, part.forward)
    return found


def multiply_adds(config):
    """Dosovitskiy et al., section 3.1 and appendix A, of one image: a product (m, k) @ (k, n) has m k n of them."""
    N, D, M, (P_h, P_w) = config.num_tokens, config.dim, config.mlp_dim, config.patch_size
    block = N * D * (3 * D + D + 2 * M) + 2 * N * N * D
    patches, hidden = config.num_patches * P_h * P_w * config.channels * D, config.representation_size
    head = D * hidden + hidden * config.num_classes if hidden else D * config.num_classes
    return patches + config.depth * block + head


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layers_shapes_and_saved_bytes_are_those_of_a_real_pass(name, dtype):
    layer, x = make_layer(name, dtype)
    found = trace(layer, x.shape, dtype)
    shapes, ctx = outputs(layer), vitnp.Context(train=True, rng=0)
    layer.forward(x, ctx)
    assert [row.output for row in found] == [shapes.get(part) for part in layer.layers()]
    assert [row.saved for row in found] == really_saved(layer, ctx)
    assert sum(row.parameters for row in found) == layer.num_parameters


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_models_saved_bytes_are_those_of_a_real_pass_to_the_byte(options, batch):
    model = hard_model("float32", **options)
    ctx = vitnp.Context(train=True, rng=0)
    one_pass(model, ctx, images_for(model, batch), labels_for(model, batch))
    assert [row.saved for row in vitnp.summary(model, batch).layers] == really_saved(model, ctx)


@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("positions") != "relative"], ids=str)
def test_operations_are_twice_the_multiply_adds_of_the_paper(options):
    model = hard_model(**options)
    assert vitnp.summary(model, 7).flops == 7 * 2 * multiply_adds(model.config)


@pytest.mark.parametrize("size", PUBLISHED)
def test_totals_are_those_of_published_networks(size):
    found = vitnp.summary(vitnp.ViTConfig.named(size))
    parameters, giga = PUBLISHED[size]
    assert found.parameters == parameters
    assert found.flops / 2e9 == pytest.approx(giga, rel=0.007)


def test_layers_that_go_by_their_parents_name_are_told_apart():
    found = vitnp.summary(hard_model("float32", positions="relative")).layers
    paths = [row.path for row in found]
    assert len(set(paths)) == len(paths)
    (relative,) = (row for row in found if row.path == "blocks.1.attn.relative")
    assert relative.kind == "RelativePositions"


def test_each_layer_has_its_own_operations_and_no_others():
    B, N, D, H = 5, 9, 6, 2
    found = {row.path: row.flops for row in trace(Attention(D, H), (B, N, D), "float32")}
    linear = {"qkv": 2 * B * N * D * 3 * D, "proj": 2 * B * N * D * D}
    assert found == {"": 2 * 2 * B * N * N * D, **linear, "softmax": 0, "dropout": 0}


def test_a_configuration_alone_tells_the_same_as_a_model():
    model = hard_model("float32")
    assert vitnp.summary(model.config, 3) == vitnp.summary(model, 3)


def test_a_wider_dtype_keeps_wider_tensors_and_computes_as_much():
    single, double = (vitnp.summary(hard_model(dtype), 2) for dtype in ("float32", "float64"))
    assert (double.saved, double.flops, double.dtype) == (2 * single.saved, single.flops, "float64")


def test_no_memory_is_taken_that_grows_with_the_batch_and_the_model_stays_as_it_is():
    model = vitnp.VisionTransformer(vitnp.ViTConfig.named("Ti/16"), rng=None)
    before = vars(model).copy()
    tracemalloc.start()
    try:
        found = vitnp.summary(model, 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.saved > 1e10
    assert peak < 3e6
    assert vars(model) == before
    assert all("forward" not in vars(layer) for layer in model.layers())


def test_memory_of_the_parameters_is_not_counted_and_all_of_a_views_is():
    class Slicing(Linear):
        def forward(self, x, ctx):
            ctx.save(self, weight=self.weight.T, first=(x * 2)[:, :1], again=x, gone=None)
            return x

    (found,) = trace(Slicing(4, 4), (3, 2, 4), "float64")
    assert found.saved == 2 * 3 * 2 * 4 * 8


def test_what_is_only_lent_is_copied_when_it_is_saved_and_counted_as_the_copy():
    class Twice(Linear):
        def forward(self, x, ctx):
            y = super().forward(x, ctx)
            ctx.begin()
            ctx.save(self, y=y)
            return y

    layer = Twice(4, 5)
    layer.lends, layer.role = True, "block.fc"
    (found,) = trace(layer, (3, 2, 4), "float32")
    assert found.saved == (3 * 2 * 4 + 3 * 2 * 5) * 4


def test_a_layer_that_the_pass_does_not_come_to_has_no_output():
    model = hard_model("float32")
    model.spare = Linear(3, 4)
    model.spare.path = "spare"
    found = vitnp.summary(model).layers[-1]
    assert found == ("spare", "Linear", None, 16, 0, 0)


def test_a_layer_that_uses_a_function_without_a_rule_is_an_error_that_names_both():
    class Sorting(MLP):
        def forward(self, x, ctx):
            y = super().forward(x, ctx)
            return vitnp.array_module(y).sort(y)  # after the layers in it have ended

    model = hard_model("float32")
    model.blocks[1].mlp = Sorting(6, 7)
    model.built(rng=None)
    with pytest.raises(UnknownOperation, match=r"^Sorting 'blocks\.1\.mlp': the function sort has no rule for"):
        vitnp.summary(model)


@pytest.mark.parametrize(
    ("model", "batch", "kind", "message"),
    [
        ("B/16", 1, TypeError, "model is a str; expected a VisionTransformer or a ViTConfig"),
        (Linear(2, 3), 1, TypeError, "model is a Linear; expected"),
        (vitnp.ViTConfig(), 0, ValueError, "batch_size is 0; expected an integer of at least 1"),
        (vitnp.ViTConfig(), 2.0, ValueError, r"batch_size is 2\.0; expected"),
        (vitnp.ViTConfig(), True, ValueError, "batch_size is True; expected"),
    ],
)
def test_bad_input_is_one_line(model, batch, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        vitnp.summary(model, batch)


# -- the table --------------------------------------------------------------------------------------------------------


def number(text):
    value, *unit = text.split(" ")
    prefix = unit[0].rstrip("B") if unit else ""
    return float(value.replace(",", "")) * 1000 ** " kMGT".index(prefix or " ")


def table(found):
    """The lines of the printed table as lists of cells."""
    lines = str(found).splitlines()
    starts = [lines[1].index(name) for name in ("layer", "kind", "output")]
    ends = [lines[1].index(name) + len(name) for name in ("parameters", "flops", "saved")]
    bounds = [*itertools.pairwise(starts), (starts[2], ends[0] - 11), *itertools.pairwise([ends[0] - 11, *ends])]
    return [[line[a:b].strip() for a, b in bounds] for line in lines[2:] if not line.startswith(("-", "flops:", "sav"))]


@pytest.mark.parametrize(
    ("depth", "others"),
    [(1, []), (2, ["blocks.1"]), (5, ["blocks.1 to 4"])],
)
def test_blocks_that_are_alike_are_printed_once(depth, others):
    model = hard_model("float32", depth=depth)
    paths = [row[0] for row in table(vitnp.summary(model))]
    block = [f"blocks.0.{layer.path.partition('.')[2][2:]}".rstrip(".") for layer in model.blocks[0].layers()]
    assert paths == ["patch_embed", "embeddings", "dropout", *block, *others, "classifier", "norm", "head", "total"]


def test_lists_of_single_layers_are_shown_as_one_line_and_two_lists_are_not_mixed():
    model = hard_model("float32")
    model.spare, model.other = [Linear(3, 4) for _ in range(3)], [Linear(3, 4) for _ in range(2)]
    model.built(rng=None)
    found = [row[:2] for row in table(vitnp.summary(model)) if row[0].startswith(("spare", "other"))]
    assert found == [
        ["spare.0", "Linear"],
        ["spare.1 to 2", "as spare.0"],
        ["other.0", "Linear"],
        ["other.1", "as other.0"],
    ]


def test_a_block_that_is_another_is_printed_by_itself():
    model = hard_model("float32", depth=4)
    model.blocks[2].mlp.fc2 = Linear(7, 6)
    model.blocks[2].mlp.fc1 = Linear(6, 7)
    model.blocks[2].attn.softmax = vitnp.layers.GELU()
    model.built(rng=None)
    paths = [row[0] for row in table(vitnp.summary(model)) if row[0].count(".") == 1]
    assert paths == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]


def test_a_block_with_a_layer_of_another_kind_is_printed_by_itself():
    class Other(Linear):
        pass

    model = hard_model("float32", depth=3)
    model.blocks[1].mlp.fc1 = Other(6, 7)
    model.built(rng=None)
    paths = [row[0] for row in table(vitnp.summary(model)) if row[0].count(".") == 1]
    assert paths == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("size", ["B/16", "H/14"])
def test_columns_add_up_to_the_totals(size):
    rows = table(vitnp.summary(vitnp.ViTConfig.named(size), 8))
    for column in (3, 4, 5):
        *parts, total = [number(row[column]) for row in rows if row[column]]
        assert sum(parts) == pytest.approx(total, rel=1e-3)


def test_the_table_says_what_is_counted():
    first, *_, flops, saved = repr(vitnp.summary(vitnp.ViTConfig.named("B/16"))).splitlines()
    assert first == "Vision Transformer, 1 image of 224 x 224 x 3, 1000 classes, float32"
    assert flops.startswith("flops: of forward's matrix products, 17.56 G multiply-adds counted as two each")
    assert saved.startswith("saved: what a training pass keeps for its backward")


def test_the_table_of_a_published_size_fits_the_screen():
    assert max(map(len, str(vitnp.summary(vitnp.ViTConfig.named("H/14"), 512)).splitlines())) <= 120


@pytest.mark.parametrize(
    ("number_", "text"),
    [(0, "0"), (999, "999"), (999.96, "1 k"), (1000, "1 k"), (12345, "12.35 k"), (4e15, "4000 T"), (2e9, "2 G")],
)
def test_numbers_have_four_digits_and_a_prefix(number_, text):
    from vitnp.inspection.summary import _scaled

    assert _scaled(number_) == text


def test_products_that_choose_rows_are_counted_as_the_docstring_says():
    rows, columns, K, H, B = 2, 5, 3, 2, 4
    config = vitnp.ViTConfig(
        image_size=(2, 5), patch_size=1, dim=H * K, depth=1, num_heads=H, mlp_dim=7, positions="relative"
    )
    found = {layer.kind: layer.flops for layer in vitnp.summary(config, B).layers}
    asked = 2 * B * H * rows * columns * K * (rows + columns)  # queries by offsets
    chosen = 2 * K * (rows**2 * (2 * rows - 1) + columns**2 * (2 * columns - 1))
    assert found["RelativePositions"] == asked + chosen
