# SPDX-License-Identifier: Apache-2.0
"""This collection under a name of its own: the command `voxseg`, and three lines of Python.

    import voxseg

    model = voxseg.load_model("unetr_btcv/msd04_hippocampus")
    segmentation = model.segment("scan.nii.gz")  # a nibabel image

The code is in the package `tools`, as the configs of the bundles name it. That is a word that others use, too: this
module takes the `tools` beside itself, whatever the folder of the user or of a program holds under that name.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.api import LoadedModel, load_model, read_names, segment

__all__ = ["LoadedModel", "load_model", "main", "read_names", "segment"]

_HOME = Path(__file__).resolve().parent


def _import_tools() -> None:
    """Import the package `tools` that lies beside this module.

    Raises:
        ImportError: if the program has imported another one before.
    """
    if (known := sys.modules.get("tools")) is not None:
        places = [Path(place).resolve() for place in getattr(known, "__path__", [])]
        if _HOME / "tools" not in places:
            raise ImportError(f"found the package tools of {places}, wanted that of {_HOME}; import voxseg first")
        return
    spec = PathFinder.find_spec("tools", [str(_HOME)])
    if spec is None or spec.loader is None:
        raise ImportError(f"found no package tools in {_HOME}; install voxseg again")
    sys.modules["tools"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_import_tools()


def __getattr__(name: str) -> Any:
    """Import torch and MONAI when a model is asked for, and not for `voxseg --help`."""
    if name in __all__:
        from tools import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line."""
    from tools.__main__ import main as run

    run("voxseg")


if __name__ == "__main__":
    main()
