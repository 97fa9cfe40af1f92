"""Figures of a sweep, for any colour vision, in print and on a screen.

A figure is a list of panels. A panel is a function that draws into axes, so
that one figure can be laid out wide for a page and narrow for a phone. Start
with `sheet`, which lays panels out; `against_rate`, `curves`, `against` and
`heat_map` make them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ws_jax.report.metric import Metric
from ws_jax.report.tables import text
from ws_jax.sweep.arms import in_order

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.axis import Axis
  from matplotlib.figure import Figure

# Hues of Okabe and Ito (2008), and of Tol (2021) where theirs do not suffice:
# they differ for any colour vision. A norm has one hue, darker with WS.
COLORS = {
  "BN": "#E69F00",
  "BN+WS": "#D55E00",
  "GN": "#56B4E9",
  "GN+mean": "#44AA99",
  "GN+std": "#999933",
  "GN+WS": "#0072B2",
  "GN+GC": "#AA4499",
  "GN+WS+GC": "#332288",
  "LN": "#CC79A7",
  "LN+WS": "#882255",
  "RMS": "#88CCEE",
  "RMS+WS": "#004488",
  "IN": "#66C2A0",
  "IN+WS": "#009E73",
  "BCN": "#EEBAB4",
  "BCN+WS": "#BB5566",
  "BCN(est)": "#CCBB44",
  "BCN(est)+WS": "#997700",
  "plain": "#BBBBBB",
  "no norm": "#999999",
  "WS": "#000000",
}
# Colours of other arms, in the order of their names.
_SPARE = ("#117733", "#661100", "#6699CC", "#DDAA33", "#EE3377", "#225555")
# The norm is the shape, and WS fills it; a variant has a shape of its own.
_MARKERS = {
  "BN": "o",
  "GN": "s",
  "LN": "^",
  "RMS": "h",
  "IN": "D",
  "BCN": "p",
  "BCN(est)": "8",
}
_VARIANTS = {"mean": "<", "std": ">", "GC": "P", "WS+GC": "*"}
_DASHES = ("-", "--", ":", "-.")
_PANEL = (4.8, 3.6)  # inches
_MANY_TICKS = 16

Cell = Mapping[str, Any]
Panel = Callable[["Axes"], None]


class Curve(NamedTuple):
  """The metric of one run during training.

  Attributes:
    arm: Name of the arm of the run.
    learning_rate: Learning rate of the run.
    diverged: Whether the run diverged.
    steps: Optimizer steps at which the run was evaluated [n].
    values: Values of the metric, as they are logged [n].
  """

  arm: str
  learning_rate: float
  diverged: bool
  steps: np.ndarray
  values: np.ndarray


def looks(arms: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Returns how to draw each arm: colour, marker, and how that is filled.

  Args:
    arms: Names of the arms.

  Returns:
    Arguments of Matplotlib's `plot` for each arm, in the order of legends.
  """
  arms = in_order(arms)
  new = [arm for arm in arms if arm not in COLORS]
  spare = {arm: _SPARE[i % len(_SPARE)] for i, arm in enumerate(new)}
  result = {}
  for arm in arms:
    color = COLORS.get(arm) or spare[arm]
    norm, _, variant = arm.partition("+")
    shape = _MARKERS.get(norm, "v")
    if variant not in ("", "WS"):
      shape = _VARIANTS.get(variant, "d")
    result[arm] = {
      "color": color,
      "marker": shape,
      "markerfacecolor": color if "WS" in arm.split("+") else "white",
      "markersize": 8 if shape == "*" else 6,
    }
  return result


