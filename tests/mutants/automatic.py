"""One small change after another, in every backward and in the optimizer's step, made from the syntax tree.

    operators   + and -, * and /, @ turned round, += and -=, *= and /=, comparisons, np.add and subtract, np.multiply
    constants   an integer one more or less, a number times 1.001 or 0, True and False
    dropped     one side of an operator, a sign, a whole statement, a bound of a slice, .T, swapaxes, the arms of an if
    axes        sum for mean, another axis for -1

Docstrings and tests of arguments are left alone. Each change replaces the text of one node and nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutants.trial import ROOT

# file: the functions and methods whose every part is changed
TARGETS = {
    "vitnp/layers/linear.py": ("backward",),
    "vitnp/layers/layer_norm.py": ("layer_norm_backward", "backward"),
    "vitnp/layers/gelu.py": ("gelu_tanh", "gelu_erf", "backward"),
    "vitnp/layers/tanh.py": ("backward",),
    "vitnp/layers/dropout.py": ("backward", "_apply"),
    "vitnp/layers/layer_scale.py": ("backward",),
    "vitnp/layers/softmax.py": ("softmax_backward", "backward"),
    "vitnp/layers/patch_embed.py": ("unpatchify", "backward"),
    "vitnp/layers/embeddings.py": ("backward",),
    "vitnp/layers/positions.py": ("backward",),
    "vitnp/layers/relative_positions.py": ("backward", "_keys", "_choice"),
    "vitnp/layers/raster_positions.py": ("forward", "backward"),
    "vitnp/layers/attention.py": ("backward", "_split", "_by_head"),
    "vitnp/layers/mlp.py": ("backward",),
    "vitnp/layers/block.py": ("backward", "_weigh_backward", "_add"),
    "vitnp/layers/head.py": ("backward",),
    "vitnp/layers/relu.py": ("backward", "_where_positive"),
    "vitnp/layers/group_norm.py": ("backward", "_group_mean"),
    "vitnp/layers/windows.py": ("border", "padded", "taps"),
    "vitnp/layers/conv.py": ("backward", "_standardised", "_parts", "_columns", "_put_back"),
    "vitnp/layers/max_pool.py": ("forward", "backward"),
    "vitnp/layers/bottleneck.py": ("backward", "back"),
    "vitnp/layers/resnet.py": ("backward",),
    "vitnp/layers/corruption.py": ("places", "forward", "backward"),
    "vitnp/kernels/cpu.py": ("layer_norm_backward", "softmax_backward", "gelu_tanh", "gelu_erf"),
    "vitnp/vit.py": ("backward", "_encode_backward"),
    "vitnp/masked.py": ("backward", "targets", "_corrupted", "patch_colours"),
    "vitnp/few_shot.py": ("weights",),
    "vitnp/losses.py": ("softmax_cross_entropy", "_targets"),
    "vitnp/context.py": ("add_grad", "add_product", "add_row_sum", "zero_grad", "_grad", "flat_grad"),
    "vitnp/optim.py": ("step", "_update", "clip_global_norm"),
    "vitnp/moving_average.py": ("update",),
}

_OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_NAMES = {
    "add": "subtract",
    "subtract": "add",
    "multiply": "divide",
    "sum": "mean",
    "mean": "sum",
    "minimum": "maximum",
}
_NAMES |= {"maximum": "minimum", "zeros": "ones"}


class Change(NamedTuple):
    """A small change: `key` tells it in one line, whatever stands around the line."""

    key: str
    file: str
    source: str


def changes(root: Path = ROOT) -> list[Change]:
    """Return every change of the targets; LookupError for a target that is not there."""
    found: dict[str, Change] = {}
    for file, functions in TARGETS.items():
        text = (root / file).read_text("utf-8")
        tree = ast.parse(text)
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in functions]
        if missing := set(functions) - {node.name for node in nodes}:
            raise LookupError(f"{file} has no function {', '.join(sorted(missing))}")
        for node in nodes:
            for change in _of_function(node, file, text):
                found.setdefault(change.key, change)
    return list(found.values())


def _of_function(function: ast.FunctionDef, file: str, text: str) -> Iterator[Change]:
    lines = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for part, replacement in _of_nodes(function.body):
        assert part.end_lineno is not None
        assert part.end_col_offset is not None
        start, end = starts[part.lineno - 1] + part.col_offset, starts[part.end_lineno - 1] + part.end_col_offset
        changed = text.encode()[:start] + replacement.encode() + text.encode()[end:]
        first, last = part.lineno - 1, part.end_lineno
        before = _one_line(b"".join(lines[first:last]))
        tail = b"".join(lines[first:last])[end - starts[first] :]
        after = _one_line(lines[first][: part.col_offset] + replacement.encode() + tail)
        if before != after:
            yield Change(f"{file}: {function.name}: {before}  ->  {after}", file, changed.decode())


def _one_line(text: bytes) -> str:
    lines = (line.partition("  # ")[0].strip() for line in text.decode().splitlines())
    return " ".join(" ".join(lines).split())


def _of_nodes(body: list[ast.stmt]) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Yield each part of the statements that can be changed, with what replaces it."""
    for statement in body:
        if _is_text(statement) or _is_test_of_arguments(statement):
            continue
        yield from _dropped(statement)
        yield from _of_nodes([*getattr(statement, "body", ()), *getattr(statement, "orelse", ())])
        for node in _walk(_head(statement)):
            yield from ((part, f"({new})" if " " in new else new) for part, new in _of_expression(node))
            yield from _of_statement(node)


