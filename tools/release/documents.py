# SPDX-License-Identifier: Apache-2.0
"""What an exported bundle says about itself: metadata and the page that people read first."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

MEAN_DICE = re.compile(r"^ {4}mean +([01]\.\d+)$", re.MULTILINE)  # in the table of a model card


def describe_metadata(
    metadata: Mapping[str, Any], card: Mapping[str, str], config: Mapping[str, Any], model_card: str | None
) -> dict[str, Any]:
    """Return `metadata.json` of a bundle whose data set is that of a card.

    Args:
        metadata: of the bundle in the repository.
        card: the entry `card` of the data set.
        config: resolved values of the exported inference config: `labels`, `in_channels`, `intensity`, `window`, the
            size of what the network reads.
        model_card: the model's page, for its Dice.
    """
    result = copy.deepcopy(dict(metadata))
    labels, window = config["labels"], config["window"]
    network = result["name"].partition(" for ")[0]
    result |= {
        "name": f"{network} for {card['title']}",
        "task": f"Segmentation of {_list(labels[1:])} in {card['modality']}",
        "description": f"{result['description'].partition(';')[0]}. This copy is made for {card['title']}.",
        "data_source": f"{card['title']}, {card['source']}",
        "image_classes": f"{card['modality']}, channels: {config['in_channels']}",
        "label_classes": "one channel with the values of channel_def",
        "pred_classes": f"{len(labels)} channels of logits, background first",
        "references": [*result["references"], card["citation"]],
    }
    if model_card and (match := MEAN_DICE.search(model_card)):
        result["eval_metrics"] = {"mean_dice": float(match[1])}
    image, pred = (
        result["network_data_format"][side][name] for side, name in (("inputs", "image"), ("outputs", "pred"))
    )
    scales = [step for step in config["intensity"] if "b_min" in step]
    image |= {
        "format": "hounsfield" if card["modality"] == "CT" else "magnitude",
        "modality": card["modality"],
        "num_channels": config["in_channels"],
        "spatial_shape": list(window),
        "value_range": [scales[-1]["b_min"], scales[-1]["b_max"]] if scales else [],
        "channel_def": {str(number): "image" for number in range(config["in_channels"])},
    }
    pred |= {
        "num_channels": len(labels),
        "spatial_shape": list(window[: len(pred["spatial_shape"])]),
        # by the values of segmentations and label files: MONAI Label shows and saves them so
        "channel_def": {str(value): label for value, label in zip(config["label_values"], labels, strict=True)},
    }
    return result


def describe_use(name: str, metadata: Mapping[str, Any], card: Mapping[str, str], model_card: str | None) -> str:
    """Return `docs/README.md` of an exported bundle: commands first, then where the weights are from."""
    text = f"""# {metadata["name"]}

{metadata["task"]}. Version {metadata["version"]}. For research; not a medical device.

All commands run in the folder of this bundle. Packages: `pip install -r requirements.txt`.

```bash
# segment scans: NIfTI files in, segmentations in the grid of each scan out, with pictures and volumes
python -m monai.bundle run --config_file configs/inference.yaml --dataset_dir scans --output_dir segmentations
# train further on your own data: a folder with dataset.json, or with imagesTr and labelsTr
python -m monai.bundle run --config_file configs/train.yaml --dataset_dir DIR --output_dir runs/mine
# Dice on its validation list
python -m monai.bundle run --config_file "['configs/train.yaml','configs/evaluate.yaml']" \\
    --dataset_dir DIR --output_dir runs/mine/evaluation
# the network alone as TorchScript, models/model.ts
python -m monai.bundle ckpt_export network_def --config_file configs/inference.yaml
# and as ONNX (pip install onnx onnxscript)
python -m monai.bundle onnx_export network_def --filepath models/model.onnx --ckpt_file models/model.pt \\
    --meta_file configs/metadata.json --config_file configs/inference.yaml
```

`--device cpu`, `--mirroring True` (mean over mirror images, slower) and every other key of a config can be given on the
command line. `train.yaml` starts from `models/model.pt` (`--pretrained None`: from random weights) and, when it ends,
puts its result there; the model before stays as `models/model_previous.pt` (`--replace_model False`: all stays). Label
files have the values of the segmentations, `channel_def` in `configs/metadata.json`; for files with other values give a
config with `label_map: {{value: number of the class, ...}}` as the last one, for Dice too.

In Python, from any folder:

```python
import sys
import monai.bundle

sys.path.insert(0, "PARENT/{name}")
network = monai.bundle.load("{name}", bundle_dir="PARENT")
```

`configs/inference.json` and `configs/train.json` are made of the YAML files beside them, for `monai.bundle.load` and
MONAI Label. After a change to a YAML file delete the JSON file, and MONAI Label reads the YAML file.

MONAI Label: put this folder into `model/` of its `monaibundle` app and start the server with `--conf models {name}
--conf zoo_source local --conf sam2 false`.

Data: {card["title"]}, {card["source"]}, {card["licence"]}. {card["citation"]}.
Licences: [code](../LICENSE), [data](data_license.txt).
"""
    return f"{text}\n{_shorten(model_card)}" if model_card else text


def _shorten(model_card: str) -> str:
    """Take the commands of the repository out of a model card; its headings become one level lower."""
    kept = model_card.partition("\nUse, in the bundle's folder:\n")[0].rstrip()
    kept = re.sub(r"^\| recipe \|.*\n", "", kept, flags=re.MULTILINE)  # it is written into train.yaml
    return re.sub("^# ", "## Weights: ", kept, flags=re.MULTILINE) + "\n"


def _list(names: list[str]) -> str:
    """Return `a, b and c`; of more than five names the number."""
    if len(names) > 5:
        return f"{len(names)} structures"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
