"""The exceptions of the lab that are written for its user."""


class LabError(Exception):
    """A fault that the user can mend; its message says what is wrong and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: the sentence is all that the reader needs."""
        return [f"{type(self).__name__}: {self}"]


class Stopped(KeyboardInterrupt):
    """A training that its reader has stopped; the message says how far it was and how it goes on."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]
