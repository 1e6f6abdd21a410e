"""Predicted against measured kernels of GPUs; see `__main__`. The mapping files say what is in which table."""
