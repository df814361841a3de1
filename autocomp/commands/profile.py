"""`profile`, `profile bundle`, `profile import`: measuring a device's kernels, here or on a board."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from autocomp.commands.exit_codes import DONE, INTERRUPTED
from autocomp.commands.output import print_json, strays_on_stderr
from autocomp.errors import UserError

Minutes = Annotated[float | None, Parameter(allow_leading_hyphen=True)]

app = App(
    name="profile",
    help="Measure the latencies of a device's kernels: on this machine, by --ssh, or with a bundle for a board.",
    help_format="plaintext",
    help_epilogue="Examples:\n\n"
    "    $ autocomp profile host_cpu --space efficientnet_lite0 --minutes 10\n"
    "    $ autocomp profile raspberry_pi_4 --space mobilenet_v2 --ssh pi@raspberrypi --name my_pi\n"
    "    $ autocomp profile bundle raspberry_pi_4 --space mobilenet_v2 --out bundle\n"
    "    $ autocomp profile import bundle --name my_pi",
    default_parameter=Parameter(negative=""),
    result_action="return_value",
)


@app.default
def profile(
    device: str,
    /,
    *,
    space: str | None = None,
    network: str | None = None,
    task: str | None = None,
    minutes: Minutes = None,
    resume: bool = False,
    fresh: bool = False,
    name: str | None = None,
    out: Path | None = None,
    ssh: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    remote_python: str = "python3",
    ssh_config: Path | None = None,
    json: bool = False,
) -> int:
    """Measure the kernels that networks of a space execute. The exit code is 130 where Ctrl-C ended it.

    Parameters
    ----------
    device
        host_cpu for this machine, host_gpu or gpu_h100 for its GPU; with --ssh, the profile that the board is like; an
        NPU, whose compiler is asked about networks of many families (space, network and task are not needed).
    space
        Search space, or a built-in network; its kernels are measured first.
    network
        Built-in network, for a space that comes without one.
    task
        path/to/file.py:function for a network of your own.
    minutes
        Longest time: by default 10 minutes on this machine, and until all is measured on a board.
    resume
        Go on with what is there, which is the default, and complain where nothing is.
    fresh
        Discard what was measured before.
    name
        Name of the profile that is written; needed with --ssh.
    out
        Folder for a profile and its table: with --ssh the current one; here none, for the profile finds its table.
    ssh
        Measure on user@host[:port], which needs Python with numpy and onnxruntime.
    remote_python
        How Python is called there.
    ssh_config
        Configuration file for ssh instead of your own.
    json
        Print one JSON document on standard output.
    """
    began = time.monotonic()  # to import torch takes seconds, which are among the minutes
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError(f"--minutes: expected a number greater than 0, got {minutes:g}; try --minutes 10")
    if resume and fresh:
        raise UserError("--resume goes on and --fresh starts anew: give one of them")
    if ssh is not None and name is None:
        raise UserError("--ssh: say what the board's profile is to be called, such as --name my_board")
    from autocomp.hardware.profile import find_profile
    from autocomp.hardware.profiling.ssh import Board
    from autocomp.profiling import Subject, measure_by_ssh, measure_here
    from autocomp.report.progress import make_display

    found, subject = find_profile(device), Subject(space, network, task)
    if found.integer_only:
        from autocomp.npu_profiling import fill_by_compiler

        with strays_on_stderr(), make_display() as display:
            filled = fill_by_compiler(found, display, out=out or Path(), minutes=minutes, fresh=fresh)
        _show(filled.document(), filled.lines(), as_json=json)
        return INTERRUPTED if filled.interrupted else DONE
    if ssh is not None:
        assert name is not None
        board = Board.of(ssh, remote_python, ssh_config)
        with strays_on_stderr(), make_display() as display:
            imported, interrupted = measure_by_ssh(
                found, subject, board, display, name=name, out=out or Path(), minutes=minutes, fresh=fresh
            )
        _show(imported.document(), [str(imported)], as_json=json)
        return INTERRUPTED if interrupted else DONE
    with strays_on_stderr(), make_display() as display:
        measured = measure_here(
            found, subject, display, minutes=minutes, began=began, resume=resume, fresh=fresh, out=out, name=name
        )
    _show(measured.document(), measured.lines(), as_json=json)
    return INTERRUPTED if measured.interrupted else DONE


@app.command
def bundle(
    device: str,
    /,
    *,
    out: Path,
    space: str | None = None,
    network: str | None = None,
    task: str | None = None,
    json: bool = False,
) -> int:
    """Write a folder that measures a board which has Python, numpy and onnxruntime, but not this package.

    Parameters
    ----------
    device
        The profile that the board is like: what it executes.
    out
        The folder.
    space
        Search space, or a built-in network.
    network
        Built-in network, for a space that comes without one.
    task
        path/to/file.py:function for a network of your own.
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.profile import find_profile
    from autocomp.profiling import Subject, make_bundle
    from autocomp.report.progress import make_display

    found = find_profile(device)
    with strays_on_stderr(), make_display() as display:
        kernels = make_bundle(found, Subject(space, network, task), out, display)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    lines = [
        f"{out}: {kernels} kernels, {size / 1000:,.0f} kB",
        f"copy it to the board, run `python3 run.py` in it, then: autocomp profile import {out} --name my_board",
    ]
    _show({"bundle": str(out), "kernels": kernels, "bytes": size}, lines, as_json=json)
    return DONE


@app.command(name="import")
def import_(results: Path, /, *, name: str, out: Path = Path(), base: str | None = None, json: bool = False) -> int:
    """Make a profile and its table of what a bundle measured.

    Parameters
    ----------
    results
        The bundle's folder, or the file results.jsonl from it.
    name
        Name of the profile.
    out
        Folder to write NAME.yaml and NAME.csv to; by default the current one.
    base
        Profile that says what the board executes, instead of the one that the bundle was made for.
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.profiling.results import import_results

    imported = import_results(results, name, out, base)
    _show(imported.document(), [str(imported)], as_json=json)
    return DONE


def _show(document: dict[str, object], lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        print("\n".join(lines))
