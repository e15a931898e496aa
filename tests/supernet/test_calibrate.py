"""SubnetNorm statistics against the definition and against torch's own BatchNorm."""

import pytest
import torch
from torch import nn

from common.supernet.actuate import Actuator, extract
from common.supernet.calibrate import calibrate, statistics_bytes
from common.supernet.operators import Moments
from common.supernet.spec import Space
from tests.supernet.conftest import Build, pictures


def test_moments_combine_exactly() -> None:
    """Mean and variance added batch by batch, of unequal sizes, are those of all data at once."""
    data = torch.randn(97, 5, 4, 3, generator=torch.Generator().manual_seed(0)) * 3 + 100
    moments = Moments()
    for batch in (data[:1], data[1:41], data[41:48], data[48:]):
        var, mean = torch.var_mean(batch, dim=(0, 2, 3), correction=0)
        moments.add(batch.numel() // 5, mean, var)
    var, mean = torch.var_mean(data.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(moments.result(), (mean.float(), var.float()), rtol=1e-5, atol=1e-6)


def test_first_norm_sees_the_concatenated_data(build: Build, space: Space) -> None:
    """Calibrated in batches, a norm holds the exact statistics of what it saw over all of them."""
    model, images = build(), pictures(50).inputs
    calibrate(model, space.largest, (images[start : start + 16] for start in range(0, 50, 16)))
    with torch.no_grad():
        pixels = (images.unsqueeze(1).float() - 100) / 70
        inputs = nn.functional.conv2d(pixels, model.net.get_parameter("stem.weight"), padding=1).double()
    var, mean = torch.var_mean(inputs, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(
        model.norms()["norm"].statistics[space.largest.id], (mean.float(), var.float()), rtol=1e-4, atol=1e-5
    )


def test_one_batch_gives_what_batchnorm_tracks(build: Build, space: Space) -> None:
    """On one batch, every norm of a subnet gets what BatchNorm2d tracks in the extracted subnet on that batch."""
    control, images = space.parse("d2.1.2-w50-e100.50.25"), pictures(32).inputs
    model = build()
    calibrate(model, control, [images])
    static = extract(model, control).train()
    norms = {name: norm for name, norm in static.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    counts: dict[str, int] = {}
    for name, norm in norms.items():
        norm.momentum = 1.0
        norm.register_forward_hook(lambda _m, x, _y, name=name: counts.update({name: x[0].numel() // x[0].shape[1]}))
    with torch.no_grad():
        static(images)
    for name, norm in norms.items():
        mean, var = model.norms()[name].statistics[control.id]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        population = norm.running_var * (counts[name] - 1) / counts[name]  # torch tracks the unbiased variance
        torch.testing.assert_close((mean, var), (norm.running_mean, population), rtol=1e-4, atol=1e-5)


def test_only_active_norms_and_channels_are_kept(build: Build, space: Space) -> None:
    """Skipped blocks get no statistics and narrow subnets short ones: bytes follow the subnet's size."""
    model, images = build(), [pictures(8).inputs]
    calibrate(model, space.smallest, images)
    calibrate(model, space.largest, images)
    skipped = model.norms()["stages.1.2.norm1"].statistics
    assert set(skipped) == {space.largest.id}
    assert len(model.norms()["norm"].statistics[space.smallest.id][0]) == 4
    small = statistics_bytes(model.norms().values(), space.smallest.id)
    large = statistics_bytes(model.norms().values(), space.largest.id)
    assert 0 < small < large / 3


def test_calibration_leaves_mode_and_weights(build: Build, space: Space) -> None:
    """Calibration changes statistics only: weights keep their bits, and inference mode stays."""
    model = build(space.smallest)
    Actuator(model).actuate(space.smallest.id)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    calibrate(model, space.largest, [pictures(8).inputs])
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_no_image_is_an_error(build: Build, space: Space) -> None:
    """Calibration on nothing is refused instead of leaving a subnet that looks calibrated."""
    with pytest.raises(ValueError, match="no images to calibrate subnet"):
        calibrate(build(), space.smallest, [])