def sheet(
  panels: Sequence[Panel],
  columns: int,
  title: str = "",
  size: tuple[float, float] = _PANEL,
) -> "Figure":
  """Lays panels out in rows, under one title and over one legend.

  Args:
    panels: Panels to lay out, at least one.
    columns: Largest number of panels in a row.
    title: Title of the figure.
    size: Width and height of a panel, in inches.
  """
  from matplotlib.figure import Figure

  rows = -(-len(panels) // columns)
  columns = -(-len(panels) // rows)  # Fewest empty places.
  drawing = Figure(
    figsize=(size[0] * columns, size[1] * rows + 0.3), layout="constrained"
  )
  legend: dict[str, Any] = {}
  for i, panel in enumerate(panels):
    ax = drawing.add_subplot(rows, columns, i + 1)
    panel(ax)
    handles, labels = ax.get_legend_handles_labels()
    legend |= dict(zip(labels, handles, strict=True)) | legend
  # Matplotlib lists plain lines before those with error bars.
  shown = sorted(legend.items(), key=lambda item: item[0] == "diverged")
  if shown:
    drawing.legend(
      [handle for _, handle in shown],
      [label for label, _ in shown],
      loc="outside lower center",
      ncols=6 if columns > 1 else 3,
      frameon=False,
    )
  if title:
    drawing.suptitle(title, fontsize="medium")
  return drawing


def against_rate(
  cells: Sequence[Cell],
  metric: Metric,
  title: str = "",
  key: str = "learning_rate",
) -> Panel:
  """Returns a panel of the metric against learning rate.

  A cross marks a rate at which a run diverged.

  Args:
    cells: Cells of one setting, as `ws_jax.report.groups.summarize` returns
      them.
    metric: Metric of the sweep.
    title: Title of the panel.
    key: Column for the x axis: `learning_rate` or `relative_step`.
  """
  cells = [cell for cell in cells if cell[key] is not None]
  # The line connects neighbouring rates, also where steps are the axis.
  cells = sorted(cells, key=lambda cell: cell["learning_rate"])

  def draw(ax: "Axes") -> None:
    _frame(ax, title, metric.label)
    shown = [c for c in cells if c["diverged"] or c[metric.name] is not None]
    every = looks(cell["arm"] for cell in shown)
    values = sorted({cell[key] for cell in cells})
    one = len(values) == 1
    name = key.replace("_", " ")
    for number, (arm, look) in enumerate(every.items()):
      own = [cell for cell in shown if cell["arm"] == arm]
      # Moved apart by a part of the axis, so that no point hides another.
      span = values[-1] / values[0] if values[0] else 1.0
      shift = span ** (0.04 * (number / max(len(every) - 1, 1) - 0.5))
      x = [number if one else cell[key] * shift for cell in own]
      # Crosses lie at the worse end of the axis, whatever its scale is, and
      # those of each arm at a height of their own.
      away = 0.04 + 0.05 * number
      height = away if metric.goal == "max" else 1 - away
      _draw_series(ax, x, own, metric, look, arm, height)
    if any(cell["diverged"] for cell in shown):
      ax.plot([], [], "x", color="black", label="diverged")
    if one:
      ax.set_xticks(range(len(every)), [*every])
      ax.set_xlim(-0.6, len(every) - 0.4)
      ax.set_xlabel(f"{name} {text(values[0])}")
      return
    if values:
      ax.margins(y=0.12)
      # Rates are a grid that was chosen and are all labelled; steps are not.
      _log_ticks(ax, values if key == "learning_rate" else ())
    ax.set_xlabel(name)

  return draw


def _frame(ax: "Axes", title: str, ylabel: str) -> None:
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(axis="y", color="#dddddd", linewidth=0.8)
  ax.set_axisbelow(True)
  ax.set_ylabel(ylabel)
  if title:
    ax.set_title(title, fontsize="medium")


def _log_ticks(ax: "Axes", values: Sequence[float]) -> None:
  ax.set_xscale("log")
  if not 0 < len(values) <= _MANY_TICKS:
    _round_ticks(ax.xaxis)
    return
  ax.set_xticks(values, [text(value) for value in values])
  ax.tick_params(axis="x", rotation=45 if len(values) > 6 else 0)
  ax.minorticks_off()


def _round_ticks(axis: "Axis") -> None:
  """Puts plain numbers along a logarithmic axis, however short it is."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter("{x:g}")
  axis.set_minor_locator(ticker.NullLocator())


def _draw_series(
  ax: "Axes",
  x: Sequence[float],
  cells: Sequence[Cell],
  metric: Metric,
  look: Mapping[str, Any],
  label: str,
  height: float,
) -> None:
  name, scale = metric.name, metric.scale
  done = [
    (at, scale * cell[name], scale * (cell[f"{name}_std"] or 0.0))
    for at, cell in zip(x, cells, strict=True)
    if cell[name] is not None
  ]
  points = np.array(done, float).reshape(-1, 3)
  ax.errorbar(
    points[:, 0], points[:, 1], points[:, 2], **look, capsize=3, label=label
  )
  diverged = [at for at, cell in zip(x, cells, strict=True) if cell["diverged"]]
  ax.plot(
    diverged,
    [height] * len(diverged),
    "x",
    color=look["color"],
    markersize=8,
    markeredgewidth=2,
    transform=ax.get_xaxis_transform(),
  )


def curves(
  runs: Sequence[Curve],
  metric: Metric,
  title: str = "",
  rates: Sequence[float] = (),
) -> Panel:
  """Returns a panel of the metric over steps, with one line for each run.

  A cross marks a run that diverged.

  Args:
    runs: Curves of the runs of one setting.
    metric: Metric of the sweep.
    title: Title of the panel.
    rates: Learning rates that have dashes of their own; empty if there are too
      many.
  """

  def draw(ax: "Axes") -> None:
    _frame(ax, title, metric.label)
    every = looks(curve.arm for curve in runs)
    dashes = dict(zip(rates, _DASHES, strict=False))
    # Arms are drawn in the order of the legend.
    for curve in sorted(runs, key=lambda curve: [*every].index(curve.arm)):
      ax.plot(
        curve.steps,
        metric.scale * curve.values,
        **every[curve.arm] | {"markersize": 4},
        linestyle=dashes.get(curve.learning_rate, "-"),
        linewidth=1.2,
        label=curve.arm,
      )
      if curve.diverged:
        ax.plot(
          curve.steps[-1:],
          metric.scale * curve.values[-1:],
          "x",
          color=every[curve.arm]["color"],
          markersize=9,
          markeredgewidth=2,
        )
    if len(rates) > 1:
      lines = [
        ax.plot([], [], linestyle=dash, color="black")[0]
        for dash in dashes.values()
      ]
      names = [f"learning rate {text(rate)}" for rate in dashes]
      ax.legend(lines, names, frameon=False)
    ax.set_xlabel("optimizer step")

  return draw


def against(
  best: Sequence[Cell],
  metric: Metric,
  key: str,
  name: str,
  what: str,
  title: str = "",
) -> Panel:
  """Returns a panel of what each arm reaches against a key that was varied.

  Args:
    best: Rows that `ws_jax.report.rates.best` returns.
    metric: Metric of the sweep.
    key: Config key for the x axis. An arm that has None there does not depend
      on it, and is drawn as a level line.
    name: Name of the key, in words.
    what: Value for the y axis: the `metric` at the best rate, the `width` of
      the range of usable rates, or its `edge`, the largest rate that learns.
    title: Title of the panel.
  """
  column, label, scale = {
    "metric": (metric.name, f"{metric.label}, best rate", metric.scale),
    "width": ("decades", "usable range (decades)", 1.0),
    "edge": ("largest_learning", "largest rate that learns", 1.0),
  }[what]

  def draw(ax: "Axes") -> None:
    _frame(ax, title, label)
    values = sorted({cell[key] for cell in best if cell[key] is not None})
    numbers = all(isinstance(v, (int, float)) and v > 0 for v in values)
    place = {v: v if numbers else i for i, v in enumerate(values)}
    for arm, look in looks(cell["arm"] for cell in best).items():
      own = [c for c in best if c["arm"] == arm and c[column] is not None]
      if level := [cell for cell in own if cell[key] is None]:
        own = [{**level[0], key: value} for value in values]
        look = look | {"linestyle": "--", "markersize": 0}
      y = [scale * cell[column] for cell in own]
      error = [scale * (cell.get(f"{column}_std") or 0.0) for cell in own]
      at = [place[cell[key]] for cell in own]
      ax.errorbar(at, y, error, **look, capsize=3, label=arm)
    if numbers:
      _log_ticks(ax, values)
    else:
      ax.set_xticks(range(len(values)), [text(value) for value in values])
    if what == "edge":
      ax.set_yscale("log")
      _round_ticks(ax.yaxis)
    ax.margins(y=0.12)
    if what == "width":
      widest = max([cell[column] or 0.0 for cell in best], default=0.0)
      ax.set_ylim(0, 1.12 * widest or 1.0)
    ax.set_xlabel(name)

  return draw


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
    ax.set_xticks(range(len(rates)), [text(rate) for rate in rates])
    ax.tick_params(axis="x", rotation=45 if len(rates) > 6 else 0)
    names = ["any" if value is None else text(value) for value in values]
    ax.set_yticks(range(len(values)), names)
    ax.set(xlabel="learning rate", ylabel=name)
    ax.set_title(title, fontsize="medium")

  return draw


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
