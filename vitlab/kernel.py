"""The notebook's kernel as far as the lab uses it: whether somebody reads along, completions, help for parameters."""

import contextlib
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from IPython import get_ipython
from IPython.core.completer import SimpleCompletion
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display


def reader() -> InteractiveShell | None:
    """The shell of a notebook that somebody reads while it runs; None in a terminal, a script, under papermill.

    papermill, nbconvert and nbmake all execute cells through nbclient, which tells the kernel with each cell that
    nobody can answer (`allow_stdin`).
    """
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel") or not shell.get_parent()["content"].get("allow_stdin"):
        return None
    return shell


@contextlib.contextmanager
def meanwhile(text: str) -> Iterator[None]:
    """A line in the cell of whoever reads along, gone at the end; a bar on stderr would stand in a red box."""
    handle = display(HTML(f"<p>{html.escape(text)}</p>"), display_id=True) if reader() else None
    try:
        yield
    finally:
        if handle:
            handle.update(HTML(""))


def complete_strings(calls: Mapping[str, Callable[[], Iterable[str]]]) -> None:
    """Have the kernel complete the first string of a call, as in `lab.load("`: method -> what gives the strings."""
    shell = get_ipython()
    if shell is None:
        return

    def strings_of_a_call(context: Any) -> dict[str, Any]:
        found = re.search(r"\.(\w+)\(\s*(['\"])([^'\"]*)$", context.text_until_cursor)
        if not found or found[1] not in calls:
            return {"completions": []}
        typed = found[3]
        # what a token is, a completer decides: what stands before it in the string must not be repeated
        before = typed[: len(typed) - len(context.token.lstrip("\"'"))] if context.token else typed
        fitting = [text for text in calls[found[1]]() if text.startswith(typed)]
        completions = [SimpleCompletion(text=text[len(before) :], type="run") for text in fitting]
        return {"completions": completions, "suppress": bool(completions), "matched_fragment": typed[len(before) :]}

    strings_of_a_call.matcher_api_version = 2
    strings_of_a_call.matcher_identifier = "vitlab.strings"
    others = [m for m in shell.Completer.custom_matchers if getattr(m, "matcher_identifier", "") != "vitlab.strings"]
    shell.Completer.custom_matchers[:] = [*others, strings_of_a_call]


def explain_names(help: Mapping[str, str]) -> None:
    """Have the kernel say what a parameter means where its help is asked for, as with shift-tab: name -> meaning.

    It would otherwise describe the class int or str. A name that has come to mean something else keeps its own help.
    """
    shell = get_ipython()
    if shell is None or hasattr(shell, "_vitlab_inspects"):
        return
    shell._vitlab_inspects = usual = shell.object_inspect_mime

    def inspect(name: str, *arguments: Any, **options: Any) -> dict[str, str]:
        if name not in help or not isinstance(shell.user_ns.get(name), str | int | float | None):
            return usual(name, *arguments, **options)
        return {"text/plain": f"{name} = {shell.user_ns.get(name)!r}\n\n{help[name]}"}

    shell.object_inspect_mime = inspect
