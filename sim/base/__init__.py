"""Units, quantities, files, errors, kernels and registries, which all other packages import."""
