"""What a run is known by: the values that decide its result; of a module of the reader's own, what it is made of."""

import dis
import functools
import hashlib
import inspect
import re
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial, partialmethod, singledispatchmethod
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.config import Recipe, RunConfig
from vitlab.models.registry import MODELS, SHARED

# preset: a name for dim, depth, heads, mlp_ratio; the others are about the machine and move the last digits at most
IRRELEVANT = {"data_dir", "preset", "num_workers", "pin_memory", "channels_last", "device"}
DATA = (Tensor, np.ndarray)
ADDRESS = " at 0x[0-9a-fA-F]+"
CACHED = type(functools.cache(len))  # a function that remembers what it returned
LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"}
OF_MODULES = {*vars(nn.Module()), "training", "_is_torch_compile"}
OF_CLASSES = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__"}  # no part of what a class does
OF_CLASSES |= {"__firstlineno__", "__static_attributes__"}


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


def module_identity(module: nn.Module) -> dict[str, Any]:
    """What tells a module of the reader's own from others: its class, the code of it and its parts, its shapes, which
    parameters are frozen, its settings by name. The values of its weights, of other tensors and of arrays don't count.
    """
    module = getattr(module, "_orig_mod", module)  # of a compiled one
    kinds = [kind for kind in dict.fromkeys(type(part) for part in module.modules()) if not _of_torch(kind)]
    values = [(name, tuple(value.shape)) for name, value in module.state_dict().items()]
    settings: dict[str, list] = {}
    for part in module.modules():  # its text doesn't show attention's heads
        for name, value in _attributes(part):
            settings.setdefault(name, []).append(value)
    return {
        "class": type(module).__qualname__,
        "source": fingerprint(kinds),
        "shapes": fingerprint([re.sub(ADDRESS, "", repr(module)), values]),
        "frozen": [name for name, value in module.named_parameters() if not value.requires_grad],
        "settings": {name: fingerprint(values) for name, values in sorted(settings.items())},
    }


def teacher_identity(teacher: nn.Module) -> dict[str, Any]:
    """The same of a teacher, but for what training changes of it; and the values of its weights and buffers."""
    digest = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    known = module_identity(teacher)
    return {name: known[name] for name in ("class", "source", "shapes")} | {"weights": digest.hexdigest()[:12]}


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
    return hashlib.sha256(repr(_Reader().parts(value)).encode()).hexdigest()[:12]


def _of_torch(value: Any) -> bool:
    kinds = [kind for kind in value.__mro__ if kind is not object] if isinstance(value, type) else [value]
    return all((kind.__module__ or "").split(".")[0] == "torch" for kind in kinds)


def _attributes(part: nn.Module) -> list[tuple[str, Any]]:
    """A module's settings: not what it may have gathered as it ran, as tensors, arrays, and None in their place."""
    kept = {
        name for kind in type(part).__mro__ for name, value in vars(kind).items() if isinstance(value, cached_property)
    }
    return [
        (name, value)
        for name, value in vars(part).items()
        if name not in OF_MODULES | kept and value is not None and not isinstance(value, DATA)
    ]


