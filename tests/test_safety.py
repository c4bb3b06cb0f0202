# SPDX-License-Identifier: Apache-2.0
"""Nothing in the project may load weights unsafely or silently, unpack blindly, or start a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.bundles import REPOSITORY

FOLDERS = ("tools", "tests", "bundles", ".ci")
# tests that load as other programs do, to see that these get the same network
AS_OTHERS_LOAD = {
    "tests/networks/test_patch_merging.py": ["copy_model_state", "copy_model_state"],  # ckpt_export, monai.bundle.load
    "tests/contract/test_old_monai.py": ["load_state_dict"],  # MONAI Label
    "tests/weights/zoo.py": ["load_state_dict"],  # what a file lacks is seen by the comparison of outputs
}
# in any text: Python, configs, scripts, docs
TEXTS = {
    "code in a checkpoint would run": r"weights_only['\"]?\s*[=:]\s*(False|false|0|None|null)\b",
    "a pickle would run code": r"\b(pickle|dill|joblib|cloudpickle)\.(load|loads|Unpickler)\b",
    "an archive could write anywhere": r"\.extractall\(|\bunpack_archive\(",
    "a shell would read what a user gives": r"\bshell\s*=\s*True|\bos\.(system|popen)\(",
    "a config would not check its weights": r"\bstrict['\"]?\s*:\s*(False|false)\b",
}


def list_files() -> list[Path]:
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    files += [path for path in REPOSITORY.iterdir() if path.is_file()]
    ours = [path for path in files if "__pycache__" not in path.parts and path.name != Path(__file__).name]
    return [path for path in ours if path.suffix in (".py", ".yaml", ".yml", ".json", ".md", ".toml", ".sh", "")]


def find_texts(text: str) -> list[str]:
    return [why for why, pattern in TEXTS.items() if re.search(pattern, text)]


def find_calls(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that load weights without strictness, or files without `weights_only=True`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        values = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in ("load_state_dict", "CheckpointLoader", "load_from_checkpoint") and values.get("strict") is False:
            yield f"{name} with strict=False, line {node.lineno}"
        if name == "copy_model_state":
            yield f"copy_model_state, which passes over what does not match, line {node.lineno}"


def test_no_file_has_a_forbidden_text():
    files = list_files()
    assert len(files) > 100
    found = {
        str(path): whys for path in files if (whys := find_texts(path.read_text(encoding="utf-8", errors="ignore")))
    }
    assert not found


def test_no_code_loads_weights_silently():
    files = {path.relative_to(REPOSITORY).as_posix(): path for path in list_files() if path.suffix == ".py"}
    found = {name: calls for name, path in files.items() if (calls := list(find_calls(ast.parse(path.read_text()))))}
    others = {name: [call.split()[0].rstrip(",") for call in found.pop(name, [])] for name in AS_OTHERS_LOAD}
    assert not found
    assert others == AS_OTHERS_LOAD


def test_library_code_reads_checkpoints_in_one_place():
    """`torch.load` stands in one module, always with weights_only=True."""
    users = []
    for path in sorted((REPOSITORY / "tools").rglob("*.py")):
        for line in path.read_text().splitlines():
            if "torch.load(" in line:
                users.append(path.relative_to(REPOSITORY).as_posix())
                assert "weights_only=True" in line
    assert set(users) == {"tools/weights/files.py"}


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=False)",
        "weights_only: false",
        "pickle.load(file)",
        "archive.extractall(folder)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "{_target_: CheckpointLoader, strict: false}",
    ],
)
def test_the_texts_would_be_found(text):
    assert find_texts(text)


@pytest.mark.parametrize(
    "code", ["network.load_state_dict(state, strict=False)", "CheckpointLoader(p, d, strict=False)"]
)
def test_the_calls_would_be_found(code):
    assert list(find_calls(ast.parse(code)))
