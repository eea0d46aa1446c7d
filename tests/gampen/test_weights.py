import io
import json
from typing import Any

import numpy as np
import pytest
import torch

from gampen_ray.errors import UserError
from gampen_ray.gampen.weights import label_schema, network_from_state_dict, read_state_dict
from gampen_ray.model.network import Network
from tests.parity import FOLDER, golden, golden_state, needs_parity

# Index of the convolutions in torchvision's VGG-16, and with a dropout layer before each but the first.
PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
DROPOUT = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def shapes(parameters: int = 1, *, dropout: bool = True, outputs: int = 9, side: int = 64) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of a GaMPEN state dict; ``parameters`` 0: plain vgg16, whose keys have no ``vgg.``."""
    result: dict[str, tuple[int, ...]] = {}
    prefix = "vgg." if parameters else ""
    if parameters:
        reduced = ((((side - 10) - 3) // 2 + 1) - 8 - 3) // 2 + 1
        layers = {"localization.0": (64, 3, 11, 11), "localization.3": (96, 64, 9, 9)}
        layers |= {"fc_loc.0": (32, 96 * reduced**2), "fc_loc.2": (parameters, 32)}
    else:
        layers = {}
    channels = (3, *WIDTHS)
    for index, before, width in zip(DROPOUT if dropout else PLAIN, channels, WIDTHS, strict=False):
        layers[f"{prefix}features.{index}"] = (width, before, 3, 3)
    layers |= {f"{prefix}classifier.0": (4096, 25088), f"{prefix}classifier.3": (4096, 4096)}
    layers[f"{prefix}classifier.6"] = (outputs, 4096)
    for name, shape in layers.items():
        result |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return result


def empty_state(**kind: Any) -> dict[str, torch.Tensor]:
    """Return tensors of these shapes that take no memory."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes(**kind).items()}


def convert(state: dict[str, torch.Tensor], size: int = 64, targets: int = 3) -> Network:
    return network_from_state_dict(state, num_targets=targets, cutout_size=size, dropout_rate=1e-3)[0]


@pytest.mark.parametrize(
    ("kind", "family", "placement"),
    [
        ({"parameters": 1}, "scale", "every_conv"),
        ({"parameters": 3}, "scale_shift", "every_conv"),
        ({"parameters": 6}, "affine", "every_conv"),
        ({"parameters": 6, "dropout": False}, "affine", "classifier"),
        ({"parameters": 0, "dropout": False}, "none", "classifier"),
    ],
)
@pytest.mark.parametrize("side", [64, 143, 239])
def test_keys_and_shapes_tell_the_variant(kind: dict[str, Any], family: str, placement: str, side: int) -> None:
    state = empty_state(**kind, side=side)
    _, config, channels = network_from_state_dict(state, num_targets=3, cutout_size=side, dropout_rate=1e-3)
    assert (config.spatial_transformer.family, config.backbone.dropout_placement) == (family, placement)
    assert (config.backbone.dropout_rate, channels) == (1e-3, 3)


@pytest.mark.parametrize(
    ("outputs", "targets", "likelihood"), [(3, 3, "unit_variance"), (6, 3, "diagonal"), (9, 3, "full"), (2, 1, "full")]
)
def test_width_of_the_output_tells_the_likelihood(outputs: int, targets: int, likelihood: str) -> None:
    state = empty_state(outputs=outputs)
    _, config, _ = network_from_state_dict(state, num_targets=targets, cutout_size=64, dropout_rate=0.0)
    assert config.likelihood == likelihood


@needs_parity
def test_the_keys_are_those_of_the_original() -> None:
    for name, rows in json.loads((FOLDER / "state_dict_keys.json").read_text()).items():
        variant, dropout, side = name.split("|")
        parameters = {"oc": 1, "at": 3}.get(variant.split("_")[3], 6)
        expected = shapes(parameters, dropout=dropout.endswith("True"), side=int(side.removeprefix("cutout=")))
        assert {row["key"]: tuple(row["shape"]) for row in rows} == expected


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("localization.3.bias", None, r"localization\.3\.bias is missing"),
        ("vgg.features.0.weight", None, r"vgg\.features\.0\.weight is missing"),
        (
            "vgg.features.7.weight",
            (128, 64, 5, 5),
            r"vgg\.features\.7\.weight has shape \(128, 64, 5, 5\), not \(128, 64, 3, 3\)",
        ),
        ("vgg.features.0.weight", (64,), r"vgg\.features\.0\.weight has shape \(64,\)"),
        ("fc_loc.2.bias", (2,), r"fc_loc\.2\.bias has shape \(2,\), but a transform has 1, 3 or 6 parameters"),
        ("vgg.classifier.6.bias", (8,), r"vgg\.classifier\.6\.bias has shape \(8,\), but 3 targets make 3, 6, 9 outputs"),
        ("vgg.extra.weight", (1,), r"vgg\.extra\.weight is not part of a GaMPEN network"),
    ],
)
def test_the_first_key_at_fault_is_named(key: str, shape: tuple[int, ...] | None, match: str) -> None:
    state = empty_state()
    state.pop(key, None)
    if shape is not None:
        state[key] = torch.zeros(shape)
    with pytest.raises(UserError, match=match):
        convert(state)


