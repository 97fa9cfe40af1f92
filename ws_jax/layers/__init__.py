"""Normalization layers and convolutions, and their C++ for CPUs.

`norm` holds the layers, over the one function of `normalize`; `convolve` is a
function for `nn.Conv`; `native` calls C++ instead of XLA's code where that is
faster.
"""
