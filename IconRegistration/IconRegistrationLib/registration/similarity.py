"""Image similarity as losses: smaller is better, zero or near zero for a perfect match.

Every loss takes `warped` and `fixed`, tensors [N, 1, D, H, W], and an optional `mask` [N, 1, D, H, W] of `fixed`
(non-zero where a voxel counts), and returns a scalar tensor. Values and gradients are those of
icon_registration 1.1.9's `LNCC`, `SquaredLNCC` and `MINDSSC`; the arithmetic is written for speed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..spatial.trilinear import dot

Similarity = Callable[..., torch.Tensor]


def _window_matrix(n: int, kernel: torch.Tensor) -> torch.Tensor:
    """Return the banded n x n matrix whose product along an axis is the zero-padded convolution with `kernel`."""
    radius = len(kernel) // 2
    matrix = torch.zeros(n, n, dtype=kernel.dtype, device=kernel.device)
    for offset in range(-radius, radius + 1):
        if abs(offset) < n:
            matrix.diagonal(offset).fill_(kernel[radius + offset].item())
    return matrix


def apply_along_axes(x: torch.Tensor, matrices) -> torch.Tensor:
    """Multiply x [N, C, D, H, W] by one matrix [n', n] along each of D, H, W.

    Three dense products: on a CPU at 175^3 about ten times faster than three conv3d calls with a 21-tap window.
    """
    along_d, along_h, along_w = matrices
    x = x @ along_w.T
    x = along_h @ x
    n, c, d, h, w = x.shape
    return (along_d @ x.reshape(n, c, d, h * w)).reshape(n, c, along_d.shape[0], h, w)


class GaussianWindow:
    """Local weighted mean with a Gaussian of `sigma` voxels cut at +-2 sigma, around every `every`-th voxel per axis.

    Windows overlap: as long as `every` is no more than sigma, all voxels weigh the same. The kernel has 4 sigma + 1
    taps like icon_registration's `gaussian_blur`; matrices are cached per shape.
    within: average over the part of the window that lies within the image; otherwise there are zeros outside, as
    published, and every border looks like an edge that both images share.
    """

    def __init__(self, sigma: float, within: bool = False, every: int = 1):
        self.within = within
        self._every = slice(None, None, every)
        taps = round(sigma * 4) + 1
        x = torch.linspace(-(taps - 1) / 2, (taps - 1) / 2, taps, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (x / sigma) ** 2)
        self._kernel = kernel / kernel.sum()
        self._cache: dict[tuple, list[torch.Tensor]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the local means [N, C, d, h, w] of x [N, C, D, H, W]."""
        return apply_along_axes(x, self._matrices(x))

    def transposed(self, means: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to `values`, from that with respect to their means."""
        return apply_along_axes(means, [matrix.T for matrix in self._matrices(values)])

    def centres(self, x: torch.Tensor) -> torch.Tensor:
        """Return the voxels around which there are means."""
        return x[..., self._every, self._every, self._every]

    def _matrices(self, x: torch.Tensor) -> list[torch.Tensor]:
        key = (tuple(x.shape[2:]), x.dtype, x.device)
        if key not in self._cache:
            kernel = self._kernel.to(x.dtype)
            matrices = [_window_matrix(n, kernel)[self._every] for n in x.shape[2:]]
            if self.within:
                matrices = [matrix / matrix.sum(1, keepdim=True) for matrix in matrices]
            self._cache[key] = [matrix.to(x.device) for matrix in matrices]
        return self._cache[key]


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of `values` where `mask` is non-zero, samples of the batch averaged equally."""
    if mask is None:
        return values.mean()
    included = (mask != 0).expand_as(values).to(values.dtype)
    dims = tuple(range(1, values.dim()))
    return ((values * included).sum(dims) / included.sum(dims).clamp_min(1)).mean()


class LocalSimilarity:
    """A loss that is the masked mean of a map of local dissimilarity between features of the two images.

    `features` may be computed once per image and warped instead of the image (registration/refine.py does), because
    `compare` looks at features only.

    Attributes
    ----------
    compares_voxels : bool
        Whether `compare` looks at one voxel of the features at a time. A loss that says so has `compare_voxels`, too;
        the refinement of the field then takes a quarter of the voxels in each step.
    """

    compares_voxels = False

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features [N, C, D, H, W] of an image [N, 1, D, H, W]; here the image itself."""
        return image

    def centres(self, x: torch.Tensor) -> torch.Tensor:
        """Return the voxels at which features are compared: [N, C, d, h, w] of [N, C, D, H, W]."""
        return x

    def compare(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return the dissimilarity [N, 1, d, h, w] of features [N, C, D, H, W] of both images."""
        raise NotImplementedError

    def informative(self, fixed: torch.Tensor) -> torch.Tensor:
        """Return where a match can be told from a mismatch, bool [N, 1, d, h, w], of features; here everywhere."""
        return torch.ones_like(self.centres(fixed)[:, :1], dtype=torch.bool)

    def compare_voxels(self, warped: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the dissimilarity [...] of features [C, ...], and its gradient with respect to `warped`."""
        raise NotImplementedError

    def __call__(self, warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of images [N, 1, D, H, W], a scalar; mask: non-zero where a voxel of `fixed` counts."""
        mask = None if mask is None else self.centres(mask)
        return masked_mean(self.compare(self.features(warped), self.features(fixed)), mask)


class _LocalCorrelation(torch.autograd.Function):
    """Correlation c = cov(w, f) / sqrt((var w + e) (var f + e)) of window means, with its gradients written out.

    Automatic differentiation keeps twice as many volumes for them, and passes over each more often.
    """

    @staticmethod
    def forward(context, warped, fixed, mean_fixed, variance_fixed, window: GaussianWindow, epsilon: float):
        # one volume after the other: together they would take three times the memory meanwhile
        mean = window(warped)
        variance = window(warped * warped).addcmul_(mean, mean, value=-1)
        flat = variance <= 0  # by rounding: its derivative is that of a constant
        variance.clamp_min_(0).add_(epsilon)
        scale = (variance_fixed + epsilon).mul_(variance).rsqrt_()
        correlation = window(warped * fixed).addcmul_(mean, mean_fixed, value=-1).mul_(scale)
        variance.reciprocal_().masked_fill_(flat, 0)
        context.window, context.epsilon = window, epsilon
        context.save_for_backward(warped, fixed, mean_fixed, variance_fixed, mean, variance, scale, correlation)
        return correlation

    @staticmethod
    def backward(context, gradient):
        warped, fixed, mean_fixed, variance_fixed, mean, inverse_variance, scale, correlation = context.saved_tensors
        by_product = gradient * scale
        of_fixed = [None] * 3
        if any(context.needs_input_grad[1:4]):
            by_variance = gradient * correlation / (variance_fixed + context.epsilon) / -2
            of_fixed = [warped * context.window.transposed(by_product, warped), -mean * by_product, by_variance]
        by_square = (gradient * correlation).mul_(inverse_variance).mul_(-0.5)
        by_mean = (mean_fixed * by_product).addcmul_(mean, by_square, value=2).neg_()
        of_warped = context.window.transposed(by_mean, warped)
        del by_mean
        of_warped.addcmul_(warped, context.window.transposed(by_square, warped), value=2)
        of_warped.addcmul_(fixed, context.window.transposed(by_product, warped))
        return of_warped, *of_fixed, None, None


class LNCC(LocalSimilarity):
    """1 - local normalised cross-correlation in a Gaussian window, as in GradICON (Tian et al., CVPR 2023).

    sigma, within, every: see `GaussianWindow`.  squared: correlation of either sign counts.
    """

    def __init__(
        self, sigma: float = 5, squared: bool = False, epsilon: float = 1e-5, within: bool = False, every: int = 1
    ):
        self.squared = squared
        self.epsilon = epsilon
        self._window = GaussianWindow(sigma, within, every)
        self._fixed: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def centres(self, x: torch.Tensor) -> torch.Tensor:
        """Return the voxels around which there are windows."""
        return self._window.centres(x)

    def _statistics(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the local mean and variance."""
        mean, square = self._window(torch.cat([image, image * image], 1)).chunk(2, 1)
        return mean, torch.relu(square - mean * mean)

    def _fixed_statistics(self, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cached local mean and variance of the fixed image, which does not change between steps."""
        if fixed.requires_grad:
            return self._statistics(fixed)
        if self._fixed is None or self._fixed[0] is not fixed:
            self._fixed = fixed, *self._statistics(fixed)
        return self._fixed[1:]

    def correlation(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return the local correlation, [N, 1, d, h, w] in [-1, 1]."""
        return _LocalCorrelation.apply(warped, fixed, *self._fixed_statistics(fixed), self._window, self.epsilon)

    def compare(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return 1 - correlation, or 1 - its square."""
        correlation = self.correlation(warped, fixed)
        return 1 - (correlation**2 if self.squared else correlation)

    def informative(self, fixed: torch.Tensor) -> torch.Tensor:
        """Return where the window has some variance."""
        # ten times the epsilon that keeps constant windows finite: below it the correlation is damped to nothing
        return self._fixed_statistics(fixed)[1] > 10 * self.epsilon


class MINDSSC(LocalSimilarity):
    """Mean squared difference of MIND-SSC descriptors (Heinrich et al., MICCAI 2013), for different modalities."""

    compares_voxels = True

    def __init__(self, radius: int = 2, dilation: int = 2):
        self.radius = radius
        self.dilation = dilation

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return descriptors [N, 12, D, H, W] in (0, 1]: patch distances between neighbours of the six-neighbourhood.

        The twelve pairs are those at squared distance 2; their order is of no consequence to the loss.
        """
        step, radius = self.dilation, self.radius
        padded = F.pad(image, (step,) * 6, mode="replicate")
        d, h, w = image.shape[2:]

        def shifted(z, y, x):
            return padded[:, :, z * step : z * step + d, y * step : y * step + h, x * step : x * step + w]

        neighbours = [(0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1)]
        pairs = [
            (a, b)
            for n, a in enumerate(neighbours)
            for b in neighbours[:n]
            if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2
        ]
        # twelve volumes at a time: one name, so that they go when the next are there
        mind = torch.cat([(shifted(*a) - shifted(*b)) ** 2 for a, b in pairs], 1)
        mind = F.pad(mind, (radius,) * 6, mode="replicate")
        mind = F.avg_pool3d(mind, 2 * radius + 1, stride=1)
        mind = mind - mind.amin(1, keepdim=True)
        variance = mind.mean(1, keepdim=True)
        mean = max(variance.mean().item(), 1e-20)  # 0 of a constant image, whose descriptors are then all 1
        return (mind / -variance.clamp(mean * 1e-3, mean * 1e3)).exp_()

    def compare(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return the mean squared difference of the twelve descriptors, [N, 1, D, H, W]."""
        return ((warped - fixed) ** 2).mean(1, keepdim=True)

    def compare_voxels(self, warped: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `compare` of features [12, ...] without that axis, and its gradient with respect to `warped`."""
        difference = warped - fixed
        return dot(difference, difference) / len(difference), difference * (2 / len(difference))

    def informative(self, fixed: torch.Tensor) -> torch.Tensor:
        """Return where the patches differ."""
        return fixed.amin(1, keepdim=True) < 0.9  # a constant patch has all twelve descriptors at 1
