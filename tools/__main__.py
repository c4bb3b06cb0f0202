# SPDX-License-Identifier: Apache-2.0
"""`python -m tools <command>`: thin, it parses, calls and prints."""

from __future__ import annotations

import logging
import sys

import fire

from tools import demonstration, publishing
from tools.errors import report_plainly


def demo(bundle: str = "unetr_btcv", card: str = "msd04_hippocampus", output_dir: str = "runs/demo") -> None:
    """Segment the embedded scans with a committed model and compare with their labels.

    Args:
        bundle: name of the bundle, a folder in bundles/.
        card: name of the data set, a file in tools/datasets/.
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


def main() -> None:
    """Run the command line; errors in the input end it with one sentence and status 1."""
    report_plainly()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    fire.Fire({"demo": demo, "publish": publish}, name="tools")


if __name__ == "__main__":
    main()
