"""The kinds of error that are a user's to mend: one line each, never a stack trace."""


class DataError(Exception):
    """The data is wrong. The message names the file, the row or the set, what is wrong and what to do."""


class UsageError(Exception):
    """A parameter, a path or a name is wrong. The message names it, what is wrong and what to do."""


class RoomError(Exception):
    """The disk has no room. The message says where, and how much is missing; trying again would not help."""
