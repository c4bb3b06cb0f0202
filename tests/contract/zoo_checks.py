# SPDX-License-Identifier: Apache-2.0
"""What the model zoo asks of a bundle, as a program: `python zoo_checks.py SCHEMA DATASET_DIR` in its folder.

It is a program because what a downloaded bundle imports must come from its own folder, in a fresh interpreter.

Source: ci/verify_bundle.py and ci/unit_tests of github.com/Project-MONAI/model-zoo, whose steps these are.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import traceback
from pathlib import Path

BUNDLE = Path.cwd()
METADATA, WEIGHTS, SCRIPT = Path("configs/metadata.json"), Path("models/model.pt"), Path("models/verify_model.ts")
PINNED = ("monai_version", "pytorch_version", "numpy_version")


def find_config(name: str = "inference") -> str:
    """Return the config that the zoo reads: JSON before YAML."""
    return next(str(path) for suffix in ("json", "yaml", "yml") if (path := Path(f"configs/{name}.{suffix}")).is_file())


def check_files() -> None:
    for path in (Path("LICENSE"), METADATA, WEIGHTS, Path(find_config())):
        assert path.is_file(), f"no {path}"


def check_version() -> None:
    metadata = json.loads(METADATA.read_text())
    assert metadata["version"] in metadata["changelog"]
    # the zoo installs what is named here with pip, which knows no 2.13.0+cpu of a CPU build
    packages = {name: metadata[name] for name in PINNED} | metadata["required_packages_version"]
    wrong = {name: version for name, version in packages.items() if not re.fullmatch(r"\d+(\.\d+)+", version)}
    assert not wrong, wrong


def check_metadata() -> None:
    from monai.bundle import verify_metadata

    verify_metadata(meta_file=str(METADATA), filepath=sys.argv[1])  # there already, so nothing is downloaded


def check_network() -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out("network_def", str(METADATA), find_config(), bundle_root=str(BUNDLE))


def check_torchscript() -> None:
    import torch
    from monai.bundle import ckpt_export

    ckpt_export("network_def", str(SCRIPT), str(WEIGHTS), str(METADATA), find_config(), bundle_root=str(BUNDLE))
    torch.jit.load(SCRIPT)


def check_properties() -> None:
    from monai.bundle import ConfigWorkflow

    dataset = Path(sys.argv[2])
    scans = sorted((dataset / "imagesTr").iterdir())
    data = {
        "inference": {"dataset_dir": str(scans[0])},
        "train": {"dataset_dir": str(dataset), "validation_cases": [scans[0].name.removesuffix(".nii.gz")]},
    }
    for kind, overrides in data.items():
        workflow = ConfigWorkflow(
            find_config(kind),
            str(METADATA),
            "configs/logging.conf",
            workflow_type=kind,
            bundle_root=str(BUNDLE),
            **overrides,
        )
        workflow.initialize()
        assert workflow.check_properties() == [], kind


def check_tools() -> None:
    """Not a check of the zoo: if the bundle has its own `tools`, they are what was used."""
    found = importlib.util.find_spec("tools")
    assert found is not None
    assert not Path("tools").is_dir() or Path(str(found.origin)).is_relative_to(BUNDLE), found.origin


CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_files,
        check_version,
        check_metadata,
        check_network,
        check_torchscript,
        check_properties,
        check_tools,
    )
}


def main() -> None:
    """Run all checks and write `{name of a check: its error}`, of those that fail, as the last line."""
    sys.path[0] = str(BUNDLE)
    errors = {}
    for name, check in CHECKS.items():
        try:
            check()
        except Exception:  # whatever it is, the test that reads this line fails with it
            errors[name] = traceback.format_exc()
    sys.stdout.write(f"\n{json.dumps(errors)}\n")


if __name__ == "__main__":
    main()
