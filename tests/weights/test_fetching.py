# SPDX-License-Identifier: Apache-2.0
"""Fetching as a user does it: from the name of a bundle to weights that its network takes."""

from __future__ import annotations

import hashlib
import http.server
import threading
from functools import partial

import pytest
import torch
import yaml
from monai.networks.nets import UNETR

from tools import catalogue
from tools.errors import CheckpointError, ConfigValueError, DownloadError
from tools.weights import downloads
from tools.weights.fetching import fetch

NETWORK = {
    "_target_": "monai.networks.nets.UNETR",
    **{"in_channels": 1, "out_channels": 2, "img_size": [32, 32, 32], "feature_size": 4},
    **{"hidden_size": 24, "mlp_dim": 48, "num_heads": 3, "proj_type": "perceptron"},
}


def make_network() -> UNETR:
    return UNETR(**{name: value for name, value in NETWORK.items() if name != "_target_"}).eval()


@pytest.fixture
def served(tmp_path):
    """A folder and the address at which a server on this machine offers its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bundle(tmp_path, served, monkeypatch):
    """The bundle `toy` with one public file, as UNETR of MONAI 0.7 is; returns its folder and a writer of its entry."""
    folder, address = served
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "RETRY_DELAYS_S", ())
    torch.manual_seed(0)
    state = {name: value for name, value in make_network().state_dict().items() if "cross" not in name}
    state["vit.patch_embedding.cls_token"] = torch.zeros(1, 1, 24)
    torch.save(state, folder / "old.pth")
    monkeypatch.setattr(catalogue, "BUNDLES", tmp_path / "bundles")
    root = tmp_path / "bundles" / "toy"
    root.mkdir(parents=True)

    def write(**changes) -> None:
        entry = {
            "name": "old",
            "path": "models/old.pth",
            "url": f"{address}/old.pth",
            "licence": "CC0",
            "layout": "unetr_monai_0.7",
            "hash_val": hashlib.sha256((folder / "old.pth").read_bytes()).hexdigest(),
            "network": NETWORK,
            "converted": "models/model.pt",
        }
        (root / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry | changes]}))

    write()
    return root, write


def test_weights_are_downloaded_checked_and_converted(bundle, served):
    root, _ = bundle
    assert fetch("toy") == [root / "models" / "model.pt"]
    network, source = make_network(), torch.load(served[0] / "old.pth")
    network.load_state_dict(torch.load(root / "models" / "model.pt")["model"], strict=True)
    assert all(torch.equal(network.state_dict()[name], source[name]) for name in source if "cls_token" not in name)
    assert sorted(path.name for path in (root / "models").iterdir()) == ["model.pt", "old.pth"]


def test_a_file_that_is_there_needs_no_network(bundle):
    root, write = bundle
    fetch("toy")
    write(url="http://127.0.0.1:9/old.pth")
    (root / "models" / "model.pt").unlink()
    assert fetch("toy") == [root / "models" / "model.pt"]
    assert (root / "models" / "model.pt").is_file()


def test_a_mirror_is_used(bundle, served):
    root, write = bundle
    write(url="http://127.0.0.1:9/old.pth", converted=None)
    assert fetch("toy", mirror=str(served[0])) == [root / "models" / "old.pth"]


def test_without_a_network_the_message_says_what_to_do_by_hand(bundle):
    root, write = bundle
    write(url="http://127.0.0.1:9/old.pth")
    with pytest.raises(DownloadError) as caught:
        fetch("toy")
    text = str(caught.value)
    assert "http://127.0.0.1:9/old.pth" in text
    assert str(root / "models" / "old.pth") in text
    assert "--mirror" in text
    assert not (root / "models" / "old.pth").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "swin_unetr"}, r"old\.pth: found a UNETR of MONAI 0\.7.*wanted the layout swin_unetr"),
        (
            {"network": NETWORK | {"hidden_size": 48}},
            r"old\.pth: found .* of another shape.*hidden_size=24 \(here 48\)",
        ),
    ],
)
def test_other_weights_than_the_bundle_means_never_get_the_files_name(bundle, changes, message):
    root, write = bundle
    write(**changes)
    with pytest.raises(CheckpointError, match=message):
        fetch("toy")
    assert not list((root / "models").glob("[!.]*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "swin_v3"}, "layout swin_v3, wanted one of unetr_monai_0"),
        ({"patch_merging": "v1"}, "patch_merging v1, wanted one of original, corrected"),
        ({"inflation": {"methd": "center"}}, "the option methd, wanted options among"),
    ],
)
def test_an_entry_that_no_loader_understands_is_told_before_anything_is_fetched(bundle, changes, message):
    root, write = bundle
    write(**changes)
    with pytest.raises(ConfigValueError, match=rf"large_files\.yml, old.*{message}"):
        fetch("toy")
    assert not (root / "models").exists()


def test_a_file_that_is_no_checkpoint_is_told_with_its_address(bundle, served):
    root, write = bundle
    (served[0] / "old.pth").write_bytes(bytes(range(256)) * 10)
    write()
    with pytest.raises(CheckpointError, match=r"^http://127\.0\.0\.1:\d+/old\.pth: found 2560 bytes that are no whole"):
        fetch("toy")
    assert not list((root / "models").glob("[!.]*"))


def test_a_wrong_hash_is_refused(bundle):
    root, write = bundle
    write(hash_val="0" * 64)
    with pytest.raises(DownloadError, match="0000000"):
        fetch("toy")
    assert not list((root / "models").glob("[!.]*"))
