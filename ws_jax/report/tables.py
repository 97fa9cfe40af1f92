"""Tables of a sweep as lines of text, the first of which has the titles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ws_jax.report.summary import Results
from ws_jax.sweep import grid

Lines = list[tuple[str, ...]]
Entry = Mapping[str, Any]

_NAMES = {
  "data.batch_size": "optimizer batch",
  "model.norm_batch_size": "normalization batch",
  "optim.micro_batch_size": "micro-batch",
}
# For a terminal that has no other signs.
_SIGNS = {"±": "+-", "≤": "<=", "≥": ">=", "×": "x", "–": "-"}
_LEAST = 0.001  # A smaller probability is not told more exactly.
_EDGES = {
  "inside": "inside",
  "lowest": "at the grid's edge: the lowest",
  "highest": "at the grid's edge: the highest",
  "only": "the only one",
  "open": "not known: a neighbour is missing",
}


def name_of(key: str) -> str:
  """Returns the words that people use for a config key.

  Example:
    >>> name_of("data.batch_size"), name_of("optim.weight_decay")
    ('optimizer batch', 'weight decay')
  """
  return _NAMES.get(key, grid.short_name(key).replace("_", " "))


def setting_of(setting: Sequence[Any], keys: Sequence[str]) -> str:
  """Returns a setting in words: `optimizer batch 32, epochs 3`.

  Args:
    setting: Values of the keys; None is left out.
    keys: Config keys.
  """
  return ", ".join(
    f"{name_of(key)} {text(value)}"
    for key, value in zip(keys, setting, strict=True)
    if value is not None
  )


class Column(NamedTuple):
  """A measured column: its name, its title, and how its numbers are shown."""

  name: str
  title: str
  scale: float
  digits: int


def measured(results: Results) -> list[Column]:
  """Returns the columns of the metric and, if that is another, of the loss."""
  metric = results.metric
  digits = metric.decimals(results.top)
  own = Column(metric.name, metric.title, metric.scale, digits)
  loss = Column("loss", metric.loss, 1.0, 3)
  return [own] if own.name == "loss" else [own, loss]


class Words:
  """Puts values of the metric of a sweep, and their differences, into words.

  Args:
    results: Results of the sweep, which decide the number of decimals.
  """

  def __init__(self, results: Results):
    self.metric = results.metric
    self._digits = self.metric.decimals(results.top)

  @property
  def unit(self) -> str:
    """Returns the unit of a difference."""
    return "points" if self.metric.unit == "%" else self.metric.unit

  def number(self, x: float, sign: str = "") -> str:
    """Returns a value or a difference without its unit."""
    return f"{self.metric.scale * x:{sign}.{self._digits}f}"

  def value(self, x: float) -> str:
    """Returns a value with its unit."""
    return f"{self.number(x)} {self.metric.unit}".rstrip()

  def difference(self, x: float) -> str:
    """Returns a difference with its unit."""
    return f"{self.number(x)} {self.unit}".rstrip()


def cells(results: Results) -> Lines:
  """Returns the table of all cells."""
  entries, varied = results.cells, results.varied
  # That no run diverged is worth saying; that none failed is expected.
  ends = [
    end
    for end in ("diverged", "failed", "interrupted", "missing")
    if end == "diverged" or any(entry[end] for entry in entries)
  ]
  titles = ["arm", *map(name_of, varied), "learning rate"]
  columns = measured(results)
  titles += [column.title for column in columns]
  titles += ["runs", *ends, "seconds"]
  lines: Lines = [tuple(titles)]
  for entry in entries:
    words = [entry["arm"], *_values(entry, varied)]
    words.append(_text(entry["learning_rate"]))
    words += _means(entry, columns)
    words.append(str(entry["runs"]))
    for end in ends:
      some = "yes" if entry[end] == entry["runs"] == 1 else str(entry[end])
      words.append(some if entry[end] else "no")
    lines.append((*words, _with_std(entry, "seconds", 1, 0)))
  return lines


def best(results: Results) -> Lines:
  """Returns the table of the best learning rates."""
  varied = results.varied
  titles = ["arm", *map(name_of, varied), "best learning rate"]
  columns = measured(results)
  titles += [column.title for column in columns]
  titles += ["seeds", "place in the grid"]
  lines: Lines = [tuple(titles)]
  for entry in results.best:
    words = [entry["arm"], *_values(entry, varied)]
    words.append(_text(entry["learning_rate"]))
    words += _means(entry, columns)
    words.append(str(entry["n"]))
    place = _EDGES.get(entry["edge"], "-")
    if entry["edge"] == "searched":
      place = f"the best of {entry['points']} points"
    lines.append((*words, place))
  return lines


def width(results: Results, axis: str = "") -> Lines:
  """Returns the table of the ranges of usable learning rates.

  Args:
    results: Results of the sweep.
    axis: Empty for learning rates, `step_` for relative steps.
  """
  varied, learns = results.kept, results.metric.learns and not axis
  what = "step" if axis else "rate"
  titles = ("arm", *map(name_of, varied), "usable from", "to", "decades")
  titles += (f"largest stable {what}", "sensitivity")
  titles += ("of steps from", "to") if axis else ()
  titles += ("learns up to",) if learns else ()
  lines: Lines = [(*titles, "seeds")]
  for entry in results.best:
    get = lambda name, of=entry: of[f"{axis}{name}"]
    words = [entry["arm"], *_values(entry, varied)]
    words.append(_bound("≤ ", get("open_low"), get("low")))
    words.append(_bound("≥ ", get("open_high"), get("high")))
    some = get("open_low") or get("open_high")
    decades = get("decades")
    words.append("-" if decades is None else f"{'≥ ' * some}{decades:.2f}")
    words.append(_bound("≥ ", entry["stable_open"], get("largest_stable")))
    words.append(_with_std(entry, f"{axis}sensitivity", 1, 3))
    if axis:
      words += [_text(get("from")), _text(get("to"))]
    if learns:
      words.append(_bound("≥ ", get("learning_open"), get("largest_learning")))
    lines.append((*words, str(get("sensitivity_n"))))
  return lines


def _bound(sign: str, is_open: bool, value: Any) -> str:
  return "-" if value is None else f"{sign * is_open}{text(value)}"


def differences(results: Results) -> Lines:
  """Returns the table of the differences between arms."""
  heads = {"arm": "arm", "against": "less"}
  return paired(results, results.differences, heads, results.kept)


def paired(
  results: Results,
  entries: Sequence[Entry],
  heads: Mapping[str, str],
  kept: Sequence[str],
) -> Lines:
  """Returns a table of paired differences.

  Args:
    results: Results of the sweep.
    entries: Rows that have what `rates.paired` and `rates.corrected` add.
    heads: Columns that say what was compared, with their titles.
    kept: Keys of the settings.
  """
  words = Words(results)
  title = f"difference ({words.unit})" if words.unit else "difference"
  titles = (*heads.values(), *map(name_of, kept), title, "standard error")
  lines: Lines = [(*titles, "95 % interval", "p (Holm)", "seeds")]
  for entry in entries:
    line = [entry[name] for name in heads] + _values(entry, kept)
    line.append(words.number(entry["difference"], "+"))
    line.append(_or_dash(entry["stderr"], words.number))
    low, high = entry["low"], entry["high"]
    both = lambda x, end=high: (
      f"{words.number(x, '+')} to {words.number(end, '+')}"
    )
    line += [_or_dash(low, both), _or_dash(entry["p_holm"], _probability)]
    lines.append((*line, str(entry["n"])))
  return lines


def _or_dash(x: float | None, words: Callable[[float], str]) -> str:
  return "-" if x is None else words(x)


def _probability(p: float) -> str:
  return f"< {_LEAST}" if p < _LEAST else f"{p:.3f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table, padded so that its source reads well too."""
  lines = [[word.replace("|", "\\|") for word in line] for line in lines]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  padded = [
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  ]
  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
  return "\n".join([padded[0], rule, *padded[1:]]) + "\n"


