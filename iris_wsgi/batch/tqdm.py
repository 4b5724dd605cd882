"""A bar on a terminal, by tqdm."""

from tqdm import tqdm


def bar(total: int | None, unit: str) -> tqdm:
    return tqdm(total=total, unit=unit, unit_scale=True, dynamic_ncols=True, smoothing=0.1)
