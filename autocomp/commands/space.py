"""`space list`, `space show`: the search spaces that ship."""

from autocomp.commands.exit_codes import DONE
from autocomp.commands.output import print_document, print_rows


def list_spaces(*, json: bool = False) -> int:
    """List the search spaces.

    Parameters
    ----------
    json
        Print one JSON document on standard output.
    """
    from autocomp.tasks.spaces import load_space, space_names

    rows = [{"name": name, "description": getattr(load_space(name), "description", "")} for name in space_names()]
    print_rows(rows, as_json=json)
    return DONE


def show(name: str, *, json: bool = False) -> int:
    """Show one search space.

    Parameters
    ----------
    name
        Space name, or the path of a YAML file.
    json
        Print one JSON document on standard output.
    """
    from autocomp.tasks.spaces import load_space

    print_document(load_space(name), as_json=json)
    return DONE
