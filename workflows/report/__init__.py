"""`report.html`: one file that a radiologist and an engineer read, from disk, without a network."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from storage.objects import Objects
from workflows.report import tables, wording
from workflows.report.gallery import galleries
from workflows.report.memory_page import memory_page
from workflows.report.painting import data_uri, legend
from workflows.report.results import AGREEMENT, EVERY_CLASS, read_results

_SHOWN_REASONS = 40
_SWATCHES = {"high": (0.9, 2.5), "usual": (0.35, 0.9), "little": (0.1, 0.3), "below": (-0.7, 0.0)}


def build_report(run: Objects) -> str:
    """The report of a finished run as one self-contained page. Raises RunError where there is no such run."""
    results = read_results(run)
    shown = tables.shown_classes(results)
    environment = Environment(
        loader=PackageLoader("workflows.report", "templates"),
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
    }
    return environment.get_template("report.html").render(
        results=results,
        record=results.record,
        shown=shown,
        limits=wording.limit_names(results.record),
        agreement=results.find("model", EVERY_CLASS, AGREEMENT),
        galleries=galleries(results),
        legend=data_uri(legend(), lossless=True),
        swatches={name: data_uri(legend(*ends, width=48), lossless=True) for name, ends in _SWATCHES.items()},
        levels=[tables.level_table(results, levels, shown) for levels in results.levels],
        importance=[tables.importance_table(results, importance, shown) for importance in results.importance],
        memory=memory_page(results.memory, results.record.model.classes, shown),
        regions=tables.region_tables(results, shown),
        silent=int((results.active == 0).sum()),
        classes=tables.class_rows(results, shown),
        consistency=tables.consistency_rows(results),
        reasons=results.rejected[:_SHOWN_REASONS],
        other_reasons=results.rejected[_SHOWN_REASONS:],
    )
