"""The errors that a user can mend: wrong use or bad input. It is not for bugs of ours (those stay tracebacks)."""


class UserError(Exception):
    """Tell the user in one line which thing has which wrong value and how to mend it; commands exit with 2."""
