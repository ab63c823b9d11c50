"""Low-precision copies of points, with proven bounds on the squared distances computed from them.

A code gives each point i a row of `values` and a `half_norm` b_i; h_ij = <values_i, values_j> - b_i - b_j, and
A_ij = -2 w h_ij, with the code's `unit` w, approximates D_ij^2 = |x_i - x_j|^2 (after the code's shift and scale).
For all i, j

    additive    |A_ij - D_ij^2| <= e_i + e_j                        `slack` e
    triangle    |sqrt(A_ij - f_i - f_j) - D_ij| <= r_i + r_j        int8 only: `drift` f, `radius` r of what is left out

Each is one number for a row and one for a column, so a row's threshold serves a whole block of columns. They rest on
- |fl(<a, b>) - <a, b>| <= g |a| |b|, g = d u / (1 - d u), for every order of summation (Higham 2002, sec. 3.1),
- |<a_i, a_j> - <q_i, q_j>| <= |a_i| |r_j| + |a_j| |r_i| + |r_i| |r_j| for residuals r = a - q, with the measured |r|,
- 2 |a| |r| <= t |a|^2 + |r|^2 / t, for any t > 0; int8 products are exact, so A - f_i - f_j is |q_i - q_j|^2 itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Name = Literal["int8", "bfloat16", "float32", "float64"]

RATE: dict[Name, float] = {"int8": 4.4, "bfloat16": 2.2, "float32": 1.0, "float64": 0.5}
"""Products per second over float32's, measured on one core with AVX512-VNNI and AVX512-BF16; a guess elsewhere."""

