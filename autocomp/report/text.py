"""Text for a terminal that several verbs print: plain tables, headings, lines."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_table(*headings: str) -> Table:
    """A table without a frame. A heading that begins with ">" stands over a column aligned to the right, unbroken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.removeprefix(">"), justify="right" if right else "left", no_wrap=right)
    return table


def heading(console: Console, text: str) -> None:
    """An empty line, and `text` in bold."""
    console.print()
    console.print(Text(text, style="bold"))


def line(console: Console, text: str) -> None:
    """`text` as it is, broken between words."""
    console.print(Text(text))
