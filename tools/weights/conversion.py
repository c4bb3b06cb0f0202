# SPDX-License-Identifier: Apache-2.0
"""Checkpoints looked into, and written again under the names that a network of today has."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.bundle import ConfigParser
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.bundles import locate_bundle
from tools.errors import CheckpointError, ConfigValueError
from tools.files import compute_sha256, write_atomically
from tools.networks.patch_merging import AUTO, choose_form
from tools.weights.files import read_weights, save_checkpoint
from tools.weights.layouts import recognize, strip_prefixes
from tools.weights.loading import refuse
from tools.weights.matching import describe_network, match
from tools.weights.merging_forms import HEADER, find_form, split_marks
from tools.weights.options import read_inflation, read_path
from tools.weights.origins import find_origin
from tools.weights.parts import choose_layout, complete_report, describe_weights
from tools.weights.report import MatchReport

logger = logging.getLogger(__name__)


def inspect(path: str | Path) -> str:
    """Return what a checkpoint holds: tensors, layout, licence, and the network that it belongs to.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is no checkpoint.
    """
    path = read_path("file", path)
    state_dict, facts = read_weights(path)
    sha256 = compute_sha256(path)
    weights, marks = split_marks(state_dict)
    tensors = {strip_prefixes(name): tensor for name, tensor in weights.items()}
    layout = recognize(tensors)
    kept = {layout.rename(name): tensor for name, tensor in tensors.items() if layout.find_drop(name) is None}
    described = describe_network({name: tensor for name, tensor in kept.items() if name is not None})
    if layout.planar:
        described = {name: described[name] for name in ("hidden_size", "mlp_dim", "num_layers") if name in described}
        described |= {"patch_size": tensors["patch_embed.proj.weight"].shape[2], "planar": True}
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    values = sum(tensor.numel() for tensor in tensors.values())
    dropped = len(tensors) - sum(layout.find_drop(name) is None for name in tensors)
    rows = {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "sha256": sha256,
        "tensors": f"{len(tensors)}, {values / 1e6:.1f} M values, {', '.join(f'{n} {k}' for k, n in kinds.items())}",
        "layout": f"{layout.name}: {layout.title}",
        "source": layout.source,
        "licence": facts.get("licence", layout.licence),
        "for": f"{layout.family}; tensors that match at the published size: {layout.counts}",
        "left out": f"{dropped} of the file's tensors",
        "network": ", ".join(f"{name}={value}" for name, value in described.items()) or "not recognized",
    }
    try:
        merging = find_form(tensors, marks, origin=find_origin(path, state_dict, facts, sha256), source=str(path))
    except CheckpointError as error:
        rows["merging"] = f"{error.found}: {error.remedy}"
    else:
        rows |= {"merging": str(merging)} if merging else {}
    return "\n".join(f"{name:<8}  {text}" for name, text in rows.items())


def compare(path: str | Path, network: nn.Module, patch_merging: str = AUTO) -> MatchReport:
    """Return what a checkpoint and a network have in common; nothing is loaded.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is unreadable or does not fit.
    """
    return _match_file(read_path("file", path), network, "auto", None, patch_merging=patch_merging)[1]


def build_network(bundle: str, config_files: Sequence[str | Path] = ()) -> nn.Module:
    """Return the network of a bundle as `train.yaml` and the overlays after it define it, with first values.

    Raises:
        ConfigValueError: if there is no such bundle or file.
    """
    root = locate_bundle(bundle)
    paths = [root / "configs" / "train.yaml", *(Path(path) for path in config_files)]
    if absent := [path for path in paths if not path.is_file()]:
        raise ConfigValueError(absent[0], "no such file", "a config file", "correct the path")
    config = ConfigParser.load_config_files([str(path) for path in paths])
    return ConfigParser({**config, "bundle_root": str(root)}).get_parsed_content("network_def")


def convert(
    path: str | Path,
    network: nn.Module,
    out: str | Path,
    *,
    layout: str = "auto",
    inflation: Mapping[str, str] | None = None,
    patch_merging: str = AUTO,
    allow_unused: str | None = None,
) -> str:
    """Write the weights in `path` under the names and in the shapes of `network`, and return the report.

    Where they are the whole network, the file is its full state dict, which MONAI loads strictly into that network.
    Where they are a part, such as a pre-trained encoder, the file has that part only and says so in its header: random
    values never pass for trained ones. The patch merging of a Swin transformer stands in the file, too.

    Args:
        path: a checkpoint in any layout.
        network: what it is for; it gets the patch merging of the weights.
        out: `.safetensors`, or `.pt` (`{"model": ...}`, as MONAI writes) for a whole network.
        layout: of `path`.
        inflation: arguments of `Inflation`, for 2D weights.
        patch_merging: the form that the weights were trained with, where nothing else tells it.
        allow_unused: as of `match`.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is unreadable or does not fit.
        ConfigValueError: if `out` has another ending or cannot be written, or a part is to be written as `.pt`.
    """
    path, out = read_path("file", path), read_path("--out", out)
    if out.is_dir() or (out.exists() and path.exists() and out.samefile(path)):
        found = f"{out}, " + ("a folder" if out.is_dir() else "the file that is read")
        raise ConfigValueError("--out", found, "the name of a new file", "give another name")
    if out.suffix not in (".safetensors", ".pt"):
        raise ConfigValueError("--out", str(out), "a .safetensors or .pt file", "correct the name")
    values, report = _match_file(path, network, layout, inflation, allow_unused, patch_merging)
    if report.patch_merging is not None:
        choose_form(network, report.patch_merging)
    whole = not (report.untouched or report.fresh)
    if not whole and out.suffix == ".pt":
        raise ConfigValueError(
            "--out",
            f"{out} for {report.num_loaded} of {report.num_tensors} tensors",
            "a .safetensors file, which can say that it holds a part",
            f"give --out {out.with_suffix('.safetensors')}",
        )
    wanted = network.state_dict()
    tensors = {name: value.to(wanted[name].dtype).contiguous() for name, value in values.items()}
    tensors = {**(wanted if whole else split_marks(wanted)[1]), **tensors}
    try:
        if out.suffix == ".pt":
            form = {HEADER: report.patch_merging} if report.patch_merging else {}
            save_checkpoint({"model": tensors, **form}, out)
        else:
            header = describe_weights(report, path, len(tensors), whole)
            with write_atomically(out) as temporary:
                save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary, metadata=header)
    except OSError as error:
        found, remedy = f"{out}, where nothing can be written ({error.strerror or error})", "give another name"
        raise ConfigValueError("--out", found, "a file in a folder of yours, with room for it", remedy) from error
    written = "whole network" if whole else "a part of the network, for --pretrained"
    return f"{report}\nwritten  {out}: {len(tensors)} tensors, {written}"


def _match_file(
    path: Path,
    network: nn.Module,
    layout: str,
    inflation: Mapping[str, str] | None,
    allow_unused: str | None = None,
    patch_merging: str = AUTO,
) -> tuple[dict[str, Tensor], MatchReport]:
    settings = read_inflation(inflation)
    state_dict, facts = read_weights(path)
    sha256 = compute_sha256(path)
    values, report = match(
        network,
        state_dict,
        choose_layout(layout, facts, len(state_dict), path),
        allow_unused=allow_unused,
        inflation=settings,
        patch_merging=patch_merging,
        origin=find_origin(path, state_dict, facts, sha256),
        source=str(path),
    )
    complete_report(report, facts, path, sha256)
    if not report.accepted:
        logger.error("%s", report)
        raise refuse(report, complete=False)
    return values, report
