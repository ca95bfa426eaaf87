"""The one family of errors, grouped by what a handler does about them.

Every message is one sentence for a person: what failed, where, what was found, what was expected and
what to do. `str(error)` is shown as it is, without a stack trace, as the last line of a command.
"""


class EmAssetsError(Exception):
    """Base of every error this package raises on purpose."""


class Unavailable(EmAssetsError):
    """The other side did not answer, or not wholly. Trying again later may help."""


class Malformed(EmAssetsError):
    """Something from outside (a file, a reply, a spec) breaks its own format. Skip this dataset."""


class Unsupported(EmAssetsError):
    """Well formed, but of a kind this package does not read or write. Skip this dataset."""


class Mismatch(EmAssetsError):
    """Two things that must agree do not. Stop: a person has to decide."""
