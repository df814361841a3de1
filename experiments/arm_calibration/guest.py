"""Guest side: run ncnn networks on the simulated core and mark each inference for the block-counting plugin.

Usage: guest.py NCNN_FOLDER RUNS PARAM... Network i's inference r is region i * RUNS + r. Prints a JSON line for each
network: {"error": null or text}. Options are those of ncnn's own benchmark, on one thread.
"""

import ctypes
import gc
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

MARK = 0x5A0000  # as in the plugin


def run(ncnn: ModuleType, path: str, marks: range) -> int:
    """Runs the network once, then once per mark, between the calls that mark it; ncnn's error code, 0 if it ran."""
    libc = ctypes.CDLL(None)
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.lightmode = True
    failed = int(net.load_param(path) or net.load_model(ncnn.DataReaderFromEmpty()))
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    width, height, channels = (int(word.split("=")[1]) for word in lines[2][-3:])
    output = [word for word in lines[-1] if word.startswith("blob")][-1]
    image = ncnn.Mat(width, height, channels)
    image.fill(0.01)

    def infer() -> int:
        extractor = net.create_extractor()
        extractor.input("data", image)
        return int(extractor.extract(output)[0])

    failed = failed or infer()
    for mark in marks if not failed else ():
        libc.getsid(MARK + 2 * mark)
        infer()
        libc.getsid(MARK + 2 * mark + 1)
    return failed


def main(folder: str, runs: int, paths: list[str]) -> None:
    sys.path.insert(0, folder)
    ncnn = importlib.import_module("ncnn")
    gc.disable()
    for index, path in enumerate(paths):
        failed = run(ncnn, path, range(index * runs, (index + 1) * runs))
        print(json.dumps({"error": f"ncnn returned {failed}" if failed else None}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
