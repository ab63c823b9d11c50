"""Sparse products as torch operators, with shapes for tracing and gradients; in plain torch where there is no kernel.

`nucleate::sparse_linear` and `nucleate::sparse_conv2d` take the weights that are left as a flat tensor. `entries` is
(pointers, indices, order) of a `Pattern`; `turned` the same of its transpose, where `order` points into the values, or
empty for weights that are never trained. The results keep the batch innermost in memory, (features, batch) seen as
(batch, features), so that neighbouring sparse layers, and what works element by element between them, copy nothing.
"""

from nucleate.compact import conv_ops as conv_ops
from nucleate.compact import linear_ops as linear_ops
