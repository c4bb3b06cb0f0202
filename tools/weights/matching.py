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
from tools.networks.patch_merging import AUTO, check_form
from tools.weights.adaptation import PROJECTION, WINDOW_INDEX, adapt, get_sizes, has_standard_index, is_regridded
from tools.weights.classes import HEAD, Classes, find_class_axis, reorder
from tools.weights.contradictions import find_contradictions
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
from tools.weights.options import check_pattern, check_source_grid, check_source_heads
from tools.weights.planar import Part, find_gaps, fold_layer_scale, inflate, join_biases
from tools.weights.remarks import list_remarks
from tools.weights.report import MatchReport
from tools.weights.timm_encoders import inflate_encoder, takes_timm
from tools.weights.values import check_floats, check_kind, convert_kind, list_casts

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
    allow_unused: str | None = None,
    source_grid: Sequence[int] | None = None,
    source_heads: int | None = None,
    inflation: Inflation | None = None,
    patch_merging: str = AUTO,
    origin: Origin | None = None,
    source: str = "weights",
    classes: Classes | None = None,
) -> tuple[dict[str, Tensor], MatchReport]:
    """Find for each tensor of `network` its values in `state_dict`; nothing is loaded yet.

    Args:
        network: what the weights are for.
        state_dict: the tensors of a checkpoint.
        layout: a key of `layouts.LAYOUTS`; `auto`: found by the names in it.
        complete: whether every tensor must come from the checkpoint and fit without approximation, as for inference;
            otherwise a layout may fill a part of the network, and grids, channels and classes may differ.
        allow_missing: pattern of names in the network that may keep their first values all the same.
        allow_unused: pattern of names in the checkpoint that may be left out all the same.
        source_grid: patches along X, Y, Z of the checkpoint's position table, for grids that are no cubes.
        source_heads: attention heads of the checkpoint's network, which no tensor tells.
        inflation: how a 2D network is inflated.
        patch_merging: the form that a Swin transformer was trained with, if the network does not name it already;
            `auto`: what the file or its origin tells.
        origin: what is known of the file beside its tensors.
        source: named in messages.
        classes: names of the classes of both, where they differ: each keeps its output layer.

    Returns:
        The values by their names in the network, and the report; `report.accepted` says whether they may be loaded.

    Raises:
        CheckpointError: if two keys of the checkpoint mean the same tensor, its numbers are none of weights, or nothing
            tells the patch merging.
        ConfigValueError: if an argument does not fit.
    """
    check_pattern("allow_missing", allow_missing)
    check_pattern("allow_unused", allow_unused)
    check_source_grid(source_grid)
    check_source_heads(source_heads)
    check_form(patch_merging, AUTO)
    inflation = inflation or Inflation()
    state_dict, marks = split_marks(state_dict)
    wanted, _ = split_marks(network.state_dict())
    tensors, table = _choose_layout(state_dict, network, wanted, layout, source)
    report = MatchReport(source, table.name, table.title, table.family, type(network).__name__, table.licence)
    report.network_values = sum(tensor.numel() for tensor in wanted.values())
    with _name_source(source):
        parts = _prepare(tensors, table, network, inflation, allow_unused, report)
    renamed = _rename(parts, table, wanted, report)
    report.description = describe_network({name: part.tensor for name, part in renamed.items()})
    report.norm_epsilon = table.norm_epsilon
    report.network_description = describe_network(wanted)
    with _name_source(source):
        values = _place(renamed, network, wanted, source_grid, allow_missing, complete, report, classes)
    _tell_absent(values, wanted, tensors, table, allow_missing, report)
    report.loaded_values = sum(wanted[name].numel() for name in (*report.matched, *report.reshaped))
    faults: list[object] = [*report.missing, *report.misshapen, *report.unexpected]
    if report.num_loaded and not faults:
        normalization = _choose_normalization(table, inflation)
        report.remarks += list_casts(part.tensor for part in renamed.values())
        with _name_source(source):
            report.remarks += list_remarks(network, table.planar, normalization, source_grid, source_heads)
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

    def find(name: str, ndim: int) -> tuple[int, ...] | None:
        tensor = tensors.get(name)
        return tuple(tensor.shape) if tensor is not None and tensor.ndim == ndim else None

    facts: dict[str, Any] = {}
    if positions := find("vit.patch_embedding.position_embeddings", 3):
        facts |= {"hidden_size": positions[2], "patches": positions[1]}
    if mlp := find("vit.blocks.0.mlp.linear1.weight", 2):
        facts |= {"hidden_size": mlp[1], "mlp_dim": mlp[0]}
    blocks = {match[1] for name in tensors if (match := re.match(r"vit\.blocks\.(\d+)\.", name))}
    if blocks:
        facts["num_layers"] = 1 + max(map(int, blocks))
        perceptron = "vit.patch_embedding.patch_embeddings.1.weight" in tensors
        facts["proj_type"] = "perceptron" if perceptron else "conv"
        facts["qkv_bias"] = "vit.blocks.0.attn.qkv.bias" in tensors
    if embedding := find("swinViT.patch_embed.proj.weight", 5):
        facts |= {"feature_size": embedding[0], "in_channels": embedding[1]}
        facts["use_v2"] = any(name.startswith("swinViT.layers1c.") for name in tensors)
    if first := find("encoder1.layer.conv1.conv.weight", 5):
        facts |= {"feature_size": first[0], "in_channels": first[1]}
    if head := find("out.conv.conv.weight", 5):
        facts["out_channels"] = head[0]
    return facts


