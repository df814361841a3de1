"""The commands. What a verb needs is imported inside it, so that `autocomp --help` answers at once.

Exit codes: 0 done, 1 a failure of the run itself, 2 bad usage or input, 130 ended by Ctrl-C. A fault that the user
can mend is one line on standard error; anything unforeseen is one line that names the file with the traceback.
"""

import contextlib
import errno
import json as json_format
import os
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)

from autocomp import __version__
from autocomp.budget import Budget, parse_accuracy_drop, parse_bytes, parse_milliseconds
from autocomp.errors import RunError, UserError

if TYPE_CHECKING:
    from autocomp.rundir import RunData
    from autocomp.search import SearchSettings

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

#: What the operating system says when the place to write to is at fault, and what to do about it.
_PLACE_FAULTS = {
    errno.ENOSPC: "free some space or choose another folder with --out",
    errno.EDQUOT: "free some space or choose another folder with --out",
    errno.EROFS: "choose another folder with --out",
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
}


def _examples(*commands: str) -> str:
    return "Examples:\n\n" + "\n".join(f"    $ {command}" for command in commands)


app = App(
    name="autocomp",
    version=__version__,
    help="Hardware-aware compression search: a network, a device and a budget go in; verified ONNX files come out.",
    help_format="plaintext",
    help_epilogue=_examples(
        "autocomp search --hw mobile_arm --budget 4MB",
        "autocomp verify runs/latest",
        "autocomp report runs/latest",
    )
    + "\n\n`autocomp VERB --help` explains a verb and shows examples.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=""),
)
hw = App(
    name="hw",
    help="The devices that autocomp knows.",
    help_epilogue=_examples("autocomp hw list", "autocomp hw show mobile_arm"),
)
space = App(
    name="space",
    help="The search spaces that ship with autocomp.",
    help_epilogue=_examples("autocomp space list", "autocomp space show mobilenet_v2"),
)
app.command(hw)
app.command(space)

