"""Where the data folders are: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

from autocomp.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder `hw_profiles` or `search_spaces`. UserError if the installation lacks it."""
    for folder in (_PACKAGE.parent / name, _PACKAGE / "_data" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"the data folder {name!r} is missing from this installation of autocomp: install it again")


def data_names(name: str) -> list[str]:
    """Names of the YAML files in a data folder, without the extension, sorted."""
    return sorted(path.stem for path in data_folder(name).glob("*.yaml"))