def _choose_layout(
    state_dict: Mapping[str, Tensor],
    network: nn.Module,
    wanted: Mapping[str, Tensor],
    layout: str,
    source: str,
) -> tuple[Mapping[str, Tensor], Layout]:
    """Return the checkpoint, its names without prefixes unless they are the network's own, and its layout."""
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
    if table is TIMM:
        own = sorted({name.split(".", 2)[2] for name in stripped if re.fullmatch(r"blocks\.0\.attn\..*", name)})
        raise CheckpointError(
            source,
            f"a 2D transformer that is no plain ViT (in its first block {', '.join(own) or 'no attn'})",
            f"attention with one qkv in a block, for {type(network).__name__}",
            "use inflated_vit_seg with the model of timm that it is",
        )
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
    except (CheckpointError, ConfigValueError) as error:
        raise type(error)(f"{source}, {error.subject}", error.found, error.wanted, error.remedy) from error


def _prepare(
    tensors: Mapping[str, Tensor],
    table: Layout,
    network: nn.Module,
    inflation: Inflation,
    allow_unused: str | None,
    report: MatchReport,
) -> dict[str, Part]:
    """Sort out what the layout drops; fold and inflate what a 2D network has and a 3D one has not."""
    parts = {}
    for name, tensor in tensors.items():
        # of a timm model the names say what to do with others, until timm has converted them
        reason = None if table is TIMM else table.find_drop(name)
        if allow_unused is not None and re.fullmatch(allow_unused, name):
            reason = "left out, as allow_unused says"
        if reason is None:
            parts[name] = Part(tensor, (name,))
            (check_floats if table.planar and table.find_drop(name) is None else check_kind)(name, tensor)
        else:
            report.dropped[name] = reason
    if table.planar:
        # folding in float32 and float64: half-precision files are common
        parts = {
            name: Part(part.tensor.float() if part.tensor.is_floating_point() else part.tensor, part.sources)
            for name, part in parts.items()
        }
        if table is TIMM:
            parts, dropped = inflate_encoder(parts, network, inflation)
            report.dropped |= dropped
            return parts
        if gaps := find_gaps(parts):
            found, remedy = f"no {gaps[0]}, which other blocks have", "download or copy the file again"
            raise CheckpointError(f"{len(gaps)} tensors", found, "the same parts in all blocks", remedy)
        parts = join_biases(fold_layer_scale(parts))
        return inflate(parts, network, inflation, _choose_normalization(table, inflation))
    return parts


def _choose_normalization(table: Layout, inflation: Inflation) -> str:
    return table.normalization if inflation.normalization == "auto" else inflation.normalization


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
    complete: bool,
    report: MatchReport,
    classes: Classes | None,
) -> dict[str, Tensor]:
    """Return the values of the tensors that fit as they are or after a conversion; tell the others in the report."""
    values: dict[str, Tensor] = {}
    tensors = {name: part.tensor for name, part in renamed.items()}
    contradictions = find_contradictions(tensors, wanted, get_sizes(network, "patch_size"))
    for name, part in renamed.items():
        if name not in wanted:
            _tell_surplus(name, part, report)
            continue
        tensor, note = part.tensor, part.note
        if name in contradictions:
            report.misshapen[name] = contradictions[name]
            report.unexpected += part.sources
            continue
        if classes is not None and HEAD.fullmatch(name) and _has_classes(tensor, wanted[name], classes):
            values[name] = convert_kind(name, reorder(tensor, wanted[name], classes), wanted[name])
            report.used += [source for source in part.sources if source not in report.used]
            report.reshaped[name] = classes.describe()
            continue
        other_grid = not complete and not part.note and is_regridded(name, tensor, network, source_grid)
        if tensor.shape != wanted[name].shape or part.other_projection or other_grid:
            adaptation = adapt(name, tensor, wanted[name], network, source_grid)
            if adaptation is None:
                _tell_misfit(name, part, wanted[name], allow_missing, report)
                continue
            tensor = adaptation.tensor
            note = ", ".join(filter(None, (note, adaptation.note, "" if adaptation.exact else APPROXIMATELY)))
        elif WINDOW_INDEX.fullmatch(name):
            if not has_standard_index(tensor, wanted[name]):
                report.misshapen[name] = "positions of another kind of window"
                report.unexpected += part.sources
                continue
            tensor = wanted[name]
        values[name] = convert_kind(name, tensor, wanted[name])
        report.used += [source for source in part.sources if source not in report.used]
        if note:
            report.reshaped[name] = note
        else:
            report.matched.append(name)
    return values


