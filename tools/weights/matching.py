# SPDX-License-Identifier: Apache-2.0
"""Matching a checkpoint with a network: every tensor renamed, converted, left out for a reason, or told as a fault."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tools.errors import CheckpointError, ConfigValueError
from tools.networks.patch_merging import AUTO
from tools.weights.adaptation import PROJECTION, adapt
from tools.weights.inflation import Inflation
from tools.weights.layouts import (
    OWN,
    PART,
    TIMM,
    Layout,
    describe_part,
    find_reason,
    get_layout,
    recognize,
    strip_prefixes,
)
from tools.weights.merging_forms import Origin, find_form, split_marks
from tools.weights.planar import Part, fold_layer_scale, inflate, inflate_encoder, join_biases, takes_timm
from tools.weights.report import MatchReport

HEAD = re.compile(r"out\.conv\.conv\.(weight|bias)")
# a projection without this bias computes what one with a bias of zeros does
ZERO_BIAS = re.compile(r".*attn\.qkv\.bias")
APPROXIMATELY = "approximately"  # ends the note of a conversion that changes what the network computes


def match(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    layout: str = "auto",
    *,
    complete: bool = False,
    allow_missing: str | None = None,
    source_grid: Sequence[int] | None = None,
    inflation: Inflation | None = None,
    patch_merging: str = AUTO,
    origin: Origin | None = None,
    source: str = "weights",
) -> tuple[dict[str, Tensor], MatchReport]:
    """Find for each tensor of `network` its values in `state_dict`; nothing is loaded yet.

    Args:
        network: what the weights are for.
        state_dict: the tensors of a checkpoint.
        layout: a key of `layouts.LAYOUTS`; `auto`: found by the names in it.
        complete: whether every tensor must come from the checkpoint and fit without approximation, as for inference;
            otherwise a layout may fill a part of the network, and grids, channels and classes may differ.
        allow_missing: pattern of names in the network that may keep their first values all the same.
        source_grid: patches along X, Y, Z of the checkpoint's position table, for grids that are no cubes.
        inflation: how a 2D network is inflated.
        patch_merging: the form that a Swin transformer was trained with, if the network does not name it already;
            `auto`: what the file, its origin or its numbers tell.
        origin: what is known of the file beside its tensors.
        source: named in messages.

    Returns:
        The values by their names in the network, and the report; `report.accepted` says whether they may be loaded.

    Raises:
        CheckpointError: if two keys of the checkpoint mean the same tensor, or nothing tells the patch merging.
        ConfigValueError: if an argument does not fit.
    """
    state_dict, marks = split_marks(state_dict)
    wanted, _ = split_marks(network.state_dict())
    tensors, table = _choose_layout(state_dict, network, layout, source)
    report = MatchReport(source, table.name, table.title, table.family, type(network).__name__, table.licence)
    report.network_values = sum(tensor.numel() for tensor in wanted.values())
    with _name_source(source):
        parts = _prepare(tensors, table, network, inflation or Inflation(), report)
    renamed = _rename(parts, table, wanted, report)
    report.description = describe_network({name: part.tensor for name, part in renamed.items()})
    report.norm_epsilon = table.norm_epsilon
    report.network_description = describe_network(wanted)
    with _name_source(source):
        values = _place(renamed, network, wanted, source_grid, allow_missing, report)
    _tell_absent(values, wanted, table, allow_missing, report)
    report.loaded_values = sum(wanted[name].numel() for name in (*report.matched, *report.reshaped))
    surplus = [name for name in report.unexpected if re.fullmatch(table.fills, table.rename(name) or name)]
    faults: list[object] = [*report.missing, *report.misshapen, *surplus]
    if complete:
        faults += [*report.fresh, *report.untouched]
        faults += [name for name, note in report.reshaped.items() if note.endswith(APPROXIMATELY)]
    report.accepted = bool(report.num_loaded) and not faults
    if report.accepted:  # of weights that do not fit anyhow it need not be known
        asked = _choose_asked(patch_merging, network)
        if merging := find_form(values, marks, asked, origin, source):
            report.patch_merging, report.patch_merging_evidence = merging.form, merging.evidence
    return values, report


def _choose_asked(patch_merging: str, network: nn.Module) -> str:
    """Return the form that the argument names, or else the network's config."""
    return patch_merging if patch_merging != AUTO else getattr(network, "patch_merging", None) or AUTO


