"""The kinds of input that `fuzz.py` makes, and what is done with each.

Each kind is a function: given a folder to work in, it returns a strategy of
hypothesis and the function that runs a case. That one calls what a command
calls, within `one_line` of the errors that the command turns into a line.
"""

from fuzzing import configs, data, runs, weights

KINDS = {
  "overrides": configs.overrides,
  "configs": configs.configs,
  "weights": weights.files,
  "exported": weights.exported,
  "arrays": data.arrays,
  "orbax": weights.orbax,
  "images": data.images,
  "audio": data.audio,
  "records": data.records,
  "texts": data.texts,
  "rows": runs.rows,
  "json": runs.jsons,
  "page": runs.page,
}
# Cases of a thousand that are of each kind: a case of some takes a hundred
# times as long as one of others.
SHARES = {
  "overrides": 30,
  "configs": 30,
  "weights": 60,
  "exported": 5,
  "arrays": 145,
  "orbax": 5,
  "images": 150,
  "audio": 150,
  "records": 75,
  "texts": 150,
  "rows": 40,
  "json": 40,
  "page": 120,
}
