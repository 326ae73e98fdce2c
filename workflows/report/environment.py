"""How pages are made of templates: escaped, and strict about what is missing."""

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from workflows.report import wording
from workflows.report.papers.table import spans


@cache  # it compiles each template once
def page_environment(*packages: str) -> Environment:
    """Templates of these packages, of the first that has one of a name, with the house's filters."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in packages]),
        autoescape=True,  # class names and reasons come from other people's files
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "grouped": "{:,}".format,
        "number": wording.number,
        "percent": wording.percent,
        "place": "{:.2f}".format,
        "spans": spans,
    }
    return environment
