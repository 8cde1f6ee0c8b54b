def guard() -> None:
    """
    Installs the handler again, if another library has installed its own since the last watch.
    """

def watch(address: int, bytes: int) -> int:
    """
    Makes missing pages of this mapped memory read as zeros from now on. Returns the id of the watch.
    """

def has_faulted(id: int) -> bool:
    """Whether a page of the watched memory was missing."""

def unwatch(id: int) -> None:
    """Ends a watch; called when the memory is unmapped."""
