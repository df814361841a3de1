"""Latency of ONNX Runtime's kernels on Arm cores, simulated without a board.

ONNX Runtime's own aarch64 build runs under QEMU, a plugin counts how often each basic block of instructions is
executed, and LLVM's machine code analyzer prices the blocks in cycles. One scale per core, fitted on published times of
whole networks, turns cycles into microseconds. What comes out is *simulated*, never measured: docs/arm_simulation.md
says how far it can be trusted.

* `sandbox`: an arm64 root folder with Python and ONNX Runtime, and the compiled plugin (`plugin.c`).
* `cores`: the cores, as data. `count`: the script that runs on the simulated core.
* `blocks`, `price`: histograms of executed blocks, and their cycles. `simulate`: the whole way from kernels to µs.
* `catalogue`, `table`: which kernels a table holds, and the CSV itself.
"""
