"""Files that others wrote, read within bounds: what is no text, too large or leads elsewhere is refused in one line."""

import re
from pathlib import Path
from typing import Any

import yaml

from autocomp.errors import UserError

#: PyYAML lets more out than its own error: for a tag on a value that it does not fit, a number of 5,000 digits, a
#: thousand brackets.
_YAML_FAULTS = (yaml.YAMLError, AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)


def read_text(path: Path, what: str, most_bytes: int) -> str:
    """The UTF-8 text of `path`, without a byte-order mark. `what` names the kind of file in errors.

    UserError if it is missing, is no regular file, leads out of its folder, is larger than `most_bytes`, or no text.
    """
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f"{what} {path}: leads out of its folder through a symbolic link; copy the file there")
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise UserError(f"{what} {path} cannot be read: it is no regular file")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; restore the file") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself (pathlib before Python 3.13)
        raise UserError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except ValueError:
        raise UserError(f"{what} {str(path)!r} cannot be read: its name holds a zero byte") from None
    if len(content) > most_bytes:
        raise UserError(f"{what} {path}: is larger than {most_bytes:,} bytes; is it a {what}?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: expected UTF-8 text, got byte {error.start} that is not") from None


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """The mapping in YAML `text`, as plain values; `origin` names the file in errors.

    Stricter than YAML: no key twice (YAML keeps the last and says nothing), no aliases (a few lines of them expand to
    billions of values), and a line end after the last line, without which the file was cut off.
    """
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _check_nodes(root, origin)
        document = loader.construct_document(root) if root is not None else None
    except _YAML_FAULTS as error:
        fault = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{origin} is not YAML: {shortened(fault)}") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(document, dict):
        raise UserError(f"{origin}: expected keys with values, got {type(document).__name__}")
    if not all(isinstance(key, str) for key in document):
        raise UserError(f"{origin}: expected keys that are text, got {shortened(repr(list(document)))}")
    if not text.endswith("\n"):
        raise UserError(f"{origin}: was cut off: the last line has no line end; restore the file, or add one")
    return document


def shortened(text: str, most: int = 200) -> str:
    """`text` on one line of at most `most` characters, without anything that a terminal would act on."""
    # Cut before it is cleaned: the text may be a megabyte. Control characters and surrogates become "?".
    line = re.sub(r"\s+", " ", text[: 4 * most]).strip()
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"


def _check_nodes(root: yaml.Node | None, origin: str) -> None:
    """UserError for a key that stands twice in one mapping, or a node that stands in two places (an alias)."""
    waiting, seen = [] if root is None else [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise UserError(f"{origin}: aliases (*name) are not read; write the value out at{_place(node)}")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        raise UserError(f"{origin}: the key {shortened(key.value, 60)!r} stands twice; keep one")
                    keys.add(key.value)
                waiting += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _place(node: yaml.Node) -> str:
    return f" line {node.start_mark.line + 1}"
