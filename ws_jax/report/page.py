"""Renders one HTML page that holds all it shows and needs no network."""

import base64
import hashlib
import html
import itertools
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from ws_jax.report.headline import Headline

Lines = Sequence[Sequence[str]]
_UNSAID = Headline("")
_LONG = 40  # A longer table is closed until a reader opens it.
_SHADES = 20  # Steps of darkness, for which the style has a class each.
# Nothing is loaded, and nothing runs but the page's own script and style: a
# text of a run that came to be HTML all the same could do nothing.
_POLICY = (
  "default-src 'none'; img-src data:; style-src '{style}';"
  " script-src '{script}'; base-uri 'none'; form-action 'none'"
)
_CURVES = "Training curves"  # The section that the script fills.
# Matches a number, with its sign, bound or spread, or a dash in its place.
_NUMBER = re.compile(r"[<≤≥+−-]? ?\d[\d.e+-]*( ± .*| to .*)?$|-$")


class Picture(NamedTuple):
  """A figure of the page.

  Attributes:
    caption: Text below the figure.
    wide: SVG for a screen.
    narrow: SVG for a phone.
  """

  caption: str
  wide: str
  narrow: str


class Section(NamedTuple):
  """A section of the page. All text is plain; this module escapes it.

  Attributes:
    title: Title of the section.
    notes: Paragraphs below the title.
    pictures: Figures of the section.
    lines: Table of the section; the first line has the titles.
    links: Link of the first word of each line below the titles, or None.
    folded: Whether the table is closed until a reader opens it.
    shades: Darkness of each cell behind the first column, from 0 to 1, a list
      for each line below the titles: the table is a matrix. Or none.
  """

  title: str
  notes: Sequence[str] = ()
  pictures: Sequence[Picture] = ()
  lines: Lines = ()
  links: Sequence[str | None] = ()
  folded: bool = False
  shades: Sequence[Sequence[float]] = ()


def render(
  title: str,
  facts: Sequence[str],
  warnings: Sequence[str],
  sections: Sequence[Section],
  curves: dict[str, Any],
  headline: Headline = _UNSAID,
) -> str:
  """Returns the HTML of the page.

  Args:
    title: Title of the page.
    facts: Lines on what was trained, and on what.
    warnings: Lines that a reader must see first, e.g. that runs are missing.
    sections: Sections in their order; those that are folded come last.
    curves: Data for the script: `arms` (name to colour), `fields` (names of the
      filters), `metrics` (names), `steps` (lists of steps), and `runs`: each
      with `run`, `arm`, `values` of the fields, `status`, `href`, `best`, and
      `series`, for each metric `[number of the steps, values]` or None.
    headline: Finding of the sweep, and how it was found.
  """
  files = resources.files("ws_jax.report")
  read = lambda name: (files / name).read_text(encoding="utf-8")
  # A "<" within a string could end the script element.
  data = json.dumps(curves, allow_nan=False, separators=(",", ":"))
  joined = lambda parts: "\n".join(map(_section, parts))
  shown = [section for section in sections if not section.folded]
  folded = [section for section in sections if section.folded]
  titles = [*(s.title for s in shown), _CURVES, *(s.title for s in folded)]
  style, script = "\n" + read("style.css") + _shades(), "\n" + read("script.js")
  return Template(read("template.html")).substitute(
    policy=_POLICY.format(style=_hash(style), script=_hash(script)),
    title=html.escape(title),
    style=style,
    script=script,
    headline=html.escape(headline.text),
    method=html.escape(headline.method),
    facts="".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
    warnings="".join(f"<p>{html.escape(line)}</p>" for line in warnings),
    contents="".join(
      f'<li><a href="#{_id(title)}">{html.escape(title)}</a></li>'
      for title in titles
    ),
    sections=joined(shown),
    details=joined(folded),
    curves=data.replace("<", "\\u003c"),
  )