#: A value such as -4MB must reach its own check, which says what is wrong with it better than the option parser.
Quantity = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
Number = Annotated[int | None, Parameter(allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What is compressed, for which device. Shared by the verbs that need a network."""

    hw: str
    """Device: a profile name (`autocomp hw list`) or the path of a profile file."""
    task: str = "mnist"
    """Built-in task, or path/to/file.py:function for a network of your own."""
    network: str | None = None
    """Which of the task's networks."""
    data: Path | None = None
    """Folder of images in one folder per class."""
    test_data: Path | None = None
    """A second such folder, held out for the final score; otherwise --data is split."""
    space: str | None = None
    """Search space: a name (`autocomp space list`) or the path of a YAML file."""
    seed: Annotated[int, Parameter(allow_leading_hyphen=True)] = 0
    """Same seed, settings and machine: same sequence of candidates."""


def _settings(
    options: TaskOptions,
    *,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    controller: str = "tpe",
    trials: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    address: str | None = None,
    out: Path | None = None,
    epochs: int | None = None,
) -> "SearchSettings":
    """Settings whose plain values are in range. Names are looked up by whoever owns the registry."""
    _at_least("--trials", trials, 1)
    _at_least("--workers", workers, 1)
    _at_least("--epochs", epochs, 0)
    _at_least("--seed", options.seed, 0)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError(f"--minutes: expected a number greater than 0, got {minutes:g}; try --minutes 5")
    for option, folder in (("--data", options.data), ("--test-data", options.test_data)):
        if folder is not None and not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{option}: {folder} {state}; expected a folder with one folder of images per class")
    from autocomp.controllers import NAMES
    from autocomp.errors import unknown_name

    if controller not in NAMES:
        raise unknown_name("controller", controller, NAMES)
    from autocomp.search import SearchSettings

    return SearchSettings(
        task=options.task,
        network=options.network,
        data=options.data,
        test_data=options.test_data,
        hw=options.hw,
        budget=budget,
        controller=controller,
        space=options.space,
        trials=trials,
        minutes=minutes,
        seed=options.seed,
        workers=workers,
        address=address,
        out=out,
        epochs=epochs,
    )


def _at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{option}: expected a whole number of at least {least}, got {value}")


@contextlib.contextmanager
def _strays_on_stderr() -> Iterator[None]:
    """Whatever libraries print meanwhile, from Python or from C, goes to standard error: stdout is for the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@app.command(
    help_epilogue=_examples(
        "autocomp search --hw mobile_arm --budget 4MB",
        "autocomp search --hw host_cpu --max-latency 2ms --max-accuracy-drop 0.5",
        "autocomp search --hw mobile_arm --task imagenet --network efficientnet_lite0 --data photos/",
        "autocomp search --hw mobile_arm --task my_task.py:task --trials 200 --controller evolution",
    )
)
def search(
    *,
    options: TaskOptions,
    budget: Quantity = None,
    max_latency: Quantity = None,
    max_accuracy_drop: Quantity = None,
    controller: str = "tpe",
    trials: Number = None,
    minutes: Annotated[float | None, Parameter(allow_leading_hyphen=True)] = None,
    workers: Number = None,
    address: str | None = None,
    out: Path | None = None,
    epochs: Number = None,
    json: bool = False,
) -> int:
    """Search for compressed versions of a network and write the best trade-offs as ONNX files.

    Without a budget the whole front is searched.

    Parameters
    ----------
    budget
        Most bytes a file may take, such as 4MB, 500kB or 4MiB.
    max_latency
        Most time one inference may take on the device, such as 2ms or 500us.
    max_accuracy_drop
        Most accuracy that may be lost against the float network, in percentage points.
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
    json
        Print one JSON document on standard output.
    """
    bounds = Budget(
        None if budget is None else parse_bytes(budget),
        None if max_latency is None else parse_milliseconds(max_latency),
        None if max_accuracy_drop is None else parse_accuracy_drop(max_accuracy_drop),
    )
    settings = _settings(
        options,
        budget=bounds,
        controller=controller,
        trials=trials,
        minutes=minutes,
        workers=workers,
        address=address,
        out=out,
        epochs=epochs,
    )
    from autocomp.report.progress import make_display
    from autocomp.search import run_search

    with _strays_on_stderr(), make_display() as display:
        run = run_search(settings, display)
    return _present(run, as_json=json)


@app.command(help_epilogue=_examples("autocomp resume runs/latest"))
def resume(run: Path, *, json: bool = False) -> int:
    """Go on with a search that was interrupted, as if it had not been.

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
    with _strays_on_stderr(), make_display() as display:
        finished = resume_search(run, display)
    return _present(finished, as_json=json)


def _present(run: Path, *, as_json: bool) -> int:
    """Write report.html, then show the front. 130 where the search was ended by Ctrl-C."""
    from autocomp.report.html import write_report
    from autocomp.rundir import read_run

    write_report(run)
    data = read_run(run)
    _show(data, as_json=as_json)
    return INTERRUPTED if data.settings.get("status") == "interrupted" else DONE


def _show(data: "RunData", *, as_json: bool) -> None:
    from rich.console import Console

    from autocomp.report.table import as_document, print_front

    if as_json:
        _print_json(as_document(data))
    else:
        print_front(data, Console())


@app.command(
    help_epilogue=_examples(
        "autocomp estimate --hw mobile_arm",
        "autocomp estimate --hw mobile_arm --policy runs/latest/policies/17.json",
    )
)
def estimate(*, options: TaskOptions, policy: Path | None = None, json: bool = False) -> int:
    """Predict bytes and latency of a policy without training or writing anything.

    Parameters
    ----------
    policy
        Policy file; without one, the float network and its plain int8 version are estimated.
    json
        Print one JSON document on standard output.
    """
    settings = _settings(options)
    decided = None if policy is None else _read_policy(policy)
    from autocomp.search import estimate as estimate_policy

    with _strays_on_stderr():
        document = estimate_policy(decided, settings)
    _print_document(document, as_json=json)
    return DONE


@app.command(
    help_epilogue=_examples(
        "autocomp compress --hw mobile_arm --policy runs/latest/policies/17.json --out small",
        "autocomp compress --hw mobile_arm --policy mine.json --task my_task.py:task --epochs 5",
    )
)
def compress(*, options: TaskOptions, policy: Path, out: Path | None = None, epochs: Number = None) -> int:
    """Apply one policy file: compress, finetune, export and verify.

    Parameters
    ----------
    policy
        Policy file: one decision per layer, as `search` writes them.
    out
        Folder to write to.
    epochs
        Epochs of finetuning; by default the task's own number.
    """
    settings = _settings(options, out=out, epochs=epochs)
    _read_policy(policy)  # a fault in the file is worth knowing before the network is built
    from autocomp.search import compress as compress_policy

    with _strays_on_stderr():
        folder = compress_policy(policy, settings)
    print(folder)
    return DONE


@app.command(help_epilogue=_examples("autocomp verify runs/latest", "autocomp verify runs/latest --json"))
def verify(run: Path, *, json: bool = False) -> int:
    """Re-open each file of a front in a fresh process, recount its bytes and score it again.

    Exits with 1 if anything differs from what the run says.

    Parameters
    ----------
    run
        Run directory.
    json
        Print one JSON document on standard output.
    """
    from autocomp.rundir import find_run

    find_run(run)
    from autocomp.verify import verify_run

    with _strays_on_stderr():
        rows = verify_run(run)
    wrong = [row for row in rows if not row["ok"]]
    if json:
        _print_json({"run": str(run), "files": rows, "differ": len(wrong)})
    else:
        for row in rows:
            print(f"{row['id']}: {'as recorded' if row['ok'] else row.get('problem') or 'differs'}")
        print(f"{len(rows)} files, {len(wrong)} differ from what {run} says")
    return FAILED if wrong else DONE


@app.command(help_epilogue=_examples("autocomp report runs/latest", "autocomp report runs/latest --svg front.svg"))
def report(run: Path, *, svg: Path | None = None, json: bool = False) -> int:
    """Show the front of a run as a table and write its report.html anew.

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


@hw.command(name="list", help_epilogue=_examples("autocomp hw list", "autocomp hw list --json"))
def hw_list(*, json: bool = False) -> int:
    """List the devices.

    Parameters
    ----------
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.profile import find_profile, profile_names

    rows = [{"name": name, "description": find_profile(name).description} for name in profile_names()]
    _print_rows(rows, as_json=json)
    return DONE


@hw.command(name="show", help_epilogue=_examples("autocomp hw show mobile_arm"))
def hw_show(name: str, *, json: bool = False) -> int:
    """Show what a device can execute and where its latency table comes from.

    Parameters
    ----------
    name
        Profile name, or the path of a profile file.
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.profile import find_profile

    _print_document(find_profile(name), as_json=json)
    return DONE


@space.command(name="list", help_epilogue=_examples("autocomp space list", "autocomp space list --json"))
def space_list(*, json: bool = False) -> int:
    """List the search spaces.

    Parameters
    ----------
    json
        Print one JSON document on standard output.
    """
    from autocomp.tasks.spaces import load_space, space_names

    rows = [{"name": name, "description": getattr(load_space(name), "description", "")} for name in space_names()]
    _print_rows(rows, as_json=json)
    return DONE


@space.command(name="show", help_epilogue=_examples("autocomp space show mobilenet_v2"))
def space_show(name: str, *, json: bool = False) -> int:
    """Show what a search space offers.

    Parameters
    ----------
    name
        Space name, or the path of a YAML file.
    json
        Print one JSON document on standard output.
    """
    from autocomp.tasks.spaces import load_space

    _print_document(load_space(name), as_json=json)
    return DONE


def _read_policy(path: Path) -> Any:
    from autocomp.policy import Policy

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fault = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(
            f"--policy: cannot read {path}: {fault}; expected a policy file such as search writes"
        ) from None
    return Policy.from_json(text, str(path))


def _plain(value: Any) -> Any:
    """Dataclasses, models and mappings as what YAML and JSON can hold."""
    from dataclasses import fields, is_dataclass

    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _print_json(document: Any) -> None:
    print(json_format.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def _print_fields(document: Any) -> None:
    import yaml

    class Dumper(yaml.SafeDumper):
        """One key a line; a list of plain values stays on its line."""

    def represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
        plain = not any(isinstance(item, dict | list) for item in items)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain)

    Dumper.add_representer(list, represent_list)
    text = yaml.dump(_plain(document), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    print(text, end="")


def _print_document(document: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        _print_fields(document)


def _print_rows(rows: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {' '.join(row['description'].split())}".rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; `arguments` is sys.argv without the program's name."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "×" gets "?", not a traceback
    try:
        result = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        return _complain(_usage(error, tokens), BAD_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (head, less) has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except Exception as error:  # noqa: BLE001  (the last gate: no traceback reaches the terminal)
        return _fail(error)
    return result if isinstance(result, int) else DONE


def _usage(error: CycloptsError, tokens: Sequence[str]) -> str:
    """A parse error in one line: what was expected, what came, what to do."""
    verb = " ".join(error.command_chain or ())
    ask = f"see autocomp {verb} --help" if verb else "see autocomp --help"
    if isinstance(error, MissingArgumentError):
        name = error.argument.name if error.argument is not None else "an argument"
        if name in tokens:
            return f"{name} needs a value; {ask}"
        hint = ", such as --hw mobile_arm (autocomp hw list shows them)" if name == "--hw" else ""
        return f"{name} is missing{hint}; {ask}"
    if isinstance(error, UnusedCliTokensError):
        return f"did not expect {' '.join(map(repr, error.unused_tokens or ()))}; {ask}"
    if isinstance(error, UnknownCommandError):
        return f"{_lower(str(error))} {ask}"
    return f"{_lower(str(error)).rstrip('.')}; {ask}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _fail(error: Exception) -> int:
    known = _known_fault(error)
    if known is not None:
        return _complain(str(known), BAD_INPUT if isinstance(known, UserError) else FAILED)
    return _complain(f"unexpected {_first_line(error)}; the traceback is in {_write_traceback(error)}", FAILED)


def _known_fault(error: BaseException | None) -> UserError | RunError | None:
    """The fault that is meant for the user, also where a worker process or a library wrapped it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)  # Ray's errors hold the worker's own there
        if isinstance(cause, BaseException):
            error = cause
            continue
        if isinstance(error, UserError | RunError):
            return error
        if isinstance(error, OSError) and error.errno in _PLACE_FAULTS:
            where = f"{error.filename}: " if error.filename else ""
            return UserError(f"cannot write {where}{error.strerror}; {_PLACE_FAULTS[error.errno]}")
        if isinstance(error, sqlite3.OperationalError) and ("full" in str(error) or "readonly" in str(error)):
            return UserError(f"cannot write the journal: {error}; {_PLACE_FAULTS[errno.ENOSPC]}")
        error = error.__cause__
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _write_traceback(error: Exception) -> str:
    """The path of a file with the traceback, or a word of excuse where none can be written."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="autocomp-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(f"autocomp {__version__}, {' '.join(sys.argv)}\n\n")
            log.writelines(traceback.format_exception(error))
        return log.name
    except OSError as fault:
        return f"no file ({fault.strerror})"


def _complain(text: str, code: int) -> int:
    print(f"autocomp: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def run() -> None:
    """The console script."""
    sys.exit(main())
