"""Reproducible comparisons; not part of the wheel."""
