"""Norms, largest magnitudes and histograms of every tensor, by a few passes over the flat buffers."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrine.model.flat import FlatParameters
from vitrine.runs.layout import HISTOGRAM_BINS, STATISTICS, Layout, choose_sample


def make_layout(parameters: FlatParameters, every: int, seed: int) -> Layout:
    """A row of statistics for these parameters, in the order of their buffer."""
    names = tuple(place.name for place in parameters.places)
    return Layout(every, names, choose_sample({p.name: p.stop - p.start for p in parameters.places}, seed))


def sample_places(parameters: FlatParameters, layout: Layout) -> Tensor:
    """The sampled parameters as places in the flat buffer, in the order of the row. (n,) of int64."""
    starts = {place.name: place.start for place in parameters.places}
    places = [starts[name] + place for name in layout.tensors for place in layout.sample[name]]
    return torch.tensor(places, device=parameters.values.device)


def norms(parameters: FlatParameters, flat: Tensor) -> Tensor:
    """The L2 norm of each tensor in a flat buffer, in buffer order. (tensors,) of float32."""
    return torch.cat([torch.linalg.vector_norm(region, dim=1) for region in parameters.regions(flat)])


def magnitudes(parameters: FlatParameters, flat: Tensor) -> Tensor:
    """The largest magnitude in each tensor of a flat buffer; NaN where there is one. (tensors,) of float32."""
    regions = parameters.regions(flat)
    return torch.cat([torch.maximum(region.amax(1), -region.amin(1)) for region in regions])


def measure(parameters: FlatParameters, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Two columns of the statistics: norms and largest magnitudes."""
    return norms(parameters, flat), magnitudes(parameters, flat)


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