class _Reader:
    """Reads a value into numbers and words that are the same ones in another process."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, Any]] = {}  # id -> which one it was, and itself, so that no other gets its id

    def parts(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return value
        if isinstance(value, tuple):  # equal ones may be one, as the compiler likes
            return self.gathered(enumerate(value))
        if isinstance(value, set | frozenset):
            return sorted(repr(_Reader().parts(one)) for one in value)
        if id(value) in self.seen:  # a function that calls itself
            return f"#{self.seen[id(value)][0]}"
        self.seen[id(value)] = len(self.seen), value
        if isinstance(value, list | deque):
            return self.gathered(enumerate(value))
        if isinstance(value, Mapping):
            return self.gathered((repr(self.parts(key)), one) for key, one in value.items())
        if isinstance(value, CodeType):
            names = value.co_name, value.co_varnames, value.co_names, value.co_freevars
            return [*names, value.co_code, self.each(value.co_consts)]
        return self.of_code(value) or self.of_object(value)

    def each(self, values: Iterable) -> list:
        return [self.parts(value) for value in values]

    def gathered(self, items: Iterable[tuple[Any, Any]]) -> list:
        """Of a collection, at which place what stands, but for what a module gathers as it runs."""
        kept = ((place, one) for place, one in items if one is not None and not isinstance(one, DATA))
        return [(place, part) for place, one in kept if (part := self.parts(one)) != []]

    def of_code(self, value: Any) -> Any:
        """What can be called, or calls; None for others."""
        if isinstance(value, partial | partialmethod):
            return self.each([value.func, *value.args, *value.keywords, *value.keywords.values()])
        if isinstance(value, cached_property | singledispatchmethod):
            return self.each([value.func])
        if isinstance(value, staticmethod | classmethod | MethodType):
            return self.each([value.__func__])
        if isinstance(value, property):
            return self.each([value.fget, value.fset])
        if isinstance(value, CACHED):
            return self.each([value.__wrapped__])
        if isinstance(value, FunctionType) and not _of_torch(value):
            return self.of_function(value) if readers_own(value) else [value.__qualname__, self.parts(value.__code__)]
        if isinstance(value, type) and not _of_torch(value) and (readers_own(value) or issubclass(value, nn.Module)):
            return [self.of_class(base) for base in value.__mro__ if base is not object and not _of_torch(base)]
        if isinstance(value, type) or inspect.isbuiltin(value) or inspect.isfunction(value):
            return f"{value.__module__}.{value.__qualname__}"
        return None

    def of_function(self, function: FunctionType) -> list:
        """Its code, its defaults, what it closes over, and what it names of the reader's own."""
        cells = [_content(cell) for cell in function.__closure__ or ()]
        given = self.each([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells])
        names = {
            i.argval for code in _nested(function.__code__) for i in dis.get_instructions(code) if i.opname in LOADS
        }
        modules = {name: sys.modules[name] for name in names & sys.modules.keys() if name not in function.__globals__}
        named = {name: function.__globals__[name] for name in names & function.__globals__.keys()} | modules
        of_names = [(name, self.parts(value)) for name, value in sorted(named.items()) if not isinstance(value, DATA)]
        attributes = {name for code in _nested(function.__code__) for name in code.co_names}
        used = [
            self.of_module(value, attributes) for _, value in sorted(named.items()) if isinstance(value, ModuleType)
        ]
        return [self.parts(function.__code__), given, of_names, used]

    def of_module(self, module: ModuleType, names: set[str]) -> list:
        """What a module of the reader's own has under these names; those that it holds as well."""
        have = sorted(names & vars(module).keys()) if readers_own(module) else []
        values = [(name, getattr(module, name)) for name in have]
        return [
            (name, self.of_module(value, names - {name}) if isinstance(value, ModuleType) else self.parts(value))
            for name, value in values
            if not isinstance(value, DATA)
        ]

    def of_class(self, kind: type) -> list:
        members = sorted((name, value) for name, value in vars(kind).items() if name not in OF_CLASSES)
        return [kind.__qualname__, *((name, self.parts(value)) for name, value in members)]

    def of_object(self, value: Any) -> Any:
        """Anything else: the reader's own by its class and what it holds, others by what they say of themselves."""
        kind = type(value)
        if isinstance(value, nn.Module):
            return [repr(value), self.parts(kind)]
        if isinstance(value, SimpleNamespace) or (readers_own(kind) and hasattr(kind, "__dict__")):
            return [self.parts(kind), self.parts(getattr(value, "__dict__", None))]
        said = "" if isinstance(value, (ModuleType, types.MemberDescriptorType, *DATA)) else repr(value)
        return f"{kind.__qualname__} {re.sub(ADDRESS, '', said)}"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is bound later
        return "nothing"


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
