# SPDX-License-Identifier: Apache-2.0
"""From the results of a study to the table in the docs, and the numbers beside the study that prove it."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.bundles import REPOSITORY
from tools.errors import ConfigValueError, MissingFileError
from tools.files import write_atomically, write_json
from tools.studies.definition import Study, read_study
from tools.studies.jobs import TRAINING, list_jobs
from tools.tables import format_markdown

_WIDTH = 120  # of a line in the docs
_NAMES = {"python": "Python", "monai": "MONAI"}


def summarize(path: str | Path, output_dir: str | Path) -> str:
    """Return the Markdown table of a study and the facts behind it, from the runs that are complete.

    Raises:
        MissingFileError: if no run is complete.
        StaleRunError: if a folder holds results of other inputs than the study has now.
    """
    return render(_collect(read_study(path), output_dir))


def write_summary(path: str | Path, output_dir: str | Path, document: str | Path) -> str:
    """Put the summary between the markers of a document, the numbers into `results/<name>.json` beside the study.

    The markers are the lines `<!-- study:<name> -->` and `<!-- /study:<name> -->`.

    Returns:
        The summary.

    Raises:
        MissingFileError: if the document does not exist or no run is complete.
        ConfigValueError: if the document does not have each marker once, in order.
        StaleRunError: if a folder holds results of other inputs than the study has now.
    """
    study, document = read_study(path), Path(document)
    if not document.is_file():
        raise MissingFileError(document, "no such file", "the document with the markers", "correct the path")
    before, after = _split(document, study.path.stem)
    results = _collect(study, output_dir)
    text = render(results)
    write_json(study.path.parent / "results" / f"{study.path.stem}.json", results)
    with write_atomically(document) as temporary:
        temporary.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")
    return text


def render(results: Mapping[str, Any]) -> str:
    """Return the Markdown of collected results: title, table, facts.

    Means are over the seeds that are complete, with the standard deviation of a sample where there are two or more;
    the difference is that of the means of Dice to the row that the study names, the first one by default.

    Args:
        results: the content of `results/<name>.json`.
    """
    rows = [(label, results["runs"].get(run, [])) for run, label in results["table"].items()]
    names, against = list(results["table"]), results.get("against", {})
    classes = list(dict.fromkeys(name for _, row in rows for result in row for name in result["dice"]["per_class"]))
    means = [_mean(result["dice"]["mean"] for result in row) for _, row in rows]
    lines = []
    for position, (label, row) in enumerate(rows):
        cells = [_format(result["dice"]["mean"] for result in row)]
        cells += [_format(result["dice"]["per_class"].get(name) for result in row) for name in classes]
        other = names.index(against.get(names[position], names[0]))
        mean, base = means[position], means[other]
        difference = "-" if position == other or mean is None or base is None else f"{mean - base:+.4f}"
        lines.append([label, *cells, str(len(row)), difference])
    table = format_markdown(["run", "mean Dice", *classes, "seeds", "difference"], lines)
    facts = textwrap.fill(_state_facts(results), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"**{results['title']}**", "", table, "", facts])


def _collect(study: Study, output_dir: str | Path) -> dict[str, Any]:
    """Return the complete results of a study without what is of this machine only."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in study.runs}
    jobs = list_jobs(study, output_dir)
    for job in jobs:
        if result := job.read_result():
            for step in result["steps"].values():
                del step["exact_command"]
            runs[job.run.name].append(result)
    if not any(runs.values()):
        found = f"no complete run of {', '.join(runs)}"
        raise MissingFileError(Path(output_dir), found, "the results of the study", "run the study first")
    path = study.path.relative_to(REPOSITORY) if study.path.is_relative_to(REPOSITORY) else Path(study.path.name)
    return {
        "title": study.title,
        "study": path.as_posix(),
        "card": study.card,
        "seeds": list(study.seeds),
        "table": dict(study.table),
        "against": dict(study.against),
        "missing": len(jobs) - sum(map(len, runs.values())),
        "runs": runs,
    }


def _state_facts(results: Mapping[str, Any]) -> str:
    """Return the paragraph that says how the table came about."""
    complete = [result for row in results["runs"].values() for result in row]
    cases = _join(result["dice"]["cases"] for result in complete if result["dice"])
    steps = [step for result in complete for step in result["steps"].values()]
    costs = []
    for name, row in results["runs"].items():
        if row:
            seconds = statistics.fmean(result["steps"][TRAINING]["seconds"] for result in row)
            iterations = _join(result["iterations"] for result in row if result["iterations"] is not None)
            costs.append(f"{name} {f'{iterations} steps in ' if iterations else ''}{seconds:.0f} s")
    training_cases = _join(result["training_cases"] for result in complete if result["training_cases"] is not None)
    versions = _join(
        f"{_NAMES.get(name, name)} {number}" for step in steps for name, number in step["versions"].items()
    )
    commits = _join(_shorten(commit) for step in steps for commit in step["commits"] if commit)
    several = any(len(row) > 1 for row in results["runs"].values())
    deviation = " ± standard deviation over seeds" if several else ""
    facts = [
        f"Dice without background, mean over {cases} validation cases{deviation}" if cases else "",
        f"Incomplete: {results['missing']} runs are missing" if results["missing"] else "",
        f"Made with `python -m tools study {results['study']} --dataset_dir DATASET --output_dir RUNS`",
        f"Seeds: {_join(results['seeds'])}",
        f"Training cases: {training_cases}" if training_cases else "",
        f"Wall time of a training: {'; '.join(costs)}",
        f"Hardware: {_join(result['hardware'] for result in complete)}",
        f"Versions: {versions}",
        f"Commit: {commits}" if commits else "",
    ]
    return " ".join(f"{fact}." for fact in facts if fact)


def _split(document: Path, name: str) -> tuple[str, str]:
    """Return what stands before and after the place of the table, with the markers."""
    text = document.read_text(encoding="utf-8")
    opening, closing = f"<!-- study:{name} -->", f"<!-- /study:{name} -->"
    for marker in (opening, closing):
        if (count := text.splitlines().count(marker)) != 1:
            found = f"the line {marker} {count} times" if count else f"no line {marker}"
            raise ConfigValueError(document, found, f"{opening} and {closing} once each", "mark the place of the table")
    before, after = text.partition(opening)[0], text.partition(closing)[2]
    if closing in before:
        raise ConfigValueError(document, f"{closing} above {opening}", "the other order", "exchange them")
    return before + opening, closing + after


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _format(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{deviation}"


def _shorten(commit: str) -> str:
    number, *state = commit.split("-")
    return "-".join([number[:10], *state])


def _join(items: Iterable[object]) -> str:
    """Return the different items with commas between them."""
    return ", ".join(dict.fromkeys(map(str, items)))
