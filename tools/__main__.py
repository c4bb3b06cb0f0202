# SPDX-License-Identifier: Apache-2.0
"""`python -m tools <command>`: thin, it parses, calls and prints.

A command imports what it needs when it runs: torch and MONAI take seconds, and a help text needs neither.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from tools import __version__
from tools.bundles import list_bundles
from tools.errors import ConfigValueError, ToolsError, report_plainly

PATCH_MERGING_HELP = "original or corrected, where nothing tells how a Swin transformer was trained"


class Commands(click.Group):
    """A group of commands that names the nearest one where a name is unknown."""

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `words` begin with; end with status 2 if there is none."""
        name, names = words[0], self.list_commands(context)
        if self.get_command(context, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(names)}."
            context.fail(f"No such command '{name}'. {hint}")
        return super().resolve_command(context, words)


class BundleName(click.ParamType):
    """The name of a bundle of this repository."""

    name = "bundle"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        """Return the name; end with status 2 if there is no such bundle."""
        known = list_bundles()
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(known)}."
            self.fail(f"'{value}' is no bundle. {hint}", param, context)
        return value


class DeviceName(click.ParamType):
    """Where the network runs, in the words of PyTorch; `gpu` is `cuda`."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        """Return the name as PyTorch spells it; end with status 2 if it is none."""
        name = value.lower().replace("gpu", "cuda")
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is None:
            self.fail(f"found {value!r}, wanted auto, cpu, cuda or cuda:N.", param, context)
        return name


class Names(click.ParamType):
    """Names or paths, separated by commas."""

    name = "name,name,..."

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        """Return the names, without blanks around them."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]


class ManyValues(click.Command):
    """A command whose repeatable options take all words up to the next option: `-i a b` is `-i a -i b`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Repeat the names of those options, then parse."""
        many = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        words: list[str] = []
        name, is_first = "", False
        for word in args:
            if word.startswith("-") and len(word) > 1:
                name, is_first = (word, True) if word in many else ("", False)
            elif name and not is_first:
                words.append(name)
            else:
                is_first = False
            words.append(word)
        return super().parse_args(context, words)


@contextlib.contextmanager
def report_wrong_call() -> Iterator[None]:
    """End with one sentence and status 2 if what was typed cannot be done, as click does for an unknown option."""
    try:
        yield
    except ToolsError as error:
        click.echo(f"\nError: {error}", err=True)
        sys.exit(2)


def print_json(content: Any) -> None:
    """Print what a program reads."""
    import json

    print(json.dumps(content, indent=2, ensure_ascii=False))


def end(status: int) -> None:
    """End the program with this status, unless all went well."""
    if status:
        sys.exit(status)


def choose(positional: str | None, option: str | None, name: str) -> str:
    """Return what is given, by its place or by its name."""
    if (positional is None) == (option is None):
        found = "nothing" if option is None else f"both {positional} and {option}"
        raise click.UsageError(f"{name}: found {found}, wanted one value; give {name.removeprefix('--').upper()}.")
    return option if positional is None else positional  # type: ignore[return-value]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
def tools() -> None:
    """Pre-trained transformers for 3D medical segmentation, as MONAI bundles."""


