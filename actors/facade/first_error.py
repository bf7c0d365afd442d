"""Of the errors that task groups gathered, the one to tell a person."""

from typing import cast

__all__ = ["first_error"]


def first_error(error: BaseException) -> BaseException:
    """The first error in a group of groups, but Ctrl-C before all others; an error that is no group is itself."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    inner = [first_error(one) for one in group.exceptions]
    return next((one for one in inner if isinstance(one, KeyboardInterrupt)), inner[0])
