"""`lltool <command> ...`: finds the command's module and runs it."""

def main() -> int:
    return 0
