# SPDX-License-Identifier: Apache-2.0
"""Do the tests notice faults? One line is changed at a time; the tests of its room must fail, or else the others.

    python tests/mutants.py results.json           # goes on where it was interrupted
    python tests/mutants.py one.json --part 1/2    # half of them, beside another process with --part 2/2
    python tests/mutants.py results.json --list    # who noticed what

Each result has its seconds. Where its room does not notice a fault, it takes as long as the suite.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault: `old`, which stands once in a file, becomes `new`."""

    file: str
    old: str
    new: str

    @property
    def name(self) -> str:
        """What is changed, for people and as a key."""
        return f"{self.file}: {self.old.strip()} -> {self.new.strip()}"

    def find_room(self) -> list[str]:
        """Return the tests of the room that the fault is in."""
        parts = Path(self.file).parts
        if parts[0] == "bundles" or self.file.endswith(".yaml"):
            return ["tests/bundles"]
        if parts[-1] == "__main__.py":
            return ["tests/test_commands.py", "tests/linting"]
        room = Path(parts[1]).stem
        files = sorted((REPOSITORY / "tests").glob(f"test_{room.removesuffix('s')}*.py"))
        return [f"tests/{room}", *(f"tests/{file.name}" for file in files)]  # those that there are


MUTANTS = [
    # what people type
    Mutant("tools/models.py", '_WEIGHTS = ("best.pt", "last.pt")', '_WEIGHTS = ("last.pt", "best.pt")'),
    Mutant("tools/commands/choice.py", "best = max(fitting", "best = min(fitting"),
    Mutant("tools/commands/train.py", "named[value] for value in sorted(named)", "named[value] for value in named"),
    Mutant("tools/configs/models.py", "or value != usual[name]", "or value == usual[name]"),
    Mutant("tools/scans/nifti.py", "_ROUNDED, _CONTRADICTING = 0.01, 0.1", "_ROUNDED, _CONTRADICTING = 0.01, 10.0"),
    Mutant("tools/scans/scan.py", "extent[nib.io_orientation(self.affine_mm)[:, 0].astype(int)] =", "extent[:] ="),
    Mutant("tools/inference/progress.py", "/ step) + 1)", "/ step))"),
    Mutant("tools/reports/statistics.py", "for end in (0, -1)", "for end in (0,)"),
    # what training sees
    Mutant("tools/datasets/sides.py", 'if letter in "RL"', 'if letter in "AP"'),
    Mutant("tools/datasets/caching.py", "[str(file), stat.st_size, stat.st_mtime_ns]", "[str(file), stat.st_size]"),
    Mutant("tools/transforms.py", "len(self._flipped) % 2 == 1", "len(self._flipped) >= 1"),
    Mutant("tools/inference/mirroring.py", "if self.classes and len(dims) % 2 else", "if self.classes else"),
    Mutant("tools/handlers/training.py", "[self.seed, self.epoch, index]", "[self.seed, index]"),
    Mutant("tools/handlers/evaluation.py", "(centres[0] - centres[1])", "(centres[1] - centres[0])"),
    Mutant("tools/checks/samples.py", "if share > _MOSTLY", "if share < _MOSTLY"),
    Mutant("tools/channels.py", "if num_channels in (None, len(files)) else", "if num_channels != 1 else"),
    Mutant("tools/losses.py", "use_softmax=True", "use_softmax=False"),
    Mutant("bundles/inflated_vit_seg/configs/train.yaml", "nearest-exact], anti_aliasing", "nearest], anti_aliasing"),
    # the ground rooms
    Mutant(
        "tools/errors.py", 'and "can\'t allocate memory" in str(error)', 'and "cannot allocate memory" in str(error)'
    ),
    Mutant("tools/files.py", "            os.fsync(written.fileno())", "            pass"),
    Mutant("tools/files.py", "and not math.isfinite(content) else content", "and math.isnan(content) else content"),
    Mutant("tools/tables.py", "if 0 < abs(cell) < _SMALLEST_FIXED", "if 0 < cell < _SMALLEST_FIXED"),
    Mutant(
        "tools/hardware.py", '(kib["MemAvailable"] + kib["SwapFree"]) * 1024 / 1e9', 'kib["MemAvailable"] * 1024 / 1e9'
    ),
    Mutant("tools/distribution.py", "    atexit.register(gc.collect)\n", ""),
    Mutant(
        "tools/bundles.py",
        '    if value is None:\n        return "$None"',
        "    if value is None:\n        return None",
    ),
    Mutant("tools/catalogue.py", 'if path.is_absolute() or ".." in path.parts:', "if path.is_absolute():"),
    Mutant("tools/__main__.py", "        sys.exit(1)", "        sys.exit(0)"),
    # scans and data sets
    Mutant("tools/scans/grids.py", "_LARGEST_SHIFT = 0.5", "_LARGEST_SHIFT = 1.5"),
    Mutant(
        "tools/scans/nifti.py",
        "np.linalg.matrix_rank(affine[:3, :3]) < 3",
        "np.linalg.matrix_rank(affine[:3, :3]) < 2",
    ),
    Mutant("tools/datasets/scans.py", "int(part) if part.isdecimal() else part", "part"),
    Mutant("tools/datasets/datalists.py", "max(1, round(share * len(pairs)))", "max(1, int(share * len(pairs)))"),
    Mutant("tools/datasets/unlabelled.py", "_VALIDATION_STEP = 10", "_VALIDATION_STEP = 9"),
    Mutant("tools/evaluation.py", "include_background=False", "include_background=True"),
    Mutant("tools/transforms.py", "            self._rand_k = 2\n", "            self._rand_k = 1\n"),
    # inference and what is shown
    Mutant("tools/inference/segmenter.py", "return same or (", "return same and ("),
    Mutant("tools/inference/mirroring.py", "[axis + 2 for axis in choice]", "[axis + 1 for axis in choice]"),
    Mutant("tools/scans/scan.py", "        image.set_data_dtype(voxels.dtype)\n", ""),
    Mutant("tools/scans/nifti.py", "    affine[:3] *= get_unit_mm(image)", "    affine[:2] *= get_unit_mm(image)"),
    Mutant("tools/reports/planes.py", ".T[::-1, ::-1]", ".T[::-1, :]"),
    # networks and pre-training
    Mutant(
        "tools/networks/unetr.py",
        "quarter * self.num_layers // 4 for quarter in (1, 2, 3)",
        "quarter * self.num_layers // 4 for quarter in (1, 2, 4)",
    ),
    Mutant(
        "tools/networks/patch_merging.py",
        "(0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)",
        "(0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 1, 1)",
    ),
    Mutant("tools/pretraining/volume_contrast.py", "+ 1) % total", "+ 0) % total"),
    Mutant(
        "tools/pretraining/proxy_tasks.py",
        "2 + other for other in range(3) if other != axis",
        "1 + other for other in range(3) if other != axis",
    ),
    Mutant(
        "tools/optimization.py",
        "for decay, flat in ((weight_decay, False), (0.0, True)):",
        "for decay, flat in ((weight_decay, True), (0.0, False)):",
    ),
    Mutant(
        "tools/handlers/training.py",
        "choose = min if self.lower_is_better else max",
        "choose = max if self.lower_is_better else min",
    ),
    # weights
    Mutant(
        "tools/weights/inflation.py",
        "weight = resample_kernel(weight, (height, width))",
        "weight = resample_kernel(weight, (width, height))",
    ),
    Mutant("tools/weights/adaptation.py", "keepdim=True) / channels", "keepdim=True)"),
    Mutant(
        "tools/weights/adaptation.py",
        "return weight.movedim(1, -1).flatten(1).contiguous()",
        "return weight.flatten(1).contiguous()",
    ),
    Mutant("tools/weights/files.py", "facts | read_metadata(path)", "facts"),
    # what others get, and the server
    Mutant(
        "tools/release/exports.py",
        'omit = [card], ["card", "checkpoint", "bundle_root"]',
        'omit = [card], ["card", "checkpoint", "bundle_root", "label_map"]',
    ),
    Mutant("tools/labelling/access.py", "if not HOSTNAME.fullmatch(name):", "if not HOSTNAME.match(name):"),
    Mutant("tools/labelling/uploads.py", "if wanted > SCAN_BYTES:", "if wanted > 10 * SCAN_BYTES:"),
    Mutant("tools/linting/values.py", "return all(map(is_plain, value)) if", "return any(map(is_plain, value)) if"),
    Mutant("tools/studies/definition.py", "for name in _order(runs, subject)}", "for name in runs}"),
    # configs
    Mutant(
        "bundles/unetr_btcv/configs/inference.yaml",
        'pixdim: "@pixdim", mode: bilinear',
        'pixdim: "@pixdim", mode: nearest',
    ),
    Mutant(
        "bundles/swin_unetr_ssl/configs/pretrain.yaml",
        "metric: reconstruction, lower_is_better: true",
        "metric: reconstruction, lower_is_better: false",
    ),
    Mutant(
        "bundles/swin_unetr_ssl/configs/multi_gpu_train.yaml",
        "even_divisible: true, shuffle: true, seed",
        "even_divisible: true, shuffle: true, num_replicas: 1, rank: 0, seed",
    ),
    Mutant("bundles/voco_finetune/configs/pretrain.yaml", 'num_crops: "@val_crops"', 'num_crops: "@num_crops"'),
    Mutant(
        "bundles/inflated_vit_seg/configs/train.yaml",
        "@learning_rate, @weight_decay, @layer_decay)",
        "@learning_rate, @weight_decay, 1.0)",
    ),
    Mutant("tools/datasets/openkbp_hn.yaml", "3: 3, 4: 4, 5: 0", "3: 4, 4: 3, 5: 0"),
]


