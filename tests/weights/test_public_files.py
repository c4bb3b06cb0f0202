# SPDX-License-Identifier: Apache-2.0
"""A file in the layout of each public one goes into a network of its bundle."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from zoo import SOURCES, build_source, build_target

from tools.catalogue import read_catalogue
from tools.errors import CheckpointError, ConfigValueError
from tools.weights import match

# a file in each layout, see zoo.py, and the networks that the bundles load into
FILES = {
    "unetr_monai_0.7": ("UNETR of MONAI 0.7",),
    "vit_2d": ("DINOv2", "ViT of timm"),
    "beit_2d": ("BEiT",),
    "timm": ("Swin of Microsoft",),
    "swin_ssl_0.8.1": ("model_swinvit.pt, original merging",),
    "swin_dae": ("disruptive autoencoder, original merging",),
    "swin_unetr": ("SwinUNETR, original merging", "SwinUNETR v2, original merging"),
    "voco": ("VoCo_SSL_head, original merging",),
}
NETWORKS = {
    "unetr_btcv": ("UNETR", "UNETR with biases, perceptron"),
    "swin_unetr_ssl": ("SwinUNETR",),
    "voco_finetune": ("SwinUNETR v2",),
    "inflated_vit_seg": ("inflated DINOv2", "inflated ViT", "inflated BEiT", "inflated Swin"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bundle", NETWORKS)
def test_every_public_file_goes_into_a_network_of_its_bundle(bundle):
    for file in read_catalogue(bundle):
        assert file.layout in FILES, f"{file.name}: no network takes the layout {file.layout}"
        accepted = []
        for name, target in itertools.product(FILES[file.layout], NETWORKS[bundle]):
            state = SOURCES[name].write(build_source(name))
            with contextlib.suppress(CheckpointError, ConfigValueError):
                accepted.append(match(build_target(target), state, file.layout, **SOURCES[name].options)[1].accepted)
        assert any(accepted), file.name
