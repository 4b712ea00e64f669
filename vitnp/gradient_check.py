"""Gradient check: is what backward returns the derivative of what forward computes?

Complex step       f'(x) ≈ Im f(x + ih) / h     (Squire and Trapp, SIAM Review 40, 1998)
    Expanding f(x + ih) = f(x) + ih f'(x) − h² f''(x)/2 − …, the imaginary part holds f' and an error of h², and no
    difference of nearly equal numbers: with h = 1e-20 the derivative is right to the last digits. It needs an f that is
    analytic, and code that keeps imaginary parts.

Central difference D(h) = (f(x + h) − f(x − h)) / 2h = f'(x) + c h² + O(h⁴)
    for any f. Of two of them Richardson's (4 D(h/2) − D(h)) / 3 cancels c; what is left is O(h⁴) and the rounding of f,
    1e-16/h. h is measured against the size of the array that moves.

One derivative along a random direction u, ⟨gradient, u⟩, checks a whole tensor at the price of one forward: a wrong
element shows unless u happens to be orthogonal to the error. Each tensor gets a direction of its own, so that a failure
has a name, and is then halved, and halved again, down to the worst element.

The check proves that backward belongs to forward. That forward is a Vision Transformer is another proof: parity with an
independent one.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.losses import softmax_cross_entropy

METHODS = {"complex": (1e-20, 1e-10), "central": (1e-3, 1e-6)}  # step and tolerance
FULL_BUDGET_S = 10.0  # mode="auto" takes every coordinate where that takes no longer
NEGLIGIBLE = 1e-12  # of the largest gradient: below it, a tensor's gradient is called zero


class GradcheckError(AssertionError):
    """A gradient is wrong, or the check could not be made; the message is the report."""


@dataclass
class Row:
    """What was found for one tensor; `index` is where analytic and numeric gradient differ most."""

    name: str
    shape: tuple[int, ...]
    checked: str
    error: float
    index: tuple[int, ...] | None
    analytic: float
    numeric: float
    verdict: str


@dataclass
class Report:
    """The outcome of a gradient check: print it, or ask `ok`, `verdict`, `rows`, `worst`."""

    title: str
    method: str
    mode: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """PASS; FAIL; VACUOUS where most gradients are zero; NONDETERMINISTIC where forward does not repeat."""
        verdicts = [row.verdict for row in self.rows]
        if "NONDETERMINISTIC" in verdicts:
            return "NONDETERMINISTIC"
        if any(verdict not in ("PASS", "ZERO") for verdict in verdicts):
            return "FAIL"
        return "VACUOUS" if 2 * verdicts.count("ZERO") > len(verdicts) else "PASS"

    @property
    def ok(self) -> bool:
        """True for PASS alone."""
        return self.verdict == "PASS"

    @property
    def worst(self) -> Row:
        """The row of the largest error."""
        return max(self.rows, key=lambda row: row.error)

    def raise_if_failed(self) -> None:
        """Raise GradcheckError with the table unless the verdict is PASS."""
        if not self.ok:
            raise GradcheckError(f"\n{self}")

    def __str__(self) -> str:
        width = max([12, *(len(row.name) for row in self.rows)])
        head = f"{self.title}  {self.method}, {self.mode}, tolerance {self.tolerance:.0e}"
        lines = [
            f"{head}, {self.evaluations} forwards, {self.seconds:.2f} s  {self.verdict}",
            f"{'tensor':{width}}  {'checked':>11}  {'error':>6}  {'worst index':>14}      analytic       numeric",
        ]
        for row in sorted(self.rows, key=lambda row: -row.error):
            index = "" if row.index is None else str(row.index)
            values = f"{row.analytic:12.5e}  {row.numeric:12.5e}"
            lines.append(
                f"{row.name:{width}}  {row.checked:>11}  {row.error:6.0e}  {index:>14}  {values}  {row.verdict}"
            )
        notes = [*self.notes, *([self._vacuity()] if self.verdict == "VACUOUS" else [])]
        return "\n".join([*lines, *(f"note: {note}" for note in notes)])

    def _vacuity(self) -> str:
        zeros = sum(row.verdict == "ZERO" for row in self.rows)
        return (
            f"{zeros} of {len(self.rows)} gradients are zero, and a zero proves nothing: a fresh model's head is zero, "
            "so fill its parameters with random numbers first"
        )


def gradcheck(
    target: Layer | Callable[..., Any],
    inputs: Array | Mapping[str, Array],
    labels: Any = None,
    *,
    grads: Mapping[str, Array] | None = None,
    method: str = "auto",
    mode: str = "auto",
    tolerance: float | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> Report:
    """Check hand-written gradients against numeric ones, in float64.

    Args:
        target: a layer or a model in float64, checked in training mode with its dropout masks held; or any function
            f(**arrays) that returns a scalar.
        inputs: the layer's input, the model's images (B, H, W, C), or a dict of the function's arrays.
        labels: with them the loss is the cross-entropy of the output; without, the output's product with a random
            cotangent, which no sum of outputs can replace: a sum hides errors that cancel.
        grads: for a function, its gradients by the names of its arrays.
        method: "complex", "central", or "auto": complex unless a probe finds the function loses imaginary parts.
        mode: "full" (every coordinate), "directions" (one random direction a tensor), or "auto" by the time it takes.
        tolerance: the largest error allowed; 1e-10 for complex, 1e-6 for central unless said. An error is relative to
            the largest entry of its tensor's gradient (for a direction: to the root mean square of the entries).
        label_smoothing: of the cross-entropy.
        seed: of directions, cotangent and dropout.

    Returns:
        a Report.

    Raises:
        TypeError: float32, whose rounding hides what a check looks for.
        ValueError: unknown names of methods or modes, gradients that are missing or of another shape.
    """
    for name, value, valid in (("method", method, METHODS), ("mode", mode, ("full", "directions"))):
        if value not in ("auto", *valid):
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(('auto', *valid))}")
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    if isinstance(target, Layer):
        problem: _Problem = _LayerProblem(target, inputs, labels, label_smoothing, rng, seed)
    else:
        problem = _FunctionProblem(target, inputs, grads)
    notes: list[str] = []
    if method == "auto":
        method = _probe(problem, rng, notes)
    step, default = METHODS[method]
    checker = _Checker(problem, method, step, tolerance if tolerance is not None else default, rng)
    if mode == "auto":
        mode = "full" if problem.size * checker.seconds_per_forward() <= FULL_BUDGET_S else "directions"
    report = Report(repr(target), method, mode, checker.tolerance, notes=notes)
    report.rows = checker.rows(mode)
    report.evaluations, report.seconds = checker.evaluations, time.perf_counter() - start
    return report


# -- what is checked --------------------------------------------------------------------------------------------------


class _Problem:
    """A scalar function of named arrays, and the gradients that someone claims for them."""

    arrays: dict[str, Array]
    grads: dict[str, Array]

    @property
    def size(self) -> int:
        return sum(array.size for array in self.arrays.values())

    def value(self, replaced: Mapping[str, Array]) -> Any:
        """Return the function's value with some of its arrays replaced by others, all real or all complex."""
        raise NotImplementedError

    def validate(self) -> None:
        for name, array in self.arrays.items():
            if array.dtype != np.float64:
                raise TypeError(
                    f"{name} is {array.dtype}; a gradient check needs float64, for rounding in float32 hides errors "
                    'below 1e-3: check a copy, model.astype("float64")'
                )
            if name not in self.grads:
                raise ValueError(f"there is no gradient for {name}; there are {', '.join(self.grads)}")
            if self.grads[name].shape != array.shape:
                raise ValueError(f"the gradient of {name} has shape {self.grads[name].shape}, {name} {array.shape}")


