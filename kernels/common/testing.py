"""The one tolerance of the tests: a fused result may be no worse than eager torch in the same dtype."""

import torch
from torch import Tensor


def assert_no_worse(
    fused: Tensor, eager: Tensor, exact: Tensor, factor: float = 2.0, floor: float = 1e-6, name: str = "result"
) -> None:
    """Assert max |fused - exact| <= factor * max |eager - exact| + floor * max(1, max |exact|).

    `exact` is the same computation in float64 on the same inputs, `eager` plain torch in the dtype of the fused one.
    Where `exact` is infinite or NaN, `fused` must be the same and nothing else is compared.
    """
    assert fused.shape == exact.shape, f"{name}: shape {tuple(fused.shape)}, wanted {tuple(exact.shape)}"
    fused, eager, exact = (x.detach().double().cpu() for x in (fused, eager, exact))
    finite = exact.isfinite()
    torch.testing.assert_close(
        fused[~finite], exact[~finite], equal_nan=True, msg=lambda m: f"{name}: where the exact one is not finite: {m}"
    )
    fused, eager, exact = fused[finite], eager[finite], exact[finite]
    if not exact.numel():
        return
    error, eager_error = (fused - exact).abs().max().item(), (eager - exact).abs().nan_to_num(0.0).max().item()
    bound = factor * eager_error + floor * max(1.0, exact.abs().max().item())
    # not >, so that a NaN fails
    assert error <= bound, f"{name}: error {error:.3g} > {bound:.3g} (eager torch in this dtype: {eager_error:.3g})"
