"""Names that stand for objects: in a table, or in a module of the user's."""

import pathlib
import subprocess
import sys

import pytest

from ws_jax.base import names

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A folder with a module and a package of its own, as current folder."""
  (tmp_path / "ws_mine.py").write_text("class Net:\n  width = 3\n")
  package = tmp_path / "ws_lab"
  package.mkdir()
  (package / "__init__.py").write_text("")
  (package / "nets.py").write_text("def small():\n  return 'small'\n")
  (package / "broken.py").write_text("import ws_not_installed\n")
  (package / "wrong.py").write_text("1 / 0\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  yield tmp_path
  for name in [name for name in sys.modules if name.startswith("ws_")]:
    if name.partition(".")[0] in ("ws_mine", "ws_lab"):
      del sys.modules[name]


def test_an_object_of_the_current_folder_is_imported(project):
  assert names.load_object("ws_mine:Net", "model").width == 3
  assert names.load_object("ws_mine:Net.width", "model") == 3
  assert names.load_object("ws_lab.nets:small", "model")() == "small"


def test_the_current_folder_is_importable_from_a_script_elsewhere(project):
  # The first entry of sys.path is then the folder of the script.
  script = project / "elsewhere" / "script.py"
  script.parent.mkdir()
  script.write_text(
    "from ws_jax.base import names\n"
    "print(names.load_object('ws_mine:Net', 'model').width)\n"
  )
  done = subprocess.run(
    [sys.executable, script],
    cwd=project,
    env={"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "ws_mien:Net",
      "model 'ws_mien:Net': No module named 'ws_mien': did you mean 'ws_mine'?",
    ),
    (
      "ws_labs.nets:small",
      "model 'ws_labs.nets:small': No module named 'ws_labs': "
      "did you mean 'ws_lab'?",
    ),
    (
      "ws_lab.net:small",
      "model 'ws_lab.net:small': No module named 'ws_lab.net': "
      "did you mean 'ws_lab.nets'?",
    ),
    (
      "ws_mine.Net:width",
      "model 'ws_mine.Net:width': No module named 'ws_mine.Net'; "
      "'ws_mine' is not a package",
    ),
    (
      "ws_lab.nets:smal",
      "model 'ws_lab.nets:smal': module 'ws_lab.nets' has no attribute "
      "'smal': did you mean 'small'?",
    ),
    (
      "ws_mine:Net.widht",
      "model 'ws_mine:Net.widht': 'Net' in module 'ws_mine' has no attribute "
      "'widht': did you mean 'width'?",
    ),
    ("ws_mine", "model 'ws_mine': expected 'package.module:name'"),
    (":Net", "model ':Net': expected 'package.module:name'"),
    (
      "ws_lab/nets.py:small",
      "model 'ws_lab/nets.py:small': expected 'package.module:name', "
      "e.g. 'ws_lab.nets:small' for that file",
    ),
    (
      "./ws_mine.py",
      "model './ws_mine.py': expected 'package.module:name', "
      "e.g. 'ws_mine:NAME' for that file",
    ),
  ],
)
def test_a_name_that_is_nowhere_is_one_line(project, name, message):
  with pytest.raises(ValueError) as caught:
    names.load_object(name, "model")
  assert str(caught.value) == message


def test_an_error_inside_the_module_keeps_its_traceback(project):
  with pytest.raises(ModuleNotFoundError, match="ws_not_installed"):
    names.load_object("ws_lab.broken:Net", "model")
  with pytest.raises(ZeroDivisionError):
    names.load_object("ws_lab.wrong:Net", "model")


def test_a_table_names_the_nearest_and_all():
  table = {"group": 1, "batch": 2}
  assert names.lookup(table, "batch", "norm") == 2
  with pytest.raises(ValueError, match="did you mean 'group'.*batch, group"):
    names.lookup(table, "grop", "norm")
