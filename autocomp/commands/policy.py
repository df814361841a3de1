"""`compress`: one policy applied."""

from pathlib import Path

from autocomp.commands.exit_codes import DONE
from autocomp.commands.options import Number, TaskOptions, one_device, read_policy, search_settings
from autocomp.commands.output import strays_on_stderr


def compress(*, options: TaskOptions, policy: Path, out: Path | None = None, epochs: Number = None) -> int:
    """Apply a policy, and print the folder that holds the file and its figures.

    Parameters
    ----------
    policy
        Policy file: one decision per layer, as `search` writes them.
    out
        Folder to write to.
    epochs
        Epochs of finetuning; by default the task's own number.
    """
    settings = search_settings(options, one_device(options.hw, "compress"), out=out, epochs=epochs)
    read_policy(policy, "--policy")  # a fault in the file is worth knowing before the network is built
    from autocomp.apply import compress as compress_policy

    with strays_on_stderr():
        folder = compress_policy(policy, settings)
    print(folder)
    return DONE
