"""`report.html`: one file that a radiologist and an engineer read, from disk, without a network."""

from collections.abc import Sequence

from storage.objects import Objects
from workflows.detector_results import read_detectors
from workflows.report import tables, wording
from workflows.report.detectors_page import detectors_page
from workflows.report.environment import page_environment
from workflows.report.gallery import galleries
from workflows.report.measures_page import measures_page
from workflows.report.memory_page import memory_page
from workflows.report.painting import data_uri, legend
from workflows.report.papers import paper_tables
from workflows.report.papers.source import Source, sources
from workflows.report.results import AGREEMENT, EVERY_CLASS
from workflows.report.sanity_page import sanity_page
from workflows.sanity_results import read_sanity

_SHOWN_REASONS = 40
_SWATCHES = {"high": (0.9, 2.5), "usual": (0.35, 0.9), "little": (0.1, 0.3), "below": (-0.7, 0.0)}


def build_report(run: Objects, runs: Sequence[Source] = ()) -> str:
    """The report of a finished run as one self-contained page. runs: as `sources` reads them, this one first, where
    other runs stand beside it in the papers' tables.

    Raises RunError where there is no such run.
    """
    runs = runs or sources([run])
    results = runs[0].results
    shown = tables.shown_classes(results)
    return (
        page_environment("workflows.report")
        .get_template("report.html")
        .render(
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
            measures=measures_page(runs[0], paper_tables(runs)),
            detectors=detectors_page(read_detectors(run), results.record),
            memory=memory_page(results.memory, results.record.model.classes, shown),
            sanity=sanity_page(read_sanity(run)),
            regions=tables.region_tables(results, shown),
            silent=int((results.active == 0).sum()),
            classes=tables.class_rows(results, shown),
            consistency=tables.consistency_rows(results),
            reasons=results.rejected[:_SHOWN_REASONS],
            other_reasons=results.rejected[_SHOWN_REASONS:],
        )
    )
