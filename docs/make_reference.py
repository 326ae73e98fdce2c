"""Writes docs/reference/ from the code: `make reference`. A test checks that what is written is up to date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from workflows.cli import main
from workflows.configuration import Configuration
from workflows.study.configuration import Study

REFERENCE = Path(__file__).parent / "reference"
_COLUMNS = 80  # of the help texts, whatever terminal they are written from

_CONFIGURATION = """\
# Configuration

<!-- Written by `make reference` from workflows/configuration.py: change it there. -->

One YAML file describes an audit. Unknown keys and impossible values are refused before anything runs, with the path
to the key and what was expected. `--set a.b=c` overrides a key. Relative paths are taken from the file's own folder.
A key without a default must be given.
"""

_STUDY = """\
# Configuration of a study

<!-- Written by `make reference` from workflows/study/configuration.py: change it there. -->

One YAML file describes an [imbalance study](../how-to/imbalance.md), by the rules of an
[audit's](configuration.md). Sections that both have mean the same and are described there.
"""

_COMMANDS = """\
# Commands

<!-- Written by `make reference` from workflows/cli.py: change it there. -->

Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 done, but more images were rejected than
`archive.allowed_rejected` allows. Results go to stdout, progress and messages to stderr. With `--json`, stdout holds
one JSON document and nothing else.
"""


def configuration_page() -> str:
    """Every section of the configuration as a table of its keys."""
    return "\n".join([_CONFIGURATION, *_section("", Configuration)])


def study_page() -> str:
    """The sections that only a study's configuration has."""
    return "\n".join([_STUDY, *_section("", Study, "configuration.md")])


def commands_page() -> str:
    """Every command with the help it prints."""
    context = click.Context(main, info_name="lucency", terminal_width=_COLUMNS, **main.context_settings)
    parts = [_COMMANDS]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is not None:
            text = command.get_help(click.Context(command, info_name=name, parent=context))
            parts.append(f"## lucency {name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """File names below docs/reference/ and what they hold."""
    return {"configuration.md": configuration_page(), "study.md": study_page(), "commands.md": commands_page()}


def _section(path: str, model: type[BaseModel], elsewhere: str = "") -> Iterator[str]:
    """elsewhere: a page that already has the sections of an audit's configuration."""
    yield f"## {path or 'Top level'}\n"
    if model.__doc__:
        yield f"{model.__doc__.strip().splitlines()[0]}\n"
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        where = f"{path}.{name}" if path else name
        inner = _inner_model(field.annotation)
        shared = bool(elsewhere) and name in Configuration.model_fields
        if inner is not None and not shared:
            nested.append((where, inner))
        meaning = _cell(field.description or "")
        values = _values(field, inner, where, elsewhere if shared else "")
        yield f"| `{name}` | {values} | {_default(field, inner)} | {meaning} |"
    yield ""
    for where, inner in nested:
        yield from _section(where, inner, elsewhere)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _values(field: FieldInfo, inner: type[BaseModel] | None, where: str, page: str) -> str:
    if inner is not None:
        several = "list of sections" if get_origin(field.annotation) is list else "section"
        return f"[{several}]({page}#{where.replace('.', '')})"
    bounds = [_bound(item) for item in field.metadata]
    return _cell(" ".join([_type(field.annotation), *filter(None, bounds)]))


def _type(annotation: Any) -> str:
    """A type in the words of someone who writes YAML."""
    names = {str: "text", int: "whole number", float: "number", bool: "true, false", type(None): "null"}
    if annotation in names:
        return names[annotation]
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} ({_type(arguments[0])})"
    if hasattr(annotation, "__metadata__"):  # Annotated
        bounds = [_bound(item) for item in _flat(annotation.__metadata__)]
        return " ".join([_type(arguments[0]), *filter(None, bounds)])
    if all(isinstance(item, str) for item in arguments):  # Literal
        return ", ".join(f"`{item}`" for item in arguments)
    if all(isinstance(item, int) for item in arguments):
        return ", ".join(str(item) for item in arguments)
    return " or ".join(_type(item) for item in arguments)


def _flat(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _bound(item: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " ".join(f"{sign} {getattr(item, name)}" for name, sign in signs.items() if hasattr(item, name))


def _default(field: FieldInfo, inner: type[BaseModel] | None) -> str:
    if field.is_required():
        return "required"
    if inner is not None:
        if field.default_factory is not None:
            made = field.get_default(call_default_factory=True)
            return ", ".join(f"`{item.source}`" for item in made)
        return "none" if field.default is None else _changed(field.default)
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, (list, tuple)):
        return f"`[{', '.join(str(item) for item in field.default)}]`"
    return _cell(f"`{field.default}`")


def _changed(section: BaseModel) -> str:
    """What a section's default says otherwise than the section by itself."""
    return ", ".join(_cell(f"`{name}: {value}`") for name, value in section.model_dump(exclude_defaults=True).items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for file, text in pages().items():
        (REFERENCE / file).write_text(text, encoding="utf-8")
