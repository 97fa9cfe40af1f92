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

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ws_jax"

# The top-level names that the standard library, and this package, provide.
STDLIB = sys.stdlib_module_names | {"__future__"}

# The folders and modules of ws_jax, from the lowest floor to the highest. A
# file imports from its own folder and from lower floors, and from nowhere else.
FLOORS = (
  ("base",),
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

  What `python -m` runs is a program, and so of the floor of `main`.
  """
  if path.stem == "__main__":
    return "main"
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


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
PROGRAMS = sorted(
  path for folder in OUTSIDE for path in (ROOT / folder).rglob("*.py")
)


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
    ("weights", {"jax", "numpy", "orbax"}),
  ],
)
def test_the_lowest_floors_need_little(folder, allowed):
  for path in MODULES:
    if path.relative_to(PACKAGE).parts[0] == folder:
      assert third_party(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_config_objects_stay_above_train(path):
  if FLOOR[owner(path)] < FLOOR["train"] and owner(path) != "config":
    assert "ml_collections" not in third_party(path), "pass plain values"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_flags_are_read_only_in_main(path):
  reads_flags = any(name.startswith("absl.flags") for name in imports(path))
  assert owner(path) == "main" or not reads_flags


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_programs_import_the_package_and_not_each_other(path):
  siblings = {other.stem for other in PROGRAMS} | set(OUTSIDE) | {"tests"}
  assert not third_party(path) & siblings


@functools.cache
def declared() -> set[str]:
  """Top-level modules of the packages that pyproject.toml asks for."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  extra = ("report", "slurm", "text", "tf", "bench")
  wanted = {
    re.split(r"[^\w-]", requirement)[0].lower().replace("-", "_")
    for group in (project["dependencies"], *map(extras.get, extra))
    for requirement in group
  }
  # Of tensorflow-cpu, `text` and `bench`: they need not be installed.
  found = {"sentencepiece", "tensorflow", "timm", "torch"}
  for module, packages in importlib.metadata.packages_distributions().items():
    if wanted & {name.lower().replace("-", "_") for name in packages}:
      found.add(module)
  return found


@pytest.mark.parametrize("path", [*MODULES, *PROGRAMS], ids=name_of)
def test_imported_packages_are_declared(path):
  missing = third_party(path) - declared()
  assert not missing, f"not in pyproject.toml: {missing}"


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
