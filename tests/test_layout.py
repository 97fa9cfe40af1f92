"""Holds the floors of the package: who may import whom, and what is where.

The floors are a list by hand on purpose: a new folder fails here until someone
has decided which floor it is on.
"""

import ast
import functools
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from ws_jax.base import extras

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ws_jax"

# The top-level names that the standard library, and this package, provide.
STDLIB = sys.stdlib_module_names | {"__future__"}

# The folders and modules of ws_jax, from the lowest floor to the highest. A
# file imports from its own folder and from lower floors, and from nowhere else.
FLOORS = (
  ("base",),
  ("native",),
  ("core",),
  ("data", "layers", "weights"),
  ("gradients", "models", "tasks"),
  ("config", "linen", "nnx"),
  ("train",),
  ("main", "sweep"),
  ("report",),
  ("bench", "diagnostics"),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}

OUTSIDE = ("configs", "experiments", "scripts")

TOP_LEVEL = {
  "CHANGELOG.md",
  "CITATION.cff",
  "LICENSE",
  "README.md",
  "configs",
  "experiments",
  "pyproject.toml",
  "scripts",
  "tests",
  "ws_jax",
}


@functools.cache
def tracked() -> tuple[pathlib.Path, ...]:
  """Files that are committed, or would be by `git add --all`."""
  command = ["git", "ls-files", "-z", "--cached", "--others"]
  done = subprocess.run(
    [*command, "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
  )
  if done.returncode:
    pytest.skip("not a git checkout")
  paths = {ROOT / name for name in done.stdout.split("\0") if name}
  return tuple(sorted(path for path in paths if path.is_file()))


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
  """Dotted names of all that a file imports, at its top or in a function.

  `from a import b` counts as `a.b`: b may be a module.
  """
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import; write ws_jax.NAME"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def owner(path: pathlib.Path) -> str:
  """Returns the name in FLOORS of a file of the package.

  What `python -m` runs, and a verb of it, is a program: on the floor of `main`.
  """
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  programs = ("__main__", "convert", "generate", "predict")
  if path.stem in programs or parts[:2] == ("weights", "export"):
    return "main"
  return parts[0]


def internal(path: pathlib.Path) -> set[str]:
  """Returns the names in FLOORS that a file imports from.

  What `ws_jax/__init__.py` exports is of floor 1, and is not a module.
  """
  found = set()
  for name in imports(path):
    head, *rest = name.split(".")
    if head == "ws_jax" and rest and rest[0] in MODULE_NAMES:
      found.add(rest[0])
  return found


def third_party(path: pathlib.Path) -> set[str]:
  heads = {name.partition(".")[0] for name in imports(path)}
  return heads - STDLIB - {"ws_jax"}


MODULES = sorted(
  path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
)
MODULE_NAMES = {owner(path) for path in MODULES}


def _programs() -> list[pathlib.Path]:
  """Returns the files of OUTSIDE that git tracks; without git, all of them.

  People keep experiments and configs of their own there, which may import what
  they like.
  """
  command = ["git", "ls-files", "-z", *OUTSIDE]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  paths = {ROOT / name for name in done.stdout.split("\0") if name}
  if done.returncode:
    paths = {path for folder in OUTSIDE for path in (ROOT / folder).rglob("*")}
  return sorted(p for p in paths if p.suffix == ".py" and p.is_file())


PROGRAMS = _programs()


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_from_lower_floors(path):
  me = owner(path)
  assert me in FLOOR, f"{me} has no floor: add it to FLOORS in {__file__}"
  for other in internal(path) - {me}:
    assert FLOOR[other] < FLOOR[me], (
      f"{name_of(path)} (floor {FLOOR[me]}) imports ws_jax.{other} (floor"
      f" {FLOOR[other]})"
    )


def test_package_exports_only_the_core():
  exported = internal(PACKAGE / "__init__.py")
  # `gradients` is imported when it is asked for: the test of a light import
  # below holds that.
  assert exported == {"base", "core", "gradients"}


@pytest.mark.parametrize(
  ("folder", "allowed"),
  [
    ("base", set()),
    ("core", {"jax", "numpy"}),
    ("weights", {"PIL", "jax", "numpy", "orbax"}),
  ],
)
def test_the_lowest_floors_need_little(folder, allowed):
  for path in MODULES:
    if path.parent == PACKAGE / folder:
      assert third_party(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_config_objects_stay_above_train(path):
  if FLOOR[owner(path)] < FLOOR["train"] and owner(path) != "config":
    assert "ml_collections" not in third_party(path), "pass plain values"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_flags_are_read_only_in_main(path):
  reads_flags = any(name.startswith("absl.flags") for name in imports(path))
  # Grain has flags of its own, and is told that they are parsed.
  told = path.relative_to(PACKAGE).as_posix() == "data/stream/loader.py"
  assert owner(path) == "main" or not reads_flags or told


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_programs_import_the_package_and_not_each_other(path):
  siblings = {other.stem for other in PROGRAMS} | set(OUTSIDE) | {"tests"}
  assert not third_party(path) & siblings


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Extras of packages that nothing here imports.
NOT_IMPORTED = {"dev", "onednn", "test"}
# Modules of packages that need not be installed for the tests.
ABSENT = {
  "flatbuffers": ["flatbuffers"],
  "jax2onnx": ["jax2onnx"],
  "onnxruntime": ["onnxruntime"],
  "ray": ["ray"],
  "sentencepiece": ["sentencepiece"],
  "tensorflow": ["tensorflow_cpu"],
  "timm": ["timm"],
  "torch": ["torch"],
}


@functools.cache
def modules_of(extra: str = "") -> set[str]:
  """Returns the top-level modules of an extra's packages, or of the base's."""
  requirements = EXTRAS[extra] if extra else PROJECT["dependencies"]
  wanted = {_normal(re.split(r"[^\w-]", text)[0]) for text in requirements}
  packages = importlib.metadata.packages_distributions()
  return {
    module
    for module, names in (ABSENT | dict(packages)).items()
    if wanted & {_normal(name) for name in names}
  } - {"ws_jax"}


def _normal(name: str) -> str:
  return name.lower().replace("-", "_")


def declared() -> set[str]:
  """Returns the top-level modules of all packages that we may import."""
  return modules_of().union(*map(modules_of, EXTRAS.keys() - NOT_IMPORTED))


# Imported by scripts that make a committed file; their docstrings say how to
# install it.
ONCE = {"librosa"}
# Imported by scripts/fuzz.py: of the extra `test`, and a folder beside it.
BESIDE = {"hypothesis", "fuzzing"}


@pytest.mark.parametrize("path", [*MODULES, *PROGRAMS], ids=name_of)
def test_imported_packages_are_declared(path):
  missing = third_party(path) - declared() - ONCE - BESIDE
  assert not missing, f"not in pyproject.toml: {missing}"


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - NOT_IMPORTED))
def test_an_extra_is_recognized_by_modules_of_its_own_packages(extra):
  assert set(extras.MODULES[extra]) <= modules_of(extra)


