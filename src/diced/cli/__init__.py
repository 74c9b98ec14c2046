"""The command line: one module per group of commands, parser and action side by side."""
