"""The public names of the package are listed, and have examples that run."""

import ast
import doctest
import inspect
import pathlib

import pytest

import ws_jax
import ws_jax.linen
import ws_jax.nnx
from ws_jax.core import conventions


def public(module):
  names = getattr(module, "__all__", None) or [
    name
    for name, value in vars(module).items()
    if not name.startswith("_")
    and getattr(value, "__module__", None) == module.__name__
  ]
  return [
    name
    for name in names
    if inspect.isroutine(getattr(module, name))
    or inspect.isclass(getattr(module, name))
  ]


CASES = [
  (module, name)
  for module in (ws_jax, ws_jax.linen, ws_jax.nnx)
  for name in public(module)
]


@pytest.mark.parametrize(
  ("module", "name"), CASES, ids=lambda x: getattr(x, "__name__", x)
)
def test_every_public_name_has_an_example_that_runs(module, name):
  """Pytest runs it: the doctests of all modules are collected."""
  text = inspect.getdoc(getattr(module, name)) or ""
  examples = doctest.DocTestParser().get_examples(text)
  run = [e for e in examples if not e.options.get(doctest.SKIP)]
  assert "Example:" in text
  assert run, f"{module.__name__}.{name}: an example, run by --doctest-modules"


def test_the_adapters_offer_what_the_readme_names():
  names = lambda module: {name for m, name in CASES if m is module}
  layers = {"WeightStandardization", "WSConv", "WSConvTranspose"}
  assert names(ws_jax.linen) == layers | {"WSDense"}
  assert names(ws_jax.nnx) == layers | {
    "WSDense",
    "WSLinear",
    "selectors",
    "standardized",
  }


def test_the_package_lists_what_it_exports():
  for name in ws_jax.__all__:
    assert f"`{name}`" in ws_jax.__doc__, name


def test_every_preset_has_its_formula_beside_it():
  source = pathlib.Path(conventions.__file__).read_text()
  body = ast.parse(source).body
  documented = {
    before.targets[0].id: after.value.value
    for before, after in zip(body, body[1:], strict=False)
    if isinstance(before, ast.Assign)
    and isinstance(after, ast.Expr)
    and isinstance(after.value, ast.Constant)
  }
  for name in ws_jax.CONVENTIONS:
    assert documented[name.upper()].startswith(("(w - mean)", "w ")), name
