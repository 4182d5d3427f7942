"""The command ``lenet5``, a module a word."""
