# SPDX-License-Identifier: Apache-2.0
"""`python -m tools <command>`: thin, it parses, calls and prints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import fire

from tools import demonstration, flops, labelling, linting, publishing, release, studies
from tools.errors import ConfigValueError, report_plainly
from tools.weights import catalogue, conversion, fetching


def demo(bundle: str = "unetr_btcv", card: str | None = None, output_dir: str = "runs/demo") -> None:
    """Segment the embedded scans with a committed model and compare with their labels.

    Args:
        bundle: name of the bundle, a folder in bundles/.
        card: name of the data set, a file in tools/datasets/; default: that of the bundle's committed model,
            msd04_hippocampus of several.
        output_dir: folder of the results.
    """
    print(f"\n{demonstration.demonstrate(bundle, card, output_dir)}")


def publish(bundle: str, card: str, checkpoint: str, recipe: str, dataset_dir: str) -> None:
    """Turn a training checkpoint into the three files of a committed model, with its Dice measured from them.

    Args:
        bundle: name of the bundle.
        card: name of the data set.
        checkpoint: last.pt or best.pt of the training run; training.json lies beside it.
        recipe: the config file that was merged over train.yaml and the card.
        dataset_dir: the data set, for its validation list.
    """
    print(f"\n{publishing.publish(bundle, card, checkpoint, recipe, dataset_dir)}")


def export(
    bundle: str,
    dataset: str | None = None,
    weights: str | None = None,
    out: str = "exports",
    patch_merging: str = "auto",
) -> None:
    """Write a bundle and a model of it as a zip that needs nothing of this repository.

    Args:
        bundle: name of the bundle.
        dataset: name of the card, a file in tools/datasets/, or a file like one; default: that of the committed model,
            msd04_hippocampus of several.
        weights: a checkpoint in any layout; default: the committed model of the card.
        out: folder of the zip and its SHA-256.
        patch_merging: original or corrected, where nothing tells how a Swin transformer was trained.
    """
    print(f"\n{release.export(bundle, dataset, weights, out, patch_merging)}")


def study(
    path: str,
    dataset_dir: str,
    output_dir: str = "runs/studies",
    document: str | None = None,
    runs: str | Sequence[str] | None = None,
) -> None:
    """Do what is not done yet of a study, and print its table.

    Args:
        path: the study, <bundle>/studies/<name>.yaml.
        dataset_dir: the data set.
        output_dir: folder of the runs.
        document: file that gets the table between its markers; the numbers go to results/ beside the study.
        runs: only these runs, and those that they need.
    """
    folder = Path(output_dir) / Path(path).stem
    print(f"\n{studies.run_study(path, dataset_dir, folder, runs)}")
    print(f"\n{studies.write_summary(path, folder, document) if document else studies.summarize(path, folder)}")


def count(
    bundle: str,
    encoder: str = "beit_base_patch16_224",
    decoder: str = "upernet",
    image_size: int = 512,
    num_slices: int = 5,
) -> None:
    """Count the operations of a segmenter for one slice and for a window of slices.

    Args:
        bundle: inflated_vit_seg, whose networks these are.
        encoder: a model name of timm; the default is that of the publication.
        decoder: upernet, setr_pup, transposed or unetr.
        image_size: edge of the slices in pixels.
        num_slices: slices of a window.
    """
    if bundle != "inflated_vit_seg":
        raise ConfigValueError("bundle", repr(bundle), "inflated_vit_seg", "correct the name")
    print(f"\n{flops.tabulate_segmenter(encoder, decoder, image_size, num_slices)}")


def inspect_weights(file: str, to: str | None = None, patch_merging: str = "auto") -> None:
    """Tell what a checkpoint holds, and with --to whether it fits a bundle.

    Args:
        file: a checkpoint in any layout.
        to: name of a bundle; the match with its network is told too, nothing is written.
        patch_merging: original or corrected, where nothing tells how a Swin transformer was trained.
    """
    print(f"\n{conversion.inspect(file)}")
    if to is not None:
        print(f"\n{conversion.compare(file, conversion.build_network(to), patch_merging)}")


def convert_weights(
    file: str,
    to: str,
    out: str,
    config_file: str | Sequence[str] = (),
    layout: str = "auto",
    patch_merging: str = "auto",
    **inflation: str,
) -> None:
    """Write the weights in a checkpoint under the names that the network of a bundle has.

    Args:
        file: a checkpoint in any layout.
        to: name of the bundle.
        out: file to write, .safetensors, or .pt for a whole network.
        config_file: overlays on the bundle's train.yaml that change its network.
        layout: of the checkpoint, where it is not recognized.
        patch_merging: original or corrected, where nothing tells how a Swin transformer was trained.
        inflation: for 2D weights: --method average or center, --normalization imagenet, half or none.
    """
    files = [config_file] if isinstance(config_file, str) else list(config_file)
    network = conversion.build_network(to, files)
    text = conversion.convert(file, network, out, layout=layout, inflation=inflation, patch_merging=patch_merging)
    print(f"\n{text}")


def list_weights() -> None:
    """List the public weights of all bundles."""
    print(f"\n{catalogue.list_files()}")


def fetch_weights(bundle: str, name: str | None = None, mirror: str | None = None) -> None:
    """Download public weights of a bundle, verify, check and convert them.

    Args:
        bundle: name of the bundle.
        name: which weights, see `list`; all; default: the first.
        mirror: a folder or an address that has the files under their own names.
    """
    for path in fetching.fetch(bundle, name, mirror):
        print(f"\n{path}")


def lint(bundle: str) -> None:
    """Tell what is wrong with a bundle, without running anything of it; status 1 if there is an error.

    Args:
        bundle: name of a bundle, or a folder with any MONAI bundle.
    """
    folder = linting.find_folder(bundle)
    findings = linting.lint_bundle(folder)
    print("\n".join(["", *map(str, findings), linting.summarize(folder, findings)]))
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


def install_labelling() -> None:
    """Add MONAI Label to this environment; torch, numpy and monai stay as they are."""
    print(f"\n{labelling.install()}")


def start_labelling(
    studies: str,
    bundles: str | Sequence[str],
    dataset: str | None = None,
    app: str = "runs/label",
    port: int = 8000,
    host: str = "127.0.0.1",
    overwrite: bool = False,
    hostname: str | Sequence[str] | None = None,
    follow_links: bool = False,
) -> None:
    """Serve bundles to MONAI Label's viewers, 3D Slicer for instance, until Ctrl+C.

    Args:
        studies: folder of the scans, NIfTI files; labels are saved there too.
        bundles: bundles of this repository, or zips or folders of any MONAI bundles, separated by commas.
        dataset: of the bundles of this repository; default: that of their committed model.
        app: folder of the server; models that are trained there stay there.
        port: where the server listens.
        host: 127.0.0.1 answers this machine only, 0.0.0.0 the whole network: those who have the token, which is shown
            at the start, or is that of the environment variable LABEL_TOKEN.
        overwrite: replace the models that the app has already.
        hostname: names of the server beside its address, separated by commas: that of a proxy in front, for instance.
        follow_links: whether scans and labels in the studies may be links to files elsewhere.
    """
    labelling.start(studies, bundles, dataset, app, port, host, overwrite, hostname, follow_links)


COMMANDS = {
    "demo": demo,
    "publish": publish,
    "export": export,
    "label": {"install": install_labelling, "start": start_labelling},
    "lint": lint,
    "study": study,
    "flops": count,
    "weights": {
        "inspect": inspect_weights,
        "convert": convert_weights,
        "list": list_weights,
        "fetch": fetch_weights,
    },
}


def main() -> None:
    """Run the command line; errors in the input end it with one sentence and status 1."""
    report_plainly()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    fire.Fire(COMMANDS, name="tools")


if __name__ == "__main__":
    main()
