"""The command `lucency`. Commands import what they run when they run: `--help` needs neither torch nor Ray."""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from storage.errors import ConfigurationError
from workflows.endings import ALARM, DONE, FAILED, command
from workflows.progress import progress_on


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lucency", prog_name="lucency")
def main() -> None:
    """Audit what an image classifier looks at, over a whole medical archive.

    Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 done, but more images were rejected than
    `archive.allowed_rejected` allows.
    """
    # Neither Ray nor MLflow reports to its makers from a hospital; someone who wants that can still set these.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


_configuration = click.argument("configuration", type=click.Path(path_type=Path, dir_okay=False))
_set = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override one key; may be repeated.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else.")


@main.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default="audit.yaml")
@click.option("--archive", default="archive", show_default=True, help="Folder, .zip, .tar(.gz) or URL of the images.")
@click.option("--model", default="torchvision:resnet50", show_default=True, help="The classifier, as in model.source.")
@click.option("--weights", default="weights.pt", show_default=True, help="Its state dict; DEFAULT for torchvision's.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@command
def init(path: Path, archive: str, model: str, weights: str, force: bool) -> None:
    """Write a commented configuration to start from."""
    from workflows.starter import starter

    if path.exists() and not force:
        raise ConfigurationError(f"{path} is there already. --force replaces it.")
    path.write_text(starter(archive=archive, source=model, weights=weights), encoding="utf-8")
    click.echo(f"Wrote {path}. Next: lucency plan {path}")


@main.command()
@_configuration
@_set
@_json
@command
def plan(configuration: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what an audit would do and cost. Writes nothing."""
    from workflows.configuration_file import load
    from workflows.plan import plan as make_plan

    loaded = load(configuration, overrides)
    with progress_on(sys.stderr, silent=as_json) as progress:
        made = make_plan(loaded, progress, _folder(configuration))
    click.echo(json.dumps(made.as_json(), indent=2) if as_json else made.text())


@main.command()
@_configuration
@_set
@_json
@command
def audit(configuration: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Audit the archive, or go on with an audit that was interrupted."""
    from workflows.audit import audit as run_audit
    from workflows.configuration_file import load

    loaded = load(configuration, overrides)
    with progress_on(sys.stderr, silent=as_json) as progress:
        outcome = run_audit(loaded, progress, _folder(configuration))
    allowed = loaded.archive.allowed_rejected
    too_many = outcome.rejected_share > allowed
    if as_json:
        click.echo(json.dumps({**asdict(outcome), "exit_code": ALARM if too_many else DONE}, indent=2))
        return ALARM if too_many else DONE
    if outcome.state == "already-done":
        click.echo("This audit was finished before; nothing was done.")
    click.echo(", ".join(f"{count:,} {name}" for name, count in outcome.counts.items()))
    click.echo(f"Report: {outcome.report}")
    if too_many:
        _say_too_many(outcome.rejected_share, allowed)
    return ALARM if too_many else DONE


@main.command("fit-memory")
@_configuration
@_set
@_json
@command
def fit_memory(configuration: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Fit the memory that m-cam needs, or go on with a fit that was interrupted.

    An audit of the same run uses it, and fits it by itself where it is not there.
    """
    from workflows.configuration_file import load
    from workflows.fit_memory import fit_alone

    loaded = load(configuration, overrides)
    with progress_on(sys.stderr, silent=as_json) as progress:
        outcome = fit_alone(loaded, progress, _folder(configuration))
    if as_json:
        click.echo(json.dumps(asdict(outcome), indent=2))
        return DONE
    click.echo(
        f"{outcome.learned:,} images learned from, {outcome.held_out:,} held out; epoch {outcome.best_epoch} of "
        f"{outcome.epochs} is kept. Held-out images: {outcome.agreement:.1%} decided as by the model."
    )
    click.echo(f"Memory: {outcome.file}")
    if outcome.mlflow:
        click.echo(f"MLflow: explain.memory.file: mlflow:runs:/{outcome.mlflow}/memory.pt")
    return DONE


@main.command("study-imbalance")
@_configuration
@_set
@_json
@command
def study_imbalance(configuration: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Train classifiers with losses against imbalance, audit each, and set them beside each other.

    CONFIGURATION describes the study; the same command goes on with one that was interrupted. Exit code 1: a training
    did not come to its end; the others are compared all the same.
    """
    from workflows.study.configuration_file import load_study
    from workflows.study.study import study

    loaded = load_study(configuration, overrides)
    with progress_on(sys.stderr, silent=as_json) as progress:
        outcome = study(loaded, progress, _folder(configuration))
    too_many = outcome.rejected_share > loaded.archive.allowed_rejected
    code = FAILED if outcome.failed else ALARM if too_many else DONE
    if as_json:
        click.echo(json.dumps({**asdict(outcome), "exit_code": code}, indent=2))
        return code
    if outcome.state == "already-done":
        click.echo("This study was finished before; nothing was done.")
    click.echo(", ".join(f"{count:,} {name}" for name, count in outcome.counts.items()))
    for name, reason in outcome.failed.items():
        click.echo(f"{name}: {reason}", err=True)
    if too_many:
        _say_too_many(outcome.rejected_share, loaded.archive.allowed_rejected)
    click.echo(f"{outcome.trials - len(outcome.failed)} of {outcome.trials} trials compared: {outcome.report}")
    return code


@main.command()
@_configuration
@click.option("--address", required=True, metavar="URL", help="The cluster's dashboard, such as http://127.0.0.1:8265.")
@click.option("--no-wait", is_flag=True, help="Return once the job is accepted.")
@click.option(
    "--command",
    "wanted",
    type=click.Choice(["audit", "study-imbalance"]),
    default="audit",
    show_default=True,
    help="What CONFIGURATION describes.",
)
@_set
@_json
@command
def submit(
    configuration: Path, address: str, no_wait: bool, wanted: str, overrides: tuple[str, ...], as_json: bool
) -> int:
    """Run an audit or a study as a job of a Ray cluster; stream its log, return its exit code."""
    from workflows.configuration_file import load
    from workflows.study.configuration_file import load_study
    from workflows.submit import submit as submit_job

    loaded = load(configuration, overrides) if wanted == "audit" else load_study(configuration, overrides)
    job = submit_job(loaded, Path(_folder(configuration)), address, wait=not no_wait, say=_to_stderr)
    if as_json:
        click.echo(json.dumps(asdict(job), indent=2))
    return DONE if job.exit_code is None else job.exit_code


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--tables", is_flag=True, help="Print the papers' tables, and write them below tables/ of the first run.")
@click.option("--log", is_flag=True, help="Also log the run to MLflow, as its configuration says.")
@click.option("--mlflow", "uri", metavar="URI", help="With --log: this MLflow server instead.")
@_json
@command
def report(runs: tuple[str, ...], tables: bool, log: bool, uri: str | None, as_json: bool) -> int:
    """Build report.html of a finished run again.

    With --tables several runs may be given: they stand in the tables beside each other, also in the first one's report.
    """
    from storage.objects import Objects
    from workflows.report import build_report
    from workflows.report.papers import paper_tables, write_tables
    from workflows.report.papers.source import sources
    from workflows.report.papers.text import as_text

    if uri is not None and not log:
        raise ConfigurationError("--mlflow says where to log: add --log.")
    if len(runs) > 1 and not tables:
        raise ConfigurationError("several runs stand beside each other in tables: add --tables.")
    folders = [Objects(location) for location in runs]
    objects = folders[0]
    stored = _stored_configuration(objects, runs[0])
    read = sources(folders)
    objects.put("report.html", build_report(objects, read).encode())
    answer: dict[str, Any] = {"report": objects.path("report.html"), "mlflow": None}
    if tables:
        made = paper_tables(read)
        write_tables(objects, made)
        answer["tables"] = [asdict(table) for table in made]
        if not as_json:
            width = shutil.get_terminal_size((80, 24)).columns
            click.echo("\n".join(as_text(table, width) for table in made))
    if log:
        from workflows.tracking import log_run

        changes: dict[str, Any] = {"enabled": True} | ({"uri": uri} if uri else {})
        tracking = stored.mlflow.model_copy(update=changes)
        answer["mlflow"] = log_run(objects, stored.model_copy(update={"mlflow": tracking}))
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(f"Report: {answer['report']}")
        if tables:
            click.echo(f"Tables: {objects.path('tables/')}")
        if answer["mlflow"]:
            click.echo(f"MLflow run: {answer['mlflow']}")
    return FAILED if log and answer["mlflow"] is None else DONE


@main.command()
@click.argument("configuration", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--address", metavar="URL", help="Also check this cluster's dashboard, such as http://127.0.0.1:8265.")
@_set
@_json
@command
def doctor(configuration: Path | None, address: str | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Check this machine, and with CONFIGURATION what the audit needs, and say what to do."""
    from workflows.configuration_file import load
    from workflows.doctor import examine

    loaded = None if configuration is None else load(configuration, overrides)
    checks = examine(loaded, address)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            click.echo(check.text())
    return FAILED if any(check.state == "fail" for check in checks) else DONE


def _folder(configuration: Path) -> str:
    return str(configuration.resolve().parent)


def _say_too_many(share: float, allowed: float) -> None:
    click.echo(f"{share:.1%} of the images were rejected; allowed are {allowed:.1%}.", err=True)


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)


def _stored_configuration(objects: Any, run: str) -> Any:
    from workflows.configuration import check
    from workflows.state import read_state

    state = read_state(objects)
    if state is None:
        raise ConfigurationError(f"{run}: no run is here; `lucency audit` makes one.")
    return check(state["configuration"], "run.json")


if __name__ == "__main__":
    main()
