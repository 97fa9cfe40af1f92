"""Holds pyproject.toml to the table of what each dependency is for."""

import importlib.util
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location(
  "environments", ROOT / "scripts" / "environments.py"
)
environments = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(environments)

SMALL = """
[project]
dependencies = [
  "jax>=0.10.2",  # arrays
]
[project.optional-dependencies]
train = [
  "absl-py>=2.5",  # flags
  "quick==2.0 ; sys_platform == 'linux'",  # speed
]
report = ["absl-py>=2.6,<3", "ws_jax[train]"]
"""


def test_each_dependency_has_its_versions_extras_and_purpose():
  assert environments.dependencies(SMALL) == [
    ["absl-py", ">=2.5, >=2.6,<3", "train, report", "flags"],
    ["jax", ">=0.10.2", "(always)", "arrays"],
    ["quick", "==2.0", "train", "speed"],
  ]
  with pytest.raises(ValueError, match="missing for absl-py$"):
    environments.dependencies(SMALL.replace("# flags", ""))


def test_pyproject_says_of_each_dependency_what_it_is_for():
  lines = {name: line for name, *line in environments.dependencies(TEXT)}
  project = tomllib.loads(TEXT)["project"]
  extras = project["optional-dependencies"].items()
  for extra, requirements in (("", project["dependencies"]), *extras):
    for text in requirements:
      name = text.partition("[")[0] if "[" in text else ""
      if name != project["name"]:  # not another extra of ours
        assert any(text.startswith(name) for name in lines), (extra, text)
  for name, (versions, _, purpose) in lines.items():
    assert versions[:2] in (">=", "=="), f"{name} has no lowest version"
    words = purpose.split()
    assert len(words) > 1 and words[-1][-1].isalnum(), f"{name}: {purpose}"


def test_a_package_has_the_same_versions_in_all_extras():
  for name, versions, *_ in environments.dependencies(TEXT):
    assert ", " not in versions, f"{name} has several: {versions}"


@pytest.mark.parametrize(
  ("stated", "expected"),
  [
    (["MIT"], ("MIT", True)),
    (["Apache-2.0 OR BSD-2-Clause"], ("Apache-2.0 OR BSD-2-Clause", True)),
    (["MPL-2.0 AND MIT"], ("MPL-2.0 AND MIT", False)),
    (["Copyright 2015, the", "BSD License"], ("BSD License", True)),
    (["Apache v2.0", "Other/Proprietary License"], ("Apache v2.0", True)),
    (
      ["GNU General Public License v3"],
      ("GNU General Public License v3", False),
    ),
    (["LGPL-2.1-or-later"], ("LGPL-2.1-or-later", False)),
    (["LicenseRef-Proprietary"], ("LicenseRef-Proprietary", False)),
    (["See SUBMITTED", "AMITY"], ("See SUBMITTED; AMITY", None)),
    ([], ("", None)),
  ],
)
def test_a_licence_is_permissive_or_not_or_unknown(stated, expected):
  assert environments.licence(stated) == expected


def test_licences_to_look_at_are_listed_and_unknown_ones_counted():
  lines, unknown = environments.licences(
    [
      ["soundfile", "0.13", ["BSD 3-Clause License"], ["libsndfile_x86_64.so"]],
      ["certifi", "1", ["MPL-2.0"], []],
      ["attrs", "2", ["MIT"], ["libsound.so"]],
      ["mystery", "3", [], []],
    ]
  )
  assert lines == [
    ["certifi", "1", "MPL-2.0"],
    ["mystery", "3", "unknown: nothing is stated"],
    [
      *("soundfile", "0.13"),
      "BSD 3-Clause License; brings libsndfile, LGPL-2.1-or-later",
    ],
  ]
  assert unknown == 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give --to=DIR"),
    (["--to=x", "--only=newest-3.13,old"], "'old' is not like oldest-3.11"),
    (["--to=x", "--python=python3"], "is not like 3.14=/path/to/python"),
  ],
)
def test_a_wrong_flag_is_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit):
    environments.parse(arguments)
  assert message in capsys.readouterr().err.splitlines()[-1]
