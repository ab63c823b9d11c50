"""What every measure reads on features without any structure, so that a number can be judged."""

from __future__ import annotations

import math

from nucleate.geometry.means import etf_distance_floor


def chance_levels(num_points: int, num_classes: int, dim: int) -> dict[str, float]:
    """Expected measures of isotropic Gaussian features independent of balanced labels; closed forms, n = N/C.

    A wide layer with few points reads NC1 below 1, and NC2 near 0, with no structure at all. Left out where no closed
    form holds (C = 1, d near C). `nc2_etf_floor` is the smallest ETF distance that C rows in d dimensions can have.

    >>> round(chance_levels(500, 10, 512)["nc1"], 2)
    0.88
    """
    c, d, n = num_classes, dim, num_points / num_classes
    if c < 2:
        return {}
    out = {
        "nc1_quotient": (n - 1) * c / (c - 1),
        "nc2_equinorm": 1 / math.sqrt(2 * d),
        "nc2_equiangle": 1 / math.sqrt(d),
        "nc2_max_angle": math.sqrt(2 / (math.pi * d)),
        "nc2_etf": math.sqrt(2 - 2 / math.sqrt(1 + (c - 1) / d)),
        "nc2_etf_floor": etf_distance_floor(c, d),
        "nc3": 2.0,
        "nc3_gram": math.sqrt(2),
        "nc3_cosine": 1.0,
        "nc4": 1 - 1 / c,
        "ncc_accuracy": 1 / c,
    }
    if d > c:
        out["nc1"] = (n - 1) * (c - 1) / (d - c)
    elif c > d + 2:
        out["nc1"] = (n - 1) * d / (c - d - 2)
    if d > 2:
        out["nc1_cdnv"] = (n - 1) / 2 * d / (d - 2)
    if num_points - 1 > d:
        out["nc1_vci"] = 1 - max(d, c - 1) / (num_points - 1)
    return out
