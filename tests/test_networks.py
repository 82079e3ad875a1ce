"""Networks: what they start from, what their time conditioning is, and their way through JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from math import log

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from diffgen.networks import MLP, NETWORKS, TimeScale, UNet, build, default_network, describe
from diffgen.networks.initialization import drawn_from
from diffgen.networks.unet import default_channels
from diffgen.processes import DDPM, EDM, PROCESSES, VE, RectifiedFlow

pytestmark = pytest.mark.usefixtures("one_thread")


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str) -> MLP | UNet:
    if name == "mlp":
        return MLP((1, 4, 4), width=16, depth=2, generator=source())
    pytest.importorskip("diffusers")
    return UNet((1, 4, 4), (8, 8), norm_groups=4, layers_per_block=1, generator=source())


@pytest.mark.parametrize("name", NETWORKS)
def test_new_network_predicts_zero_and_its_parameters_all_get_gradients_later(name: str) -> None:
    network = small(name)
    x_t, t = torch.randn(3, 1, 4, 4, generator=source()), torch.tensor([0, 500, 999])
    assert torch.equal(network(x_t, t), torch.zeros_like(x_t))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    (network(x_t, t) - x_t).square().sum().backward()
    optimizer.step()  # the last layer is no longer 0, and lets gradients through
    optimizer.zero_grad()
    (network(x_t, t) - x_t).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", NETWORKS)
def test_network_reads_each_time_of_its_own(name: str) -> None:
    network = small(name)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=source())
    x_t = torch.randn(1, 1, 4, 4, generator=source()).expand(3, 1, 4, 4)
    out = network(x_t, torch.tensor([10, 10, 700]))
    # Sums of at most 128 terms may be in another order for another row or batch size, in some ten
    # layers; another time is far off.
    rounding = 10 * 128 * torch.finfo(torch.float32).eps * out.abs().max()
    assert (out[0] - out[1]).abs().max() <= rounding
    assert (out[0] - out[2]).abs().max() > 100 * rounding
    one_time, float_times = network(x_t, torch.tensor(10)), network(x_t, torch.full((3,), 10.0))
    assert (one_time - float_times).abs().max() <= rounding


@pytest.mark.parametrize("name", NETWORKS)
def test_description_goes_through_json_and_back(name: str) -> None:
    network = small(name)
    description = json.loads(json.dumps(describe(network)))
    again = build(description)
    assert describe(again) == describe(network)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_from_the_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, second = small(name), small(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_without_generator_the_global_one_draws() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = nn.Linear(2, 2).weight
        torch.manual_seed(3)
        with drawn_from(None):
            assert torch.equal(nn.Linear(2, 2).weight, first)


def test_subclass_and_foreign_networks_have_no_description() -> None:
    class Other(MLP):
        pass

    assert describe(Other((2,), width=4, depth=1)) is None
    assert describe(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"name": "os.system", "arguments": {}}, "name must be one of mlp, unet, got 'os.system'"),
        ({"name": "mlp"}, "must have name and arguments"),
        ({"name": "mlp", "arguments": {"sample_shape": [2], "shell": 1}}, "do not fit"),
        ({"name": "mlp", "arguments": {"sample_shape": [2], "depth": 10**9}}, "depth must be"),
        (
            {"name": "mlp", "arguments": {"sample_shape": [2], "time_scale": {"kind": "x"}}},
            "kind must be one of",
        ),
    ],
)
def test_hostile_descriptions_are_refused(description: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(description)


def test_many_mlps_run_as_one() -> None:
    networks = [MLP((3,), width=8, depth=1, generator=source(seed)) for seed in range(3)]
    for network in networks:
        nn.init.normal_(network.leave.weight, generator=source(7))
    parameters, buffers = stack_module_state(networks)
    x_t, t = torch.randn(3, 5, 3, generator=source()), torch.arange(15).reshape(3, 5)

    def one(parameters: dict, buffers: dict, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return functional_call(networks[0], (parameters, buffers), (x_t, t))

    together = vmap(one)(parameters, buffers, x_t, t)
    apart = torch.stack([n(x, s) for n, x, s in zip(networks, x_t, t, strict=True)])
    # Sums of at most 128 terms in another order, through 6 layers.
    eps = torch.finfo(torch.float32).eps
    assert (together - apart).abs().max() <= 6 * 128 * eps * apart.abs().max()
    assert (apart[0] - apart[1]).abs().max() > 1e-2  # the replicas differ


@pytest.mark.parametrize("name", PROCESSES)
def test_positions_span_a_thousand_and_inputs_stay_near_one(name: str) -> None:
    process = PROCESSES[name]()
    scale = TimeScale.of(process)
    t = process.times(50)
    position = scale.position(t)
    assert 800 <= float(position.max() - position.min()) <= 1100
    # With data of variance 1 the scaled input has variance 1, or alpha^2 + sigma^2 <= 1.
    size = scale.input_scale(t).double() * (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()
    assert float((size - 1).max()) < 1e-6 and float(size.min()) > 0.7


def test_noise_levels_are_read_by_their_logarithm() -> None:
    ve = VE(0.01, 50.0)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    exact = 100 * ve.sigma(t).log()
    # float32 holds positions of about 500 to within 2^-15; log and scale round a few times more.
    assert (TimeScale.of(ve).position(t) - exact).abs().max() < 4 * 2.0**-15
    edm = TimeScale.of(EDM()).position(torch.tensor([0.0, 1.0, 80.0]))
    assert torch.isfinite(edm).all() and edm[1] == 0
    assert abs(float(edm[2]) - 100 * log(80)) < 4 * 2.0**-15


def test_steps_of_a_short_ddpm_are_spread() -> None:
    assert TimeScale.of(DDPM("cosine", 50)) == TimeScale("linear", 20.0)
    assert default_network((2,), RectifiedFlow()).arguments["time_scale"]["scale"] == 1000.0


def test_default_is_a_unet_for_images_of_16_pixels_and_an_mlp_below() -> None:
    pytest.importorskip("diffusers")
    assert isinstance(default_network((1, 8, 8)), MLP)
    assert isinstance(default_network((16, 16)), MLP)
    assert isinstance(default_network((1, 16, 16), channels=(32,), layers_per_block=1), UNet)
    assert isinstance(default_network((1, 16, 16), name="mlp", width=8, depth=1), MLP)
    assert default_channels((64, 64)) == (128, 256, 256, 256, 256)
    assert default_channels((28, 28)) == (64, 128, 128)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP((2,), width=0), "width must be between 1 and"),
        (lambda: MLP((2, 0)), "sample_shape must have sizes of 1 or more"),
        (lambda: default_network((2,), name="cnn"), "name must be one of mlp, unet, got 'cnn'"),
        (lambda: MLP((2,))(torch.zeros(4, 3), torch.zeros(4)), r"x_t must be \(B, 2\), got"),
        (lambda: UNet((3, 8)), r"sample_shape must be \(C, H, W\)"),
        (lambda: UNet((3, 6, 6), (32, 32, 32)), "sides divisible by 4 for 3 levels"),
        (lambda: UNet((3, 8, 8), (30,)), "channels must be multiples of norm_groups = 32"),
        (lambda: UNet((3, 8, 8), (32,), (True, False)), "attention must have a value for each"),
        (lambda: TimeScale("linear", float("nan")), "scale must be finite"),
    ],
)
def test_bad_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_importing_networks_and_training_imports_no_optional_package() -> None:
    code = (
        "import sys, diffgen.networks, diffgen.training; "
        "print([m for m in ('accelerate', 'diffusers', 'safetensors', 'tensorboard', 'sklearn', "
        "'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
