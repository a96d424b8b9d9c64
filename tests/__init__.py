"""The tests mirror the folders of the project; `tests.reference` is the oracle they share."""
