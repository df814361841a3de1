"""Hardware-aware AutoML compression search: every point on the front is a file."""

__version__ = "0.1.0"