def _hash(text: str) -> str:
  """Returns the hash by which a policy knows a script or a style."""
  digest = hashlib.sha256(text.encode()).digest()
  return f"sha256-{base64.b64encode(digest).decode()}"


def _shades() -> str:
  """Returns the classes of a matrix; a policy allows no style of an element."""
  lines = []
  for step in range(1, _SHADES + 1):
    part = step / _SHADES
    ink = "; color: var(--on-shade)" if part > 0.6 else ""
    lines.append(
      f".shade-{step} {{ background: rgb(var(--shade) / {part:.2f}){ink} }}\n"
    )
  return "".join(lines)


def _section(section: Section) -> str:
  parts = [f"<h2>{html.escape(section.title)}</h2>"]
  parts += [f"<p>{html.escape(note)}</p>" for note in section.notes]
  parts += map(_picture, section.pictures)
  if section.lines:
    table = _table(section.lines, section.links, section.shades)
    if section.folded or len(section.lines) > _LONG:
      count = len(section.lines) - 1
      table = f"<details><summary>{count} rows</summary>{table}</details>"
    parts.append(table)
  body = "\n".join(parts)
  return f'<section id="{_id(section.title)}">\n{body}\n</section>'


def _picture(picture: Picture) -> str:
  caption = html.escape(picture.caption)
  return (
    "<figure><picture>"
    f'<source media="(max-width: 600px)" srcset="{_uri(picture.narrow)}">'
    f'<img src="{_uri(picture.wide)}" alt="{caption}">'
    f"</picture><figcaption>{caption}</figcaption></figure>"
  )


def _uri(svg: str) -> str:
  data = base64.b64encode(svg.encode()).decode()
  return f"data:image/svg+xml;base64,{data}"


def _table(
  lines: Lines,
  links: Sequence[str | None] = (),
  shades: Sequence[Sequence[float]] = (),
) -> str:
  if shades:
    return _matrix(lines, shades)
  titles, *body = lines
  kinds = [
    ' class="number"' if all(_NUMBER.match(line[i]) for line in body) else ""
    for i in range(len(titles))
  ]
  head = "".join(
    f'<th scope="col"{kind}>{html.escape(word)}</th>'
    for word, kind in zip(titles, kinds, strict=True)
  )
  rows = []
  for line, target in itertools.zip_longest(body, links):
    first, *rest = map(html.escape, line)
    if target:
      first = f'<a href="{html.escape(target)}">{first}</a>'
    cells = "".join(
      f"<td{kind}>{word}</td>"
      for word, kind in zip(rest, kinds[1:], strict=True)
    )
    rows.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
  return (
    f'<div class="table"><table><thead><tr>{head}</tr></thead>\n'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _matrix(lines: Lines, shades: Sequence[Sequence[float]]) -> str:
  """Returns a table of small cells, darker where there is more."""
  (corner, *titles), *body = lines
  # The text of a title stands upright in its own element, because a cell that
  # is turned itself loses its place in some browsers.
  head = "".join(
    f'<th scope="col"><span>{html.escape(word)}</span></th>' for word in titles
  )
  rows = []
  for (first, *words), own in zip(body, shades, strict=True):
    cells = "".join(
      f"<td{_shade(darkness)}>{html.escape(word)}</td>"
      for word, darkness in zip(words, own, strict=True)
    )
    rows.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
  return (
    '<div class="table"><table class="matrix"><thead><tr>'
    f'<th scope="col">{html.escape(corner)}</th>{head}</tr></thead>\n'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _shade(darkness: float) -> str:
  """Returns the class of a cell; dark ones get light figures."""
  if not darkness:
    return ""
  # The root lets a single mistake be seen beside a row that is right.
  step = min(_SHADES, max(1, round(_SHADES * darkness**0.5)))
  return f' class="shade-{step}"'


def _id(title: str) -> str:
  return re.sub(r"\W+", "-", title.lower()).strip("-")