def describe_network(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read from the shapes of weights, named as in the network, which arguments it was built with."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def find(pattern: str) -> tuple[int, ...] | None:
        return next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)

    facts: dict[str, Any] = {}
    if positions := find(r"vit\.patch_embedding\.position_embeddings"):
        facts |= {"hidden_size": positions[2], "patches": positions[1]}
    if mlp := find(r"vit\.blocks\.0\.mlp\.linear1\.weight"):
        facts |= {"hidden_size": mlp[1], "mlp_dim": mlp[0]}
    if any(name.startswith("vit.blocks.") for name in shapes):
        facts["num_layers"] = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("vit.blocks."))
        facts["proj_type"] = "perceptron" if find(r"vit\..*patch_embeddings\.1\.weight") else "conv"
        facts["qkv_bias"] = find(r"vit\.blocks\.0\.attn\.qkv\.bias") is not None
    if embedding := find(r"swinViT\.patch_embed\.proj\.weight"):
        facts |= {"feature_size": embedding[0], "in_channels": embedding[1]}
        facts["use_v2"] = find(r"swinViT\.layers1c\..*") is not None
    if first := find(r"encoder1\.layer\.conv1\.conv\.weight"):
        facts |= {"feature_size": first[0], "in_channels": first[1]}
    if head := find(r"out\.conv\.conv\.weight"):
        facts["out_channels"] = head[0]
    return facts


def _choose_layout(
    state_dict: Mapping[str, Tensor], network: nn.Module, layout: str, source: str
) -> tuple[Mapping[str, Tensor], Layout]:
    """Return the checkpoint, its names without prefixes unless they are the network's own, and its layout."""
    wanted, _ = split_marks(network.state_dict())
    needed = {name for name in wanted if find_reason(OWN.may_lack, name) is None}
    if needed <= state_dict.keys() <= wanted.keys():
        return state_dict, _choose_identity(state_dict, layout)
    if layout == PART:
        return state_dict, describe_part(state_dict.keys())
    stripped = _strip(state_dict, source)
    if needed <= stripped.keys() <= wanted.keys():
        return stripped, _choose_identity(stripped, layout)
    table = recognize(stripped) if layout == "auto" else get_layout(layout)
    if table.planar and takes_timm(network):
        return stripped, TIMM
    # a network may have a part called `net`: its names count as they are, if any of them fit
    return (state_dict if table is OWN and wanted.keys() & state_dict.keys() else stripped), table


def _choose_identity(tensors: Mapping[str, Tensor], layout: str) -> Layout:
    """Return the layout of weights whose names are the network's own already."""
    table = recognize(tensors) if layout == "auto" else get_layout(layout)
    unchanged = all(table.find_drop(name) is None and table.rename(name) == name for name in tensors)
    return table if unchanged or layout != "auto" else OWN


