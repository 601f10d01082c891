"""One module a command: `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(arguments) -> exit code`."""
