"""Look inside any nn.Module."""