def _strip(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    stripped = {strip_prefixes(name): tensor for name, tensor in state_dict.items()}
    if len(stripped) < len(state_dict):
        names = [strip_prefixes(name) for name in state_dict]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(
            source, f"{twice} twice, under two prefixes", "one network", "save the network to be used alone"
        )
    return stripped


@contextlib.contextmanager
def _name_source(source: str) -> Iterator[None]:
    """Put the file in front of what is wrong in it."""
    try:
        yield
    except ConfigValueError as error:
        raise ConfigValueError(f"{source}, {error.subject}", error.found, error.wanted, error.remedy) from error


def _prepare(
    tensors: Mapping[str, Tensor], table: Layout, network: nn.Module, inflation: Inflation, report: MatchReport
) -> dict[str, Part]:
    """Sort out what the layout drops; fold and inflate what a 2D network has and a 3D one has not."""
    parts = {}
    for name, tensor in tensors.items():
        reason = table.find_drop(name)
        if reason is None:
            parts[name] = Part(tensor, (name,))
        else:
            report.dropped[name] = reason
    if table.planar:
        normalization = table.normalization if inflation.normalization == "auto" else inflation.normalization
        # folding in float32 and float64: half-precision files are common
        parts = {name: Part(part.tensor.float(), part.sources) for name, part in parts.items()}
        if table is TIMM:
            inflated = inflate_encoder(parts, network, inflation)
            report.dropped |= {name: "not part of the encoder" for name in parts if name not in inflated}
            return inflated
        return inflate(join_biases(fold_layer_scale(parts)), network, inflation, normalization)
    return parts


def _rename(
    parts: Mapping[str, Part], table: Layout, wanted: Mapping[str, Tensor], report: MatchReport
) -> dict[str, Part]:
    renamed: dict[str, Part] = {}
    for name, part in parts.items():
        target = table.rename(name)
        if target is None or target in renamed:  # a second one: BEiT's fc_norm beside a norm
            report.unexpected += part.sources
            continue
        other = _name_in_other_projection(target)
        if other in wanted and target not in wanted:
            # what was inflated is in the network's order already
            renamed[other] = replace(part, other_projection=not table.planar)
        else:
            renamed[target] = part
    return renamed


def _name_in_other_projection(name: str) -> str:
    """Return the name of a patch projection's parameter in MONAI's other kind of projection; else `name`."""
    if not (found := PROJECTION.fullmatch(name)):
        return name
    return f"{found['stem']}{'' if found['linear'] else '.1'}.{found['kind']}"


def _place(
    renamed: Mapping[str, Part],
    network: nn.Module,
    wanted: Mapping[str, Tensor],
    source_grid: Sequence[int] | None,
    allow_missing: str | None,
    report: MatchReport,
) -> dict[str, Tensor]:
    """Return the values of the tensors that fit as they are or after a conversion; tell the others in the report."""
    values: dict[str, Tensor] = {}
    for name, part in renamed.items():
        if name not in wanted:
            report.unexpected += part.sources
            continue
        tensor, note = part.tensor, part.note
        if tensor.shape != wanted[name].shape or part.other_projection:
            adaptation = adapt(name, tensor, wanted[name], network, source_grid)
            if adaptation is None:
                _tell_misfit(name, part, wanted[name], allow_missing, report)
                continue
            tensor = adaptation.tensor
            note = ", ".join(filter(None, (note, adaptation.note, "" if adaptation.exact else APPROXIMATELY)))
        values[name] = tensor
        report.used += [source for source in part.sources if source not in report.used]
        if note:
            report.reshaped[name] = note
        else:
            report.matched.append(name)
    return values


def _tell_misfit(name: str, part: Part, wanted: Tensor, allow_missing: str | None, report: MatchReport) -> None:
    classes, wanted_classes = part.tensor.shape[0], wanted.shape[0]
    if allow_missing is not None and re.fullmatch(allow_missing, name):
        report.dropped |= dict.fromkeys(part.sources, "of another shape, which allow_missing permits")
    elif HEAD.fullmatch(name) and part.tensor.shape[1:] == wanted.shape[1:]:
        report.fresh[name] = f"{classes} classes in the file, {wanted_classes} wanted"
        report.dropped |= dict.fromkeys(part.sources, f"output layer for {classes} classes, not {wanted_classes}")
    else:
        report.misshapen[name] = f"{tuple(part.tensor.shape)} instead of {tuple(wanted.shape)}"
        report.unexpected += part.sources


def _tell_absent(
    values: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    table: Layout,
    allow_missing: str | None,
    report: MatchReport,
) -> None:
    """Sort the network's tensors that got no value; biases that are zero by their absence get zeros."""
    for name, tensor in wanted.items():
        if name in values or name in report.fresh or name in report.misshapen:
            continue
        if reason := find_reason(table.may_lack, name):
            report.tolerated[name] = reason
        elif not re.fullmatch(table.fills, name) or (allow_missing and re.fullmatch(allow_missing, name)):
            report.untouched.append(name)
        elif ZERO_BIAS.fullmatch(name) and name.replace(".bias", ".weight") in values:
            values[name] = torch.zeros_like(tensor)
            report.reshaped[name] = "zeros: the file's projection has no bias"
        else:
            report.missing.append(name)
