"""What the program's exit code says."""

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
#: As a shell reports a process that SIGPIPE ended: whoever read our output has left.
BROKEN_PIPE = 128 + 13
