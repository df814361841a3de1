"""Filling a latency table by measuring: on this machine, or on a board that has no more than a Python interpreter."""
