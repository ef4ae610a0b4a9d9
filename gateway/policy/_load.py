"""From a directory of YAML files to `Policies`, or to everything that is wrong with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from gateway.catalogue import CATALOGUE_FILES, Catalogue, CatalogueError, builtin, read

from ._checks import Source, check
from ._documents import FleetSpec, LedgerSpec, Policies
from ._prices import PricingSpec
from ._problems import PolicyError, Problem, shown
from ._reader import Reader
from ._table import DOCUMENT, Document


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    content: bytes

    @property
    def is_catalogue(self) -> bool:
        return Path(self.name).name in CATALOGUE_FILES


def load(directory: Path) -> Policies:
    """Reads every `*.yaml` of the directory, in the order of their names, as one policy; `gpus.yaml` and `hosted.yaml`
    are figures of the catalogue.

    Raises `PolicyError` with all that is wrong: nothing is half loaded. Hidden files are left to their editors.
    """
    problems: list[Problem] = []
    files = _files(directory, problems)
    catalogue = _catalogue(files, problems)
    documents = [file for file in files if not file.is_catalogue]
    sources = [source for file in documents if (source := _source(file, problems)) is not None]
    merged = check(sources, catalogue)
    for source in sources:
        problems.extend(source.reader.problems)
    if not problems and not merged.models:
        problems.append(Problem(str(directory), 0, "models", "no model is defined; name one with its replicas"))
    if problems:
        raise PolicyError(problems)
    digest = hashlib.sha256()
    for file in files:
        digest.update(len(file.content).to_bytes(8, "big") + file.content)
    return Policies(
        models=merged.models,
        tenants=merged.tenants,
        classes=merged.classes,
        groups=merged.groups,
        fleet=merged.fleet or FleetSpec(),
        ledger=merged.ledger or LedgerSpec(),
        alerts=merged.alerts,
        pricing=merged.pricing or PricingSpec(),
        catalogue=catalogue,
        sha256=digest.hexdigest(),
    )


def _files(directory: Path, problems: list[Problem]) -> list[_File]:
    def problem(path: Path, message: str) -> None:
        problems.append(Problem(str(path), 0, "", message))

    try:
        paths = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        problem(directory, "there is no such directory")
        return []
    except NotADirectoryError:
        problem(directory, f"is a file; name the directory it is in: {directory.parent}")
        return []
    except OSError as error:
        problem(directory, f"cannot be read: {error.strerror}")
        return []
    files: list[_File] = []
    for path in paths:
        if path.suffix == ".yml":
            problem(path, f"would not be read: only *.yaml is; rename it to {path.stem}.yaml")
        if path.suffix != ".yaml":
            continue
        try:
            files.append(_File(str(path), path.read_bytes()))
        except OSError as error:
            problem(path, f"cannot be read: {error.strerror}")
    if not files and not problems:
        problem(directory, "holds no *.yaml file; policies/example.yaml of the project is a start")
    return files


def _catalogue(files: list[_File], problems: list[Problem]) -> Catalogue:
    """The figures that come with Mtok, the directory's own in their place."""
    catalogue = builtin()
    for file in files:
        if not file.is_catalogue:
            continue
        try:
            catalogue = catalogue.with_(read(file.content.decode("utf-8-sig")))
        except UnicodeDecodeError:
            problems.append(Problem(file.name, 1, "", "is not UTF-8 text"))
        except CatalogueError as error:
            problems.extend(Problem(file.name, fault.line, fault.field, fault.message) for fault in error.faults)
    return catalogue


def _source(file: _File, problems: list[Problem]) -> Source | None:
    """One file read by the field table; None when it is no YAML or says nothing."""
    try:
        node = yaml.compose(file.content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = file.content[: error.start].count(b"\n") + 1
        problems.append(Problem(file.name, line, "", "is not UTF-8 text"))
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(Problem(file.name, mark.line + 1 if mark else 1, "", f"is not YAML: {_why(error)}"))
        return None
    except yaml.YAMLError as error:
        problems.append(Problem(file.name, 1, "", f"is not YAML: {str(error).splitlines()[0]}"))
        return None
    except RecursionError:
        problems.append(Problem(file.name, 1, "", "is nested too deeply to be a policy"))
        return None
    if node is None:
        return None
    reader = Reader(file.name)
    document = reader.read(DOCUMENT, node)
    return Source(reader, document if isinstance(document, Document) else Document())


def _why(error: yaml.MarkedYAMLError) -> str:
    words = [error.context, error.problem, error.note]
    why = ", ".join(str(word) for word in words if word)
    if "'\\t'" in why:
        return "a tab indents this line; use spaces"
    return why if "hidden" not in shown(why) else "it cannot be parsed from here"
