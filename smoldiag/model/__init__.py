"""Arithmetic, pure. Carried to the ranks: standard library only, Python 3.10."""
