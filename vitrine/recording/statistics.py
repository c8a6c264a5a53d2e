"""Norms, largest magnitudes and histograms of every tensor, by a few passes over the flat buffers.

Where entries are only some rows of their tensors, so are norms and magnitudes: the root of the sum of their squares, and the
largest of them, are those of the whole.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrine.model.entries import Entries, Parameters
from vitrine.runs.layout import HISTOGRAM_BINS, STATISTICS, Layout, choose_sample


def make_layout(entries: Entries, every: int, seed: int) -> Layout:
    """A row of statistics for these entries, in their order."""
    sizes = {name: math.prod(shape) for name, shape in entries.shapes.items()}
    return Layout(every, tuple(sizes), choose_sample(sizes, seed))


def sample_places(parameters: Parameters, layout: Layout) -> Tensor:
    """The sampled parameters as places in the flat buffer, in the order of the row. (n,) of int64."""
    origins = parameters.entries.origins
    places = [origins[name] + place for name in layout.tensors for place in layout.sample[name]]
    return torch.tensor(places, device=parameters.device)


def norms(entries: Entries, flat: Tensor) -> Tensor:
    """The L2 norm of each tensor in a flat buffer, in buffer order. (tensors,) of float32."""
    return torch.cat([torch.linalg.vector_norm(region, dim=1) for region in entries.regions(flat)])


def magnitudes(entries: Entries, flat: Tensor) -> Tensor:
    """The largest magnitude in each tensor of a flat buffer; NaN where there is one. (tensors,) of float32."""
    regions = entries.regions(flat)
    return torch.cat([torch.maximum(region.amax(1), -region.amin(1)) for region in regions])


def measure(entries: Entries, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Two columns of the statistics: norms and largest magnitudes."""
    return norms(entries, flat), magnitudes(entries, flat)


def join(columns: list[Tensor], values: Tensor, gradients: Tensor) -> Tensor:
    """A row from the columns of its statistics and its sampled values and gradients."""
    assert len(columns) == len(STATISTICS)
    return torch.cat([torch.stack(columns, dim=1).flatten(), values, gradients])


def bins_of(numbers: Tensor) -> Tensor:
    """The histogram bin of each number, as int32; see `runs.statistics.bin_edges`."""
    return numbers.detach().view(torch.int32).bitwise_right_shift(21).bitwise_and_(HISTOGRAM_BINS - 1)


def count_bins(bins: Tensor) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The bins of a tensor that are not empty, and their counts."""
    counts = torch.bincount(bins.flatten()).cpu().numpy()
    filled = np.flatnonzero(counts)
    return filled.astype("<u2"), counts[filled].astype("<u4")


def histogram(numbers: Tensor) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The bins of a tensor that are not empty, and their counts."""
    return count_bins(bins_of(numbers))
