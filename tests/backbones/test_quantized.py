"""Quantised weights and their products against formulas in float64, which know nothing of this package.

NF4's levels are typed from appendix E of QLoRA (arXiv 2305.14314).
"""

from importlib.util import find_spec

import numpy as np
import pytest
import small
import torch

from dsmemvp.backbones import quantized
from dsmemvp.backbones.linear import Linear
from dsmemvp.backbones.quantized import Layout, check_form, product, product_backward, quantize
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.errors import UserError
from dsmemvp.prompts.parts.lora import LoraLinear

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
ROWS, COLUMNS = 48, 192
PARTS = [sign * part for sign in (1, -1) for part in np.linspace(0.6, 1.1, 200)]


def _weight(seed: int = 0) -> torch.Tensor:
    """Rows of sizes that differ by thousands, one of zeros, one of a single value."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator) * torch.logspace(-3, 1, ROWS)[:, None]
    weight[5], weight[7] = 0, 0
    weight[7, 100] = -3
    return weight


def _stored(form: str, weight: torch.Tensor, dtype: torch.dtype, fitted: bool = False):
    layout = Layout(form, tuple(weight.shape), fitted)
    codes, scales = quantize(layout, weight.view(-1, layout.unit), dtype)
    return codes.view(layout.codes_shape), scales, layout


def _rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """To the type that scales are stored in."""
    return torch.from_numpy(values.astype(np.float32)).to(dtype).double().numpy()


def _by_formula(form: str, weight: torch.Tensor, dtype: torch.dtype, scales: torch.Tensor | None = None) -> np.ndarray:
    """What a quantised weight stands for, in float64; of nf4 with these scales, or with QLoRA's."""
    values = weight.double().numpy()
    blocks = values.reshape(-1, 64 if values.shape[1] % 64 == 0 else values.shape[1])
    if form == "int8":
        scales = _rounded(np.abs(blocks).max(1) / 127, dtype)
        safe = np.where(scales == 0, 1, scales)[:, None]
        return (np.clip(np.rint(blocks / safe), -127, 127) * scales[:, None]).reshape(values.shape)
    scales = _rounded(np.abs(blocks).max(1), dtype) if scales is None else scales.double().numpy()
    relative = blocks / np.where(scales == 0, 1, scales)[:, None]
    nearest = np.abs(relative[..., None] - np.array(NF4)).argmin(-1)
    return (np.array(NF4)[nearest] * scales[:, None]).reshape(values.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "columns"), [("int8", COLUMNS), ("int8", 170), ("nf4", COLUMNS)])
def test_weights_are_those_of_the_formula(form, columns, dtype):
    weight = _weight()[:, :columns].contiguous()
    codes, scales, layout = _stored(form, weight, dtype)
    assert (codes.dtype, scales.dtype, scales.shape) == (torch.uint8, dtype, (layout.units,))
    identity = torch.eye(columns, dtype=dtype)
    found = product(identity, codes, scales, layout).T.double().numpy()
    expected = _by_formula(form, weight, dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-7 if dtype == torch.float32 else 2**-8, atol=0)
    # the error that the form is known for, beside the largest of a unit
    units = np.abs(expected - weight.double().numpy()).reshape(layout.units, -1).max(1)
    largest = np.abs(weight.double().numpy()).reshape(layout.units, -1).max(1)
    assert (units <= {"int8": 0.51 / 127 + 2**-9, "nf4": 0.16}[form] * largest).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fitted_scales_of_nf4_lose_nearly_as_little_as_can_be(dtype):
    """In every block no more than QLoRA's, and in the mean nearly as little as the best of 400 scales for each block,
    tried in float64. The codes are the nearest ones."""
    weight = _weight()
    codes, scales, layout = _stored("nf4", weight, dtype, fitted=True)
    expected = _by_formula("nf4", weight, dtype, scales)
    found = product(torch.eye(COLUMNS, dtype=dtype), codes, scales, layout).T.double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-7 if dtype == torch.float32 else 2**-8, atol=0)
    blocks = weight.double().numpy().reshape(-1, 64)
    squares = np.square(blocks).sum(1)

    def lost(values: np.ndarray) -> np.ndarray:
        """Of every block that is not zero, as part of its squares."""
        return np.square(values.reshape(-1, 64) - blocks).sum(1)[squares > 0] / squares[squares > 0]

    qlora, largest = lost(_by_formula("nf4", weight, dtype)), np.abs(blocks).max(1)
    best = np.min([lost(_by_formula("nf4", weight, dtype, torch.from_numpy(x * largest))) for x in PARTS], axis=0)
    assert (lost(expected) <= 1.01 * qlora + 1e-4).all()
    assert lost(expected).mean() < 0.85 * qlora.mean() and lost(expected).mean() < 1.03 * best.mean()
    assert (scales < 0).any() and (scales > 0).any()


