"""Studies: many scenarios that differ in a few keys, run on all cores, and questions to their results.

`sections.py` is the file of a study, `axes.py` and `samples.py` the values that keys take, `points.py` the scenarios that
follow, `expressions.py` derived columns and constraints. `sweep.py` runs points by an executor of `pool.py`, in batches
(`batches.py`) of plans, each of which `metrics.py` turns into a row; `store.py` keeps rows as Parquet files; `proofs.py` skips
runs that bounds refute. `answers.py` reads them again, for `tables.py` and the page.
"""
