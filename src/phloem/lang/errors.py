"""What can be wrong with a program: three kinds of the caller's fault, one of the operator's, one of the model's."""

from __future__ import annotations

from phloem.core.errors import InvalidRequest, RequestFailed


class ProgramError(InvalidRequest):
    """A program is malformed, or its arguments are. `field` names the place, such as `program.body[2].then[0]`."""

    code = "invalid_program"


class TraceError(ProgramError):
    """A Python construct that cannot be captured: the message names file and line and says what to write instead."""

    code = "cannot_trace"


class LimitExceeded(ProgramError):
    """A program wanted more than it may have: nodes, iterations, tokens, branches or time."""

    code = "program_limit"


class FunctionFailed(RequestFailed):
    """A function that the operator registered broke off."""

    code = "function_failed"


class UnparsableOutput(RequestFailed):
    """The model's text is not of the type that the program wants, usually because `max_tokens` cut it off."""

    code = "unparsable_output"