@pytest.mark.parametrize("together", [1, 7, 64])
def test_a_unit_is_stored_alike_in_any_company(together):
    """Ranks cut weights at different places."""
    units, layout = _weight().view(-1, 64), Layout("nf4", (ROWS, COLUMNS), fitted=True)
    parts = [quantize(layout, part, torch.bfloat16) for part in units.split(together)]
    for found, whole in zip(zip(*parts, strict=True), quantize(layout, units, torch.bfloat16), strict=True):
        assert torch.equal(torch.cat(found), whole)


def test_bytes_that_are_stored():
    sizes = {form: sum(t.nbytes for t in _stored(form, _weight(), torch.bfloat16)[:2]) for form in ("int8", "nf4")}
    assert sizes == {
        "int8": ROWS * COLUMNS + 2 * ROWS * COLUMNS // 64,
        "nf4": ROWS * COLUMNS // 2 + 2 * ROWS * COLUMNS // 64,
    }


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_products_and_their_backward_are_those_of_the_formula(form):
    weight, generator = _weight(), torch.Generator().manual_seed(1)
    codes, scales, layout = _stored(form, weight, torch.float32)
    expected = _by_formula(form, weight, torch.float32)
    x = torch.randn(2, 7, COLUMNS, generator=generator)
    out = product(x, codes, scales, layout)
    np.testing.assert_allclose(out.numpy(), x.double().numpy() @ expected.T, rtol=1e-4, atol=1e-4)
    gradient = torch.randn(2, 7, ROWS, generator=generator)
    back = product_backward(gradient, codes, scales, layout)
    np.testing.assert_allclose(back.numpy(), gradient.double().numpy() @ expected, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_of_bitsandbytes_is_ours(dtype, monkeypatch):
    """The same codes from their quantisation, and the same weights with and without their kernel."""
    from bitsandbytes.functional import quantize_4bit

    weight = _weight().to(torch.bfloat16).float()
    codes, scales, layout = _stored("nf4", weight, dtype)
    of_fitted = _stored("nf4", weight, dtype, fitted=True)
    theirs, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    if dtype == torch.float32:
        assert torch.equal(scales, state.absmax)
        zero = weight.view(-1, 64).abs().amax(1) == 0  # stand for zero whatever the codes
        assert torch.equal(codes.view(-1, 32)[~zero], theirs.view(-1, 32)[~zero])
    with_kernel = [quantized._from_nf4(*stored) for stored in ((codes, scales, layout), of_fitted)]
    monkeypatch.setattr(quantized, "_bitsandbytes", lambda: False)
    without = [quantized._from_nf4(*stored) for stored in ((codes, scales, layout), of_fitted)]
    assert torch.equal(without[0], with_kernel[0]) and torch.equal(without[1], with_kernel[1])


def test_float8_products_are_those_of_rounded_factors():
    """On a CPU torch has the product of float8 with scales; here rows of both factors are rounded by hand."""
    weight = _weight().abs().clamp_(min=1e-3)[:, :COLUMNS]
    codes, scales, layout = _stored("fp8", weight, torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, COLUMNS, generator=generator).bfloat16()
    stands_for = codes.view(torch.float8_e4m3fn).double() * scales.double()[:, None]
    assert ((stands_for - weight).abs() <= 2**-4 * 1.01 * weight + 1e-5 * weight.amax(1, keepdim=True)).all()

    def float8_rows(values):
        largest = values.double().abs().amax(1, keepdim=True) / 448
        return (values.double() / largest).to(torch.float8_e4m3fn).double() * largest

    out = product(x, codes, scales, layout).double()
    torch.testing.assert_close(out, float8_rows(x) @ stands_for.T, rtol=2**-7, atol=1e-3)
    gradient = torch.randn(16, ROWS, generator=generator).bfloat16()
    back = product_backward(gradient, codes, scales, layout).double()
    scaled = float8_rows(gradient * scales) @ codes.view(torch.float8_e4m3fn).double()
    torch.testing.assert_close(back, scaled, rtol=2**-7, atol=0.05)


def test_a_quantised_layer_passes_gradients_to_its_input_and_keeps_nothing():
    layer = Linear(COLUMNS, ROWS, bias=True).requires_grad_(False)
    weight = layer.weight.clone()
    layer.quantize("int8")
    codes, scales, _ = _stored("int8", weight, torch.float32)
    layer.weight.copy_(codes)
    layer.weight_scale.copy_(scales)
    x = torch.randn(3, COLUMNS, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = layer(x)
    assert saved == []
    out.sum().backward()
    expected = torch.from_numpy(_by_formula("int8", weight, torch.float32)).float()
    torch.testing.assert_close(x.grad, expected.sum(0).expand(3, -1))
    torch.testing.assert_close(out, x @ expected.T + layer.bias)


def test_lora_trains_on_a_quantised_layer():
    layer = Linear(COLUMNS, ROWS, bias=False).requires_grad_(False)
    layer.quantize("nf4")
    layer.weight.random_(256)
    layer.weight_scale.fill_(0.1)
    lora = LoraLinear(layer, rank=2, alpha=4, dropout=0)
    assert lora.weight is layer.weight and lora.weight_scale is layer.weight_scale
    x = torch.randn(3, COLUMNS)
    assert torch.equal(lora(x), layer(x))
    lora(x).sum().backward()
    assert lora.lora_b.weight.grad.abs().sum() > 0
    assert [name for name, p in lora.named_parameters() if p.requires_grad] == ["lora_a.weight", "lora_b.weight"]


@pytest.mark.parametrize(("form", "near"), [("int8", 0.02), ("nf4", 0.15), ("fp8", 0.1)])
def test_a_model_on_a_quantised_base_is_near_the_whole_one_and_recomputes_the_same(form, near):
    """Method, adapters and all; of the gradients the one that has come through all layers."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        whole, stored = (_model(quantize) for quantize in ("none", form))
    finally:
        torch.set_default_dtype(torch.float32)
    weights = dict(whole.named_parameters())
    for name, part in stored.named_modules():
        if isinstance(part, Linear) and part.layout:
            codes, scales, _ = _stored(form, weights[f"{name}.weight"].detach().float(), torch.bfloat16)
            part.weight.data, part.weight_scale.data = codes, scales
    with torch.no_grad():
        for name, parameter in stored.named_parameters():
            if name in weights and weights[name].shape == parameter.shape and parameter.dtype != torch.uint8:
                parameter.copy_(weights[name])
    expected, of_whole = _logits_and_gradient(whole, "elementwise")
    found, gradient = _logits_and_gradient(stored, "elementwise")
    for ours, theirs in ((found, expected), (gradient, of_whole)):
        error = (ours - theirs).norm() / theirs.norm()
        assert 0 < error < near
    for policy in ("qkv", "full"):
        again, same = _logits_and_gradient(stored, policy)
        assert torch.equal(again, found) and torch.equal(same, gradient)


def _model(quantize: str):
    recipe = small.recipe("memvp")
    recipe.model.quantize = quantize
    configs = small.configs(hidden_size=64, intermediate_size=128)
    torch.manual_seed(0)
    model = build_frozen(recipe, configs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.dtype != torch.uint8:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    add_trainables(model, recipe, configs)
    for parameter in model.trainables().values():
        parameter.data = torch.randn(parameter.shape).to(torch.bfloat16) * 0.2
    return model.eval()


def _logits_and_gradient(model, policy):
    model.zero_grad()
    model.set_recompute(policy)
    logits, _ = model(small.prompts(model, answered=1).batch)
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), model.method.projector.fc1.weight.grad.float().clone()


def test_shapes_that_a_form_cannot_store_are_refused():
    with pytest.raises(
        UserError, match=r"model.quantize: nf4 takes .* multiples of 64, and the model has one of 5 x 70"
    ):
        Layout("nf4", (5, 70))
    with pytest.raises(UserError, match=r"fp8 takes .* multiples of 16"):
        Layout("fp8", (24, 32))
    Layout("int8", (5, 7))


def test_float8_is_refused_without_a_gpu_that_has_it():
    for form in ("none", "int8", "nf4"):
        check_form(form, torch.device("cpu"))
    with pytest.raises(UserError, match=r"fp8 needs an NVIDIA GPU .* and this is a CPU; take int8"):
        check_form("fp8", torch.device("cpu"))


def test_float8_goes_with_bf16():
    recipe = small.recipe("memvp")
    recipe.model.quantize = "fp8"
    recipe.check()
    recipe.model.dtype = "fp32"
    with pytest.raises(UserError, match=r"model\.quantize: fp8 computes in model\.dtype=bf16, not in fp32"):
        recipe.check()
