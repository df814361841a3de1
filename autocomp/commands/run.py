"""`search`, `resume`, `verify` and `report`: what makes a run, checks it and shows it."""

from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from autocomp.budget import Budget, parse_accuracy_drop, parse_bytes, parse_milliseconds, parse_per_device
from autocomp.commands.exit_codes import DONE, FAILED, INTERRUPTED
from autocomp.commands.options import Number, Quantity, TaskOptions, device_names, search_settings
from autocomp.commands.output import print_json, strays_on_stderr, terminal

if TYPE_CHECKING:
    from autocomp.rundir import RunData

T = TypeVar("T")


def search(
    *,
    options: TaskOptions,
    budget: Quantity = None,
    max_latency: Quantity = None,
    max_accuracy_drop: Quantity = None,
    max_memory: Quantity = None,
    controller: str = "tpe",
    trials: Number = None,
    minutes: Annotated[float | None, Parameter(allow_leading_hyphen=True)] = None,
    workers: Number = None,
    address: str | None = None,
    out: Path | None = None,
    epochs: Number = None,
    strict: bool = False,
    json: bool = False,
) -> int:
    """Search, and show the front. The exit code is 130 where Ctrl-C ended it.

    Parameters
    ----------
    budget
        Most bytes a file may take, such as 4MB, 500kB or 4MiB; of several devices each, or by name:
        mobile_arm=4MB,host_cpu=1MB.
    max_latency
        Most time one inference may take on the device, such as 2ms or 500us; by name as in --budget.
    max_accuracy_drop
        Most accuracy that may be lost against the float network, in percentage points.
    max_memory
        Most memory that activations may take in one inference, such as 2MB; weights are not counted. By name as in
        --budget.
    controller
        What proposes candidates: tpe, ddpg, evolution, random or uniform.
    trials
        How many candidates are tried; by default as many as the task's time allows.
    minutes
        Longest time spent searching.
    workers
        Trials that run at once; by default one per CPU core.
    address
        A Ray cluster that is already running, such as 10.0.0.5:6379.
    out
        Run directory; by default runs/TIME-TASK-DEVICE.
    epochs
        Epochs of finetuning per trial; by default the task's own number.
    strict
        Leave out choices whose latency lies outside what the device's table measured, instead of extrapolating it.
    json
        Print one JSON document on standard output.
    """
    drop = None if max_accuracy_drop is None else parse_accuracy_drop(max_accuracy_drop)
    first, *others = _budgets(options.hw, budget, max_latency, max_memory, drop).items()
    settings = search_settings(
        options,
        options.hw,
        budget=first[1],
        device_budgets=dict(others),
        controller=controller,
        trials=trials,
        minutes=minutes,
        workers=workers,
        address=address,
        out=out,
        epochs=epochs,
        strict=strict,
    )
    from autocomp.report.progress import make_display
    from autocomp.search import run_search

    with strays_on_stderr(), make_display() as display:
        run = run_search(settings, display)
    return _present(run, as_json=json)


def _budgets(
    hw: str, budget: str | None, max_latency: str | None, max_memory: str | None, accuracy_drop: float | None
) -> dict[str, Budget]:
    """The bounds of each device by its name, the primary one's first."""
    names = device_names(hw)

    def bounds(text: str | None, option: str, parse: Callable[[str], T]) -> dict[str, T]:
        return {} if text is None else parse_per_device(text, option, names, parse)

    sizes = bounds(budget, "--budget", parse_bytes)
    latencies = bounds(max_latency, "--max-latency", parse_milliseconds)
    memories = bounds(max_memory, "--max-memory", lambda text: parse_bytes(text, "--max-memory"))
    return {n: Budget(sizes.get(n), latencies.get(n), accuracy_drop, memories.get(n)) for n in names}


def resume(run: Path, *, json: bool = False) -> int:
    """Go on with a search, and show the front.

    Parameters
    ----------
    run
        Run directory.
    json
        Print one JSON document on standard output.
    """
    from autocomp.report.progress import make_display
    from autocomp.rundir import find_run
    from autocomp.search import resume_search

    find_run(run)
    with strays_on_stderr(), make_display() as display:
        finished = resume_search(run, display)
    return _present(finished, as_json=json)


def verify(run: Path, *, as_shipped: bool = False, json: bool = False) -> int:
    """Check every file of a front against what the run says.

    Parameters
    ----------
    run
        Run directory.
    as_shipped
        Also score each ONNX file by a session with default options on this machine, and say by how much it differs:
        x86 processors without VNNI saturate int8 products there.
    json
        Print one JSON document on standard output.
    """
    from autocomp.rundir import find_run

    find_run(run)
    from autocomp.verify import verify_run

    with strays_on_stderr():
        rows = verify_run(run, as_shipped=as_shipped)
    wrong = [row for row in rows if not row["ok"]]
    if json:
        print_json({"run": str(run), "files": rows, "differ": len(wrong)})
    else:
        for row in rows:
            good = row.get("note") or "as recorded"
            print(f"{row['id']}: {good if row['ok'] else row.get('problem') or 'differs'}{_stock(row)}")
        files = sum("note" not in row for row in rows)
        print(f"{files} files, {len(wrong)} differ from what {run} says")
        _print_limits(run, [row["file"] for row in rows if row.get("limited")])
    return FAILED if wrong else DONE


def _stock(row: dict[str, Any]) -> str:
    """What a stock session gives for a file on this machine, beside what its device gives; "" where nobody asked."""
    found = row.get("as_shipped")
    if not found:
        return ""
    spelt = (
        f"{name.replace('_', ' ')} {100 * value:.2f} % ({100 * (value - row[name]):+.2f})"
        for name, value in found.items()
    )
    return f"; as shipped, in a stock session here: {', '.join(spelt)}"


def _print_limits(run: Path, files: list[str]) -> None:
    """Say how files that saturate on some processors are loaded there."""
    if not files:
        return
    from autocomp.hardware.arithmetic import loading_code, saturates

    here = "this machine's processor is such a one" if saturates() else "not this machine's processor"
    print(f"On x86 without VNNI ({here}) load {', '.join(Path(file).name for file in files)} with:")
    print(indent(loading_code(str(run / files[-1])), "    "))


def report(run: Path, *, svg: Path | None = None, json: bool = False) -> int:
    """Show the front of a run again.

    Parameters
    ----------
    run
        Run directory.
    svg
        Also draw the front into this file.
    json
        Print one JSON document on standard output.
    """
    from autocomp.report.html import write_report
    from autocomp.report.svg import front_svg
    from autocomp.rundir import read_run

    data = read_run(run)
    write_report(run)
    if svg is not None:
        svg.write_text(front_svg(data), encoding="utf-8")
    _show(data, as_json=json)
    return DONE


def _present(run: Path, *, as_json: bool) -> int:
    """Write report.html, then show the front. INTERRUPTED where the search was ended by Ctrl-C."""
    from autocomp.report.html import write_report
    from autocomp.rundir import read_run

    write_report(run)
    data = read_run(run)
    _show(data, as_json=as_json)
    return INTERRUPTED if data.settings.get("status") == "interrupted" else DONE


def _show(data: "RunData", *, as_json: bool) -> None:
    from autocomp.report.table import as_document, print_front

    if as_json:
        print_json(as_document(data))
    else:
        print_front(data, terminal())
