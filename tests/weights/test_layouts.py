# SPDX-License-Identifier: Apache-2.0
"""Every public layout, written with its original key names: what matches, and that the network computes the same.

The counts are those of the published files (12 transformer blocks, 4 Swin stages); they do not depend on the widths,
which are small here.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.networks.nets import UNETR, SwinUNETR, ViT, ViTAutoEnc
from torch import Tensor, nn

from tools.errors import CheckpointError, ConfigValueError
from tools.networks import ModifiedUNETR
from tools.networks.patch_merging import choose_form, read_form
from tools.weights import LAYOUTS, load, match
from tools.weights.layouts import recognize
from tools.weights.merging_forms import split_marks

SIZE = (32, 48, 32)
VIT = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 3}

pytestmark = pytest.mark.filterwarnings("ignore")


def make_unetr(seed: int, out_channels: int = 14, in_channels: int = 1, size=SIZE, **options) -> UNETR:
    torch.manual_seed(seed)
    network = UNETR(in_channels, out_channels, size, feature_size=4, **{**VIT, **options})
    return randomize(network).eval()


def make_swin(seed: int, out_channels: int = 14, in_channels: int = 1, f: int = 12, **options) -> SwinUNETR:
    torch.manual_seed(seed)
    network = SwinUNETR(in_channels=in_channels, out_channels=out_channels, feature_size=f, **options)
    return randomize(network).eval()


def make_autoencoder(seed: int, **options) -> ViTAutoEnc:
    torch.manual_seed(seed)
    return randomize(ViTAutoEnc(1, SIZE, (16, 16, 16), **{**VIT, **options})).eval()


def randomize(network: nn.Module) -> nn.Module:
    """Give norms and biases random values too, so that none of them could be swapped unseen."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def make_image(network: UNETR | SwinUNETR) -> Tensor:
    channels = network.encoder1.layer.conv1.conv.weight.shape[1]
    # the deepest map of SwinUNETR has two voxels at least, for the instance normalization
    return torch.rand(1, channels, *(SIZE if isinstance(network, UNETR) else (64, 32, 32)))


def name_as_monai_0_7(network: UNETR) -> dict[str, Tensor]:
    state = {name: value for name, value in network.state_dict().items() if "norm_cross_attn" not in name}
    f = network.encoder1.layer.conv1.conv.weight.shape[0]
    state["vit.patch_embedding.cls_token"] = torch.zeros(1, 1, VIT["hidden_size"])
    state["encoder2.blocks.0.1.conv3.conv.weight"] = torch.rand(2 * f, 2 * f, 1, 1, 1)
    state["encoder2.blocks.1.1.conv3.conv.weight"] = torch.rand(2 * f, 2 * f, 1, 1, 1)
    state["encoder3.blocks.0.1.conv3.conv.weight"] = torch.rand(4 * f, 4 * f, 1, 1, 1)
    return state


def name_as_monai_1_3(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if "norm_cross_attn" not in name}


def name_as_monai_1_5(network: UNETR) -> dict[str, Tensor]:
    extra = {f"vit.blocks.{i}.cross_attn.{part}.weight": torch.rand(24, 24) for i in range(12) for part in "qkv"}
    return network.state_dict() | extra


def name_as_release_0_8_1(network: SwinUNETR) -> dict[str, Tensor]:
    encoder = network.swinViT.state_dict()
    state = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": value for name, value in encoder.items()}
    state |= {"module.norm.weight": torch.ones(192), "module.norm.bias": torch.ones(192)}
    return state | {"module.rotation_head.weight": torch.rand(4, 192), "module.rotation_head.bias": torch.rand(4)}


def name_as_ssl_head(network: SwinUNETR) -> dict[str, Tensor]:
    state = {f"module.{name}": value for name, value in network.state_dict().items() if name.startswith("swinViT.")}
    heads = {"rotation_head.weight": torch.rand(4, 192), "contrastive_head.weight": torch.rand(512, 192)}
    return state | {f"module.{name}": value for name, value in (heads | {"conv.0.weight": torch.rand(96, 192)}).items()}


