# SPDX-License-Identifier: Apache-2.0
"""All keys of the bundles' configs: what each is for, and which values it takes.

The role says what a key belongs to: `data` (what the scans and labels are), `geometry` (how they reach the network),
`network`, `inference` (how it is applied), `schedule` (how it is trained), `machine`, `path`, and `part` (components
that are made of the others). A data set's card has keys of the first two; a model is made of the first four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["data", "geometry", "network", "inference", "schedule", "machine", "path", "part"]
Check = Callable[[Any], str | None]  # what is wanted instead of a value, None if it may be so

_AXES = ("LR", "PA", "IS")


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        name: as it is typed.
        role: what it belongs to.
        check: returns what is wanted in place of a value; None where anything may stand.
        doc: what it means.
    """

    name: str
    role: Role
    check: Check | None
    doc: str


def is_number(value: object) -> bool:
    """Tell whether a value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(
    low: float = -math.inf, high: float = math.inf, *, whole: bool = False, below: float | None = None
) -> Check:
    words = ["a whole number" if whole else "a number"]
    if low > -math.inf:
        words.append(f"{'above 0' if low == _POSITIVE else f'from {low:g}'}")
    if below is not None:
        words.append(f"to less than {below:g}" if low > -math.inf else f"below {below:g}")
    elif high < math.inf:
        words.append(f"to {high:g}")
    wanted = " ".join(words)

    def check(value: Any) -> str | None:
        fits = is_number(value) and low <= value <= high and (below is None or value < below)
        return None if fits and (not whole or value == int(value)) else wanted

    return check


_POSITIVE = 5e-324  # the smallest number above 0
_SHARE = _number(0, 1)
_COUNT = _number(1, whole=True)
_SIZE = _number(_POSITIVE)
_WEIGHT = _number(0)


def check_flag(value: Any) -> str | None:
    """Return what is wanted of a flag in place of a value, None if it may be so."""
    # `--resume true` is a text for the command line of MONAI; it counts as true, as every text does
    return None if isinstance(value, bool) or value == "true" else "True or False"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _optional(check: Check) -> Check:
    def checked(value: Any) -> str | None:
        wanted = None if value is None else check(value)
        return f"{wanted}, or null" if wanted else None

    return checked


def _choice(*values: Any) -> Check:
    wanted = f"one of {', '.join(map(str, values))}"
    return lambda value: None if any(value == known and type(value) is type(known) for known in values) else wanted


def _several(check: Check, least: int = 0, most: float = math.inf) -> Check:
    def checked(value: Any) -> str | None:
        each = None
        if isinstance(value, (list, tuple)) and least <= len(value) <= most:
            each = next((wanted for item in value if (wanted := check(item))), None)
            if each is None:
                return None
        if each is None:
            each = check(object()) or "an entry"
        count = f"{least} of" if least == most else f"{least} or more of" if least else "a list, each entry"
        return f"{count} {each}" if least == most or not least else f"a list of {count} {each}"

    return checked


def _either(*checks: Check) -> Check:
    def checked(value: Any) -> str | None:
        wanted = [check(value) for check in checks]
        return None if None in wanted else " or ".join(map(str, wanted))

    return checked


def _axes(value: Any) -> str | None:
    letters = value.upper() if isinstance(value, str) else ""
    found = {axis for letter in letters for axis, pair in enumerate(_AXES) if letter in pair}
    return (
        None if len(letters) == 3 and len(found) == 3 else "three letters, one of each of L/R, P/A and I/S, such as RAS"
    )


def _names(value: Any) -> str | None:
    """Check the names of classes; a mapping, YAML's yes and no, and names that stand twice are told with a remedy."""
    wanted = "a list of names in the order of the classes, background first"
    if isinstance(value, Mapping):
        pairs = [(key, name) if is_number(key) or str(key).isdecimal() else (name, key) for key, name in value.items()]
        if all(is_number(number) or str(number).isdecimal() for number, _ in pairs):
            names = [str(name) for _, name in sorted(pairs, key=lambda pair: int(pair[0]))]
            return f"{wanted}: [{', '.join(names)}]"
        return wanted
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        return f"{wanted}, at least two"
    if odd := [item for item in value if not isinstance(item, str) or not item.strip()]:
        hint = ", in quotes: YAML reads yes and no as true and false" if isinstance(odd[0], bool) else ", in quotes"
        return f"a name in place of {odd[0]!r}{hint}"
    folded = [item.strip().casefold() for item in value]
    if twice := sorted({name for name in folded if folded.count(name) > 1}):
        return f"names that differ, and {twice[0]} stands twice"
    return None


