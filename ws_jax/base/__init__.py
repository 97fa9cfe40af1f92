"""Helpers of every other folder, on the standard library alone."""
