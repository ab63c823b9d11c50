"""From sums to measures: fills a `Collapse` part by part, with a reason for everything that is undefined."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nucleate.geometry import means as rows
from nucleate.geometry.chance import chance_levels
from nucleate.geometry.conventions import Convention
from nucleate.geometry.imbalance import minority_angle
from nucleate.geometry.inputs import check_means
from nucleate.geometry.margins import margin_optimum, one_vs_rest_margin
from nucleate.geometry.moments import Moments
from nucleate.geometry.projection import Projection
from nucleate.geometry.result import Collapse
from nucleate.geometry.vci import vci

MARGIN_CLASSES = 256
"""Up to this many classes the one-vs-rest margins take less than a second."""


class Measurement:
    """One evaluation: fills `values` and `reasons` part by part."""

    def __init__(
        self,
        moments: Moments,
        weight: Tensor | None,
        bias: Tensor | None,
        means: Tensor | None,
        projection: Projection | None,
        name: str,
        rule: Convention,
    ) -> None:
        self.moments, self.name, self.rule, self.projection = moments, name, rule, projection
        self.counts = moments.counts
        own = moments.means
        self.foreign = means is not None
        if means is not None:
            check_means(means, moments.num_classes, moments.dim)
        self.means = own if means is None else means.double().to(own.device)
        if not int(self.counts.sum()):
            raise ValueError("no points to measure")
        known = torch.isfinite(self.means).all(1)
        unknown = ((self.counts > 0) & ~known).nonzero().flatten().tolist()
        if unknown:
            raise ValueError(f"classes {unknown} have points but no finite row in means")
        if projection is not None:
            if projection.convention != rule:
                raise ValueError("the projection follows another convention; give both the same")
            if not torch.equal(torch.nan_to_num(projection.means), torch.nan_to_num(self.means)):
                raise ValueError("the projection was made on other means than those that judge the points")
            if (
                weight is not None
                and projection.weight is not None
                and not torch.equal(weight.to(own), projection.weight)
            ):
                raise ValueError("the projection was made with another classifier")
            if not torch.equal(projection.count.round().long(), self.counts):
                raise ValueError("the second pass saw other points than the first: the class counts differ")
        self.span = projection.span if projection is not None else rows.span(self.means, self.counts, mu_g=rule.mu_g)
        self.weight = None if weight is None else weight.detach().to(own)
        self.bias = None if bias is None else bias.detach().to(own)
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self.c = len(self.span.present)

    def result(self) -> Collapse:
        m = self.moments
        self._within()
        self._trace()
        self._vci()
        self._simplex("", self.span.frame)
        self._classifier()
        self._points()
        self._many_classes()
        absent = self.span.absent
        if absent:
            self.reasons["absent"] = (
                f"classes {list(absent)} have no points and are left out; C = {self.c} in all formulas"
            )
        if self.span.rank < self.span.full_rank:
            self.reasons["rank"] = f"the means span {self.span.rank} of {self.span.full_rank} directions"
        if not self.span.rank:
            self.reasons["condition"] = "the means span no direction"
        return Collapse(
            num_classes=m.num_classes,
            dim=m.dim,
            counts=self.counts,
            absent=absent,
            convention=self.name,
            rank=self.span.rank,
            condition=self.span.condition,
            mean_norm=float(torch.linalg.vector_norm(self.span.centred, dim=1).mean()),
            chance=chance_levels(int(self.counts.sum()), self.c, m.dim),
            reasons=self.reasons,
            **self.values,
        )

    def _nan(self, reason: str, *names: str) -> None:
        for name in names:
            self.values[name] = math.nan
            self.reasons[name] = reason

    def _within(self) -> None:
        """Traces, quotient, CDNV."""
        m, s = self.moments, self.span
        if self.projection is not None:
            v = self.projection.resid / self.projection.count
        else:
            v = m.within
            rough = v <= m.within_resolution
            if self.foreign:
                v = v + (m.means - self.means).square().sum(1)
            elif bool(rough.any()):
                self.reasons["nc1_within"] = (
                    "below what one pass resolves in some classes; take a second pass (Projection)"
                )
        self.v = v
        used = self.counts > 0
        weights = self.counts[used].double() if self.rule.within == "sample" else torch.ones_like(v[used])
        within = float((weights * v[used]).sum() / weights.sum())
        between = float(s.centred.square().sum() / self.c)
        self.values |= {"nc1_within": within, "nc1_between": between}
        self.values["nc1_quotient"] = within / between if between > 0 else math.nan
        full = torch.full((m.num_classes, m.num_classes), math.nan, dtype=v.dtype, device=v.device)
        full[s.present[:, None], s.present] = rows.cdnv_grid(s.distances, v[s.present])
        self.values["nc1_per_pair"] = full
        pairs = full[~torch.isnan(full)]
        self.values["nc1_cdnv"] = float(pairs.mean()) if len(pairs) else math.nan
        single = ((self.counts == 1) & used).nonzero().flatten().tolist()
        self.forced = not self.foreign and len(single) == int(used.sum())
        if self.c < 2:
            self._nan("needs two classes", "nc1_quotient", "nc1_cdnv")
        elif self.forced:
            self._nan("one point a class: the within-class spread is 0 by construction", "nc1_quotient", "nc1_cdnv")
        elif between == 0:
            self._nan("all class means are equal", "nc1_quotient", "nc1_cdnv")
        elif math.isinf(self.values["nc1_cdnv"]):
            i, j = (torch.isinf(full)).nonzero()[0].tolist()
            self.reasons["nc1_cdnv"] = f"classes {i} and {j} have the same mean"
        if single and not self.foreign:
            self.reasons["singletons"] = f"classes {single} have one point and add no within-class spread"

    def _trace(self) -> None:
        """The trace form, in the projected or in the second-moment form, and with it the convention's NC1."""
        p, m, s, rule = self.projection, self.moments, self.span, self.rule
        per_class = torch.full_like(self.v, math.nan)
        value = math.nan
        if self.c < 2 or not s.rank:
            reason = "needs two classes" if self.c < 2 else "all class means are equal"
        elif self.forced:
            reason = "one point a class: the within-class spread is 0 by construction"
        elif p is not None:
            reason = ""
            per_class = p.nc1_per_class
            value = float(p.square.sum() / p.count.sum())
            if not p.certified:
                self.reasons["nc1"] = (
                    "float32 products may have moved it by more than 1e-4; use Projection(precise=True)"
                )
        elif m.outer is not None:
            reason = ""
            along = s.basis / s.scale
            means = torch.nan_to_num(self.means) @ along
            n = m.count
            raw = ((m.outer @ along) * along).sum()
            cross = (torch.nan_to_num(m.sum) @ along * means).sum()
            value = float((raw - 2 * cross + (n[:, None] * means.square()).sum()) / n.sum())
            if value <= 8 * torch.finfo(torch.float64).eps * float(raw / n.sum()):
                value, self.reasons["nc1"] = (
                    max(value, 0.0),
                    "below what the second moment resolves; take a second pass",
                )
        else:
            reason = "needs a second pass (Projection) or the second moment"
        self.values["nc1_per_class"] = per_class
        if rule.nc1 == "quotient":
            value, reason = self.values["nc1_quotient"], self.reasons.get("nc1_quotient", "")
        elif rule.nc1 == "cdnv":
            value, reason = self.values["nc1_cdnv"], self.reasons.get("nc1_cdnv", "")
        elif rule.nc1 == "trace-sum":
            value *= self.c
        self.values["nc1"] = value
        if reason:
            self.reasons["nc1"] = reason

    def _vci(self) -> None:
        m = self.moments
        total = float(m.count.sum())
        if self.c < 2:
            self._nan("needs two classes", "nc1_vci")
        elif total - 1 <= m.dim:
            self._nan(
                f"identically 0 with {int(total)} points in {m.dim} dimensions; needs more points than d + 1", "nc1_vci"
            )
        elif m.outer is None:
            self._nan("needs the d x d second moment: second_moment=True", "nc1_vci")
        elif self.foreign:
            self._nan("defined by the points' own means only", "nc1_vci")
        else:
            self.values["nc1_vci"] = vci(m)

    def _simplex(self, suffix: str, frame: rows.Frame) -> None:
        """NC2 of the centred means or of the classifier rows."""
        names = [f"nc2_{n}{suffix}" for n in ("equinorm", "equiangle", "max_angle", "etf")]
        a = frame.rows
        if len(a) < 2:
            self._nan("needs two classes", *names)
            return
        if len(a) == 2 and float(a.sum(0).abs().max()) <= 1e-12 * float(a.abs().max()):
            self._nan("two centred vectors are opposite and equal by construction", *names)
            return
        self.values[names[0]] = rows.equinorm(frame, ddof=self.rule.ddof)
        self.values[names[1]] = rows.equiangle(frame)
        self.values[names[2]] = rows.max_angle(frame)
        self.values[names[3]] = rows.etf_distance(frame)
        if len(a) > self.moments.dim + 1 and not self.rule.rank_floor:
            self._nan("no simplex of C > d + 1 vertices exists in d dimensions; see gnc2_margin", *names[2:])
        for name in names:
            if math.isnan(self.values[name]) and name not in self.reasons:
                self.reasons[name] = "a row has length zero"

    def _classifier(self) -> None:
        """NC2 of the weights, NC3, bias collapse, minority angle: on the classes present."""
        names = ["nc3", "nc3_gram", "nc3_cosine", "nc3_unc", "nc3_subspace", "bias_collapse", "minority_angle"]
        if self.weight is None:
            weights = [f"nc2_{n}_weights" for n in ("equinorm", "equiangle", "max_angle", "etf")]
            self._nan("needs the classifier: weight=", *weights, *names)
            return
        s, rule = self.span, self.rule
        w = self.weight[s.present]
        b = torch.zeros_like(w[:, 0]) if self.bias is None else self.bias[s.present]
        level = w @ s.centre + b
        if rule.centre_weights:
            w, level = w - w.mean(0), level - level.mean()
        # The projection has taken the products of the same rows already.
        shared = self.projection.frame if self.projection is not None and not s.absent and rule.centre_weights else None
        frame = shared or rows.Frame(w)
        self._simplex("_weights", frame)
        self.values["bias_collapse"] = float(torch.linalg.vector_norm(level))
        if self.c < 2 or not s.rank:
            self._nan("needs two classes with different means", *names[:5])
        else:
            cos = rows.alignment(w, s.centred)
            cross = w @ s.centred.T
            along = cos if rule.unc3 == "cosine" else (w * s.centred).sum(1)
            self.values["nc3"] = rows.self_duality(w, s.centred)
            self.values["nc3_gram"] = rows.gram_distance(cross)
            self.values["nc3_cosine"] = float(1 - cos.mean())
            self.values["nc3_unc"] = float(along.var(correction=0))
            # The notebook of rangamani2023 takes the top C directions of the uncentred means; centring leaves C - 1.
            if rule.nc3 == "subspace":
                self.values["nc3_subspace"] = rows.subspace_overlap(self.weight[s.present], s.means, rank=self.c)
            else:
                # Centring the means makes the products with centred and with raw rows differ by nothing but their mean.
                centred = frame if rule.centre_weights else rows.Frame(w - w.mean(0))
                self.values["nc3_subspace"] = rows.overlap_with(centred, cross - cross.mean(0), s)
            if self.c > self.moments.dim + 1 and not rule.rank_floor:
                self._nan("no simplex of C > d + 1 vertices exists in d dimensions", "nc3_gram")
            if rule.nc3 != "difference":
                self.values["nc3"] = self.values[f"nc3_{rule.nc3}"]
            for name in names[:5]:
                if math.isnan(self.values[name]) and name not in self.reasons:
                    self.reasons[name] = "a classifier row or a centred mean is zero"
        self._minority(w)

    def _minority(self, w: Tensor) -> None:
        self.values["minority_angle"] = minority_angle(w, self.counts[self.span.present])
        if math.isnan(self.values["minority_angle"]):
            self.reasons["minority_angle"] = "needs two classes with fewer points than average"

    def _points(self) -> None:
        """What needs every point once more: NC4, nearest means, boundary distances."""
        p = self.projection
        names = ["nc4", "ncc_accuracy", "nc4_ties", "boundary_mean", "boundary_spread"]
        if p is None:
            self._nan("needs a second pass over the points (Projection)", *names)
            return
        self.values["ncc_accuracy"], self.values["nc4_ties"] = p.share("correct"), p.share("tied")
        mismatch = p.share("mismatch")
        if self.rule.nc4 == "accuracy":
            self.values["nc4"] = self.values["ncc_accuracy"]
        else:
            self.values["nc4"] = mismatch if self.rule.nc4 == "mismatch" else 1 - mismatch
            if math.isnan(mismatch):
                self._nan("needs the classifier or its logits", "nc4")
        centre, spread = (t[self.counts > 0] for t in p.boundary())
        self.values["boundary_mean"] = float(centre.mean())
        self.values["boundary_spread"] = float((spread / centre.abs()).mean())
        if p.weight is None:
            self._nan("needs the classifier: weight=", *names[3:])
        elif not bool(torch.isfinite(spread / centre).all()):
            self._nan("a class's hyperplane is undefined, or its points lie on it", *names[3:])

    def _many_classes(self) -> None:
        names = ("gnc2_margin", "gnc2_optimum")
        if self.c <= self.moments.dim + 1:
            self._nan("defined for more classes than d + 1", *names)
            return
        try:
            best = margin_optimum(self.c, self.moments.dim)
        except ValueError as error:
            self._nan(str(error), *names)
            return
        self.values["gnc2_optimum"] = best.upper
        if best.lower < best.upper:
            self.reasons["gnc2_optimum"] = f"not known; between {best.lower:.4g} and {best.upper:.4g}"
        if self.c > MARGIN_CLASSES:
            self._nan(f"not taken by default beyond {MARGIN_CLASSES} classes; call one_vs_rest_margin", "gnc2_margin")
        elif not bool(self.span.centred.any(1).all()):
            self._nan("a centred mean is zero", "gnc2_margin")
        else:
            self.values["gnc2_margin"] = one_vs_rest_margin(self.span.centred).value