def show(lines: Sequence[Sequence[str]]) -> None:
  """Prints the table, at its full width if standard output is no terminal."""
  from rich import box, console
  from rich.table import Table
  from rich.text import Text

  out = console.Console()
  out = out if out.is_terminal else console.Console(width=200)
  # Where the locale is not UTF-8 a sign that it lacks would be an error.
  signs = str.maketrans({} if out.encoding.startswith("utf") else _SIGNS)
  view = Table(box=box.SIMPLE_HEAD)
  for title in lines[0]:
    view.add_column(Text(title.translate(signs)))
  for line in lines[1:]:
    view.add_row(*(Text(word.translate(signs)) for word in line))
  out.print(view)


def _values(entry: Entry, keys: Sequence[str]) -> list[str]:
  return [_text(entry[key]) for key in keys]


def text(value: Any) -> str:
  """Returns a value as a label or a table cell shows it."""
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
  return "-" if value is None else text(value)


def _means(entry: Entry, columns: Sequence[Column]) -> list[str]:
  return [
    _with_std(entry, column.name, column.scale, column.digits)
    for column in columns
  ]


def _with_std(entry: Entry, name: str, scale: float, digits: int) -> str:
  mean, std = entry[name], entry[f"{name}_std"]
  if mean is None:
    return "-"
  text = f"{scale * mean:.{digits}f}"
  return text if std is None else f"{text} ± {scale * std:.{digits}f}"
