"""summary.py prints the table of a published size and of a checkpoint, and says what it cannot read."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import vitnp

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def summarise(monkeypatch, capsys, *options):
    """Run the script in this process: -> exit status, standard output and error."""
    monkeypatch.setattr(sys, "argv", ["summary.py", *map(str, options)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPTS / "summary.py"), run_name="__main__")
    return left.value.code, *capsys.readouterr()


def test_a_published_size_is_printed_as_the_package_does(run, tmp_path):
    output = run("summary.py", "B/16", "--batch-size", 8, cwd=tmp_path).stdout
    assert output == f"{vitnp.summary(vitnp.ViTConfig.named('B/16'), 8)}\n"


def test_fields_can_be_changed(monkeypatch, capsys):
    changes = ["image_size=[32, 48]", "patch_size=16", "depth=2", "pool=mean", "dropout=0.1"]
    _, output, _ = summarise(monkeypatch, capsys, "Ti/16", *changes)
    config = vitnp.ViTConfig.named("Ti/16", image_size=(32, 48), depth=2, pool="mean", dropout=0.1)
    assert output == f"{vitnp.summary(config)}\n"


def test_json_has_the_totals_and_every_layer(monkeypatch, capsys):
    found = json.loads(summarise(monkeypatch, capsys, "Ti/16", "depth=3", "--json")[1])
    expected = vitnp.summary(vitnp.ViTConfig.named("Ti/16", depth=3))
    assert [found[name] for name in ("parameters", "flops", "saved")] == [
        expected.parameters,
        expected.flops,
        expected.saved,
    ]
    assert [layer["path"] for layer in found["layers"]] == [layer.path for layer in expected.layers]
    assert found["config"]["depth"] == 3


def test_a_checkpoint_is_summarised(monkeypatch, capsys, digits_run):
    _, checkpoint = digits_run
    _, output, _ = summarise(monkeypatch, capsys, checkpoint)
    assert output == f"{vitnp.summary(vitnp.load_checkpoint(checkpoint).model)}\n"


def test_a_masked_run_s_is_the_network_that_hides_patches(monkeypatch, capsys, tmp_path):
    small = {"dim": 16, "depth": 1, "mlp_dim": 16}
    masked = vitnp.MaskedPatchPrediction(vitnp.ViTConfig(**small))
    vitnp.save_checkpoint(tmp_path / "masked.safetensors", masked)
    _, output, _ = summarise(monkeypatch, capsys, tmp_path / "masked.safetensors")
    assert "PatchCorruption" in output
    assert output == f"{vitnp.summary(masked)}\n"
    _, output, _ = summarise(monkeypatch, capsys, tmp_path / "masked.safetensors", "depth=2")
    assert output == f"{vitnp.summary(vitnp.MaskedPatchPrediction(vitnp.ViTConfig(**small | {'depth': 2})))}\n"
    status, output, error = summarise(
        monkeypatch, capsys, tmp_path / "masked.safetensors", "image_size=28", "num_classes=5"
    )
    assert (status, output) == (1, "")
    assert error == "error: num_classes is 8 in every MaskedPatchPrediction like this: leave num_classes= out\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["X/16"], r"there is no ViT 'X/16': sizes are .*, or give a checkpoint, whose name ends in \.safetensors"),
        (["nothing.safetensors"], r"nothing\.safetensors"),
        (["B/16", "width=4"], "'width=4' is no change; expected FIELD=VALUE, of the fields image_size, patch_size"),
        (["B/16", "depth"], "'depth' is no change"),
        (["B/16", "depth=two"], "depth is 'two'; expected an integer"),
        (["B/16", "--batch-size", "0"], "batch_size is 0; expected an integer of at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(monkeypatch, capsys, options, message):
    status, output, error = summarise(monkeypatch, capsys, *options)
    assert (status, output) == (1, "")
    assert re.match(f"error: .*{message}", error)
    assert error.count("\n") == 1
