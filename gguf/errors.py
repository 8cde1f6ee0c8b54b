"""The exceptions that mean that the input is at fault: commands print them as one line and exit with 2."""


class InputError(Exception):
    """Bad input from the user. The message names file and tensor, what was found, what was wanted and what to do.

    It is one line, whatever names and values a file has put into it.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class FileChanged(InputError):
    """A file has changed since it was opened, so data that was read from it cannot be used."""