# What `pip install ws_jax` is for; reading orbax folders or images is an extra.
FUNCTIONS = {
  *("core", "gradients", "layers", "linen", "models", "native", "nnx"),
  "weights",
}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_functions_need_no_extra(path):
  if owner(path) in FUNCTIONS:
    assert third_party(path) - {"PIL", "orbax"} <= modules_of()


def test_top_level_holds_only_what_the_design_names():
  names = {path.relative_to(ROOT).parts[0] for path in tracked()}
  assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_importing_the_package_is_light():
  code = "import sys, ws_jax; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  heads = {name.partition(".")[0] for name in done.stdout.split()}
  assert "jax" in heads, "the check is blind: not even jax was seen"
  heavy = {
    *("absl", "flax", "matplotlib", "ml_collections", "optax", "orbax"),
    *("PIL", "tensorboard", "tensorflow", "tensorflow_datasets"),
  }
  assert not heads & heavy


def test_no_file_names_a_place_of_one_machine():
  # Spelt in pieces, so that this file does not trip over itself.
  home = pathlib.Path.home().as_posix()
  folders = "|".join(["root", "Users", "home", "work"])
  flags = [("(extra-)?index", "url"), ("find", "links")]
  options = "|".join("--" + "-".join(words) for words in flags)
  patterns = rf"(?<![\w.~/])/({folders})/\w|{options}"
  if home not in ("/", "/root"):
    patterns += "|" + re.escape(home + "/")
  for path in tracked():
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue  # pictures, arrays
    if path != pathlib.Path(__file__):
      found = re.search(patterns, text)
      assert not found, f"{name_of(path)}: {found[0]!r}"


# Words that begin a description, where a sentence about a function begins with
# what it does.
NO_VERBS = {
  *("A", "All", "An", "As", "Every", "Half", "How", "In", "Of", "One", "So"),
  *("That", "The", "Those", "What", "When", "Where", "Whether", "Which", "Who"),
}


@pytest.mark.parametrize("path", [*MODULES, *PROGRAMS], ids=name_of)
def test_a_docstring_of_a_function_begins_with_what_it_does(path):
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if not isinstance(node, ast.FunctionDef) or "property" in str(
      [ast.unparse(one) for one in node.decorator_list]
    ):
      continue
    text = ast.get_docstring(node) or "Does"
    first = text.split()[0].rstrip(".,:;")
    assert first not in NO_VERBS and first.endswith("s"), (
      f"line {node.lineno}: {text.splitlines()[0]!r} does not begin with a verb"
    )