class _LayerProblem(_Problem):
    """A layer with an input: the parameters and the input are the arrays."""

    def __init__(
        self, layer: Layer, x: Array, labels: Any, smoothing: float, rng: np.random.Generator, seed: int
    ) -> None:
        self.labels, self.smoothing = labels, smoothing
        self.twins = {"f": layer, "c": layer.astype("complex128")}
        self.ctx = Context(train=True, rng=seed, record=False)  # its step never moves on, so dropout repeats
        self.arrays = {**layer.parameters(), "input": x}
        ctx = Context(train=True, rng=seed)
        y = layer.forward(x, ctx)
        self.cotangent = array_module(y).asarray(rng.standard_normal(y.shape))
        dy = self.cotangent if labels is None else softmax_cross_entropy(y, labels, smoothing)[1]
        dx = layer.backward(dy, ctx)
        self.grads = {name: grad.copy() for name, grad in {**layer.gradients(ctx), "input": dx}.items()}
        self.validate()

    def value(self, replaced: Mapping[str, Array]) -> Any:
        dtype = next(iter(replaced.values())).dtype
        twin = self.twins[dtype.kind]
        parameters = {name: array for name, array in twin.parameters().items() if name in replaced}
        before = {name: array.copy() for name, array in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter[...] = replaced[name]
            return self._loss(twin, replaced.get("input", self.arrays["input"]).astype(dtype))
        finally:
            for name, parameter in parameters.items():
                parameter[...] = before[name]

    def _loss(self, twin: Layer, x: Array) -> Any:
        self.ctx.begin()
        y = twin.forward(x, self.ctx)
        if self.labels is None:
            return (y * self.cotangent).sum()
        return softmax_cross_entropy(y, self.labels, self.smoothing)[0]


class _FunctionProblem(_Problem):
    """Any function of arrays by name."""

    def __init__(
        self, function: Callable[..., Any], arrays: Array | Mapping[str, Array], grads: Mapping[str, Array] | None
    ) -> None:
        if not isinstance(arrays, Mapping) or grads is None:
            raise TypeError("a function comes with its arrays and gradients as dicts: gradcheck(f, {...}, grads={...})")
        self.function, self.arrays, self.grads = function, dict(arrays), dict(grads)
        self.validate()

    def value(self, replaced: Mapping[str, Array]) -> Any:
        return self.function(**{**self.arrays, **replaced})


# -- how it is checked ------------------------------------------------------------------------------------------------


class _Checker:
    """Numeric derivatives of a problem by one method, and their comparison with the claimed gradients."""

    def __init__(self, problem: _Problem, method: str, step: float, tolerance: float, rng: np.random.Generator) -> None:
        self.problem, self.method, self.step, self.tolerance, self.rng = problem, method, step, tolerance, rng
        self.evaluations = 0
        self.largest = _max(*problem.grads.values())
        self.sizes = _sizes(problem.arrays)

    def rows(self, mode: str) -> list[Row]:
        """Check every tensor."""
        once, again = (float(self.problem.value(self.problem.arrays)) for _ in range(2))
        self.evaluations += 2
        if once != again and not (math.isnan(once) and math.isnan(again)):
            return [Row("forward", (), "twice", math.inf, None, once, again, "NONDETERMINISTIC")]
        check = self._full if mode == "full" else self._direction
        return [check(name) for name in self.problem.arrays]

    def derivative(self, directions: Mapping[str, Array]) -> float:
        """Return the derivative of the loss when the arrays of these names move along these directions."""

        def value(step: complex) -> Any:
            self.evaluations += 1
            arrays = self.problem.arrays
            return self.problem.value({name: arrays[name] + step * along for name, along in directions.items()})

        if self.method == "complex":
            loss = value(1j * self.step)
            return float(loss.imag) / self.step if math.isfinite(loss.real) else math.nan
        h = self.step * min(self.sizes[name] for name in directions)
        wide, narrow = (float(value(step) - value(-step)) / (2 * step) for step in (h, h / 2))
        return (4 * narrow - wide) / 3

    def coordinate(self, name: str, index: int) -> float:
        """Return the partial derivative by one element, counted in the flattened array."""
        array = self.problem.arrays[name]
        direction = array_module(array).zeros(array.shape, array.dtype)
        direction.reshape(-1)[index] = 1
        return self.derivative({name: direction})

    def seconds_per_forward(self) -> float:
        name = next(iter(self.problem.arrays))
        start = time.perf_counter()
        self.coordinate(name, 0)
        return time.perf_counter() - start

    def _full(self, name: str) -> Row:
        analytic = self.problem.grads[name].reshape(-1)
        numeric = np.array([self.coordinate(name, index) for index in range(analytic.size)])
        numeric = array_module(analytic).asarray(numeric)
        difference = abs(analytic - numeric)
        worst = int(difference.argmax())
        values = float(analytic[worst]), float(numeric[worst])
        scale = _max(analytic, numeric)
        zero = scale <= NEGLIGIBLE * self.largest
        error = 0.0 if zero else float(difference[worst]) / scale
        return self._row(name, f"{analytic.size}/{analytic.size}", error, worst, values, zero)

    def _direction(self, name: str) -> Row:
        analytic = self.problem.grads[name]
        direction = array_module(analytic).asarray(self.rng.standard_normal(analytic.shape))
        values = float((analytic * direction).sum()), self.derivative({name: direction})
        rms = math.sqrt(float((analytic * analytic).mean()))
        length = math.sqrt(analytic.size)  # of the direction, on average
        zero = rms <= NEGLIGIBLE * self.largest and abs(values[1]) / length <= NEGLIGIBLE * self.largest
        scale = length * max(rms, NEGLIGIBLE * self.largest)
        error = 0.0 if zero else abs(values[0] - values[1]) / scale if scale else math.inf
        worst = None
        if not error <= self.tolerance and not zero:
            worst = self._worst_element(name, direction)
            values = float(analytic.reshape(-1)[worst]), self.coordinate(name, worst)
        return self._row(name, "1 direction", error, worst, values, zero)

    def _worst_element(self, name: str, direction: Array) -> int:
        """Halve the direction, keep the half in which the derivatives differ more, until one element is left."""
        analytic = self.problem.grads[name].reshape(-1)
        low, high = 0, analytic.size
        while high - low > 1:
            middle = (low + high) // 2
            differences = []
            for part in (slice(low, middle), slice(middle, high)):
                half = array_module(direction).zeros(direction.shape, direction.dtype)
                half.reshape(-1)[part] = direction.reshape(-1)[part]
                claimed = float((analytic[part] * direction.reshape(-1)[part]).sum())
                differences.append(abs(claimed - self.derivative({name: half})))
            low, high = (low, middle) if differences[0] >= differences[1] else (middle, high)
        return low

    def _row(
        self, name: str, checked: str, error: float, worst: int | None, values: tuple[float, float], zero: bool
    ) -> Row:
        shape = self.problem.arrays[name].shape
        index = None if worst is None else tuple(int(i) for i in np.unravel_index(worst, shape))
        verdict = "ZERO" if zero else "PASS" if error <= self.tolerance else "FAIL"
        return Row(name, shape, checked, math.inf if math.isnan(error) else error, index, *values, verdict)


def _probe(problem: _Problem, rng: np.random.Generator, notes: list[str]) -> str:
    """Return "complex" if a complex step agrees with a central difference when all arrays move, else "central"."""
    directions = {
        name: array_module(array).asarray(rng.standard_normal(array.shape) / math.sqrt(array.size))
        for name, array in problem.arrays.items()
    }
    numeric = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            for method, (step, _) in METHODS.items():
                numeric[method] = _Checker(problem, method, step, 0, rng).derivative(directions)
    except (TypeError, ValueError, AttributeError, np.exceptions.ComplexWarning) as error:
        notes.append(f"central differences, for a complex step is not possible: {type(error).__name__}: {error}")
        return "central"
    gap = abs(numeric["complex"] - numeric["central"])
    if gap <= 1e-4 * max(map(abs, numeric.values())) + 1e-8:
        return "complex"
    notes.append(
        f"central differences, for forward loses imaginary parts (complex step {numeric['complex']:.3g}, central "
        f"{numeric['central']:.3g}): np.var, np.abs and np.linalg.norm do, and so does a cast to float"
    )
    return "central"


def _sizes(arrays: Mapping[str, Array]) -> dict[str, float]:
    """Return the root mean square of each array, against which steps are measured.

    An array that starts at zero or nearly so, as biases do, is as large as a hundredth of the largest.
    """
    rms = {name: math.sqrt(float((array * array).mean())) for name, array in arrays.items()}
    floor = max(rms.values()) / 100 or 1.0
    return {name: max(size, floor) for name, size in rms.items()}


def _max(*arrays: Array) -> float:
    """Return the largest magnitude; NaN if there is one."""
    return float(np.max([float(abs(array).max()) for array in arrays]))