def _label_map(value: Any) -> str | None:
    whole = (
        isinstance(value, Mapping)
        and value
        and all(
            isinstance(item, int) and not isinstance(item, bool) and item >= 0
            for pair in value.items()
            for item in pair
        )
    )
    return None if whole else "a class (a whole number) for each value in the label files, {value: class, ...}"


def _pairs(value: Any) -> str | None:
    fits = value is None or (
        isinstance(value, Mapping) and all(isinstance(name, str) for pair in value.items() for name in pair)
    )
    return None if fits else "pairs of names, {right kidney: left kidney}, {} for none, or null"


_SPACING = _several(_SIZE, 3, 3)
_CROP = _several(_COUNT, 3, 3)
_PLACE = _optional(_text)
_CASES = _several(_text)
_MIRRORED = _several(_choice(0, 1, 2))


def _make(role: Role, entries: Mapping[str, tuple[Check | None, str]]) -> dict[str, Key]:
    return {name: Key(name, role, check, doc) for name, (check, doc) in entries.items()}


_PARTS = str.split(
    "backbone backbone_def contrast cutout dataset dropped_blocks embedding_dim evaluator fill_range finalize "
    "fitted_roi_size fitting geometry grid heads imports inferer initialize kept_blocks label_values loss losses "
    "lr_scheduler memory_format mirrored_classes network network_def num_classes omni_loss omni_network "
    "omni_network_def optimizer postprocessing preprocessing proxy_tasks resampling resized run scans shuffled_blocks "
    "swap tasks train turn_axis turns unlabelled validate variant views window_inferer window_slices"
)

