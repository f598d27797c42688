"""The roofline recovers what made the times, and grows with every size."""

import json

import numpy as np
import pytest

from latency.kernel import Kernel
from latency.roofline import Roofline, effective_flops, roofline_terms

LINE = (0.02, 0.1, 0.3, 0.05, 0.004)


def convolution(channels: int, side: int = 14, padded: int | None = None) -> Kernel:
    shape = (1, channels, side, side)
    return Kernel(
        family="conv_dense",
        op="nchwc.Conv",
        inputs=(shape,),
        outputs=(shape,),
        weights=((padded or channels, channels, 3, 3), (channels,)),
        kernel=(3, 3),
        strides=(1, 1),
        dilations=(1, 1),
        pads=(1, 1, 1, 1),
    )


def test_known_coefficients_are_found() -> None:
    kernels = [convolution(c, s) for c in (8, 16, 40, 64, 100) for s in (7, 14, 28, 56)]
    terms = np.array([roofline_terms(k) for k in kernels])
    truth = np.array(LINE)
    found = Roofline.fit(terms, terms @ truth)
    np.testing.assert_allclose(found.predict(terms), terms @ truth, rtol=1e-6)
    assert found.predict_one(kernels[3]) == pytest.approx(float(terms[3] @ truth))


def test_it_grows_with_channels_and_resolution() -> None:
    line = Roofline(LINE)
    by_channels = [line.predict_one(convolution(c)) for c in (8, 16, 32, 64, 512)]
    by_side = [line.predict_one(convolution(16, s)) for s in (7, 14, 28, 224)]
    assert by_channels == sorted(by_channels) and by_side == sorted(by_side)


def test_padding_counts() -> None:
    plain, padded = convolution(20), convolution(20, padded=32)
    assert effective_flops(padded) == pytest.approx(effective_flops(plain) * 32 / 20, rel=0.02)


def test_no_kernel_takes_no_time() -> None:
    assert Roofline((1.0, *LINE[1:-1], 0.0)).predict_one(Kernel("reshape", "Flatten", (), ())) > 0


def test_coefficients_survive_json() -> None:
    line = Roofline(LINE)
    assert Roofline.from_json(json.loads(json.dumps(line.coefficients))) == line


@pytest.mark.parametrize("data", [None, 3, [], [1.0] * 3, "1234x", ["a"] * 4, {}])
def test_other_coefficients_are_refused(data: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Roofline.from_json(data)
