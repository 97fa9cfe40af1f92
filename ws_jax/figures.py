"""Figures of a sweep, for any colour vision, in print and on a screen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Hues of Okabe and Ito (2008), told apart with any colour vision. One hue for
# a norm, the darker with WS; markers, hollow or filled, say it without colour.
COLORS = {
  "BN": "#E69F00",
  "BN+WS": "#D55E00",
  "GN": "#56B4E9",
  "GN+WS": "#0072B2",
  "LN": "#CC79A7",
  "LN+WS": "#882255",
  "IN": "#66C2A0",
  "IN+WS": "#009E73",
  "no norm": "#999999",
  "WS": "#000000",
}
_MARKERS = {"BN": "o", "GN": "s", "LN": "^", "IN": "D"}
_DASHES = ("-", "--", ":", "-.")


Cell = Mapping[str, Any]


class Curve(NamedTuple):
  """Test accuracy of one run: `steps` and `values` (0 to 1), both [n]."""

  arm: str
  learning_rate: float
  diverged: bool
  steps: np.ndarray
  values: np.ndarray


def accuracy(
  cells: Sequence[Cell],
  varied: Sequence[str] = (),
  curves: Sequence[Curve] = (),
  title: str = "",
) -> "Figure":
  """Test accuracy against learning rate, and over steps where it is known.

  Args:
    cells: as `ws_jax.report.summarize` returns them.
    varied: their keys that make a series, beside the arm.
    curves: a second panel; none without them.
    title: what was trained.
  """
  from matplotlib.figure import Figure

  panels = 2 if curves else 1
  drawing = Figure(figsize=(4.8 * panels, 3.8), layout="constrained")
  axes = drawing.subplots(1, panels, squeeze=False)[0]
  for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel("test accuracy (%)")
  _draw_cells(axes[0], cells, varied)
  if curves:
    _draw_curves(axes[1], curves)
  found = zip(*axes[0].get_legend_handles_labels(), strict=True)
  # Matplotlib lists plain lines before those with error bars.
  shown = sorted(found, key=lambda pair: pair[1] == "diverged")
  drawing.legend(
    [handle for handle, _ in shown],
    [label for _, label in shown],
    loc="outside lower center",
    ncols=6,
    frameon=False,
  )
  if title:
    drawing.suptitle(title, fontsize="medium")
  return drawing


def _draw_cells(
  ax: "Axes", cells: Sequence[Cell], varied: Sequence[str]
) -> None:
  """A line for each arm over the learning rates; x marks what diverged."""
  shown = [c for c in cells if c["diverged"] or c["accuracy"] is not None]
  series: dict[tuple[Any, ...], list[Cell]] = {}
  for cell in shown:
    key = (cell["arm"], *(cell[name] for name in varied))
    series.setdefault(key, []).append(cell)
  labels = [" ".join(map(text, key)) for key in series]
  rates = sorted({cell["learning_rate"] for cell in shown})
  for number, (label, members) in enumerate(
    zip(labels, series.values(), strict=True)
  ):
    # Moved apart by a part of the axis, so that no point hides another.
    span = rates[-1] / rates[0] if rates[0] else 1.0
    shift = span ** (0.02 * (number - (len(series) - 1) / 2))
    x = [
      number if len(rates) == 1 else cell["learning_rate"] * shift
      for cell in members
    ]
    _draw_series(ax, x, members, label)
  if any(cell["diverged"] for cell in shown):
    ax.plot([], [], "x", color="black", label="diverged")
  if len(rates) == 1:
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xlabel(f"learning rate {text(rates[0])}")
    return
  if rates:
    ax.margins(y=0.12)
    ax.set_xscale("log")
    ax.set_xticks(rates, [text(rate) for rate in rates])
    ax.tick_params(axis="x", rotation=45 if len(rates) > 6 else 0)
    ax.minorticks_off()
  ax.set_xlabel("learning rate")


def _draw_series(
  ax: "Axes", x: Sequence[float], cells: Sequence[Cell], label: str
) -> None:
  look = _look(cells[0]["arm"])
  done = [
    (at, 100 * cell["accuracy"], 100 * (cell["accuracy_std"] or 0.0))
    for at, cell in zip(x, cells, strict=True)
    if cell["accuracy"] is not None
  ]
  points = np.array(done, float).reshape(-1, 3)
  ax.errorbar(
    points[:, 0], points[:, 1], points[:, 2], **look, capsize=3, label=label
  )
  lost = [at for at, cell in zip(x, cells, strict=True) if cell["diverged"]]
  ax.plot(
    lost,
    [0.04] * len(lost),  # Just above the axis, whatever its scale is.
    "x",
    color=look["color"],
    markersize=8,
    markeredgewidth=2,
    transform=ax.get_xaxis_transform(),
  )


def _draw_curves(ax: "Axes", curves: Sequence[Curve]) -> None:
  """Accuracy over steps: colour is the arm, dashes are the learning rate."""
  rates = sorted({curve.learning_rate for curve in curves})
  for curve in curves:
    look = _look(curve.arm) | {"markersize": 4}
    dash = _DASHES[rates.index(curve.learning_rate) % len(_DASHES)]
    ax.plot(
      curve.steps,
      100 * curve.values,
      **look,
      linestyle=dash,
      linewidth=1.2,
    )
    if curve.diverged:
      ax.plot(
        curve.steps[-1:],
        100 * curve.values[-1:],
        "x",
        color=look["color"],
        markersize=9,
        markeredgewidth=2,
      )
  if 1 < len(rates) <= len(_DASHES):
    for rate, dash in zip(rates, _DASHES, strict=False):
      label = f"learning rate {text(rate)}"
      ax.plot([], [], linestyle=dash, color="black", label=label)
    ax.legend(frameon=False)
  ax.set_xlabel("optimizer step")


def _look(name: str) -> dict[str, Any]:
  color = COLORS.get(name, "#000000")
  return {
    "color": color,
    "marker": _MARKERS.get(name.removesuffix("+WS"), "v"),
    "markerfacecolor": color if name.endswith("WS") else "white",
    "markersize": 6,
  }


def text(value: Any) -> str:
  """A value as a label or a table cell shows it."""
  return f"{value:.4g}" if isinstance(value, float) else str(value)
