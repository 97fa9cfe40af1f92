"""One HTML page that holds all it shows, and asks no network for anything."""

import base64
import html
import itertools
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

Lines = Sequence[Sequence[str]]
_CURVES = "Training curves"  # the section that the script fills
# A cell that is a number, with its sign or bound or spread; or has none.
_NUMBER = re.compile(r"[≤≥+−-]? ?\d[\d.e+-]*( ± .*| to .*)?$|-$")


class Picture(NamedTuple):
  """A figure as SVG: `wide`, and `narrow` for a phone."""

  caption: str
  wide: str
  narrow: str


class Section(NamedTuple):
  """A part of the page; all text is plain, and escaped here.

  `links` holds a target for the first word of each line but the titles, or
  None. A `folded` table opens when it is asked for.
  """

  title: str
  notes: Sequence[str] = ()
  pictures: Sequence[Picture] = ()
  lines: Lines = ()
  links: Sequence[str | None] = ()
  folded: bool = False


def render(
  title: str,
  facts: Sequence[str],
  warnings: Sequence[str],
  sections: Sequence[Section],
  curves: dict[str, Any],
) -> str:
  """The page.

  Args:
    title: at its top.
    facts: what was trained, on what; one line each.
    warnings: what a reader must know first, e.g. that runs are missing.
    sections: in their order; the folded ones come last.
    curves: for the script: `arms` (name to colour), `fields` (names of the
      filters), `metrics` (names), and `runs`: each with `run`, `arm`, `values`
      of the fields, `status`, `href`, `best`, and `series`, for each metric
      `[steps, values]` or None.
  """
  files = resources.files("ws_jax.report")
  read = lambda name: (files / name).read_text(encoding="utf-8")
  # "<" would end the script element from within a string.
  data = json.dumps(curves, allow_nan=False, separators=(",", ":"))
  joined = lambda parts: "\n".join(map(_section, parts))
  shown = [section for section in sections if not section.folded]
  folded = [section for section in sections if section.folded]
  titles = [*(s.title for s in shown), _CURVES, *(s.title for s in folded)]
  return Template(read("template.html")).substitute(
    title=html.escape(title),
    style=read("style.css"),
    script=read("script.js"),
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


def _section(section: Section) -> str:
  parts = [f"<h2>{html.escape(section.title)}</h2>"]
  parts += [f"<p>{html.escape(note)}</p>" for note in section.notes]
  parts += map(_picture, section.pictures)
  if section.lines:
    table = _table(section.lines, section.links)
    if section.folded:
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


def _table(lines: Lines, links: Sequence[str | None]) -> str:
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


def _id(title: str) -> str:
  return re.sub(r"\W+", "-", title.lower()).strip("-")
