import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segapp.spread import outer_percentiles, spread, telling_spread


@given(
    arrays(np.uint8, st.integers(1, 300)) | arrays(np.uint16, st.integers(1, 300)),
    st.sampled_from(["zscore", "percentile"]),
    st.booleans(),
)
def test_counting_gives_what_the_values_give(x, kind, nonzero):
    counted, plain = spread(x, kind, nonzero), spread(x.astype(np.float64), kind, nonzero)
    np.testing.assert_allclose(counted, plain, rtol=1e-6)
    np.testing.assert_allclose(outer_percentiles(x), np.percentile(x, (0.5, 99.5)))
    one, other = (telling_spread(y, kind, nonzero) for y in (x, x.astype(np.float64)))
    assert (one is None) == (other is None)


def test_by_hand():
    x = np.array([[0, 0, 2], [4, 6, 0]], np.uint8)
    assert spread(x, "zscore", nonzero=True)[:2] == (4.0, pytest.approx((8 / 3) ** 0.5))
    assert spread(x, "zscore", nonzero=False)[0] == 2.0
    shift, scale, low, high = spread(np.arange(201, dtype=np.uint8), "percentile", nonzero=False)
    assert (low, high, shift, scale) == (1.0, 199.0, 100.0, 99.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_constant_and_an_image_of_zeros_tell_nothing(dtype):
    assert spread(np.full(5, 7, dtype), "zscore", nonzero=True) == (7.0, 1.0, 0.0, 0.0)
    assert spread(np.zeros(5, dtype), "zscore", nonzero=True) == (0.0, 1.0, 0.0, 0.0)
    assert telling_spread(np.full(5, 7, dtype), "zscore", nonzero=True) is None
    assert telling_spread(np.zeros(5, dtype), "zscore", nonzero=True) is None
    few = np.zeros(1000, dtype)
    few[:9] = np.arange(1, 10)
    assert telling_spread(few, "zscore", nonzero=True) is None
    assert telling_spread(few, "zscore", nonzero=False) is not None
