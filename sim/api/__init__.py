"""Functions and results of `import sim`: scenarios by name, results that show themselves, and comparisons."""