@tools.command(cls=ManyValues)
@click.argument("paths", nargs=-1)
@click.option("-i", "--input", "inputs", multiple=True, metavar="PATH...", help="Scans and folders of scans.")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Where the results go.")
@click.option("-m", "--model", metavar="MODEL", help="See `models`; default: the one that was made for such scans.")
@click.option("-d", "--device", type=DeviceName(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-rs", "--roi_subset", multiple=True, metavar="NAME...", help="Keep only these structures.")
@click.option("--save_probabilities", is_flag=True, help="Write <scan>_prob.nii.gz, a volume per class.")
@click.option("--statistics", is_flag=True, help="Write statistics.json: mm3, mean intensity, cut off by the border?")
@click.option("--preview/--no-preview", default=True, help="A picture of each result.  [default: yes]")
@click.option("--report", metavar="FILE.json", help="Write what was done, for programs.")
@click.option("--overwrite", is_flag=True, help="Segment again what is done already.")
@click.option("--force", is_flag=True, help="Segment with a model for another modality all the same.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print of each model whether it fits, and why not.")
def segment(paths: Sequence[str], inputs: Sequence[str], output: str, verbose: bool, **options: Any) -> None:
    """Segment scans, or all scans of folders, each in its own grid.

    A scan that cannot be read does not stop the others. Run it again, and only what is missing is done. MODEL is a
    name that `models` lists, the folder of a training, an exported zip or its folder, or hf://USER/NAME.

    Status: 0 all done, 1 some scans failed, 2 the call was wrong.
    """
    with report_wrong_call():
        from tools.commands.segment import prepare

        if verbose or options["quiet"]:
            logging.getLogger().setLevel(logging.DEBUG if verbose else logging.WARNING)
        run = prepare([*inputs, *paths], output, **options)
    end(run())


@tools.command(cls=ManyValues)
@click.argument("dataset")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Folder of the run, which is a model then.")
@click.option("-m", "--model", "bundle", type=BundleName(), default="unetr_btcv", show_default=True, help="The bundle.")
@click.option("--card", metavar="NAME_OR_FILE", help="What the data are: a name in tools/datasets/, or such a file.")
@click.option("--labels", multiple=True, metavar="NAME...", help="Names of the values 0, 1, 2, ..., background first.")
@click.option("--pretrained", metavar="NAME_OR_FILE", help="Start from: a file, a name of `weights list`, a model.")
@click.option("--resume", is_flag=True, help="Go on from last.pt, exactly where it stood.")
@click.option("--epochs", type=click.IntRange(min=1), help="How many; default: those of the recipe, or 4000 steps.")
@click.option("-d", "--device", type=DeviceName(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--config_file", "config_files", multiple=True, metavar="FILE...", help="Overlays, merged last.")
def train(dataset: str, output: str, **options: Any) -> None:
    """Train a bundle on DATASET, a folder with dataset.json, or with imagesTr/ and labelsTr/.

    What the data are is said by --card, by card.yaml in that folder, or is read from dataset.json and the scans.

    Status: 0 trained, 1 the training failed, 2 the call was wrong.
    """
    with report_wrong_call():
        from tools.commands.train import prepare_training

        run = prepare_training(dataset, output, **options)
    end(run())


@tools.command()
@click.argument("dataset")
@click.option("-m", "--model", required=True, metavar="MODEL", help="See `models`, or the folder of a training.")
@click.option("-o", "--output", metavar="FOLDER", help="Of evaluation.json; default: beside the training, or runs/.")
@click.option("-d", "--device", type=DeviceName(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--mirroring", is_flag=True, help="Mean over the scan and its mirror images.")
def evaluate(dataset: str, model: str, output: str | None, device: str, mirroring: bool) -> None:
    """Measure the Dice of a model on the validation list of DATASET, per case and class.

    Status: 0 measured, 1 the evaluation failed, 2 the call was wrong.
    """
    with report_wrong_call():
        from tools.commands.train import prepare_evaluation

        run = prepare_evaluation(model, dataset, output, device, mirroring)
    end(run())


@tools.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def models(as_json: bool) -> None:
    """List the models that are here, and the public weights that can be fetched."""
    from tools.commands import info

    if as_json:
        print_json({"models": info.describe_models(), "weights": info.list_public_weights()})
    else:
        print(f"\n{info.format_models()}")


@tools.command("info")
@click.argument("place", metavar="FILE_OR_MODEL")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def describe(place: str, as_json: bool) -> None:
    """Tell what a scan, a model or a checkpoint is, what is odd, and what fits."""
    with report_wrong_call():
        from tools.commands import info

        content = info.describe(place)
    if as_json:
        print_json(content)
    else:
        print(f"\n{info.format_description(content)}")


@tools.command()
@click.argument("bundle", required=False, type=BundleName())
@click.option("--bundle", "named", type=BundleName(), help="The bundle, a folder in bundles/.  [default: unetr_btcv]")
@click.option("--card", metavar="NAME", help="The data set; default: that of the bundle's committed model.")
@click.option("--output_dir", default="runs/demo", show_default=True, help="Folder of the results.")
def demo(bundle: str | None, named: str | None, card: str | None, output_dir: str) -> None:
    """Segment the embedded scans with a committed model and compare with their labels."""
    name = "unetr_btcv" if bundle is None and named is None else choose(bundle, named, "--bundle")
    from tools import demonstration

    print(f"\n{demonstration.demonstrate(name, card, output_dir)}")


@tools.command()
@click.option("--bundle", required=True, type=BundleName(), help="The bundle, a folder in bundles/.")
@click.option("--card", required=True, metavar="NAME", help="The data set, a file in tools/datasets/.")
@click.option("--checkpoint", required=True, help="last.pt or best.pt of the training; training.json lies beside it.")
@click.option("--recipe", required=True, help="The config file that was merged over train.yaml and the card.")
@click.option("--dataset_dir", required=True, help="The data set, for its validation list.")
def publish(bundle: str, card: str, checkpoint: str, recipe: str, dataset_dir: str) -> None:
    """Turn a checkpoint into the three files of a committed model, with its Dice measured from them."""
    from tools import publishing

    print(f"\n{publishing.publish(bundle, card, checkpoint, recipe, dataset_dir)}")


@tools.command()
@click.argument("model")
@click.option(
    "--dataset", metavar="NAME_OR_FILE", help="A card or a file like one; default: that of the committed model."
)
@click.option("--weights", metavar="FILE", help="A checkpoint in any layout; default: the committed model of the card.")
@click.option("--out", default="exports", show_default=True, help="Folder of the zip and its SHA-256.")
@click.option("--patch_merging", default="auto", show_default=True, help=PATCH_MERGING_HELP)
def export(model: str, dataset: str | None, weights: str | None, out: str, patch_merging: str) -> None:
    """Write a model as a zip that needs nothing of this repository.

    MODEL is a bundle, a model that `models` lists, or the folder of a training.
    """
    if model in list_bundles():
        from tools import release

        print(f"\n{release.export(model, dataset, weights, out, patch_merging)}")
        return
    with report_wrong_call():
        from tools.models import find_model

        if dataset is not None or weights is not None:
            raise click.UsageError(f"--dataset and --weights go with a bundle; {model} is a model, which has both.")
        found = find_model(model, "MODEL")
    from tools import release

    print(f"\n{release.export_model(found, out, patch_merging)}")


@tools.command()
@click.argument("path")
@click.option("--dataset_dir", required=True, help="The data set.")
@click.option("--output_dir", default="runs/studies", show_default=True, help="Folder of the runs.")
@click.option("--document", help="A file that gets the table between its markers; numbers go to results/.")
@click.option("--runs", type=Names(), help="Only these runs, and those that they need.")
def study(path: str, dataset_dir: str, output_dir: str, document: str | None, runs: Sequence[str] | None) -> None:
    """Do what is not done yet of the study PATH, <bundle>/studies/<name>.yaml, and print its table."""
    from pathlib import Path

    from tools import studies

    folder = Path(output_dir) / Path(path).stem
    print(f"\n{studies.run_study(path, dataset_dir, folder, runs)}")
    print(f"\n{studies.write_summary(path, folder, document) if document else studies.summarize(path, folder)}")


@tools.command("flops")
@click.argument("bundle", type=BundleName())
@click.option("--encoder", default="beit_base_patch16_224", show_default=True, help="A model name of timm.")
@click.option("--decoder", default="upernet", show_default=True, help="upernet, setr_pup, transposed or unetr.")
@click.option("--image_size", type=int, default=512, show_default=True, help="Edge of the slices in pixels.")
@click.option("--num_slices", type=int, default=5, show_default=True, help="Slices of a window.")
def count(bundle: str, encoder: str, decoder: str, image_size: int, num_slices: int) -> None:
    """Count the operations of a network of inflated_vit_seg for one slice and for a window of slices."""
    if bundle != "inflated_vit_seg":
        raise ConfigValueError("bundle", repr(bundle), "inflated_vit_seg", "correct the name")
    from tools import flops

    print(f"\n{flops.tabulate_segmenter(encoder, decoder, image_size, num_slices)}")


@tools.command()
@click.argument("bundle")
def lint(bundle: str) -> None:
    """Tell what is wrong with a bundle, a name or any folder, and run nothing of it; status 1 if there is an error."""
    from tools import linting

    folder = linting.find_folder(bundle)
    findings = linting.lint_bundle(folder)
    print("\n".join(["", *map(str, findings), linting.summarize(folder, findings)]))
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


@tools.group(cls=Commands)
def weights() -> None:
    """Public weights and checkpoints: list, fetch, inspect, convert."""


@weights.command("list")
def list_weights() -> None:
    """List the public weights of all bundles."""
    from tools import catalogue

    print(f"\n{catalogue.list_files()}")


@weights.command("fetch")
@click.argument("bundle", type=BundleName())
@click.option("--name", help="Which weights, see `weights list`; all; default: the first.")
@click.option("--mirror", metavar="FOLDER_OR_URL", help="Where the files are under their own names.")
def fetch_weights(bundle: str, name: str | None, mirror: str | None) -> None:
    """Download public weights of a bundle, verify, check and convert them."""
    from tools.weights import fetching

    for path in fetching.fetch(bundle, name, mirror):
        print(f"\n{path}")


@weights.command("inspect")
@click.argument("file")
@click.option("--to", type=BundleName(), help="Tell the match with the network of this bundle, too.")
@click.option("--patch_merging", default="auto", show_default=True, help=PATCH_MERGING_HELP)
def inspect_weights(file: str, to: str | None, patch_merging: str) -> None:
    """Tell what a checkpoint holds, and with --to whether it fits a bundle."""
    from tools.weights import conversion

    print(f"\n{conversion.inspect(file)}")
    if to is not None:
        print(f"\n{conversion.compare(file, conversion.build_network(to), patch_merging)}")


@weights.command("convert")
@click.argument("file")
@click.option("--to", required=True, type=BundleName(), help="Whose network the weights are for.")
@click.option("--out", required=True, help="File to write, .safetensors, or .pt for a whole network.")
@click.option("--config_file", multiple=True, help="An overlay on train.yaml that changes the network; repeatable.")
@click.option("--layout", default="auto", show_default=True, help="Of the checkpoint, where it is not recognized.")
@click.option("--patch_merging", default="auto", show_default=True, help=PATCH_MERGING_HELP)
@click.option("--method", help="Of inflating 2D weights: average or center.")
@click.option("--normalization", help="Of 2D weights: imagenet, half or none.")
def convert_weights(
    file: str,
    to: str,
    out: str,
    config_file: Sequence[str],
    layout: str,
    patch_merging: str,
    **inflation: str | None,
) -> None:
    """Write the weights in FILE, a checkpoint in any layout, under the names that the network of a bundle has."""
    from tools.weights import conversion

    network = conversion.build_network(to, config_file)
    given = {name: value for name, value in inflation.items() if value is not None}
    text = conversion.convert(file, network, out, layout=layout, inflation=given, patch_merging=patch_merging)
    print(f"\n{text}")


@tools.group(cls=Commands)
def label() -> None:
    """MONAI Label: install it, start its server."""


@label.command("install")
def install_labelling() -> None:
    """Add MONAI Label to this environment; torch, numpy and monai stay as they are."""
    from tools import labelling

    print(f"\n{labelling.install()}")


@label.command("start")
@click.argument("studies")
@click.option(
    "--bundles",
    required=True,
    type=Names(),
    help="Bundles of this repository, trainings, zips or folders.",
)
@click.option("--dataset", metavar="NAME", help="Of this repository's bundles; default: that of their committed model.")
@click.option("--app", default="runs/label", show_default=True, help="Folder of the server, and of what is trained.")
@click.option("--port", type=int, default=8000, show_default=True, help="Where the server listens.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 answers the network, who has the token.")
@click.option("--overwrite", is_flag=True, help="Replace the models that the app has already.")
@click.option("--hostname", type=Names(), help="Names of the server beside its address: that of a proxy, for instance.")
@click.option("--follow_links", is_flag=True, help="Scans and labels may be links to files elsewhere.")
def start_labelling(
    studies: str,
    bundles: Sequence[str],
    dataset: str | None,
    app: str,
    port: int,
    host: str,
    overwrite: bool,
    hostname: Sequence[str] | None,
    follow_links: bool,
) -> None:
    """Serve bundles to MONAI Label's viewers, 3D Slicer for instance, until Ctrl+C.

    STUDIES is the folder of the scans, NIfTI files; labels are saved there, too. Requests of the network need a token,
    which is shown at the start, or is that of the environment variable LABEL_TOKEN.
    """
    from tools import labelling

    labelling.start(studies, bundles, dataset, app, port, host, overwrite, hostname, follow_links)


def main(program: str = "python -m tools") -> None:
    """Run the command line; errors in the input end it with one sentence and status 1, a wrong call with status 2."""
    report_plainly()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    tools(prog_name=program)


if __name__ == "__main__":
    main()
