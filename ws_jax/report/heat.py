"""Maps of learning rate x another key, one for each arm."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ws_jax.report.figures import Panel
from ws_jax.report.metric import Metric
from ws_jax.report.panels import TURNED
from ws_jax.report.tables import text

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Cell = Mapping[str, Any]


def heat_map(
  cells: Sequence[Cell], metric: Metric, key: str, name: str, title: str
) -> Panel:
  """Returns a panel of learning rate x another key, for one arm.

  The best rate of each row is framed.

  Args:
    cells: Cells of one arm, as `ws_jax.report.groups.summarize` returns them,
      each with `words`, the value in it, and `behind`, the colour: 0 at the
      best that any arm reaches in that setting, 1 far from it.
    metric: Metric of the sweep.
    key: Config key for the rows.
    name: Name of the key, in words.
    title: Title of the panel.
  """
  cells = [cell for cell in cells if cell["learning_rate"] is not None]
  rates = sorted({cell["learning_rate"] for cell in cells})
  values = list(dict.fromkeys(cell[key] for cell in cells))

  def draw(ax: "Axes") -> None:
    image = np.full((len(values), len(rates)), np.nan)
    for cell in cells:
      at = values.index(cell[key]), rates.index(cell["learning_rate"])
      if cell[metric.name] is not None:
        image[at] = -cell["behind"]
      _mark(ax, at, cell)
    ax.imshow(
      image, cmap="viridis", vmin=-1, vmax=0, aspect="auto", origin="lower"
    )
    _frame_best(ax, cells, metric, key, values, rates)
    labels = [text(rate) for rate in rates]
    ax.set_xticks(range(len(rates)), labels, **TURNED if len(rates) > 6 else {})
    names = ["any" if value is None else text(value) for value in values]
    ax.set_yticks(range(len(values)), names)
    ax.set(xlabel="learning rate", ylabel=name)

  return Panel(draw, title)


def _mark(ax: "Axes", at: tuple[int, int], cell: Cell) -> None:
  """Writes a cell's value into it, how many runs diverged, or that none ran."""
  from matplotlib.patches import Rectangle

  words, color = [], "black"
  if cell["words"]:
    words.append(cell["words"])
    if cell["behind"] > 0.4:
      color = "white"
  else:
    # Grey and hatching differ from every colour of the map, in print too.
    corner = (at[1] - 0.5, at[0] - 0.5)
    diverged = bool(cell["diverged"])
    box = Rectangle(
      corner,
      1,
      1,
      facecolor="#d9d9d9" if diverged else "white",
      edgecolor="#8c8c8c",
      hatch="////" if diverged else None,
      linewidth=0,
    )
    ax.add_patch(box)
  if cell["diverged"]:
    some = cell["diverged"] < cell["runs"]
    words.append("×" + f"{cell['diverged']}/{cell['runs']}" * some)
  if not words:
    words.append("–")
  ax.text(
    at[1],
    at[0],
    "\n".join(words),
    ha="center",
    va="center",
    color=color,
    fontsize=7.5,
    fontweight="bold" if words == ["×"] else "normal",
  )


def _frame_best(ax, cells, metric, key, values, rates) -> None:
  from matplotlib.patches import Rectangle

  for row, value in enumerate(values):
    stable = [
      cell
      for cell in cells
      if cell[key] == value and cell[metric.name] is not None
      if not cell["diverged"]
    ]
    if stable:
      first = max(stable, key=lambda cell: metric.sign * cell[metric.name])
      corner = (rates.index(first["learning_rate"]) - 0.5, row - 0.5)
      frame = {"edgecolor": "black", "facecolor": "none", "linewidth": 2}
      ax.add_patch(Rectangle(corner, 1, 1, **frame, zorder=3, clip_on=False))
