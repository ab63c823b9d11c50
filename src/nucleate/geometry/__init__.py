"""Tensors in, numbers out; knows no nn.Module."""
