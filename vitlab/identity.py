"""What a run is known by: the values that decide its result; of a module of the reader's own, what it is made of."""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from vitlab.config import Recipe, RunConfig
from vitlab.models.registry import MODELS, SHARED

# preset: a name for dim, depth, heads, mlp_ratio; the others are about the machine and move the last digits at most
IRRELEVANT = {"data_dir", "preset", "num_workers", "pin_memory", "channels_last", "device"}
OF_CLASSES = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__"}  # no part of what a class does
OF_CLASSES |= {"__firstlineno__", "__static_attributes__"}
LOADS = {"LOAD_GLOBAL", "LOAD_NAME"}
OF_MODULES = {*vars(nn.Module()), "training"}


def identity(config: Recipe, digest: str) -> dict[str, Any]:
    """What decides a run's result: the values that its model, remedy and optimiser read, and the data's digest."""
    unread = set(IRRELEVANT)
    if isinstance(config, RunConfig):
        row, of_images = MODELS[config.model], {"image_size", "patch_size"}  # these decide the images that it sees
        unread |= {option for other in MODELS.values() for option in other.options} - {*row.options}
        unread |= {*SHARED} - {*row.shared} - of_images
        unread |= {"imbalance_ratio", "imbalance_order"} if config.imbalance == "none" else set()
    unread |= {"keep_epoch"} if config.keep_epoch == "best" else set()  # runs from before there was a choice
    unread |= {"grow"} if not config.start_size else set()
    unread |= {"muon_lr"} if config.optimizer != "muon" else set()
    budgets = ["steps", "minutes", "epochs"]  # the first that is given decides
    budgets.remove(next(name for name in budgets if getattr(config, name)))
    values = config.model_dump(exclude=unread | set(budgets))
    if isinstance(config, RunConfig) and MODELS[config.model].from_outside:
        values["source"] = fingerprint(MODELS[config.model].build)
    return values | {"data": digest}


def module_identity(module: nn.Module) -> dict[str, str]:
    """What tells a module of the reader's own from others: its class, the code of it and its parts, its shapes and
    settings, which parameters are frozen. The values of its weights and of other tensors don't count.
    """
    own = sorted({type(part) for part in module.modules() if not _of_torch(type(part))}, key=lambda c: c.__qualname__)
    shapes = repr(module) + repr([(name, tuple(value.shape)) for name, value in module.state_dict().items()])
    frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
    settings = [_attributes(part) for part in module.modules()]  # the text above doesn't show attention's heads
    return {
        "class": type(module).__qualname__,
        "source": fingerprint(own),
        "shapes": fingerprint([shapes, frozen, settings]),
    }


def weights_digest(module: nn.Module) -> str:
    """Of the values of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def readers_own(value: Any) -> bool:
    """Whether a class, function or module is the reader's: not of Python, nor of what is installed, nor of vitlab."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    if name == "__main__":  # whatever program has started it
        return True
    package, file = name.split(".")[0], getattr(sys.modules.get(name), "__file__", None) or ""
    installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
    return package != "vitlab" and package not in sys.stdlib_module_names and not installed


def fingerprint(value: Any) -> str:
    """Of settings, functions and classes: of code as it is loaded, with what it names, as far as that is the reader's.

    Another version of Python may compile the same code to another fingerprint.
    """
    return hashlib.sha256(repr(_parts(value, set())).encode()).hexdigest()[:12]


def _of_torch(value: Any) -> bool:
    return (value.__module__ or "").split(".")[0] == "torch"


def _attributes(part: nn.Module) -> list:
    """What a module has as settings: what is neither a tensor nor a part, and not None, which may become either."""
    settings = sorted((name, value) for name, value in vars(part).items() if name not in OF_MODULES)
    return [(name, value) for name, value in settings if value is not None and not isinstance(value, Tensor)]


def _parts(value: Any, seen: set[int]) -> Any:
    """A value in numbers and words that are the same ones in another process."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, list | tuple):
        return [
            _parts(one, seen) for one in value if not isinstance(one, Tensor)
        ]  # a list that gathers them as it runs
    if isinstance(value, set | frozenset):
        return sorted(repr(_parts(one, seen)) for one in value)
    if isinstance(value, Mapping):
        return [(repr(_parts(key, seen)), _parts(one, seen)) for key, one in value.items()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, CodeType):
        names = value.co_varnames, value.co_names, value.co_freevars
        return [value.co_name, value.co_code, *names, _parts(value.co_consts, seen)]
    if id(value) in seen:  # a function that calls itself
        return getattr(value, "__qualname__", type(value).__qualname__)
    seen.add(id(value))
    return _of_code(value, seen) or _of_object(value, seen)


def _of_code(value: Any, seen: set[int]) -> Any:
    """`_parts` of what can be called; None for others."""
    if isinstance(value, partial):
        return [_parts(part, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, staticmethod | classmethod | MethodType):
        return _parts(value.__func__, seen)
    if isinstance(value, property):
        return [_parts(function, seen) for function in (value.fget, value.fset)]
    if hasattr(value, "__wrapped__") and not isinstance(value, FunctionType | type):  # functools.cache
        return _parts(value.__wrapped__, seen)
    if isinstance(value, FunctionType) and not _of_torch(value):
        return _of_function(value, seen) if readers_own(value) else [value.__qualname__, _parts(value.__code__, seen)]
    if isinstance(value, type) and not _of_torch(value) and (readers_own(value) or issubclass(value, nn.Module)):
        return [_of_class(base, seen) for base in value.__mro__ if base is not object and not _of_torch(base)]
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    return None


def _of_function(function: FunctionType, seen: set[int]) -> list:
    """Its code, its defaults, what it closes over, and what it names of the reader's own."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    given = [function.__defaults__, function.__kwdefaults__, cells]
    named = [(name, _parts(value, seen)) for name, value in _named(function)]
    return [_parts(function.__code__, seen), _parts(given, seen), named]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a name that is bound later
        return False


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Names that a function looks up around it, or in a module of the reader's, and what they stand for."""
    codes = list(_nested(function.__code__))
    loaded = {i.argval for code in codes for i in dis.get_instructions(code) if i.opname in LOADS}
    for name in sorted(loaded & function.__globals__.keys()):
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, ModuleType) and readers_own(value):
            for attribute in sorted({name for code in codes for name in code.co_names} & vars(value).keys()):
                yield f"{name}.{attribute}", getattr(value, attribute)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _of_class(kind: type, seen: set[int]) -> list:
    members = sorted((name, value) for name, value in vars(kind).items() if name not in OF_CLASSES)
    return [kind.__qualname__, *((name, _parts(value, seen)) for name, value in members)]


def _of_object(value: Any, seen: set[int]) -> Any:
    """`_parts` of anything else: the reader's own by what it holds, others by what they say of themselves."""
    kind = type(value)
    if isinstance(value, nn.Module):
        return [repr(value), _parts(kind, seen)]
    if isinstance(value, SimpleNamespace) or (readers_own(kind) and hasattr(value, "__dict__")):
        return [kind.__qualname__, _parts(vars(value), seen)]
    said = "" if isinstance(value, Tensor | ModuleType) else repr(value)
    return kind.__qualname__ if " at 0x" in said else f"{kind.__qualname__} {said}"
