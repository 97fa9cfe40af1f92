#!/usr/bin/env python3
"""Installs and tests ws_jax with the oldest and the newest of its dependencies.

  python scripts/environments.py --to=DIR
  python scripts/environments.py --to=DIR --only=oldest-3.11,newest-3.13 \
      --test="-q tests/test_standardize.py"
  python scripts/environments.py --table

Each environment is a folder of DIR, with the extra `test` or those of
`--extras`: `oldest-3.11` has the lowest versions that pyproject.toml allows on
Python 3.11, `newest-3.13` the highest on 3.13. uv makes them (from PyPI, if it
is not installed); it looks for each Python on PATH, among its own, and on the
network. Prints a table of the environments and one of licences; exits with 1
unless all that was asked for has passed and each licence is known. Needs the
network, and 2 GB for each.

Start with `main`. The standard library is enough to run this.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENTS = "oldest-3.11,newest-3.12,newest-3.13,newest-3.14"
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
TESTS = "-q -n 2 --dist=loadfile"  # the fast tier, as in scripts/test.sh

# Prints what is installed beside the Python that runs it.
LIST = """
import importlib.metadata, json, platform
found = []
for one in importlib.metadata.distributions():
  data = one.metadata
  classifiers = [
    line.rpartition(" :: ")[2]
    for line in data.get_all("Classifier") or []
    if line.startswith("License ::")
  ]
  stated = [data.get("License-Expression"), data.get("License"), *classifiers]
  for path in one.files or []:
    if path.name.startswith(("LICENSE", "LICENCE", "COPYING")):
      stated.append(path.locate().read_text("utf-8", "replace").strip())
  stated = [text.partition("\\n")[0] for text in stated if text]
  files = [path.name for path in one.files or [] if ".so" in path.name]
  found.append([data["Name"], one.version, stated, files])
