"""Neural tangent kernels, exact and empirical, and what follows from them."""

from nucleate.kernels.empirical import empirical_ntk as empirical_ntk
from nucleate.kernels.exact import nngp as nngp
from nucleate.kernels.exact import ntk as ntk
