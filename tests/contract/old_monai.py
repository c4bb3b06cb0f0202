# SPDX-License-Identifier: Apache-2.0
"""Runs under an old MONAI: builds a Swin UNETR with random weights and writes them with what the network computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import monai
import torch
from monai.networks.nets import SwinUNETR

IMAGE = (64, 32, 32)


def main(folder: Path, networks: list[dict[str, object]]) -> None:
    """Write `<name>.pt` for each network: `state` and, for one image, `maps`, `encoders`, `output`."""
    torch.set_num_threads(1)
    image = torch.rand(1, 1, *IMAGE, generator=torch.Generator().manual_seed(0))
    for number, options in enumerate(networks):
        torch.manual_seed(number)
        name = options.pop("name")
        network = SwinUNETR(img_size=IMAGE, in_channels=1, **options).eval()
        for parameter in network.parameters():
            if parameter.ndim == 1:  # norms and biases at random, too
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        with torch.no_grad():
            maps = network.swinViT(image)
            blocks = (network.encoder1, network.encoder2, network.encoder3, network.encoder4, network.encoder10)
            encoders = [block(x) for block, x in zip(blocks, (image, *maps[:3], maps[4]), strict=True)]
            content = {"image": image, "maps": maps, "encoders": encoders, "output": network(image)}
        torch.save({"state": network.state_dict(), **content}, folder / f"{name}.pt")
    (folder / "version.txt").write_text(monai.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
