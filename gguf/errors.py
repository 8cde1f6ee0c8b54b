"""The one exception that means 'the input is at fault': commands print it as one line and exit with 2."""


class InputError(Exception):
    """Bad input from the user: file, tensor, what was found, what was wanted, what to do."""