def name_as_voco_10k(network: SwinUNETR) -> dict[str, Tensor]:
    encoders = ("swinViT.", "encoder")
    state = {name: value for name, value in network.state_dict().items() if name.startswith(encoders)}
    return {f"module.{name.replace('swinViT', 'swin_vit')}": value for name, value in state.items()}


def name_as_voco_ssl_head(network: SwinUNETR) -> dict[str, Tensor]:
    encoders = ("swinViT.", "encoder")
    state = {name: value for name, value in network.state_dict().items() if name.startswith(encoders)}
    heads = {f"module.{who}.layer1.0.weight": torch.rand(8, 4) for who in ("student", "teacher")}
    return {f"module.backbone.{name}": value for name, value in state.items()} | heads


def name_as_voco_with_two_encoders(network: SwinUNETR) -> dict[str, Tensor]:
    state = name_as_voco_ssl_head(network)
    other = {name: torch.rand_like(value.float()) for name, value in state.items() if ".backbone." in name}
    return state | {name.replace(".backbone.", ".teacher_backbone."): value for name, value in other.items()}


def name_as_disruptive_autoencoder(network: SwinUNETR) -> dict[str, Tensor]:
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith("swinViT.layers"):
            stage, rest = name.removeprefix("swinViT.").split(".0.", 1)
            name = f"encoder.{stage}.0.0.{rest}"
        state[name.replace("swinViT.patch_embed", "encoder.patch_embed")] = value
    state["out.conv.conv.weight"], state["out.conv.conv.bias"] = torch.rand(1, 12, 1, 1, 1), torch.rand(1)
    return state | {"encoder.mask_token": torch.rand(1), "encoder.norm.weight": torch.rand(192)}


def run_unetr(network: UNETR, image: Tensor) -> list[Tensor]:
    return [network(image)]


def run_vit(network: UNETR | ViTAutoEnc, image: Tensor) -> list[Tensor]:
    if isinstance(network, UNETR):
        tokens, states = network.vit(image)
        return [tokens, *states]
    tokens = network.patch_embedding(image)
    states = []
    for block in network.blocks:
        states.append(tokens := block(tokens))
    return [network.norm(tokens), *states]


def run_swin(network: SwinUNETR, image: Tensor) -> list[Tensor]:
    return network.swinViT(image)


def run_encoders(network: SwinUNETR, image: Tensor) -> list[Tensor]:
    image = image
    maps = network.swinViT(image)
    blocks = (network.encoder2, network.encoder3, network.encoder4)
    return [
        network.encoder1(image),
        *(block(m) for block, m in zip(blocks, maps, strict=False)),
        network.encoder10(maps[4]),
    ]


def run_swin_unetr(network: SwinUNETR, image: Tensor) -> list[Tensor]:
    return [network(image)]


def run_to_the_head(network: SwinUNETR, image: Tensor) -> list[Tensor]:
    network.out = nn.Identity()
    return run_swin_unetr(network, image)


