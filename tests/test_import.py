"""Importing vitnp is cheap and quiet, and one file alone knows of CuPy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitnp

PACKAGE = Path(vitnp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ["PIL", "tqdm", "safetensors", "threadpoolctl", "matplotlib", "cupy", "torch", "scipy", "hypothesis", "pytest"]


def run(code):
    """What a fresh process writes, to standard output and to standard error."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONWARNINGS": "error"}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip(), process.stderr.strip()


def imported(path):
    """The top-level modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def names(path):
    """Every name and attribute that a file's code mentions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_import_loads_nothing_heavy():
    found, _ = run(f"import sys, vitnp; print([name for name in {HEAVY} if name in sys.modules])")
    assert found == "[]"


def test_import_writes_nothing_and_warns_of_nothing():
    assert run("import vitnp") == ("", "")


def test_import_draws_no_random_numbers():
    code = "import numpy, vitnp; before = str(numpy.random.get_state()); import vitnp.layers, vitnp.optim\n"
    code += "vitnp.VisionTransformer(vitnp.ViTConfig(depth=1)); print(before == str(numpy.random.get_state()))"
    assert run(code)[0] == "True"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_but_backend_imports_cupy(path):
    if path.name != "backend.py":
        assert not {"cupy", "cupyx"} & set(imported(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_what_is_no_dependency(path):
    dependencies = {"vitnp", "numpy", "PIL", "tqdm", "safetensors", "threadpoolctl", "matplotlib", "cupy"}
    assert set(imported(path)) <= dependencies | set(sys.stdlib_module_names)


LAYER_FILES = sorted((PACKAGE / "layers").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_can_run_what_a_file_says(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not {"eval", "exec", "extractall", "extract"} & set(names(path))
    called = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in ("load", "loads")]
    assert {ast.unparse(node) for node in called} <= {"json.loads", "_Unpickler(content).load"}
    assert not [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]


@pytest.mark.parametrize("path", LAYER_FILES, ids=lambda path: path.name)
def test_no_layer_names_a_dtype_or_a_function_that_loses_imaginary_parts(path):
    assert not {"float32", "float64", "var", "std", "linalg", "vdot", "hypot"} & set(names(path))


def test_every_public_name_exists():
    assert all(hasattr(vitnp, name) for name in vitnp.__all__)
    assert len(set(vitnp.__all__)) == len(vitnp.__all__)


def test_public_names_that_programs_rely_on():
    relied_on = "ViTConfig VisionTransformer Context softmax_cross_entropy Adam ShardedStep gradcheck save_checkpoint "
    relied_on += "load_checkpoint load_pretrained save_pretrained array_module to_cpu to_device __version__"
    assert all(hasattr(vitnp, name) for name in relied_on.split())


def test_version_has_three_numbers():
    assert len([int(part) for part in vitnp.__version__.split(".")]) == 3
