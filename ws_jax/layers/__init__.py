"""Normalization layers and convolutions, with what of both is C++ on a CPU."""
