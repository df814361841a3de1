"""The command line: which verbs there are, what their help says, and how a command ends.

The functions are in `autocomp.commands`; a verb's module is imported when the verb is asked for.
Exit codes: 0 done, 1 a failure of the run itself, 2 bad usage or input, 130 ended by Ctrl-C. A fault that the user
can mend is one line on standard error; anything unforeseen is one line that names the file with the traceback.
"""

import os
import sys
from collections.abc import Sequence

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)

from autocomp import __version__
from autocomp.commands.exit_codes import BAD_INPUT, BROKEN_PIPE, DONE, INTERRUPTED
from autocomp.commands.faults import complain, fail


def _examples(*commands: str) -> str:
    return "Examples:\n\n" + "\n".join(f"    $ autocomp {command}" for command in commands)


app = App(
    name="autocomp",
    version=__version__,
    help="Hardware-aware compression search: a network, a device and a budget go in; verified ONNX files come out.",
    help_format="plaintext",
    help_epilogue=_examples("search --hw mobile_arm --budget 4MB", "verify runs/latest", "report runs/latest")
    + "\n\n`autocomp VERB --help` explains a verb and shows examples.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=""),
)
_hw = App(
    name="hw",
    help="The devices that autocomp knows.",
    help_epilogue=_examples("hw list", "hw show mobile_arm"),
)
_space = App(
    name="space",
    help="The search spaces that ship with autocomp.",
    help_epilogue=_examples("space list", "space show mobilenet_v2"),
)
app.command(_hw)
app.command(_space)
app.command("autocomp.commands.profile:app", name="profile", help="Measure the latencies of a device's kernels.")


def _verb(group: App, name: str, function: str, text: str, *examples: str) -> None:
    """One verb: "module:function" below `autocomp.commands`, the text of its help, and commands to copy."""
    group.command(f"autocomp.commands.{function}", name=name, help=text, help_epilogue=_examples(*examples))


_verb(
    app, "search", "run:search",
    "Search for compressed versions of a network and write the best trade-offs as ONNX files.\n\n"
    "Without a budget the whole front is searched.",
    "search --hw mobile_arm --budget 4MB",
    "search --hw host_cpu --max-latency 2ms --max-accuracy-drop 0.5",
    "search --hw mobile_arm --task imagenet --network efficientnet_lite0 --data photos/",
    "search --hw mobile_arm --task my_task.py:task --trials 200 --controller evolution",
)  # fmt: skip
_verb(
    app, "resume", "run:resume",
    "Go on with a search that was interrupted, as if it had not been.",
    "resume runs/latest",
)  # fmt: skip
_verb(
    app, "estimate", "estimate:estimate",
    "Predict what a network takes on a device: per kernel, with band, and what limits each.\n\n"
    "Trains and writes nothing.",
    "estimate --hw mobile_arm",
    "estimate --hw mobile_arm runs/latest/policies/17.json",
    "estimate --hw mobile_arm runs/latest/models/17.onnx",
)  # fmt: skip
_verb(
    app, "compress", "policy:compress",
    "Apply one policy file: compress, finetune, export and verify.",
    "compress --hw mobile_arm --policy runs/latest/policies/17.json --out small",
    "compress --hw mobile_arm --policy mine.json --task my_task.py:task --epochs 5",
)  # fmt: skip
_verb(
    app, "verify", "run:verify",
    "Re-open each file of a front in a fresh process, recount its bytes and score it again.\n\n"
    "Exits with 1 if anything differs from what the run says.",
    "verify runs/latest",
    "verify runs/latest --json",
)  # fmt: skip
_verb(
    app, "report", "run:report",
    "Show the front of a run as a table and write its report.html anew.",
    "report runs/latest",
    "report runs/latest --svg front.svg",
)  # fmt: skip
_verb(_hw, "list", "hw:list_profiles", "List the devices.", "hw list", "hw list --json")
_verb(
    _hw, "show", "hw:show",
    "Show what a device can execute, where its latencies come from, what they cover, and latency over channels.",
    "hw show mobile_arm",
    "hw show mobile_arm --kernel 'conv 96→* @14x14 int8' --plot latency.html",
)  # fmt: skip
_verb(
    _hw, "check", "hw:check",
    "Hold this machine's table against whole networks, timed.",
    "hw check host_cpu --networks 50 --json",
)  # fmt: skip
_verb(
    _hw, "compare", "hw:compare",
    "Compare what one network takes on several devices, layer by layer; or, given a run, what each device would have "
    "chosen from its candidates.",
    "hw compare mobile_arm host_cpu",
    "hw compare mobile_arm host_cpu runs/latest/models/17.onnx",
    "hw compare runs/latest --svg choices.svg",
)  # fmt: skip
_verb(_space, "list", "space:list_spaces", "List the search spaces.", "space list", "space list --json")
_verb(_space, "show", "space:show", "Show what a search space offers.", "space show mobilenet_v2")


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
        return complain(_usage(error, tokens), BAD_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (head, less) has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  (the last gate: no traceback reaches the terminal)
        return fail(error)
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


def run() -> None:
    """The console script."""
    sys.exit(main())