# name of the layout, wrapper in the file, network there, names there, network here, what both compute,
# tensors of the network that are: matched, reshaped, tolerated, untouched; tensors of the file that are dropped
CASES = {
    "UNETR of MONAI 0.7": (
        *("unetr_monai_0.7", None, lambda: make_unetr(1), name_as_monai_0_7, lambda: make_unetr(2), run_unetr),
        (170, 0, 24, 0, 4),
    ),
    "UNETR of MONAI 0.9 to 1.3": (
        *("unetr_monai", "state_dict", lambda: make_unetr(1), name_as_monai_1_3, lambda: make_unetr(2), run_unetr),
        (170, 0, 24, 0, 0),
    ),
    "UNETR of MONAI 1.4 and 1.5": (
        *("unetr_monai", None, lambda: make_unetr(1), name_as_monai_1_5, lambda: make_unetr(2), run_unetr),
        (194, 0, 0, 0, 36),
    ),
    "conv to perceptron": (
        *("unetr_monai", None, lambda: make_unetr(1, proj_type="conv"), nn.Module.state_dict),
        *(lambda: make_unetr(2, proj_type="perceptron"), run_unetr, (192, 2, 0, 0, 0)),
    ),
    "perceptron to conv": (
        *("unetr_monai_0.7", None, lambda: make_unetr(1, proj_type="perceptron", in_channels=2), name_as_monai_0_7),
        *(lambda: make_unetr(2, proj_type="conv", in_channels=2), run_unetr, (168, 2, 24, 0, 4)),
    ),
    "ViTAutoEnc": (
        *("vit_autoencoder", "state_dict", lambda: make_autoencoder(1), nn.Module.state_dict),
        *(lambda: make_unetr(2), run_vit, (161, 0, 0, 33, 4)),
    ),
    "ViTAutoEnc of MONAI 1.3": (
        *("vit_autoencoder", "state_dict", lambda: make_autoencoder(1), name_as_monai_1_3),
        *(lambda: make_unetr(2), run_vit, (137, 0, 24, 33, 4)),
    ),
    "ViTAutoEnc, other projection": (
        *("vit_autoencoder", "state_dict", lambda: make_autoencoder(1), nn.Module.state_dict),
        *(lambda: make_unetr(2, proj_type="perceptron"), run_vit, (159, 2, 0, 33, 4)),
    ),
    "ViTAutoEnc without biases that the network has": (
        *("vit_autoencoder", None, lambda: make_autoencoder(1), nn.Module.state_dict),
        *(lambda: make_unetr(2, qkv_bias=True), run_vit, (161, 12, 0, 33, 4)),
    ),
    "model_swinvit.pt": (
        *("swin_ssl_0.8.1", "state_dict", lambda: make_swin(1), name_as_release_0_8_1, lambda: make_swin(2), run_swin),
        (126, 0, 0, 33, 4),
    ),
    "SSL head": (
        *("swin_ssl_head", "state_dict", lambda: make_swin(1), name_as_ssl_head, lambda: make_swin(2), run_swin),
        (126, 0, 0, 33, 3),
    ),
    "VoCo_10k": (
        *("voco", None, lambda: make_swin(1, use_v2=True), name_as_voco_10k, lambda: make_swin(2, use_v2=True)),
        *(run_encoders, (145, 0, 0, 22, 0)),
    ),
    "VoCo SSL head": (
        *("voco", "state_dict", lambda: make_swin(1, use_v2=True), name_as_voco_ssl_head),
        *(lambda: make_swin(2, use_v2=True), run_encoders, (145, 0, 0, 22, 2)),
    ),
    "VoCo with a teacher that has its own encoder": (
        *("voco", "model", lambda: make_swin(1, use_v2=True), name_as_voco_with_two_encoders),
        *(lambda: make_swin(2, use_v2=True), run_encoders, (145, 0, 0, 22, 147)),
    ),
    "VoComni": (
        *("swin_unetr", "state_dict", lambda: make_swin(1, 21, use_v2=True), nn.Module.state_dict),
        *(lambda: make_swin(2, 21, use_v2=True), run_swin_unetr, (167, 0, 0, 0, 0)),
    ),
    "Swin UNETR finetuned on BTCV": (
        *("swin_unetr", "state_dict", lambda: make_swin(1), nn.Module.state_dict, lambda: make_swin(2)),
        *(run_swin_unetr, (159, 0, 0, 0, 0)),
    ),
    "disruptive autoencoder": (
        *("swin_dae", "model", lambda: make_swin(1), name_as_disruptive_autoencoder, lambda: make_swin(2)),
        *(run_to_the_head, (157, 0, 0, 2, 4)),
    ),
}


SWIN_LAYOUTS = {"swin_ssl_0.8.1", "swin_ssl_head", "voco", "swin_unetr", "swin_dae"}
IN_THEIR_FORM = [
    (case, form)
    for case in CASES
    for form in (("original",) if CASES[case][0] in SWIN_LAYOUTS else (None,))  # both: test_files_and_networks.py
]


