# SPDX-License-Identifier: Apache-2.0
"""Images in memory, for programs: nibabel's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np

NiftiImage: TypeAlias = nib.Nifti1Image  # of which nibabel's Nifti2Image is one


def load_image(path: str | Path) -> NiftiImage:
    """Return a file as an image with its voxels in memory, so that the file may go."""
    image = nib.load(path)
    return type(image)(np.array(image.dataobj), image.affine, image.header)


def save_image(image: NiftiImage, path: str | Path) -> None:
    """Write an image to a file."""
    nib.save(image, path)


def find_names(image: NiftiImage) -> dict[int, str] | None:
    """Return the names of the values of a segmentation that its header holds, None if there are none."""
    for extension in image.header.extensions:
        try:
            content = json.loads(extension.get_content())
        except ValueError:
            continue
        if isinstance(content, dict) and "labels" in content:
            return {int(value): str(name) for value, name in content["labels"].items()}
    return None
