"""Hardware-aware AutoML compression search: every point on the front is a file."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Data", "Task"]

if TYPE_CHECKING:
    from autocomp.tasks.task import Data, Task


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: `autocomp --help` answers at once.
    if name in __all__:
        from autocomp.tasks import task

        return getattr(task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