def _head(statement: ast.stmt) -> ast.AST:
    """What a statement says itself, without the statements in it."""
    return statement.test if isinstance(statement, ast.If) else getattr(statement, "iter", statement)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """This node and all below. A negative integer is one node; in reshape it is no axis, and all mean the same."""
    yield node
    if _is_negative(node):
        return
    reshaped = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"
    for child in ast.iter_child_nodes(node):
        if not (reshaped and _is_negative(child)):
            yield from _walk(child)


def _is_negative(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)


def _is_test_of_arguments(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and any(isinstance(inner, ast.Raise) for inner in statement.body)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _dropped(statement: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Whole statements: what does not name a thing that others need can go; an if can be taken always, or never."""
    if isinstance(statement, ast.If):
        yield statement.test, "True"
        yield statement.test, "False"
    elif isinstance(statement, ast.Expr | ast.AugAssign) or (
        isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript | ast.Attribute)
    ):
        yield statement, "pass"


def _of_statement(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    if isinstance(node, ast.AugAssign):
        for operator in _OPERATORS.get(type(node.op), ()):
            yield node, ast.unparse(ast.AugAssign(node.target, operator(), node.value))
        yield node, ast.unparse(ast.Assign([node.target], node.value, lineno=0))


def _of_expression(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    match node:
        case ast.BinOp(left, operator, right):
            for other in _OPERATORS.get(type(operator), ()):
                yield node, ast.unparse(ast.BinOp(left, other(), right))
            if not isinstance(operator, ast.LShift):  # one side alone would only be slow
                yield node, ast.unparse(left)
                yield node, ast.unparse(right)
        case ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
            yield node, str(1 - value)
            yield node, str(-value - 1)
        case ast.UnaryOp(_, operand):
            yield node, ast.unparse(operand)
        case ast.Compare(left, [operator], [right]):
            for other in _OPERATORS.get(type(operator), ()):
                yield node, ast.unparse(ast.Compare(left, [other()], [right]))
        case ast.BoolOp(operator, values):
            yield node, ast.unparse(ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values))
        case ast.IfExp(_, body, orelse):
            yield node, ast.unparse(body)
            yield node, ast.unparse(orelse)
        case ast.Constant(bool(value)):
            yield node, str(not value)
        case ast.Constant(int(value)):
            yield node, str(value + 1)
            yield node, str(value - 1)
        case ast.Constant(float(value)):
            yield node, repr(value * 1.001)
            yield node, "0.0"
        case ast.Subscript(value, ast.Slice(lower, upper, None)) if lower or upper:
            if lower:
                yield node, ast.unparse(ast.Subscript(value, ast.Slice(None, upper)))
            if upper:
                yield node, ast.unparse(ast.Subscript(value, ast.Slice(lower, None)))
        case ast.Attribute(value, "T"):
            yield node, ast.unparse(value)
        case ast.Call(ast.Attribute(value, "swapaxes"), _):
            yield node, ast.unparse(value)
        case ast.Call(ast.Attribute(value, name) as function, arguments, keywords):
            if name in _NAMES:
                yield node, ast.unparse(ast.Call(ast.Attribute(value, _NAMES[name]), arguments, keywords))
            if len(arguments) == 2 and name in ("matmul", "subtract", "where"):
                yield node, ast.unparse(ast.Call(function, arguments[::-1], keywords))
