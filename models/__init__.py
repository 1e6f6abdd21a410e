"""Models in, op graphs out: shipped configs and graphs, and the capture of any Hugging Face decoder."""
