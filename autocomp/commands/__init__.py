"""The verbs of the command line, one module a noun. `autocomp.cli` lists them and imports one when it is asked for.

A verb returns an exit code. What is heavy (torch, Ray, NumPy, Plotly) is imported inside it, after the plain values of
its options were checked: bad usage and `autocomp VERB --help` are answered at once.
"""
