"""Latencies of an NVIDIA GPU, measured on the machine that it is in.

`gpu` says which device is at hand, `precisions` what runs on it, `timing` how times become a latency (arithmetic, which
needs no device), `chains` holds the calls of the device, `measuring` puts them together for `profiling.fill`.
"""