KEYS: Mapping[str, Key] = {
    **_make(
        "data",
        {
            "labels": (_names, "names of the classes, background first"),
            "label_map": (_label_map, "value in the label files -> class"),
            "validation_cases": (_CASES, "cases that are held back, where dataset.json has no validation list"),
            "in_channels": (_COUNT, "volumes in a file"),
            "mirrored": (_pairs, "structures that change places in a mirror image"),
            "card": (None, "title, modality, licence, source and extent of a data set"),
        },
    ),
    **_make(
        "geometry",
        {
            "orientation": (_axes, "where the axes point to when the network sees them"),
            "pixdim": (_SPACING, "spacing in mm that the network sees"),
            "roi_size": (_CROP, "crop of the training, window of the inference, in voxels"),
            "image_size": (_either(_COUNT, _several(_COUNT, 2, 2)), "pixels of a slice that the network sees"),
            "intensity": (None, "transforms of the grey values"),
            "foreground_crop": (None, "transforms that cut off what is around the patient"),
            "sample_above": (_number(), "crops without a structure are centred on voxels above it"),
            "mirror_axes": (_MIRRORED, "axes along which training flips, and the mean over mirror images"),
        },
    ),
    **_make(
        "network",
        {
            "encoder": (_text, "name of a 2D transformer of timm"),
            "decoder": (_text, "what makes a segmentation of its features"),
            "num_slices": (_COUNT, "slices that a patch spans"),
            "force_2d": (check_flag, "read each slice by itself"),
            "feature_size": (_COUNT, "width of the convolutions"),
            "window_size": (_either(_COUNT, _several(_COUNT, 3, 3)), "tokens of a window of attention along each axis"),
            "use_v2": (check_flag, "a convolution before each stage"),
            "patch_merging": (_optional(_choice("original", "corrected", "auto")), "of Swin transformers, see docs"),
        },
    ),
    **_make(
        "inference",
        {
            "overlap": (_number(0, below=1), "part that neighbouring windows share"),
            "sw_batch_size": (_COUNT, "windows at once"),
            "mirroring": (check_flag, "mean over a scan and its mirror images"),
            "structures": (_optional(_either(_text, _several(_text, 1))), "those to keep"),
            "save_probabilities": (check_flag, "write them, too"),
            "statistics": (check_flag, "write volume, mean intensity and whether the border cuts a structure off"),
            "displayable_configs": (None, "what MONAI Label shows to its users"),
        },
    ),
    **_make(
        "schedule",
        {
            "epochs": (_COUNT, "how often all cases are seen"),
            "warmup_epochs": (_number(0), "epochs until the learning rate is reached"),
            "warmup_steps": (_number(0), "steps until the learning rate is reached"),
            "total_steps": (_COUNT, "steps of the schedule"),
            "learning_rate": (_SIZE, "the largest"),
            "weight_decay": (_WEIGHT, "of the optimizer"),
            "layer_decay": (_number(_POSITIVE, 1), "factor of the learning rate from a layer to the one below"),
            "momentum": (_SHARE, "of the teacher's weights"),
            "temperature": (_SIZE, "of the contrast"),
            "clip_norm": (_optional(_SIZE), "largest norm of the gradients"),
            "batch_size": (_COUNT, "volumes"),
            "unlabelled_batch_size": (_COUNT, "volumes without labels"),
            "num_samples": (_COUNT, "crops of each volume"),
            "num_crops": (_COUNT, "crops of each volume"),
            "val_crops": (_COUNT, "crops of each volume in validation"),
            "volume_crops": (_COUNT, "crops of each volume"),
            "crops_at_once": (_optional(_COUNT), "crops in a pass"),
            "crop_size": (_CROP, "voxels"),
            "volume_size": (_CROP, "voxels"),
            "val_interval": (_COUNT, "epochs between two validations"),
            "checkpoint_interval": (_COUNT, "epochs between two checkpoints"),
            "training_share": (_number(_POSITIVE, 1), "of the training list, its first cases"),
            "fold": (_optional(_number(0, whole=True)), "the one that is validated"),
            "seed": (_number(0, whole=True), "of all random numbers"),
            "augmentation": (None, "random transforms of image and label"),
            "loss_name": (_text, "which of `losses`"),
            "loss_weights": (None, "of the terms"),
            "contrast_weight": (_WEIGHT, "of the contrast in the loss"),
            "omni_weight": (_WEIGHT, "of scans without labels in the loss"),
            "positive": (None, "share of crops with a structure"),
            "inflation": (_text, "how a 2D kernel becomes a 3D one"),
            "normalization": (_text, "of inflated kernels"),
            "use_pretrained": (check_flag, "start from the public weights of the encoder"),
            "flip_prob": (_SHARE, "of a flip"),
            "turn_prob": (_SHARE, "of a turn"),
            "shift_prob": (_SHARE, "of a shift of the grey values"),
        },
    ),
    **_make(
        "machine",
        {
            "device": (None, "where the network runs"),
            "amp": (check_flag, "mixed precision"),
            "num_workers": (_number(0, whole=True), "processes that load"),
            "cache_rate": (_SHARE, "share of the prepared volumes kept in memory"),
            "use_checkpoint": (check_flag, "compute activations again, to save memory"),
            "is_main_process": (check_flag, "whether this process writes"),
        },
    ),
    **_make(
        "path",
        {
            "bundle_root": (_text, "folder of the bundle"),
            "dataset_dir": (_optional(_either(_text, _several(_text, 1))), "folder of the data set, or of scans"),
            "unlabelled_dir": (_optional(_either(_text, _several(_text, 1))), "folder of scans without labels"),
            "datalist": (_optional(_several(_text, 1)), "scans"),
            "output_dir": (_text, "folder of the results"),
            "cache_dir": (_text, "folder of prepared volumes"),
            "checkpoint": (_text, "weights to apply"),
            "pretrained": (_PLACE, "weights to start from"),
            "resume": (check_flag, "go on from last.pt"),
            "replace_model": (check_flag, "make the result the bundle's model"),
            "overwrite": (check_flag, "segment again what is done"),
            "preview": (check_flag, "a picture of each result"),
        },
    ),
    **{name: Key(name, "part", None, "made of other keys") for name in _PARTS},
}


def list_keys(*roles: Role) -> tuple[str, ...]:
    """Return the names of the keys that have one of some roles."""
    return tuple(key.name for key in KEYS.values() if key.role in roles)


# what a result depends on before the network: a model is applied as it was trained. Window and crop may differ, and
# the other keys that are left out are read in training alone
PREPROCESSING = (
    "labels",
    "label_map",
    "in_channels",
    "orientation",
    "pixdim",
    "image_size",
    "intensity",
    "geometry",
    "preprocessing",
)
# what the overlay of a model must have of the card of its data set
OF_THE_CARD = ("labels", "label_map", "validation_cases", "orientation")
# what each kind of config has: command lines, cards and overlays set it
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "inference": tuple(
        str.split(
            "labels num_classes in_channels orientation intensity output_dir checkpoint datalist amp network "
            "initialize sw_batch_size mirror_axes displayable_configs"
        )
    ),
    "train": tuple(
        str.split(
            "labels num_classes label_map in_channels orientation intensity output_dir pretrained resume amp seed "
            "epochs batch_size learning_rate num_workers cache_rate val_interval validation_cases "
            "network_def initialize"
        )
    ),
    "evaluate": ("labels", "checkpoint", "output_dir", "initialize"),
    "pretrain": ("in_channels", "orientation", "intensity", "output_dir", "resume", "seed", "epochs", "initialize"),
}
