"""Write `cupy_surface.json`: what the installed CuPy accepts, for `strict_cupy` to enforce without CuPy.

Importing CuPy needs no GPU, and everything recorded here is found by inspection alone:

    python tests/freeze_cupy_surface.py         # after: pip install cupy-cuda13x

A signature is kept as the text between its parentheses, without annotations; a default that is not a literal
(a dtype class, say) is written `...`, which is a valid Python default too.
"""

import ast
import inspect
import json
import re
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("cupy_surface.json")
ANYTHING = "*args, **kwargs"
STANDARD_DTYPES = set("?bBhHiIlLqQefdFD")  # optional packages add loops (bfloat16), which are left out
SYNCHRONISES = "This function may synchronize the device."


def surface() -> dict:
    """The public surface of the installed CuPy, as plain JSON data."""
    import cupy

    functions, ufuncs, same, others = {}, {}, [], []
    for name in _public(cupy):
        item = getattr(cupy, name)
        if isinstance(item, cupy.ufunc):
            ufuncs[name] = " ".join(loop for loop in item.types if set(loop) - set("->") <= STANDARD_DTYPES)
        elif _is_numpys(name, item):
            same.append(name)
        elif inspect.isclass(item) or not callable(item):
            others.append(name)
        else:
            functions[name] = signature(item)
    return {
        "versions": {"cupy": cupy.__version__, "numpy": np.__version__},
        "functions": functions,
        "ufuncs": ufuncs,
        "same": same,
        "others": others,
        "at": [name for name in ufuncs if getattr(cupy, name)._scatter_op is not None],
        "syncs": [name for name in functions if SYNCHRONISES in (getattr(cupy, name).__doc__ or "")],
        "linalg": _signatures(cupy.linalg),
        "random": _public(cupy.random),
        "cuda": _public(cupy.cuda),
        "runtime": [name for name in _public(cupy.cuda.runtime) if callable(getattr(cupy.cuda.runtime, name))],
        "ndarray": _signatures(cupy.ndarray),
        "attributes": [name for name in _public(cupy.ndarray) if not callable(getattr(cupy.ndarray, name))],
        "operators": [name for name in dir(cupy.ndarray) if _is_operator(cupy.ndarray, name)],
        "flags": _public(type(_flags_of(cupy))),
        "Generator": _signatures(cupy.random.Generator),
    }


def signature(function) -> str:
    """The parameters of a function, without its annotations, `self` and non-literal defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return _embedded_signature(function)
    given = [p for p in parameters if p.name != "self"]
    bare = [p.replace(annotation=p.empty, default=_literal(p.default)) for p in given]
    return str(inspect.Signature(bare)).strip("()").replace("Ellipsis", "...")


def _embedded_signature(function) -> str:
    """Cython keeps the signature of a compiled method as the first line of its docstring, with C types."""
    first_line = (function.__doc__ or "").partition("\n")[0]
    found = re.fullmatch(r"[\w.]+\((.*)\)(?: -> .*)?", first_line)
    if not found:
        return ANYTHING
    parameters = [re.sub(r"^\w+ (?=\w)", "", p) for p in found[1].split(", ")]  # "int axis=-1": axis=-1
    text = ", ".join(p for p in parameters if p and p != "self")
    try:
        ast.parse(f"lambda {text}: 0")
    except SyntaxError:
        return ANYTHING
    return text


def _literal(default):
    """The default itself when JSON text can say it, else `...`."""
    if default is inspect.Parameter.empty or default is None or isinstance(default, bool | int | float | str):
        return default
    plain = isinstance(default, tuple) and all(isinstance(item, int) for item in default)
    return default if plain else ...


def _public(thing) -> list[str]:
    return sorted(name for name in dir(thing) if not name.startswith("_") and name != "annotations")


def _signatures(thing) -> dict[str, str]:
    functions = {name: getattr(thing, name) for name in _public(thing)}
    return {n: signature(f) for n, f in functions.items() if callable(f) and not inspect.isclass(f)}


def _is_operator(cls, name: str) -> bool:
    """Whether `name` is a special method that every object does not have."""
    from_python = name in dir(object) or name in ("__buffer__", "__release_buffer__")  # the two since 3.12
    special = re.fullmatch(r"__\w+__", name) and not name.startswith("__pyx")
    return bool(special) and not from_python and callable(getattr(cls, name))


def _is_numpys(name: str, item) -> bool:
    """Whether CuPy hands out NumPy's own object: dtypes, constants, a few functions of dtypes."""
    own = getattr(np, name, item) if hasattr(np, name) else None
    same_number = isinstance(item, float) and isinstance(own, float) and repr(item) == repr(own)
    return hasattr(np, name) and (item is own or same_number)


def _flags_of(cupy):
    """A `Flags` object, made without a device."""
    from cupy._core.flags import Flags

    return Flags(True, True, True)


if __name__ == "__main__":
    PATH.write_text(json.dumps(surface(), indent=0) + "\n")
    print(f"{PATH}: {PATH.stat().st_size} bytes")
