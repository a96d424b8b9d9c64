"""Text from files, every line checked: where it lies, what is wrong with it."""
