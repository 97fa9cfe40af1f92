"""Lays out the panels of a figure, for any colour vision, on paper and screens.

Start with `sheet`. A figure is a list of panels, which `ws_jax.report.panels`
and `ws_jax.report.heat` make, so that one figure can be laid out wide for a
page and narrow for a phone. Panels that are compared get one y axis, and runs
that diverged a rail of their own at its worse end.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ws_jax.report import ticks
from ws_jax.sweep.arms import in_order

if TYPE_CHECKING:
  from matplotlib.axes import Axes
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
_PANEL = (4.8, 3.6)  # inches
# Settings of Matplotlib for drawing and for writing. Names are no formulas, and
# the same rows must give the same bytes, as a file may be committed.
STYLE = {"text.parse_math": False, "svg.hashsalt": "ws_jax"}
_LETTER, _LINE = 0.085, 0.19  # inches, of the text of a figure


Draw = Callable[["Axes"], None]


class Panel(NamedTuple):
  """One panel of a figure.

  Attributes:
    draw: Function that draws into axes.
    title: Title of the panel.
    axis: Name of its y axis: panels of one figure with the same name share it;
      empty for an axis of its own, which `draw` makes.
    crosses: Places on the x axis of the runs that diverged, by arm.
    rail: End of the y axis at which the crosses are: `bottom` or `top`.
    limits: Least and largest value that can be.
  """

  draw: Draw
  title: str = ""
  axis: str = ""
  crosses: Mapping[str, Sequence[float]] = {}
  rail: str = "bottom"
  limits: tuple[float, float] = (-math.inf, math.inf)


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
  panels: Sequence[Panel | Draw],
  columns: int,
  title: str = "",
  size: tuple[float, float] = _PANEL,
) -> "Figure":
  """Lays panels out in rows, under one title and over one legend.

  Args:
    panels: Panels to lay out, at least one. A function that draws into axes is
      a panel with axes of its own.
    columns: Largest number of panels in a row.
    title: Title of the figure.
    size: Width and height of a panel, in inches.
  """
  import matplotlib
  from matplotlib.figure import Figure

  every = [x if isinstance(x, Panel) else Panel(x) for x in panels]
  rows = -(-len(every) // columns)
  columns = -(-len(every) // rows)  # Fewest empty places.
  with matplotlib.rc_context(STYLE):
    drawing = Figure(figsize=size)
    place = (0.2, 0.2, 0.7, 0.7)  # until all panels are drawn
    axes = [drawing.add_axes(place, label=str(i)) for i in range(len(every))]
    shared: dict[str, list[int]] = {}
    for i, (ax, panel) in enumerate(zip(axes, every, strict=True)):
      panel.draw(ax)
      if panel.axis:
        shared.setdefault(panel.axis, []).append(i)
      else:
        _label_logarithms(ax)
    for group in shared.values():
      _share([axes[i] for i in group], [every[i] for i in group])
    _place(drawing, axes, every, (rows, columns), title, size)
  return drawing


def _label_logarithms(ax: "Axes") -> None:
  """Puts plain numbers along logarithmic axes; Matplotlib's are formulas."""
  from matplotlib import ticker

  for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
    if axis.get_scale() == "log":
      shown = ticks.of_logarithm(*map(math.log10, limits))
      axis.set_ticks(shown, labels=[f"{tick:g}" for tick in shown])
      axis.set_minor_locator(ticker.NullLocator())


def _share(axes: Sequence["Axes"], panels: Sequence[Panel]) -> None:
  """Gives panels one y axis, with a rail for the runs that diverged."""
  log = axes[0].get_yscale() == "log"
  # Older matplotlib counts what has no place on a logarithmic axis, such as 0.
  lows = [ax.dataLim.minposy if log else ax.dataLim.ymin for ax in axes]
  ends = [*lows, *(ax.dataLim.ymax for ax in axes)]
  ends = [y for y in ends if math.isfinite(y) and (y > 0 or not log)]
  low, high = (min(ends), max(ends)) if ends else (0.1 if log else 0.0, 1.0)
  if log:
    low, high = math.log10(low), math.log10(high)
  pad = 0.07 * (high - low) or 0.02 * abs(high) or 0.5
  least, most = -math.inf, math.inf
  if not log:
    least = min(panel.limits[0] for panel in panels)
    most = max(panel.limits[1] for panel in panels)
  places = ticks.of_logarithm if log else ticks.of_numbers
  # A little beyond what can be, for the half of a marker at its end.
  low, high = max(low - pad, least - pad / 3), min(high + pad, most + pad / 3)
  shown = places(max(low, least), min(high, most))
  labels = [f"{tick:g}" for tick in shown]
  arms = in_order(arm for panel in panels for arm in panel.crosses)
  part = min(0.04 * len(arms) + 0.03, 0.4) if arms else 0.0
  height = part / (1 - part) * (high - low)
  down = panels[0].rail == "bottom"
  start = low - height if down else high
  if arms:
    shown, labels = [*shown, start + height / 2], [*labels, "×"]
  for ax, panel in zip(axes, panels, strict=True):
    ends = (start, high) if down else (low, start + height)
    ax.set_ylim(*(10**end for end in ends) if log else ends)
    ax.set_yticks(shown, labels)
    ax.minorticks_off()
    if arms:
      _draw_rail(ax, panel, arms, start, height)


