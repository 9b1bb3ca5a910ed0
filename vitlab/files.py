"""Files that are whole or absent: written aside, flushed, then renamed."""

import ast
import contextlib
import errno
import glob
import hashlib
import os
import pickle
import secrets
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from safetensors import SafetensorError
from yaml import YAMLError

from vitlab.errors import LabError
from vitlab.machine import ROOT

try:
    import fcntl
except ImportError:  # Windows has none, and renames no file that is open
    fcntl = None

# what readers of JSON, YAML, CSV, NumPy's, torch's and safetensors' files raise when they are cut short
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
    YAMLError,
)
UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO)  # what else a reader says of a file, it says of what is in it
WRITERS_OF_TORCH = ("PytorchStreamWriter", "inline_container", "unexpected pos")


@contextlib.contextmanager
def writing(path: Path, elsewhere: str = "runs_dir") -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it replaces `path`, on failure it is removed.

    Those of writers that were killed are removed by the next one of the same path.
    elsewhere: what names another place, told to the user where this one takes no file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # a name of its own, never used again
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with _made(temporary):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in WRITERS_OF_TORCH):
            raise
        raise _cannot_write(path, error, elsewhere) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _made(temporary: Path) -> Iterator[None]:
    """Make a file, and hold its lock for as long as this process lives and writes to it."""
    with contextlib.ExitStack() as stack:
        while not temporary.exists():  # or it was taken for a leftover before it was locked
            file = stack.enter_context(temporary.open("ab"))  # torch.save says in no sentence that it may not write
            if fcntl:
                with contextlib.suppress(OSError):  # a disk without locks: there no leftover is removed either
                    fcntl.flock(file, fcntl.LOCK_EX)
            else:
                stack.close()
        yield


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of writers of `path` that were killed: whose lock nobody holds."""
    pattern = f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"
    for leftover in path.parent.glob(pattern) if fcntl else ():
        with contextlib.suppress(OSError), leftover.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


@contextlib.contextmanager
def reading(path: Path, cure: str) -> Iterator[Path]:
    """Yield a path to read from; LabError, which ends with `cure`, for a file that is missing, damaged or not ours."""
    try:
        yield path
    except FileNotFoundError:
        raise LabError(f"{path} is missing: {cure}") from None
    except (OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno in UNREADABLE:
            raise LabError(f"cannot read {path} ({error.strerror}): check its permissions, or {cure}") from None
        raise LabError(f"{path} is empty or damaged ({type(error).__name__}): {cure}") from None


def copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    with writing(target) as temporary:
        temporary.write_bytes(content)


def require_writable(folder: Path, megabytes: int, elsewhere: str = "runs_dir") -> None:
    """LabError unless `folder` can be made and takes a file of that size: asked before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(megabytes):  # written for real: quotas and size limits do not show in the free space
                file.write(b"\0" * 2**20)
            file.flush()
    except OSError as error:
        raise _cannot_write(folder, error, elsewhere) from None


def reserve(file: IO[bytes], size: int, folder: Path, elsewhere: str) -> None:
    """Take `size` bytes of the disk for a file in `folder`: a mapped file that finds it full would kill the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS has none
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise _cannot_write(folder, error, elsewhere) from None


def _cannot_write(path: Path, error: Exception, elsewhere: str) -> LabError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "free some space" if full else "check its permissions"
    what = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return LabError(f"cannot write {path} ({what}): {cure} or choose another place ({elsewhere}), then start again")


@cache
def code_digest(*patterns: str) -> str:
    """Of the package's files of these patterns, as "models/*.py": their code, without comments and docstrings."""
    texts = []
    for path in (path for pattern in patterns for path in sorted((ROOT / "vitlab").glob(pattern))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            if documented and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        texts.append(f"{path.name}: {ast.unparse(tree)}")
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def absolute(path: str) -> Path:
    """A path of the parameters: relative ones are taken from the repository's root, ~ is the home directory.

    Links keep the name that the user gave: by it a balanced sibling is found, and the data are called.
    """
    return Path(os.path.abspath(ROOT / expanded(path)))


def from_here(path: Path) -> str:
    """A path as seen from the working directory; whole where it lies on another drive."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def expanded(path: str | Path) -> Path:
    """A path whose ~ is a home directory; LabError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise LabError(f"{path}: {str(error).rstrip('.').lower()}; write the path in full") from None
