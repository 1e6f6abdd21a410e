"""Models in, op graphs out: shipped configs and graphs, and the capture of any Hugging Face decoder.

`models.library.load` is the way in. Only `capture`, what it is made of, and `hub` import torch and transformers.
"""