@pytest.mark.numeric
@pytest.mark.parametrize(("case", "form"), IN_THEIR_FORM)
def test_a_public_layout_matches_exactly_and_computes_the_same(case, form, tmp_path):
    layout, wrapper, make_source, name_tensors, make_target, run, counts = CASES[case]
    source, target = make_source(), make_target()
    if form:
        choose_form(source, form)
    state, _ = split_marks(name_tensors(source))  # files of MONAI tell nothing
    torch.save({wrapper: state, "epoch": 7} if wrapper else state, tmp_path / "weights.pt")
    size = len(target.state_dict())
    assert load(target, tmp_path / "weights.pt", patch_merging=form or "auto", report_dir=tmp_path) is target
    assert read_form(target) == form
    report = json.loads((tmp_path / "weights.json").read_text())
    assert report["patch_merging"] == form
    kinds = ("matched", "reshaped", "tolerated", "untouched", "dropped")
    assert tuple(report["counts"][kind] for kind in kinds) == counts
    assert (report["layout"], report["accepted"]) == (layout, True)
    assert report["counts"]["used"] + report["counts"]["dropped"] == len(state)
    assert not report["missing"] + report["unexpected"]
    assert sum(report["counts"][k] for k in ("matched", "reshaped", "tolerated", "untouched", "fresh")) == size
    image = make_image(target)
    if report["counts"]["reshaped"]:  # other kernels then: in float32 they differ by as much as with another epsilon
        source, target, image = source.double(), target.double(), image.double()
    with torch.no_grad():
        for expected, found in zip(run(source, image), run(target, image), strict=True):
            assert_equal_to_scale(found, expected, relative=1e-7)
            assert expected.std() > 1e-3


def test_every_layout_is_told_apart():
    states = {case: name(make()) for case, (_, _, make, name, *_) in CASES.items()}
    found = {
        case: recognize({key.removeprefix("module.").removeprefix("backbone."): v for key, v in state.items()})
        for case, state in states.items()
    }
    assert {case: layout.name for case, layout in found.items()} == {case: CASES[case][0] for case in CASES}
    others = {"vit_2d", "beit_2d", "dinov3_2d", "timm", "own"}
    assert {layout.name for layout in found.values()} | others == set(LAYOUTS)


def test_a_plain_vit_of_monai_fills_the_transformer():
    vit = ViT(1, SIZE, (16, 16, 16), classification=True, num_classes=3, **VIT)
    _, report = match(make_unetr(1), vit.state_dict())
    assert (report.layout, report.num_loaded, report.accepted) == ("vit_autoencoder", 161, True)
    assert report.dropped.keys() == {"cls_token", "classification_head.0.weight", "classification_head.0.bias"}
    assert "to which the others attend" in report.dropped["cls_token"], "features differ"


def test_the_autoencoder_itself_takes_its_own_file():
    source, target = make_autoencoder(1), make_autoencoder(2)
    _, report = match(target, source.state_dict(), complete=True)
    assert (report.num_loaded, report.accepted) == (165, True)


@pytest.mark.parametrize(
    ("source", "target", "fresh"),
    [
        (lambda: make_swin(1, 21, use_v2=True), lambda: make_swin(2, 5, use_v2=True), 2),
        (lambda: make_unetr(1, 14), lambda: make_unetr(2, 3), 2),
    ],
)
def test_other_classes_leave_the_output_layer_and_say_so(source, target, fresh):
    source, target = source(), target()
    values, report = match(target, source.state_dict(), patch_merging="corrected")
    assert report.accepted
    assert report.fresh.keys() == {"out.conv.conv.weight", "out.conv.conv.bias"}
    assert "classes in the file" in report.fresh["out.conv.conv.weight"]
    assert not values.keys() & report.fresh.keys()
    assert not match(target, source.state_dict(), complete=True)[1].accepted, "inference with a random output layer"