def _draw_rail(
  ax: "Axes", panel: Panel, arms: Sequence[str], start: float, height: float
) -> None:
  """Draws the crosses of each arm, in a band apart from the values."""
  every = looks(arms)
  band = {"color": "#eeeeee", "linewidth": 0, "zorder": 0.7}
  ax.axhspan(start, start + height, **band)
  for number, arm in enumerate(reversed(arms)):
    if places := panel.crosses.get(arm):
      y = start + height * (number + 0.5) / len(arms)
      ax.plot(
        places,
        [y] * len(places),
        "x",
        color=every[arm]["color"],
        markersize=7,
        markeredgewidth=2,
      )
  ax.plot([], [], "x", color="black", label="diverged")


def _place(
  drawing: "Figure",
  axes: Sequence["Axes"],
  panels: Sequence[Panel],
  shape: tuple[int, int],
  title: str,
  size: tuple[float, float],
) -> None:
  """Gives every panel its place, and the figure its title and its legend.

  Margins come from the number of letters: measuring the text, as Matplotlib's
  layouts do, takes longer than drawing all the rest.
  """
  rows, columns = shape
  wide, high = size
  names = _legend_of(axes)
  longest = _LETTER * max(map(len, names), default=1) + 0.6
  per_row = min(max(1, int(wide * columns / longest)), 6)
  below = 0.12 + 0.22 * -(-len(names) // per_row) if names else 0.0
  heading = textwrap.wrap(title, int(wide * columns / _LETTER))
  above = (0.1 + _LINE * len(heading)) if heading else 0.0
  width, height = wide * columns, high * rows + above + below
  drawing.set_size_inches(width, height)
  titles = [
    textwrap.wrap(panel.title or ax.get_title(), int(wide / _LETTER))
    for ax, panel in zip(axes, panels, strict=True)
  ]
  left, bottom = (max(sides) for sides in zip(*map(_sides, axes), strict=True))
  top = 0.16 + _LINE * max(map(len, titles))
  inner = wide - left - 0.15, high - bottom - top
  for i, (ax, lines) in enumerate(zip(axes, titles, strict=True)):
    row, column = divmod(i, columns)
    x = column * wide + left
    y = below + (rows - 1 - row) * high + bottom
    ax.set_position(
      (x / width, y / height, inner[0] / width, inner[1] / height)
    )
    # Places that are set are not searched for again at every drawing.
    ax.set_title("\n".join(lines), fontsize="medium", y=1.0)
    ax.xaxis.set_label_coords(0.5, -(bottom - 0.25) / inner[1])
    ax.yaxis.set_label_coords(-(left - 0.05) / inner[0], 0.5)
    ax.yaxis.label.set_verticalalignment("top")
  if heading:
    drawing.suptitle(
      "\n".join(heading), fontsize="medium", y=1 - 0.1 / height, va="top"
    )
  if names:
    drawing.legend(
      [*names.values()],
      [*names],
      loc="lower center",
      bbox_to_anchor=(0.5, 0.02 / height),
      ncols=per_row,
      frameon=False,
    )


def _legend_of(axes: Sequence["Axes"]) -> dict[str, Any]:
  """Returns the handle of each name; Matplotlib lists plain lines first."""
  legend: dict[str, Any] = {}
  for ax in axes:
    handles, labels = ax.get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True)) | legend
  order = [*in_order(name for name in legend if name != "diverged"), "diverged"]
  return {name: legend[name] for name in order if name in legend}


def _sides(ax: "Axes") -> tuple[float, float]:
  """Returns the space that labels need, left of axes and below, in inches."""
  letters = [len(label.get_text()) for label in ax.get_yticklabels()]
  lines = ax.get_ylabel().count("\n") + 1
  left = 0.2 + _LINE * lines + _LETTER * max(letters, default=0)
  labels = ax.get_xticklabels()
  letters = [len(label.get_text()) for label in labels]
  turned = any(label.get_rotation() for label in labels)
  lean = 0.6 * _LETTER * max(letters, default=0) if turned else 0.0
  return left, 0.55 + lean