BF16_ROUNDING = 2.0**-8 * (1 + 2.0**-6)
"""Share of |a|^2 + |b|^2 that rounding <a, b> to bfloat16 can move a squared distance by."""
_PADDING = 2**29
_DTYPE: dict[Name, torch.dtype] = {
    "int8": torch.int8,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Code:
    """How points become low-precision rows: shift, power-of-two scale, quantisation step, balance t of the bound."""

    name: Name
    centre: Tensor
    scale: float
    step: float = 1.0
    balance: float = 1.0

    @property
    def unit(self) -> float:
        """Squared distance (after scaling) that one unit of -2 h stands for."""
        return self.step * self.step


@dataclass(frozen=True)
class Coded:
    """Points in a code, in the order `order`, padded with points at infinite distance."""

    code: Code
    values: Tensor
    half_norms: Tensor
    slack: Tensor
    drift: Tensor
    radius: Tensor
    order: Tensor


@dataclass(frozen=True)
class Pair:
    """A block of rows against a block of columns: the product and what it proves about the distances."""

    rows: Coded
    cols: Coded
    row: slice
    col: slice

    def product(self) -> Tensor:
        """The block of h."""
        a, b = self.rows.values[self.row], self.cols.values[self.col].T
        if self.rows.code.name == "int8":
            h = torch._int_mm(a, b)
        else:
            h = a @ b
            if self.rows.code.name == "bfloat16":
                h = h.float()
        return h.sub_(self.rows.half_norms[self.row, None]).sub_(self.cols.half_norms[self.col])

    def transposed(self) -> Pair:
        """The same block seen from its columns."""
        return Pair(self.cols, self.rows, self.col, self.row)

    def upper(self, h: Tensor) -> Tensor:
        """Upper bounds of D^2 for some h of each row (a matrix with the block's rows)."""
        near = -2 * self.rows.code.unit * h
        additive = near + (self.rows.slack[self.row] + self.cols.slack[self.col].max())[:, None]
        drift = self.rows.drift[self.row] + self.cols.drift[self.col].min() - self._rounding
        radius = self.rows.radius[self.row] + self.cols.radius[self.col].max()
        triangle = ((near - drift[:, None]).clamp_min(0).sqrt() + radius[:, None]).square()
        return torch.minimum(additive, triangle)

    def threshold(self, limit: Tensor) -> Tensor:
        """The h below which D^2 exceeds each row's limit, whatever the column."""
        additive = limit + self.rows.slack[self.row] + self.cols.slack[self.col].max()
        drift = self.rows.drift[self.row] + self.cols.drift[self.col].max() + self._rounding
        radius = self.rows.radius[self.row] + self.cols.radius[self.col].max()
        triangle = (limit.clamp_min(0).sqrt() + radius).square() + drift
        return torch.minimum(additive, triangle) * (1 + 1e-12) / (-2 * self.rows.code.unit)

    @property
    def _rounding(self) -> float:
        """int8 half norms are rounded to integers."""
        return 2 * self.rows.code.unit


def interval(rows: Coded, cols: Coded, i: Tensor, j: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of D^2 for pairs of positions (i, j) with products h."""
    code = rows.code
    near = -2 * code.unit * h
    error = rows.slack[i] + cols.slack[j]
    if code.name == "bfloat16":
        # The slack charges the rounding of the sum at its worst; here the sum is known.
        norms = 2 * (rows.half_norms[i].double() + cols.half_norms[j].double())
        error = error - BF16_ROUNDING * (norms - (norms - near).abs() * 1.01) * (1 - 1e-6)
    low, high = near - error, near + error
    if code.name == "int8":
        radius = rows.radius[i] + cols.radius[j]
        square = near - rows.drift[i] - cols.drift[j]
        low = torch.maximum(low, ((square - 2 * code.unit).clamp_min(0).sqrt() - radius).clamp_min(0).square())
        high = torch.minimum(high, ((square + 2 * code.unit).clamp_min(0).sqrt() + radius).square())
    return low * (1 - 1e-12), high * (1 + 1e-12)


def available(device: torch.device) -> tuple[Name, ...]:
    """The codes whose products are fast and follow the stated arithmetic on this device."""
    names: list[Name] = []
    if device.type == "cpu" and torch._C._has_mkldnn:
        # Without VNNI, int8 products may saturate; without AVX512-BF16, bfloat16 is emulated slowly.
        if torch.cpu._is_vnni_supported():
            names.append("int8")
        if torch.cpu._is_avx512_bf16_supported():
            names.append("bfloat16")
    return (*names, "float32", "float64")


def suits(code: Code, dim: int) -> bool:
    """Whether products of scaled points (norm at most 1) are right: an int8 product must not overflow its 32 bits.

    torch 2.13's `_int_mm` takes a transposed matrix of one column for what it is not, and multiplies other numbers.
    """
    return code.name != "int8" or (2 <= dim <= 2**14 and 1 / code.unit <= 2**27)


def centred(x: Tensor, code: Code) -> Tensor:
    """Rows of x, shifted and scaled in float64."""
    return (x.double() - code.centre) * code.scale


def fit(name: Name, centre: Tensor, scale: float, sample: Tensor) -> Code:
    """Choose the step and the balance of a code from a sample of points; the bound holds whatever is chosen."""
    code = Code(name, centre, scale)
    if name in ("float32", "float64"):
        return code
    a = centred(sample, code)
    steps = [1.0]
    if name == "int8":
        top = max(float(a.abs().max()), 1e-30)
        steps = [top * share / 127 for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)]
    loss, step = min((float(_residual(a, name, s).square().sum()), s) for s in steps)
    balance = math.sqrt(loss / max(float(a.square().sum()), 1e-300))
    return Code(name, centre, scale, step, max(balance, 1e-12))


def encode(x: Tensor, code: Code, order: Tensor | None = None, *, multiple: int = 1) -> Coded:
    """Code the rows `order` of x, sorted by norm and padded to a multiple of `multiple` rows.

    Sorting keeps the largest slack of a block of rows close to each of them.
    """
    whole = order is None
    order = torch.arange(len(x), device=x.device) if order is None else order
    count, dim = len(order), x.shape[1]
    padding = -count % multiple
    values = torch.empty(count, dim, dtype=_DTYPE[code.name], device=x.device)
    table = torch.empty(4, count, dtype=torch.float64, device=x.device)
    rows = max(1, 2**16 // max(dim, 1))
    for start in range(0, count, rows):
        block = slice(start, min(start + rows, count))
        part = x[block] if whole else x.index_select(0, order[block])
        values[block], table[:, block] = _encode_rows(part, code)
    by_norm = table[0].argsort()
    values = torch.cat([values.index_select(0, by_norm), values.new_zeros(padding, dim)])
    half, slack, drift, radius = torch.cat([table[:, by_norm], table.new_zeros(4, padding)], 1)
    half[count:] = float(_PADDING) if code.name == "int8" else math.inf
    drift[count:], radius[count:] = drift[:count].mean(), radius[:count].min()
    if code.name != "float64":
        half = half.round().to(torch.int32) if code.name == "int8" else half.float()
    return Coded(code, values, half, slack, drift, radius, order[by_norm])


def _encode_rows(x: Tensor, code: Code) -> tuple[Tensor, Tensor]:
    """Values, and a table (half norm, slack, drift, radius), of some rows."""
    dim, u = x.shape[1], 2.0**-24
    if code.name in ("float64", "float32"):
        # 24 u covers the rounding of the centred rows (8 u) and the two subtractions of half norms.
        unit, tiny = (u, 2.0**-124) if code.name == "float32" else (2.0**-53, 2.0**-1000)
        values = centred(x, code).to(_DTYPE[code.name])
        wide = values.double()
        norms = torch.einsum("nd,nd->n", wide, wide)
        slack = 1.01 * (_gamma(dim, unit) + 24 * unit) * norms + dim * tiny
        return values, torch.stack([norms / 2, slack, torch.zeros_like(norms), torch.full_like(norms, math.inf)])
    # The centre has float32 digits, so that float32 subtraction is off by one rounding at most.
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    a = (x.to(work) - code.centre.to(work)) * code.scale
    slip = 1.01 * _gamma(dim, u) + 32 * u
    norms = torch.einsum("nd,nd->n", a, a).double()
    if code.name == "int8":
        q = (a * (1 / code.step)).round_().clamp_(-127, 127)
        residual = torch.sub(a, q, alpha=code.step)
        # Sums of 1024 squares of at most 127 are exact in float32.
        square = sum(
            (torch.einsum("nd,nd->n", p, p).double() for p in torch.split(q, 1024, dim=1)), torch.zeros_like(norms)
        )
        drift = torch.einsum("nd,nd->n", residual, torch.add(a, q, alpha=code.step)).double()
        half, rounding = (square + drift / code.unit) / 2, code.unit + 4 * slip * norms
    else:
        q = a.to(torch.bfloat16)
        residual = a - q
        drift, half = torch.zeros_like(norms), norms / 2
        # Products summed in float32 (the instruction rounds twice a step), then the sum itself rounded to 8 bits.
        rounding = (1.01 * _gamma(2 * dim, u) * (1 + 2.0**-6) + BF16_ROUNDING) * norms + dim * 2.0**-124
    radius = torch.linalg.vector_norm(residual, dim=1).double() * (1 + slip) + 4 * u * norms.sqrt()
    slack = code.balance * norms + (1 / code.balance + 1) * radius.square() + rounding + 2 * slip * norms
    if code.name == "bfloat16":
        radius = torch.full_like(radius, math.inf)
    return q.to(_DTYPE[code.name]), torch.stack([half, slack * (1 + 1e-9), drift, radius])


def _residual(a: Tensor, name: Name, step: float) -> Tensor:
    """What the code of centred rows leaves out."""
    if name == "int8":
        return a - (a / step).round_().clamp_(-127, 127) * step
    return a - a.to(torch.bfloat16).double()


def _gamma(terms: int, unit: float) -> float:
    """Higham's gamma_n; infinite where the sum is too long for any bound."""
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else math.inf