def test_a_wrong_cutout_size_is_told_those_that_fit() -> None:
    with pytest.raises(UserError, match=r"fc_loc\.0\.weight .* with cutout_size 167; sizes of 141 to 144 fit"):
        convert(empty_state(side=143), size=167)


def test_a_file_of_something_else_is_refused_and_runs_nothing(tmp_path: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("ran").write_text, ("x",))

    for content, match in (
        (b"PK\x03\x04 no archive", "is not a state dict"),
        (b"", "is not a state dict"),
        (saved(Evil()), "is not a state dict"),
        (saved(torch.zeros(3)), "holds Tensor, not a state dict"),
        (saved({"epoch": 3, "state_dict": {}}), "holds dict, not a state dict"),
    ):
        with pytest.raises(UserError, match=match):
            read_state_dict(content, "m.pt")
    assert not tmp_path.joinpath("ran").exists()


def test_the_prefix_of_dataparallel_is_dropped() -> None:
    state = {"fc.weight": torch.ones(2), "fc.bias": torch.zeros(1)}
    wrapped = saved({f"module.{key}": value for key, value in state.items()})
    assert list(read_state_dict(wrapped, "m.pt")) == list(read_state_dict(saved(state), "m.pt")) == list(state)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@needs_parity
@pytest.mark.parametrize("variant", ["vgg16_w_stn_oc_drp", "vgg16_w_stn_drp"])
def test_an_imported_network_gives_the_outputs_of_the_original(variant: str) -> None:
    network = convert(golden_state(variant))
    arrays = golden(f"forward_{variant}_64.npz")
    x = torch.from_numpy(golden("input_64.npz")["x"])
    with torch.no_grad():
        crops, _ = network.transformer(x)  # type: ignore[misc]
        assert crops.numpy() == pytest.approx(arrays["spatial"], abs=1e-4)
        assert network(x).numpy() == pytest.approx(arrays["out"], abs=1e-4)
    if "target" not in arrays:
        return
    network.double()
    outputs = network(x.double())
    assert outputs.detach().numpy() == pytest.approx(arrays["out_f64"], abs=1e-10)
    loss = network.likelihood.loss(outputs, torch.from_numpy(arrays["target"])).mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss_f64"]), rel=1e-10)
    norms = json.loads((FOLDER / "forward_summary.json").read_text())["grad_l2_f64"]
    ours = [float(p.grad.norm()) for p in network.parameters()]  # type: ignore[union-attr]
    assert ours == pytest.approx(list(norms.values()), rel=1e-10)


@needs_parity
@pytest.mark.parametrize(("scaling", "inverse"), [("std", "std_inverse"), ("minmax", "minmax_inverse")])
def test_label_scaling_is_that_of_the_original(scaling: Any, inverse: str) -> None:
    arrays = golden("labels_and_item.npz")
    labels = ["custom_logit_bt", "ln_R_e_asec", "ln_total_flux_adus"]
    schema = label_schema(dict(zip(labels, arrays["train"].T, strict=True)), labels, scaling)
    for d, target in enumerate(schema):
        z = (arrays["x"][:, d] - target.location) / target.scale
        assert z == pytest.approx(arrays[scaling][:, d], rel=1e-12)
        assert target.location + target.scale * arrays["x"][:, d] == pytest.approx(arrays[inverse][:, d], rel=1e-12)


def test_a_logit_label_takes_its_limits_from_the_physical_column_or_from_its_own_range() -> None:
    bt = np.array([0.0, 0.02, 0.6, 0.9])
    logits = np.log(np.array([0.01, 0.02, 0.6, 0.9]) / (1 - np.array([0.01, 0.02, 0.6, 0.9])))
    both = label_schema({"custom_logit_bt": logits, "bt": bt}, ["custom_logit_bt"], "std").targets[0]
    alone = label_schema({"custom_logit_bt": logits}, ["custom_logit_bt"], "std").targets[0]
    assert (both.low, both.clip_low, both.clip_high) == pytest.approx((0.0, 0.01, 0.95))
    assert (alone.low, alone.clip_low, alone.clip_high) == pytest.approx((0.01, 0.01, 0.9))
    assert both.standardise(bt) == pytest.approx((logits - logits.mean()) / logits.std(), rel=1e-12)


def test_a_constant_label_is_refused() -> None:
    with pytest.raises(UserError, match="column 'ln_x' does not vary"):
        label_schema({"ln_x": np.ones(3)}, ["ln_x"], "std")
