"""What the reader of a message can repair.

CallerError (phloem)
`-- VivaError        exit 2
    |-- BankError      a file of a bank is malformed; names file, line and field
    |-- SourceError    a package, wheel or folder cannot be had or read
    `-- LookupFailed   a symbol, file or line is not in an indexed source
"""

from __future__ import annotations

from phloem import CallerError


class VivaError(CallerError):
    """Root of the errors viva raises on purpose."""

    code = "viva"


class BankError(VivaError):
    """A file of a bank is missing, is no YAML or has not the form of the schema."""

    code = "invalid_bank"


class SourceError(VivaError):
    """A pinned source cannot be had, holds no source or cannot be read."""

    code = "invalid_source"


class LookupFailed(VivaError):
    """A symbol, file or line is not in the indexed source."""

    code = "not_in_source"
