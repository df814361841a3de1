"""`estimate`: what a policy will cost, predicted."""

from pathlib import Path

from autocomp.commands.exit_codes import DONE
from autocomp.commands.options import TaskOptions, read_policy, search_settings
from autocomp.commands.output import print_document, strays_on_stderr


def estimate(*, options: TaskOptions, policy: Path | None = None, json: bool = False) -> int:
    """Show the predicted bytes and latency of a policy.

    Parameters
    ----------
    policy
        Policy file; without one, the float network and its plain int8 version are estimated.
    json
        Print one JSON document on standard output.
    """
    settings = search_settings(options)
    decided = None if policy is None else read_policy(policy)
    from autocomp.search import estimate as estimate_policy

    with strays_on_stderr():
        document = estimate_policy(decided, settings)
    print_document(document, as_json=json)
    return DONE
