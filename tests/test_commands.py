# SPDX-License-Identifier: Apache-2.0
"""The command line answers at once: what a command does not need is not imported, and what is misspelled is not run."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from tools import __version__
from tools.__main__ import tools

HEAVY = {"torch", "monai", "matplotlib", "scipy", "timm", "nibabel", "ignite", "numpy"}
GROUND = ("errors", "files", "tables", "hardware", "distribution", "bundles", "catalogue")
# run a program and write the names of the packages that it has imported as the last line
PROBE = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules}))))
"""


def list_commands(group: click.Group = tools, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*prefix, name))
        if isinstance(command, click.Group):
            found += list_commands(command, (*prefix, name))
    return found


def probe(program: str, *words: str) -> tuple[int, str, set[str]]:
    """Return the status of a program, its output, and which of the heavy packages it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE + program, *words], capture_output=True, text=True, timeout=120, check=False
    )
    *output, modules = done.stdout.splitlines()
    return done.returncode, "\n".join([*output, done.stderr]), HEAVY & set(json.loads(modules))


def run(*words: str) -> tuple[int, str, set[str]]:
    return probe("import runpy; runpy.run_module('tools', run_name='__main__', alter_sys=True)", *words)


@pytest.mark.costs(processes=1)
@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        (["--help"], 0, "Segment the embedded scans with a committed model"),
        (["--version"], 0, __version__),
        (["demo", "--help"], 0, "Folder of the results"),
        (["models"], 0, "swin_unetr_ssl/openkbp_hn"),
        (["segment", "--help"], 0, "Keep only these structures"),
        (["segment", "-o", "x"], 2, "wanted a scan or a folder of scans"),
        (["weights", "list"], 0, "unetr_btcv_torchscript"),
        (["lint", "--help"], 0, "status 1 if there is an error"),
        (["wieghts"], 2, "No such command 'wieghts'. Did you mean 'weights'?"),
        (["weights", "lst"], 2, "No such command 'lst'. Did you mean 'list'?"),
        (["demo", "--hepl"], 2, "No such option '--hepl'. Did you mean '--help'?"),
        (["demo", "--output-dir", "x"], 2, "Did you mean '--output_dir'?"),
        (["demo", "--bundle", "unter_btcv"], 2, "'unter_btcv' is no bundle. Did you mean 'unetr_btcv'?"),
        (["demo", "unetr_btcv", "--bundle", "unetr_btcv"], 2, "found both unetr_btcv and unetr_btcv, wanted one"),
        (["export", "nothing"], 2, "there are inflated_vit_seg/msd04_hippocampus, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_lists_and_misspelled_words_need_no_heavy_package(words, status, shown):
    found, output, heavy = run(*words)
    assert found == status, output
    assert shown in " ".join(output.split())
    assert "Traceback" not in output
    assert heavy == set()


@pytest.mark.costs(processes=1)
def test_the_ground_rooms_import_no_heavy_package():
    status, output, heavy = probe("\n".join(f"import tools.{room}" for room in GROUND))
    assert (status, output) == (0, "")
    assert heavy == set()


@pytest.mark.costs(processes=1)
def test_the_probe_sees_a_heavy_package():
    assert probe("import numpy")[2] == {"numpy"}


@pytest.mark.parametrize("words", list_commands(), ids=" ".join)
def test_each_command_explains_itself_and_its_options(words):
    help_text = CliRunner().invoke(tools, [*words, "--help"])
    assert help_text.exit_code == 0
    command: click.Command = tools
    for word in words:
        command = command.commands[word]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert len(help_text.output.splitlines()) <= 50, "it fits a screen"


def test_names_are_given_with_commas():
    @tools.command("echo")
    @click.option("--runs", type=tools.commands["study"].params[-1].type)
    def echo(runs: tuple[str, ...]) -> None:
        click.echo(repr(runs))

    try:
        assert CliRunner().invoke(tools, ["echo", "--runs", "1_000, scans#2,7"]).output == "('1_000', 'scans#2', '7')\n"
    finally:
        del tools.commands["echo"]
