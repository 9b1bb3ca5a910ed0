"""The exceptions of the lab that are written for its user."""

import sys
from collections.abc import Callable


class LabError(Exception):
    """A fault that the user can mend; its message says what is wrong and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: the sentence is all that the reader needs."""
        return [f"{type(self).__name__}: {self}"]


class Stopped(KeyboardInterrupt):
    """A training that its reader has stopped; the message says how far it was and how it goes on."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def told(command: str, work: Callable[[], object]) -> int:
    """A command's exit status; what its user can mend, or has stopped, is said in a sentence, without a traceback."""
    try:
        work()
    except LabError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; the same command goes on from what it has kept"
        print(f"{command}: {said}", file=sys.stderr)
        return 130
    return 0