def _has_classes(tensor: Tensor, wanted: Tensor, classes: Classes) -> bool:
    """Tell whether an output layer has the classes that are known of file and network, and else the same shape."""
    if tensor.ndim != wanted.ndim:
        return False
    axis = find_class_axis(wanted.shape)
    shapes = [list(side.shape) for side in (tensor, wanted)]
    counts = [shape.pop(axis) for shape in shapes]
    return counts == [len(classes.old), len(classes.new)] and shapes[0] == shapes[1]


def _tell_surplus(name: str, part: Part, report: MatchReport) -> None:
    """Tell what has no place in the network: nothing that computes may be left out for that."""
    if not part.tensor.numel():
        report.dropped |= dict.fromkeys(part.sources, "empty")
    elif ZERO_BIAS.fullmatch(name) and not part.tensor.any():
        report.dropped |= dict.fromkeys(part.sources, "zeros, and the network's projection has no bias")
    else:
        report.unexpected += part.sources


def _tell_misfit(name: str, part: Part, wanted: Tensor, allow_missing: str | None, report: MatchReport) -> None:
    if allow_missing is not None and re.fullmatch(allow_missing, name):
        report.dropped |= dict.fromkeys(part.sources, "of another shape, which allow_missing permits")
    elif HEAD.fullmatch(name) and part.tensor.ndim == wanted.ndim and _differs_in_classes(part.tensor, wanted):
        axis = find_class_axis(wanted.shape)
        classes, wanted_classes = part.tensor.shape[axis], wanted.shape[axis]
        report.fresh[name] = f"{classes} classes in the file, {wanted_classes} wanted"
        report.dropped |= dict.fromkeys(part.sources, f"output layer for {classes} classes, not {wanted_classes}")
    else:
        report.misshapen[name] = f"{tuple(part.tensor.shape)} instead of {tuple(wanted.shape)}"
        report.unexpected += part.sources


def _differs_in_classes(tensor: Tensor, wanted: Tensor) -> bool:
    axis = find_class_axis(wanted.shape)
    return all(a == b for i, (a, b) in enumerate(zip(tensor.shape, wanted.shape, strict=True)) if i != axis)


def _tell_absent(
    values: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    table: Layout,
    allow_missing: str | None,
    report: MatchReport,
) -> None:
    """Sort the network's tensors that got no value; biases that are zero by their absence get zeros."""
    has_biases = any(ZERO_BIAS.fullmatch(name) for name in values)
    for name, tensor in wanted.items():
        if name in values or name in report.fresh or name in report.misshapen:
            continue
        if (reason := find_reason(table.may_lack, name)) and _is_proved(name, values, tensors, table):
            report.tolerated[name] = reason
        elif not re.fullmatch(table.fills, name) or (allow_missing and re.fullmatch(allow_missing, name)):
            report.untouched.append(name)
        elif ZERO_BIAS.fullmatch(name) and not has_biases and name.replace(".bias", ".weight") in values:
            values[name] = torch.zeros_like(tensor)
            report.reshaped[name] = "zeros: the file's projection has no bias"
        else:
            report.missing.append(name)


def _is_proved(name: str, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor], table: Layout) -> bool:
    """Tell whether the file's network lacks a tensor, too, and has not lost it, or a part of a layer."""
    pattern = next(pattern for pattern in table.may_lack if re.fullmatch(pattern, name))
    proof = table.proofs.get(pattern)
    if proof is None:
        return True
    return any(re.fullmatch(proof, other) for other in tensors) and not any(re.fullmatch(pattern, n) for n in values)