print(json.dumps([platform.python_version(), found]))
"""
PERMISSIVE = re.compile(
  r"\b(0BSD|AFL|Apache|BSD|CC0|HPND|ISC|MIT|PSF|Python Software|Zlib)\b"
)
OTHER = re.compile(
  r"\b([AL]?GPL|General Public|MPL|Mozilla|EPL|Eclipse|Proprietary)"
)
# Of libraries that wheels bring, without a word in their metadata.
BROUGHT = {
  "libgfortran": "GPL-3.0 with the GCC runtime exception",
  "libgomp": "GPL-3.0 with the GCC runtime exception",
  "libquadmath": "LGPL-2.1-or-later",
  "libsndfile": "LGPL-2.1-or-later",
}
# Of packages that state none; newer versions of sentencepiece do.
STATED = {"cuda-toolkit": "NVIDIA Proprietary", "sentencepiece": "Apache-2.0"}


def normal(name: str) -> str:
  """Returns the name of a package as indexes compare it."""
  return re.sub(r"[-_.]+", "-", name).lower()


def dependencies(text: str) -> list[list[str]]:
  """Returns package, versions, extras and purpose of each dependency.

  Args:
    text: Text of pyproject.toml. The comment behind a package is its purpose;
      of several, the first.

  Raises:
    ValueError: A package has no such comment.
  """
  project = tomllib.loads(text)["project"]
  groups = {"": project["dependencies"], **project["optional-dependencies"]}
  form = re.compile(r"([\w.-]+)([^\[;]*?)(\s*;.*)?")
  found: dict[str, tuple[list[str], list[str]]] = {}
  for extra, requirements in groups.items():
    for requirement in requirements:
      if matched := form.fullmatch(requirement):  # not another extra of ours
        versions, extras = found.setdefault(matched[1], ([], []))
        versions.append(matched[2])
        extras.append(extra or "(always)")
  behind = re.findall(r'^ *"([\w-]+)[^"]*", *# *(.+)$', text, re.MULTILINE)
  purposes = dict(reversed(behind))  # the first of a package stays
  if missing := found.keys() - purposes:
    raise ValueError(
      "pyproject.toml: the comment behind a package says what it is for, and is"
      f" missing for {', '.join(sorted(missing))}"
    )
  join = lambda words: ", ".join(dict.fromkeys(words))
  return [
    [name, join(versions), join(extras), purposes[name]]
    for name, (versions, extras) in sorted(found.items())
  ]


def licence(stated: list[str]) -> tuple[str, bool | None]:
  """Returns a licence, and whether it is permissive; None if it is unknown.

  Args:
    stated: What a package says of its licence, the most exact first.
  """
  for text in stated:
    if OTHER.search(text) or PERMISSIVE.search(text):
      return text, not OTHER.search(text)
  return "; ".join(text for text in stated if text), None


def licences(installed: list[list]) -> tuple[list[list[str]], int]:
  """Returns the packages to look at, and how many have unknown licences.

  Args:
    installed: Name, version, stated licences and libraries of each package.
  """
  lines, unknown = [], 0
  for name, version, stated, files in sorted(installed):
    words, permissive = licence([*stated, STATED.get(name, "")])
    if permissive is None:
      words, unknown = f"unknown: {words or 'nothing is stated'}", unknown + 1
    brought = [
      f"brings {library}, {its}"
      for library, its in BROUGHT.items()
      if any(file.startswith(library) for file in files)
    ]
    if not permissive or brought:
      lines.append([name, version, "; ".join([words, *brought])])
  return lines, unknown


def markdown(lines: list[list[str]]) -> str:
  """Returns a table in Markdown; the first line has the titles."""
  rule = ["---"] * len(lines[0])
  return "\n".join(
    f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]]
  )


def run(*command: str | pathlib.Path, log: pathlib.Path) -> bool:
  """Runs a command in the checkout; returns whether it succeeded.

  Args:
    *command: Program and its arguments.
    log: File to add to: the command and what it says.
  """
  words = [str(word) for word in command]
  # These would show it packages that are not of its environment.
  hidden = ("PYTHONHOME", "PYTHONPATH")
  env = {name: x for name, x in os.environ.items() if name not in hidden}
  with open(log, "a", encoding="utf-8") as file:
    print("$", shlex.join(words), file=file, flush=True)
    options = {"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL}
    return subprocess.call(words, cwd=ROOT, env=env, **options) == 0


def last_line(log: pathlib.Path) -> str:
  """Returns the last line of a log that says something."""
  text = log.read_text(encoding="utf-8", errors="replace")
  return (text.strip().splitlines() or [""])[-1].strip(" =")


def find_uv(to: pathlib.Path) -> pathlib.Path | str:
  """Returns the program uv, which is installed below `to` if need be."""
  if found := shutil.which("uv"):
    return found
  venv = to / "uv"
  if not (venv / "bin" / "uv").exists():
    subprocess.check_call([sys.executable, "-m", "venv", "--clear", venv])
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"]
    subprocess.check_call(pip)
  return venv / "bin" / "uv"


def check(
  name: str,
  to: pathlib.Path,
  uv: pathlib.Path | str,
  which: str,
  extras: str,
  tests: str,
) -> tuple[list[str], list[list], bool]:
  """Makes an environment and runs the tests in it.

  Args:
    name: Name of the environment, as `oldest-3.11`.
    to: Folder of the environments and of their logs.
    uv: The program uv.
    which: Version or path of the Python.
    extras: Names of the extras to install, with commas.
    tests: Arguments of pytest.

  Returns:
    Line of the table; what is installed; whether all went well.
  """
  log, folder = to / f"{name}.log", to / name
  log.unlink(missing_ok=True)
  print(f"[environments] {name}: see {log}", file=sys.stderr, flush=True)
  # With pip, which tests of an install need.
  venv = ["venv", "--seed", "--clear", f"--python={which}"]
  if not run(uv, *venv, folder, log=log):
    return [name, f"no Python {which} found", *["-"] * 4], [], False
  python = folder / "bin" / "python"
  resolution = RESOLUTIONS[name.partition("-")[0]]
  if not run(
    *(uv, "pip", "install", f"--python={python}", "--quiet"),
    *(f"--resolution={resolution}", "--editable", f"{ROOT}[{extras}]"),
    log=log,
  ):
    said = f"not installed: {last_line(log)}"
    return [name, which, "-", "-", said, "-"], [], False
  sound = run(uv, "pip", "check", f"--python={python}", log=log)
  # Outside of the checkout, which has metadata of ws_jax too.
  got = subprocess.check_output([python, "-I", "-c", LIST], cwd=folder)
  version, installed = json.loads(got)
  of = {normal(one): number for one, number, *_ in installed}
  options = ["-p", "no:cacheprovider", *shlex.split(tests)]
  passed = run(python, "-m", "pytest", *options, log=log)
  words = "ok" if sound else "conflicts: see the log"
  line = [name, version, of["jax"], of["flax"], words, last_line(log)]
  return line, installed, sound and passed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; `names` is the list of the environments asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--to", type=pathlib.Path, help="folder to make the environments in")
  add("--only", default=ENVIRONMENTS, help=f"by default {ENVIRONMENTS}")
  add("--python", action="append", default=[], metavar="3.N=PATH")
  add("--extras", default="test", help="by default test")
  add("--test", default=TESTS, help="arguments of pytest, in one string")
  add("--table", action="store_true", help="shows what dependencies are for")
  flags = parser.parse_args(arguments)
  flags.names = flags.only.split(",")
  for name in flags.names:
    if not re.fullmatch(r"(oldest|newest)-3\.\d+", name):
      parser.error(f"--only: {name!r} is not like oldest-3.11 or newest-3.13")
  for given in flags.python:
    if not re.fullmatch(r"3\.\d+=.+", given):
      parser.error(f"--python: {given!r} is not like 3.14=/path/to/python")
  if not flags.to and not flags.table:
    parser.error("give --to=DIR, a folder for the environments, or --table")
  return flags


def main() -> int:
  """Does what the flags say; returns the exit code."""
  flags = parse()
  if flags.table:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    titles = ["package", "versions", "extras", "what it is for"]
    print(markdown([titles, *dependencies(text)]))
    return 0
  to = flags.to.resolve()
  to.mkdir(parents=True, exist_ok=True)
  uv, paths = find_uv(to), dict(one.split("=", 1) for one in flags.python)
  lines = [["environment", "python", "jax", "flax", "pip check", "tests"]]
  everything, good = {}, True
  for name in flags.names:
    number = name.partition("-")[2]
    which = paths.get(number, number)
    line, installed, passed = check(
      name, to, uv, which, flags.extras, flags.test
    )
    lines.append(line)
    everything |= {tuple(one[:2]): one for one in installed}
    good &= passed
  print(markdown(lines))
  notable, unknown = licences([*everything.values()])
  print(f"\nOf {len(everything)} packages and versions, all but these have a")
  print("permissive licence and bring no library of another:\n")
  print(markdown([["package", "version", "licence"], *notable]))
  return 0 if good and not unknown else 1


if __name__ == "__main__":
  sys.exit(main())
