"""The `seqloom` command. It stands outside the package, so that `--help` and a typing mistake need no torch."""
