"""What lies in a folder of class folders: its parts, classes and images; and, counted, all that is passed over."""

import contextlib
import mimetypes
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile

from vitlab.errors import LabError
from vitlab.machine import ROOT
from vitlab.texts import listed, shown

# what the parts are called, case aside; of a name that is not here the folder is a class
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= dict.fromkeys(("val", "valid", "validation"), "val")
SYSTEM = {"lost+found", "__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
# pictures, or nearly, that Pillow does not read, and the plugin that makes it read them
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
NO_PLUGIN = {".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".exr", ".hdr", ".dcm", ".npy"}
REPORT_MARK = "parameters.yaml"  # lies in every report of ours

Row = tuple[str, int, int]  # path, bytes, time of change: what a cache is tied to


@dataclass
class Folder:
    """A folder as it was found.

    parts: "train", and where there are such "val" and "test" -> where it lies. classes: in natural order, as shown.
    rows: part -> class -> its images in the order of their paths. passed_over: in words what kind -> the paths.
    nested: images that lie deeper than in their class folder. unreadable: images that cannot be looked at -> why.
    """

    root: Path
    parts: dict[str, Path]
    classes: tuple[str, ...] = ()
    rows: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    passed_over: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    nested: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(rows) for part in self.rows.values() for rows in part.values())

    @property
    def notes(self) -> list[str]:
        """What the reader has to know of files that were passed over, or found where few would look."""
        notes = []
        if self.nested:
            notes.append(f"{self.nested:,} of {len(self):,} images lie in folders inside their class folders.")
        if self.passed_over:
            kinds = []
            for kind, paths in sorted(self.passed_over.items()):
                first = shown(os.path.relpath(paths[0], self.root))
                cure = f"; pip install {PLUGINS[kind]} reads them" if kind in PLUGINS else ""
                kinds.append(f"{len(paths):,} {kind} ({first}{', …' if len(paths) > 1 else ''}{cure})")
            notes.append(f"Passed over in the folder: {', '.join(kinds)}.")
        return notes

    def relative(self, path: str | Path) -> str:
        return shown(os.path.relpath(path, self.root))


def evaluated(root: Path) -> Folder:
    """A folder that a model is to be evaluated on: its test part, or whichever it has, or all; one class will do."""
    _require_folder(root)
    found = Folder(root, {})
    parts = _parts(found)
    found.parts["test"] = next(parts[part] for part in ("test", "train", "val") if part in parts)
    rows = _classes(found, found.parts["test"])
    if not rows:
        raise LabError(f"{shown(root)} holds no class folders with images: sort the images into a folder a class")
    found.classes = tuple(sorted(rows, key=_natural))
    found.rows["test"] = rows
    return found


def _require_folder(root: Path) -> None:
    if root.is_file():
        raise LabError(f"{shown(root)} is a file, not a folder: unpack it and name the folder that holds the classes")
    if not root.is_dir():
        raise LabError(f"there is no folder {shown(root)}: name one that exists (those of parameters start at {ROOT})")


def look_into(root: Path) -> Folder:
    """The parts, classes and images of a folder; LabError for a layout that cannot be read without guessing."""
    _require_folder(root)
    found = Folder(root, {})
    found.parts = _parts(found)
    if "train" not in found.parts:
        have = listed(shown(path.name) for path in found.parts.values())
        raise LabError(f"{shown(root)} holds {have}, but no folder train: name the training part train")
    for part, place in found.parts.items():
        found.rows[part] = _classes(found, place)
    if len(found.parts) > 1 and root not in found.parts.values():
        for entry in _entries(found, root):
            if Path(entry.path) not in found.parts.values():
                found.passed_over["beside " + listed(p.name for p in found.parts.values())].append(entry.path)
    found.classes = tuple(sorted(found.rows["train"], key=_natural))
    _check_classes(found)
    return found


def _parts(found: Folder) -> dict[str, Path]:
    """Where the parts lie: in folders of their names, or all together in the root.

    A folder whose name holds "imbalanced" is tested on its balanced sibling, named with "balance" or "balanced"
    instead: `CIFAR10_imbalanced/<class>/*` on `CIFAR10_balance/<class>/*`.
    """
    root, parts, others = found.root, {}, []
    for entry in _folders(found, root):
        part = PARTS.get(entry.name.casefold())
        if part in parts:
            both = f"{shown(parts[part].name)} and {shown(entry.name)}"
            raise LabError(f"{shown(root)} holds {both}, which both name the {part} part: join them, or remove one")
        if part:
            parts[part] = Path(entry.path)
        else:
            others.append(entry)
    alone = next(iter(parts.values())) if len(parts) == 1 else None
    beside = [entry.name for entry in others if alone and _holds_image(found, Path(entry.path))]
    if alone and beside and any(_folders(found, alone)) and "train" not in parts:
        raise LabError(
            f"{shown(root)} holds {alone.name} beside the class folders {_some(beside)}: move these into a folder "
            f"train beside {alone.name}, or rename it if it is a class"
        )
    if len(parts) > 1 or (alone and not beside):
        return {part: parts[part] for part in ("train", "val", "test") if part in parts}
    siblings = [root.with_name(root.name.replace("imbalanced", word)) for word in ("balance", "balanced")]
    sibling = next((path for path in siblings if path != root and path.is_dir()), None)
    return {"train": root} | ({"test": sibling} if sibling else {})


def _classes(found: Folder, place: Path) -> dict[str, list[Row]]:
    """Class -> its images, of one part; what is no class folder is passed over."""
    classes: dict[str, list[Row]] = {}
    names: dict[str, str] = {}
    for entry in _entries(found, place):
        if not _is_folder(entry):
            kind = "images beside the class folders" if _is_image(entry) else "files beside the class folders"
            found.passed_over[kind].append(entry.path)
            continue
        _refuse_parts_inside(found, entry)
        before = {kind: len(paths) for kind, paths in found.passed_over.items()}
        rows = _images(found, Path(entry.path), (os.path.realpath(place),), set())
        if not rows:
            _refuse_unread(found, entry, before)
            found.passed_over["folders without images"].append(entry.path)
            continue
        name = shown(entry.name)
        if name in classes:
            raise LabError(
                f"two folders of {shown(place)} are written alike, {names[name]!a} and {entry.name!a}: rename one, or "
                "join them"
            )
        classes[name], names[name] = rows, entry.name
        found.nested += sum(os.path.dirname(row[0]) != entry.path for row in rows)
    return classes


def _images(found: Folder, folder: Path, above: tuple[str, ...], read: set[str]) -> list[Row]:
    """The images of a class, those of folders inside its folder too, each of them read once whatever links there are.

    above: where the folders around this one really lie; read: where those of the class do that have been read.
    """
    here, rows = os.path.realpath(folder), []
    if any(Path(folder_above).is_relative_to(here) for folder_above in above):  # a link that leads back, or out
        found.passed_over["links to a folder above"].append(str(folder))
        return []
    if here in read:
        found.passed_over["folders that were read by way of a link"].append(str(folder))
        return []
    read.add(here)
    for entry in _entries(found, folder):
        if _is_folder(entry):
            rows += _images(found, Path(entry.path), (*above, here), read)
        elif _is_image(entry):
            try:
                stat = entry.stat()
            except OSError as error:  # a link to nowhere
                found.unreadable[entry.path] = error.strerror or str(error)
                stat = None
            rows.append((entry.path, stat.st_size if stat else 0, stat.st_mtime_ns if stat else 0))
        else:
            found.passed_over[os.path.splitext(entry.name)[1].lower() or "without extension"].append(entry.path)
    return rows


def _entries(found: Folder, folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name; hidden files, those of the system, and our own reports are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if folder == found.root or folder in found.parts.values():
            raise LabError(f"cannot read {shown(folder)} ({error.strerror}): check its permissions") from None
        found.passed_over["folders that may not be read"].append(str(folder))
        return []
    kept = []
    for entry in entries:
        if entry.name.startswith(".") or entry.name.casefold() in SYSTEM:
            found.passed_over["hidden"].append(entry.path)
        elif _is_folder(entry) and os.path.exists(os.path.join(entry.path, REPORT_MARK)):
            found.passed_over["reports of this lab"].append(entry.path)
        elif not _is_folder(entry) and not _is_file(entry) and not entry.is_symlink():
            found.passed_over["sockets, pipes and devices"].append(entry.path)  # reading one may never end
        else:
            kept.append(entry)
    return kept


def _folders(found: Folder, folder: Path) -> list[os.DirEntry]:
    """To look only: nothing is counted."""
    return [entry for entry in _entries(Folder(found.root, found.parts), folder) if _is_folder(entry)]


def _holds_image(found: Folder, folder: Path) -> bool:
    return bool(_images(Folder(found.root, found.parts), folder, (os.path.realpath(found.root),), set()))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or through what may not be entered
        return False


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_image(entry: os.DirEntry) -> bool:
    """By its extension; a file that has none, or one that nobody knows, by its first bytes."""
    if not _is_file(entry) and not entry.is_symlink():
        return False
    extension = os.path.splitext(entry.name)[1].lower()
    if extension in _extensions():
        return True
    known = extension in Image.registered_extensions() or extension in PLUGINS or extension in NO_PLUGIN
    if known or mimetypes.guess_type("x" + extension)[0]:
        return False
    try:
        with unlimited_pixels(), Image.open(entry.path, formats=_signed()):
            return True
    except Exception:  # Pillow's plugins raise all kinds: what none of them recognises is no image
        return False


@cache
def register_plugins() -> None:
    """Have Pillow read HEIC and JPEG XL, where their plugins are installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers itself


def missing_plugin(path: str) -> str:
    """What pip installs for Pillow to read a file of this name; "" where nothing is missing, or nothing is known."""
    extension = os.path.splitext(path)[1].lower()
    return "" if extension in _extensions() else PLUGINS.get(extension, "")


@cache
def _extensions() -> set[str]:
    """Of the formats that Pillow reads pixels of: not those it only writes, or knows by their header alone."""
    register_plugins()
    readable = {*_signed(), *(name for name, (_, accept) in Image.OPEN.items() if accept is None), "MPO"}
    return {extension for extension, name in Image.registered_extensions().items() if name in readable - _unread()}


@cache
def _signed() -> tuple[str, ...]:
    """Formats that begin with bytes of their own."""
    Image.init()
    return tuple(name for name, (_, accept) in Image.OPEN.items() if accept is not None and name not in _unread())


def _unread() -> set[str]:
    stubs = {name for name, (opener, _) in Image.OPEN.items() if _is_stub(opener)}
    return stubs | {"MPEG", "EPS", "PDF"}


def _is_stub(opener: object) -> bool:
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


@contextlib.contextmanager
def unlimited_pixels() -> Iterator[None]:
    """Without Pillow's limit of 179 megapixels, which is meant for servers: these images are the user's own."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# ---------------------------------------------------------------- what cannot be read without guessing


def _check_classes(found: Folder) -> None:
    """LabError unless there are two classes at least, the same ones in every part."""
    classes, train = set(found.classes), found.parts["train"]
    if len(classes) < 2:
        raise LabError(_too_few(found, train))
    for part, place in found.parts.items():
        have = set(found.rows[part])
        if not have:
            loose = len(found.passed_over.get("images beside the class folders", ()))
            holds = f"{loose:,} images in no class folder" if loose else "no class folders with images"
            raise LabError(
                f"{shown(place)} holds {holds}: give it the class folders that {shown(train.name)} has, or take it "
                f"away{'' if part == 'val' else ', and test images are held out of the others'}"
            )
        faults = [f"{_some(classes - have)} is missing in {shown(place)}"] if classes - have else []
        faults += [f"{_some(have - classes)} is missing in {shown(train)}"] if have - classes else []
        if faults:
            raise LabError(
                f"{shown(train)} and {shown(place)} hold different classes: {' and '.join(faults)}; give both the same "
                "class folders"
            )


def _too_few(found: Folder, train: Path) -> str:
    """What the folder has instead of classes, and what would fit."""
    have = f"only the class folder {found.classes[0]}" if found.classes else "no class folders with images"
    loose = len(found.passed_over.get("images beside the class folders", ()))
    have += f", but {loose:,} images in no class folder" if loose else ""
    inside = [entry for entry in _folders(found, train) if _subfolders(found, entry) > 1]
    if len(inside) == 1:
        return f"{shown(train)} holds {have}: did you mean the folder {shown(inside[0].path)}?"
    return (
        f"{shown(train)} holds {have}: put at least two class folders with images into it, or into train/ and test/ "
        "(val/ too, if there is one)"
    )


def _subfolders(found: Folder, entry: os.DirEntry) -> int:
    return sum(_holds_image(found, Path(inner.path)) for inner in _folders(found, Path(entry.path)))


def _refuse_parts_inside(found: Folder, entry: os.DirEntry) -> None:
    """LabError for <class>/train and <class>/test: read as one class they would mix."""
    inside = {PARTS.get(inner.name.casefold()) for inner in _folders(found, Path(entry.path))} - {None}
    if len(inside) > 1:
        raise LabError(
            f"the class folder {found.relative(entry.path)} of {shown(found.root)} holds {listed(sorted(inside))} "
            f"itself: turn it round, {' and '.join(f'{part}/{shown(entry.name)}' for part in sorted(inside))}"
        )


def _refuse_unread(found: Folder, entry: os.DirEntry, before: dict[str, int]) -> None:
    """LabError for a class whose images are all of a format that is not read: passed over, it would be missing."""
    new = {kind: len(paths) - before.get(kind, 0) for kind, paths in found.passed_over.items()}
    unread = {kind: n for kind, n in new.items() if n and (kind in PLUGINS or kind in NO_PLUGIN)}
    if unread:
        have = listed(f"{n:,} {kind}" for kind, n in unread.items())
        plugins = {PLUGINS[kind] for kind in unread if kind in PLUGINS}
        cure = f"pip install {' '.join(sorted(plugins))}, or convert them" if plugins else "convert them to PNG or JPEG"
        raise LabError(f"the folder {shown(entry.path)} holds {have} files, which Pillow cannot read: {cure}")


def _natural(name: str) -> tuple[int, int, str]:
    """Sort key that puts class 10 after class 9, and 01 and 1 always in the same order."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _some(names: set[str] | list[str]) -> str:
    first = sorted((shown(name) for name in names), key=_natural)
    return ", ".join(first[:5]) + (f" and {len(first) - 5:,} more" if len(first) > 5 else "")