def copy_repository(folder: Path) -> Path:
    """Copy what git knows into a folder, beside a link to the data that some tests read."""
    copy = folder / "repository"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy / name)
    if (REPOSITORY.parent / "shared").is_dir():
        (folder / "shared").symlink_to(REPOSITORY.parent / "shared")
    return copy


def run_tests(copy: Path, paths: list[str]) -> str | None:
    """Return the first test that fails, None if none does."""
    count = "2" if paths in ([], ["tests/bundles"]) else "0"  # a second process takes 10 s to start
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-n",
        count,
        "-p",
        "no:cacheprovider",
        *paths,
        f"--ignore={copy / 'tests' / 'test_mutants.py'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode in (0, 5):  # passed, or no test in that place
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else f"status {done.returncode}: {(done.stdout + done.stderr)[-300:]}"


def try_mutant(mutant: Mutant, copy: Path) -> dict[str, object]:
    """Return who noticed a fault, and after how many seconds."""
    path = copy / mutant.file
    original, start = path.read_text(encoding="utf-8"), time.monotonic()
    assert original.count(mutant.old) == 1, f"{mutant.file} has {mutant.old!r} {original.count(mutant.old)} times"
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        room = [place for place in mutant.find_room() if (copy / place).exists()]
        noticed = run_tests(copy, room) if room else None
        where = "room"
        if noticed is None:
            noticed, where = run_tests(copy, []), "rest"
    finally:
        path.write_text(original, encoding="utf-8")
    return {"noticed": noticed, "where": where if noticed else None, "seconds": round(time.monotonic() - start)}


def main() -> int:
    """Try what has not been tried yet; status 1 if a fault was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--list", action="store_true", help="try nothing, print what is known")
    parser.add_argument("--part", default="1/1", help="of all of them, such as 1/2")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    chosen = MUTANTS[part - 1 :: parts]
    results = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    if not arguments.list:
        with tempfile.TemporaryDirectory() as folder:
            copy = copy_repository(Path(folder))
            for mutant in chosen:
                if mutant.name not in results:
                    results[mutant.name] = try_mutant(mutant, copy)
                    arguments.results.write_text(json.dumps(results, indent=1))
    known = [(mutant.name, results[mutant.name]) for mutant in chosen if mutant.name in results]
    for name, result in known:
        sys.stdout.write(f"{result['noticed'] or 'NOT NOTICED'}\n    {name} ({result['seconds']} s)\n")
    noticed = sum(result["noticed"] is not None for _, result in known)
    sys.stdout.write(f"{noticed} of {len(known)} noticed, {len(chosen) - len(known)} not tried\n")
    return int(noticed < len(known))


if __name__ == "__main__":
    sys.exit(main())
