# SPDX-License-Identifier: Apache-2.0
"""Every file into every network: it is refused in one sentence, or both compute the same.

`zoo.SOURCES` has the networks that public files come from, each with the options that add tensors or change what it
does; `zoo.TARGETS` those that the bundles load into. What is compared are outputs: of the source network itself, built
by its owner's code, and of the network that was loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import SOURCES, TARGETS, borrow_target, build_source, build_target, compare

from tools.errors import CheckpointError, ConfigValueError
from tools.weights import LAYOUTS, load, match
from tools.weights.layouts import recognize, strip_prefixes
from tools.weights.loading import refuse

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5  # of the largest number of each output


def find_fault(target: str, state: dict[str, Tensor], source: str, options: Mapping[str, Any]) -> str | None:
    """Return the sentence with which a network refuses weights, None if it takes them."""
    try:
        _, report = match(build_target(target), state, source=source, **options)
    except (CheckpointError, ConfigValueError) as error:
        return str(error)
    return None if report.accepted else str(refuse(report, complete=False))


# in the original patch merging: a file of each layout in each commit, all of them before a release
ORIGINAL = [f"{name}, original merging" for name in ("SwinUNETR", "SwinUNETR v2", "model_swinvit.pt", "VoCo_SSL_head")]
SAMPLE = [name for name in SOURCES if name in ORIGINAL or "original merging" not in name]
# and of the networks each third one, another third for the next file
WALKS = [(name, True) for name in SAMPLE] + [
    pytest.param(name, False, marks=pytest.mark.exhaustive) for name in SOURCES
]


@pytest.mark.parametrize(("name", "sampled"), WALKS)
def test_a_file_computes_in_any_network_what_it_did_or_is_refused(name, sampled, tmp_path):
    source, path = SOURCES[name], tmp_path / "weights.pt"
    state = source.write(build_source(name))
    torch.save({source.wrapper: state} if source.wrapper else state, path)
    accepted = []
    first = list(SOURCES).index(name) % 3
    chosen = list(TARGETS)[first::3] if sampled else list(TARGETS)
    for target in (*chosen, *(other for other in TARGETS if other not in chosen)):
        if target not in chosen and (accepted or not source.fits):
            break  # a file that fits is taken by one at the least
        # only for those that are accepted the file is read: that takes as long as ten matches
        fault = find_fault(target, state, str(path), source.options)
        if fault is not None:
            assert fault.startswith(str(path)), target
            assert "\n" not in fault
            continue
        with borrow_target(target) as network:
            load(network, path, report_dir=tmp_path, **source.options)
            pairs = list(compare(name, network, json.loads((tmp_path / "weights.json").read_text())))
        assert pairs, "nothing was compared"
        for expected, computed in pairs:
            scale = expected.abs().max().item()
            assert scale > 1e-3
            assert (expected - computed).abs().max().item() <= TOLERANCE * scale, target
        accepted.append(target)
    assert bool(accepted) == source.fits, accepted


def test_the_walk_covers_each_layout_and_has_files_that_fit_nowhere():
    states = {name: source.write(build_source(name)) for name, source in SOURCES.items() if "merging" not in name}
    layouts = {recognize({strip_prefixes(key): x for key, x in state.items()}).name for state in states.values()}
    assert layouts >= set(LAYOUTS) - {"own"}
    assert 0 < sum(not source.fits for source in SOURCES.values()) < len(SOURCES) / 2
    assert len(SOURCES) * len(TARGETS) > 2000
