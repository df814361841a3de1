"""Guest side: run ncnn networks on the simulated core and mark each inference for the block-counting plugin.

Usage: guest.py NCNN_FOLDER RUNS PARAM... Network i's inference r is region i * RUNS + r. Prints a JSON line for each
network: {"error": null or text}. Options are those of ncnn's own benchmark, on one thread.
"""

import ctypes
import gc
import json
import sys

MARK = 0x5A0000  # as in the plugin


def main(folder: str, runs: int, paths: list[str]) -> None:
    sys.path.insert(0, folder)
    import ncnn  # noqa: PLC0415  the folder is an argument

    libc = ctypes.CDLL(None)
    gc.disable()
    for index, path in enumerate(paths):
        net = ncnn.Net()
        net.opt.num_threads = 1
        net.opt.lightmode = True
        failed = net.load_param(path) or net.load_model(ncnn.DataReaderFromEmpty())
        with open(path) as file:
            lines = [line.split() for line in file]
        width, height, channels = (int(word.split("=")[1]) for word in lines[2][-3:])
        output = [word for word in lines[-1] if word.startswith("blob")][-1]
        image = ncnn.Mat(width, height, channels)
        image.fill(0.01)

        def infer() -> int:
            extractor = net.create_extractor()
            extractor.input("data", image)
            return extractor.extract(output)[0]

        failed = failed or infer()
        for run in range(runs if not failed else 0):
            libc.getsid(MARK + 2 * (index * runs + run))
            infer()
            libc.getsid(MARK + 2 * (index * runs + run) + 1)
        print(json.dumps({"error": f"ncnn returned {failed}" if failed else None}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
