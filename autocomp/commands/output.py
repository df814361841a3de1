"""What verbs print: a JSON document on standard output, or text for a person; what libraries print goes elsewhere."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def strays_on_stderr() -> Iterator[None]:
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


def terminal() -> "Console":
    """Standard output for a person."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            """Whoever read our output has left: rich would exit with 1, `cli.main` knows better."""
            raise BrokenPipeError

    return Terminal()


def warn(text: str) -> None:
    """Print `text` as a warning of one line on standard error."""
    print(f"autocomp: warning: {text}", file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """`document`, which may hold dataclasses and pydantic models, as JSON."""
    print(json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def print_document(document: Any, *, as_json: bool) -> None:
    """As JSON, or as YAML, which a person reads more easily."""
    if as_json:
        print_json(document)
    else:
        _print_fields(document)


def print_rows(rows: list[dict[str, str]], *, as_json: bool) -> None:
    """Rows of "name" and "description", as JSON or one line each."""
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {' '.join(row['description'].split())}".rstrip())


def _plain(value: Any) -> Any:
    """Dataclasses, models and mappings as what YAML and JSON can hold."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


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
