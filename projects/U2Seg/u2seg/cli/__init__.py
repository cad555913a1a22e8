"""The command ``u2seg``: one module for each subcommand, which parses, makes one call and prints."""