@pytest.mark.numeric
@pytest.mark.parametrize("channels", [(1, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("make", [make_swin, make_unetr], ids=["SwinUNETR", "UNETR"])
def test_other_input_channels_give_the_same_response_to_equal_ones(make, channels):
    old, new = channels
    source, target = make(1, in_channels=old), make(2, in_channels=new)
    values, report = match(target, source.state_dict(), patch_merging="corrected")
    target.load_state_dict({**target.state_dict(), **values})
    assert report.accepted
    assert len(report.reshaped) == 3
    assert all(f"{old} -> {new} input channels" in note for note in report.reshaped.values())
    image = make_image(source)[:, :1]
    with torch.no_grad():
        expected, found = source(image.repeat(1, old, 1, 1, 1)), target(image.repeat(1, new, 1, 1, 1))
    assert_equal_to_scale(found, expected)
    assert not match(target, source.state_dict(), complete=True)[1].accepted


@pytest.mark.numeric
def test_the_position_table_is_resampled_to_the_networks_grid():
    source, target = make_unetr(1, size=(48, 48, 48)), make_unetr(2, size=(48, 48, 96))
    values, report = match(target, source.state_dict())
    name = "vit.patch_embedding.position_embeddings"
    assert report.reshaped == {name: "position grid 3 × 3 × 3 -> 3 × 3 × 6, approximately"}
    assert torch.equal(
        values[name].reshape(3, 3, 6, 24)[:, :, 0], source.state_dict()[name].reshape(3, 3, 3, 24)[:, :, 0]
    )
    ramp = torch.arange(3.0).expand(3, 3, 3).reshape(1, 27, 1).expand(1, 27, 24)
    values, _ = match(target, source.state_dict() | {name: ramp})
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2]).expand(3, 3, 6)  # depth, the last axis, runs fastest
    assert_equal_to_scale(values[name][0, :, 5].reshape(3, 3, 6), expected)


def test_a_position_grid_that_is_no_cube_has_to_be_told():
    source, target = make_unetr(1, size=(32, 48, 32)), make_unetr(2, size=(48, 48, 32))
    with pytest.raises(
        ConfigValueError, match=r"^old\.pt, position table.*12 patches, which fill no cube.*source_grid"
    ):
        match(target, source.state_dict(), source="old.pt")
    with pytest.raises(ConfigValueError, match=r"\(2, 2, 2\) for 12 patches"):
        match(target, source.state_dict(), source_grid=(2, 2, 2))
    values, report = match(target, source.state_dict(), source_grid=(2, 3, 2))
    assert report.accepted
    assert values["vit.patch_embedding.position_embeddings"].shape == (1, 18, 24)


def test_windows_of_another_size_resample_their_tables():
    source, target = make_swin(1), make_swin(2, window_size=4)
    index = {name: value.clone() for name, value in target.state_dict().items() if name.endswith("index")}
    values, report = match(target, source.state_dict(), patch_merging="corrected")
    assert report.accepted
    assert sum("window 7 -> 4" in note for note in report.reshaped.values()) == 8
    target.load_state_dict({**target.state_dict(), **values})
    assert all(torch.equal(target.state_dict()[name], value) for name, value in index.items())


def test_a_variant_can_be_finetuned_from_the_plain_network_when_it_is_said():
    source = make_unetr(1)
    target = ModifiedUNETR(1, 14, SIZE, feature_size=4, stem=True, fpn=True, proj_type="conv", **VIT)
    assert not match(target, source.state_dict())[1].accepted
    _, report = match(target, source.state_dict(), allow_missing=r"(stem|fusion)\..*")
    assert report.accepted
    assert {name.split(".")[0] for name in report.untouched} == {"stem", "fusion"}


def test_tensors_of_another_shape_can_be_left_out_when_it_is_said():
    source, target = make_unetr(1), ModifiedUNETR(1, 14, SIZE, feature_size=4, fpn=True, fpn_channels=5, **VIT)
    assert not match(target, source.state_dict(), allow_missing=r"fusion\..*")[1].accepted
    _, report = match(target, source.state_dict(), allow_missing=r"fusion\..*|decoder2\.transp_conv\..*")
    assert report.accepted
    assert report.dropped == {"decoder2.transp_conv.conv.weight": "of another shape, which allow_missing permits"}


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], Callable[[], nn.Module], str]] = {
    "v2 weights for v1": (
        lambda: name_as_voco_10k(make_swin(1, use_v2=True)),
        lambda: make_swin(2),
        r"137 of 159 tensors that fit, 8 unknown \(swin_vit\.layers1c.*with use_v2=True \(here False\)",
    ),
    "v1 weights for v2": (
        lambda: name_as_release_0_8_1(make_swin(1)),
        lambda: make_swin(2, use_v2=True),
        r"126 of 167 tensors that fit, 8 missing \(swinViT\.layers1c.*with use_v2=False \(here True\)",
    ),
    "another width": (
        lambda: name_as_voco_ssl_head(make_swin(1, use_v2=True)),
        lambda: make_swin(2, f=24, use_v2=True),
        r"of another shape \(swinViT\.patch_embed.*with feature_size=12 \(here 24\)",
    ),
    "a Swin transformer for UNETR": (
        lambda: name_as_release_0_8_1(make_swin(1)),
        lambda: make_unetr(1),
        r"0 of 194 tensors that fit.*model_swinvit\.pt, for SwinUNETR: give another file, or use that network",
    ),
    "nothing that matches": (
        lambda: {f"layer{i}.weight": torch.rand(3) for i in range(5)},
        lambda: make_swin(2),
        r"0 of 159 tensors that fit, 159 missing .*5 unknown \(layer0\.weight\)",
    ),
    "half of it": (
        lambda: dict(list(name_as_release_0_8_1(make_swin(1)).items())[:65]),
        lambda: make_swin(2),
        r"\d\d of 159 tensors that fit, \d\d missing \(swinViT\.layers",
    ),
    "deeper transformer": (
        lambda: make_autoencoder(1, num_layers=13).state_dict(),
        lambda: make_unetr(1),
        r"161 of 194 tensors that fit, 13 unknown \(blocks\.12.*num_layers=13 \(here 12\)",
    ),
    "biases that the network lacks": (
        lambda: make_autoencoder(1, qkv_bias=True).state_dict(),
        lambda: make_unetr(1),
        r"12 unknown \(blocks\.0\.attn\.qkv\.bias\).*qkv_bias=True \(here False\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_report_and_the_remedy(case, tmp_path, caplog):
    make_state, make_target, message = REFUSED[case]
    path, target = tmp_path / "weights.pt", make_target()
    torch.save(make_state(), path)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load(target, path, report_dir=tmp_path)
    assert str(caught.value).startswith(f"{path}: found ")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items()), "half loaded"
    assert "layout" in caplog.text, "the table"
    report = json.loads((tmp_path / "weights.json").read_text())
    assert not report["accepted"]


def test_a_part_is_not_enough_for_inference(tmp_path):
    torch.save(name_as_release_0_8_1(make_swin(1)), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"126 of 159 .*nothing for 33 others \(encoder1"):
        load(make_swin(2), tmp_path / "weights.pt", complete=True)


def test_two_networks_under_two_prefixes_are_refused():
    state = make_unetr(1).state_dict()
    both = {f"{prefix}{name}": value for prefix in ("module.", "net.") for name, value in state.items()}
    with pytest.raises(CheckpointError, match="twice, under two prefixes"):
        match(make_unetr(2), both)


def test_an_unknown_layout_is_refused_with_the_known_ones():
    with pytest.raises(ConfigValueError, match=r"'swin_v3', wanted auto or one of unetr_monai_0\.7, unetr_monai"):
        match(make_unetr(1), make_unetr(2).state_dict(), "swin_v3")


def test_a_network_with_a_part_called_net_keeps_its_names():
    network = nn.ModuleDict({"net": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    _, report = match(network, {name: value + 1 for name, value in network.state_dict().items()})
    assert (report.num_loaded, report.accepted) == (4, True)
