"""Networks for use without this package: the verb `export`, and its formats.

Start reading at `verb`. `network` makes a plain function of a run; `stablehlo`,
`plain` (safetensors), `onnx` and `savedmodel` write and read it, and `compare`
holds what was read against the run.
"""
