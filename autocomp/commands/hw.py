"""`hw list`, `hw show`: the devices that autocomp knows."""

from autocomp.commands.exit_codes import DONE
from autocomp.commands.output import print_document, print_rows


def list_profiles(*, json: bool = False) -> int:
    """List the profiles that ship.

    Parameters
    ----------
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.profile import find_profile, profile_names

    rows = [{"name": name, "description": find_profile(name).description} for name in profile_names()]
    print_rows(rows, as_json=json)
    return DONE


def show(name: str, *, json: bool = False) -> int:
    """Show one profile.

    Parameters
    ----------
    name
        Profile name, or the path of a profile file.
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.profile import find_profile

    print_document(find_profile(name), as_json=json)
    return DONE
