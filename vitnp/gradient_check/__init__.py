"""Gradient check: is what backward returns the derivative of what forward computes?

derivatives.py   five ways to differentiate by evaluating: what they leave out, and how far they can be trusted
problems.py      what is checked: a layer, a model, a loss, any function of arrays; and how it behaves
measure.py       derivatives of a problem, and which of two numbers is one: steps, noise, complex steps confirmed
compare.py       claimed against numeric gradients, tensor by tensor: how a verdict comes about
locate.py        what differs, down to the worst element, and whether it has an excuse
notes.py         what a report says of it in words
options.py       what can be asked for
hints.py         what a wrong gradient looks like, where that is certain
report.py        the verdict, as a table, JSON, or a picture
check.py         gradcheck, which puts them together
layerwise.py     check_layers: every layer with its own real input
curve.py         v_curve: how the error depends on the step

The check proves that backward belongs to forward. That forward is a Vision Transformer is another proof: parity with an
independent one.
"""

from typing import Any

from vitnp.gradient_check.check import gradcheck
from vitnp.gradient_check.curve import VCurve, v_curve
from vitnp.gradient_check.layerwise import check_layers
from vitnp.gradient_check.report import GradcheckError, Report, Row


def assert_gradients(*arguments: Any, **options: Any) -> Report:
    """`gradcheck`, for tests: raise GradcheckError, an AssertionError that holds the table, unless the check is ok."""
    report = gradcheck(*arguments, **options)
    report.raise_if_failed()
    return report


__all__ = ["GradcheckError", "Report", "Row", "VCurve", "assert_gradients", "check_layers", "gradcheck", "v_curve"]
