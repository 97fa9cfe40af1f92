"""Tables of a sweep, for people: lines of text, the first one the titles."""

from collections.abc import Mapping, Sequence
from typing import Any

from ws_jax.sweep import grid

Lines = list[tuple[str, ...]]
Entry = Mapping[str, Any]

_NAMES = {
  "data.batch_size": "optimizer batch",
  "model.norm_batch_size": "normalization batch",
  "optim.micro_batch_size": "micro-batch",
}
_EDGES = {
  "inside": "inside",
  "lowest": "at the grid's edge: the lowest",
  "highest": "at the grid's edge: the highest",
  "only": "the only one",
  "open": "not known: a neighbour is missing",
}


def name_of(key: str) -> str:
  """A config key as people say it.

  Example:
    >>> name_of("data.batch_size"), name_of("optim.weight_decay")
    ('optimizer batch', 'weight decay')
  """
  return _NAMES.get(key, grid.short_name(key).replace("_", " "))


def setting_of(setting: Sequence[Any], keys: Sequence[str]) -> str:
  """`optimizer batch 32, epochs 3`: what is common to a panel or a row."""
  return ", ".join(
    f"{name_of(key)} {text(value)}"
    for key, value in zip(keys, setting, strict=True)
    if value is not None
  )


def cells(entries: Sequence[Entry], varied: Sequence[str] = ()) -> Lines:
  """What `summary.summarize` returns."""
  # Nothing diverged is worth saying; that nothing failed is expected.
  ends = [
    end
    for end in ("diverged", "failed", "interrupted", "missing")
    if end == "diverged" or any(entry[end] for entry in entries)
  ]
  titles = ["arm", *map(name_of, varied), "learning rate", "test accuracy %"]
  lines: Lines = [(*titles, "test loss", "runs", *ends, "seconds")]
  for entry in entries:
    words = [entry["arm"], *_values(entry, varied)]
    words.append(_text(entry["learning_rate"]))
    words += [_spread(entry, "accuracy", 100, 2), _spread(entry, "loss", 1, 3)]
    words.append(str(entry["runs"]))
    for end in ends:
      some = "yes" if entry[end] == entry["runs"] == 1 else str(entry[end])
      words.append(some if entry[end] else "no")
    lines.append((*words, _spread(entry, "seconds", 1, 0)))
  return lines


def best(entries: Sequence[Entry], varied: Sequence[str] = ()) -> Lines:
  """What `summary.best` returns: the rates."""
  titles = ("arm", *map(name_of, varied), "best learning rate")
  titles += ("test accuracy %", "test loss", "seeds")
  lines: Lines = [(*titles, "place in the grid")]
  for entry in entries:
    words = [entry["arm"], *_values(entry, varied)]
    words.append(_text(entry["learning_rate"]))
    words += [_spread(entry, "accuracy", 100, 2), _spread(entry, "loss", 1, 3)]
    words.append(str(entry["n"]))
    lines.append((*words, _EDGES.get(entry["edge"], "-")))
  return lines


def width(
  entries: Sequence[Entry], varied: Sequence[str] = (), axis: str = ""
) -> Lines:
  """What `summary.best` returns: how wide the range of learning rates is.

  Args:
    entries: its rows.
    varied: the keys that make a setting.
    axis: `step_` for relative steps in the place of learning rates.
  """
  what = "step" if axis else "rate"
  titles = ("arm", *map(name_of, varied), "usable from", "to", "decades")
  titles += (f"largest stable {what}", "sensitivity")
  titles += ("of steps from", "to") if axis else ("learns up to",)
  lines: Lines = [(*titles, "seeds")]
  for entry in entries:
    get = lambda name, of=entry: of[f"{axis}{name}"]
    words = [entry["arm"], *_values(entry, varied)]
    words.append(_bound("≤ ", get("open_low"), get("low")))
    words.append(_bound("≥ ", get("open_high"), get("high")))
    some = get("open_low") or get("open_high")
    decades = get("decades")
    words.append("-" if decades is None else f"{'≥ ' * some}{decades:.2f}")
    words.append(_bound("≥ ", entry["stable_open"], get("largest_stable")))
    words.append(_spread(entry, f"{axis}sensitivity", 1, 3))
    if axis:
      words += [_text(get("from")), _text(get("to"))]
    else:
      words.append(_bound("≥ ", get("learning_open"), get("largest_learning")))
    lines.append((*words, str(get("sensitivity_n"))))
  return lines


def _bound(sign: str, is_open: bool, value: Any) -> str:
  return "-" if value is None else f"{sign * is_open}{text(value)}"


def differences(entries: Sequence[Entry], varied: Sequence[str] = ()) -> Lines:
  """What `summary.differences` returns, in points of accuracy."""
  titles = ("arm", "less", *map(name_of, varied), "difference (points)")
  lines: Lines = [(*titles, "standard error", "95 % interval", "seeds")]
  for entry in entries:
    words = [entry["arm"], entry["against"], *_values(entry, varied)]
    words.append(f"{100 * entry['difference']:+.2f}")
    if entry["stderr"] is None:
      words += ["-", "-"]
    else:
      ends = (100 * entry["low"], 100 * entry["high"])
      words += [
        f"{100 * entry['stderr']:.2f}",
        "{:+.2f} to {:+.2f}".format(*ends),
      ]
    lines.append((*words, str(entry["n"])))
  return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table, padded so that its source reads well too."""
  lines = [[word.replace("|", "\\|") for word in line] for line in lines]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  padded = [
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  ]
  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
  return "\n".join([padded[0], rule, *padded[1:]]) + "\n"


def show(lines: Sequence[Sequence[str]]) -> None:
  """Prints the table; where there is no terminal, as wide as it needs."""
  from rich import box, console
  from rich.table import Table

  view = Table(*lines[0], box=box.SIMPLE_HEAD)
  for line in lines[1:]:
    view.add_row(*line)
  out = console.Console()
  out = out if out.is_terminal else console.Console(width=200)
  out.print(view)


def _values(entry: Entry, keys: Sequence[str]) -> list[str]:
  return [_text(entry[key]) for key in keys]


def text(value: Any) -> str:
  """Returns a value as a label or a table cell shows it."""
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
  return "-" if value is None else text(value)


def _spread(entry: Entry, name: str, scale: float, digits: int) -> str:
  mean, std = entry[name], entry[f"{name}_std"]
  if mean is None:
    return "-"
  text = f"{scale * mean:.{digits}f}"
  return text if std is None else f"{text} ± {scale * std:.{digits}f}"
