# SPDX-License-Identifier: Apache-2.0
"""The table in the docs is that of the numbers, the numbers are those of the runs."""

from __future__ import annotations

import json
import statistics

import pytest

from tools.bundles import BUNDLES
from tools.errors import ConfigValueError, MissingFileError
from tools.studies import render, summarize, write_summary
from tools.studies.jobs import StaleRunError

DOCUMENT = "# Toy\n\n<!-- study:pretraining -->\nold table\n<!-- /study:pretraining -->\n\nThe end.\n"


def read_cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize(
    "path", sorted(BUNDLES.glob("*/studies/results/*.json")), ids=lambda path: f"{path.parents[2].name}-{path.stem}"
)
def test_committed_tables_are_those_of_the_committed_numbers(path):
    marker = f"<!-- study:{path.stem} -->"
    documents = [file for file in path.parents[2].glob("docs/*.md") if marker in file.read_text()]
    assert documents
    text = render(json.loads(path.read_text()))
    assert all(f"{marker}\n{text}\n<!-- /study:{path.stem} -->" in file.read_text() for file in documents)


def test_one_seed_gives_its_numbers_and_the_difference_to_the_first_row(workshop):
    workshop.run()
    assert read_cells(summarize(workshop.study, workshop.output)) == [
        ["run", "mean Dice", "liver", "spleen", "absent", "seeds", "difference"],
        ["---", *["---:"] * 6],
        ["random weights", "0.5000", "0.6000", "0.4000", "-", "1", "-"],
        ["pre-trained", "0.6000", "0.7000", "0.5000", "-", "1", "+0.1000"],
    ]


def test_a_row_is_compared_with_the_run_that_the_study_names(workshop):
    workshop.change(against={"scratch": "pretrained", "pretrained": "pretrained"})
    workshop.run()
    cells = read_cells(summarize(workshop.study, workshop.output))
    assert [row[-1] for row in cells[2:]] == ["-0.1000", "-"]


def test_several_seeds_give_mean_and_standard_deviation(workshop):
    workshop.change(seeds=[0, 1, 2])
    workshop.run()
    folders = [workshop.output / "scratch" / f"seed{seed}" for seed in (0, 1, 2)]
    dice = [json.loads((folder / "result.json").read_text())["dice"]["mean"] for folder in folders]
    text = summarize(workshop.study, workshop.output)
    rows = read_cells(text)
    assert rows[2][1] == f"{statistics.mean(dice):.4f} ± {statistics.stdev(dice):.4f}" == "0.5200 ± 0.0200"
    assert rows[2][5] == "3"
    assert rows[3][6] == "+0.1000"
    assert "standard deviation over seeds" in text


def test_facts_name_command_cost_machine_and_versions(workshop):
    workshop.run()
    text = " ".join(summarize(workshop.study, workshop.output).split())
    for fact in (
        "**Pre-training against nothing**",
        "mean over 2 validation cases",
        "`python -m tools study pretraining.yaml --dataset_dir DATASET --output_dir RUNS`",
        "Seeds: 0.",
        "pretrain 20 steps in 0 s",
        "Hardware: toy processor, 2 threads.",
        "MONAI 1.",
    ):
        assert fact in text
    assert "Incomplete" not in text


def test_what_is_missing_is_said(workshop):
    workshop.change(seeds=[0, 1])
    workshop.run(runs="scratch", seeds=0)
    text = summarize(workshop.study, workshop.output)
    assert "Incomplete: 5 runs are missing." in text
    assert read_cells(text)[3] == ["pre-trained", "-", "-", "-", "-", "0", "-"]


def test_a_pretraining_alone_gives_a_table_of_empty_rows(workshop):
    workshop.run(runs="pretrain")
    text = summarize(workshop.study, workshop.output)
    assert [row[1] for row in read_cells(text)[2:]] == ["-", "-"]
    assert "Dice without background" not in text
    assert "Incomplete: 2 runs are missing." in text


def test_nothing_to_show_is_an_error(workshop):
    with pytest.raises(MissingFileError, match="no complete run of scratch, pretrain, pretrained"):
        summarize(workshop.study, workshop.output)


def test_results_of_another_study_are_not_summarized(workshop):
    workshop.run()
    workshop.change_run("scratch", overrides={"share": 0.3})
    with pytest.raises(StaleRunError, match=r"share 0\.1, now 0\.3"):
        summarize(workshop.study, workshop.output)


def test_the_table_replaces_what_is_between_the_markers(workshop, tmp_path):
    workshop.run()
    document = tmp_path / "README.md"
    document.write_text(DOCUMENT)
    text = write_summary(workshop.study, workshop.output, document)
    assert document.read_text() == DOCUMENT.replace("old table", text)
    write_summary(workshop.study, workshop.output, document)
    assert document.read_text() == DOCUMENT.replace("old table", text)


def test_the_written_table_is_that_of_the_written_numbers(workshop, tmp_path):
    workshop.change(seeds=[0, 1])
    workshop.run()
    document = tmp_path / "README.md"
    document.write_text(DOCUMENT)
    text = write_summary(workshop.study, workshop.output, document)
    numbers = (workshop.study.parent / "results" / "pretraining.json").read_text()
    assert render(json.loads(numbers)) == text == summarize(workshop.study, workshop.output)
    assert str(tmp_path) not in numbers  # no place of this machine


@pytest.mark.parametrize(
    "text",
    [
        "no marker",
        "<!-- study:pretraining -->\n",
        "<!-- /study:pretraining -->\n<!-- study:pretraining -->\n",
        DOCUMENT + DOCUMENT,
    ],
)
def test_a_document_without_a_place_for_the_table_stays_as_it_is(workshop, tmp_path, text):
    workshop.run()
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(ConfigValueError, match="study:pretraining"):
        write_summary(workshop.study, workshop.output, document)
    assert document.read_text() == text
    assert not (workshop.study.parent / "results").exists()


def test_a_document_that_is_not_there_is_refused(workshop, tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        write_summary(workshop.study, workshop.output, tmp_path / "none.md")


def test_runs_with_the_same_label_keep_a_row_each(workshop):
    workshop.change(table={"scratch": "a|b", "pretrained": "a|b"})
    workshop.run()
    lines = summarize(workshop.study, workshop.output).splitlines()
    assert sum(line.startswith("| a\\|b |") for line in lines) == 2
