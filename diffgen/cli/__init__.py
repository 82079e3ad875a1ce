"""The ``diffgen`` command: one module for each subcommand."""
