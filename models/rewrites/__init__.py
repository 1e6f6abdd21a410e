"""Rewrites: functions from op graph to op graph that apply a mapping to a captured model.

| rewrite            | file          | what it changes                                                                 |
| ------------------ | ------------- | ------------------------------------------------------------------------------- |
| `fuse`             | `fusion`      | ops become the kernels of an inference engine: `projections`, `softmax`, `attention` |
| `without_weight_casts` | `kernels`  | weights are not converted to float32 in each step                                |
| `between_kernels`  | `kernels`     | activations: what ops read of each other, and write for each other               |
| `with_kv_heads`    | `heads`       | KV loads know the heads of the cache, so that they can be split over them        |
| `shard`            | `sharding`    | what one of several devices does, with the collectives between them             |
| `over_positions`   | `context`     | attention over parts of the context, of devices with the same KV heads          |
| `chunked`          | `chunks`      | ops with partial results, and the collectives that add them up, in chunks      |
| `staged`           | `devices`     | layers in pipeline stages, with sends of activations between them                 |
| `unfolded`         | `devices`     | the ops of each device, where one stood for several that do the same            |
| `with_sends`       | `hand_over`     | layers send what is needed elsewhere of their caches as soon as it is there      |
| `with_formats`     | `formats`     | bytes of weights, KV cache and activations in fewer bits                         |
| `without_resident` | `resident`    | weights that stay on chip are no longer read                                     |
| `read_in_place`    | `in_place`    | no KV loads: the ops of attention read the cache themselves                      |

A rewrite never changes the graph that it is given. New costs get their numbers from one `models.polynomials.Polynomials`;
ops that replace a group of others are put in order by `models.rewrites.groups.replaced`.
"""

from __future__ import annotations

from models.rewrites.chunks import chunked
from models.rewrites.context import over_positions, refuse_context
from models.rewrites.devices import P2P, staged, unfolded
from models.rewrites.formats import check_arithmetic, with_formats
from models.rewrites.fusion import fuse
from models.rewrites.hand_over import KEPT, appending, kept_rows, with_sends
from models.rewrites.heads import with_kv_heads
from models.rewrites.in_place import read_in_place
from models.rewrites.kernels import between_kernels, without_weight_casts
from models.rewrites.resident import bytes_kept, without_resident
from models.rewrites.sharding import ALL_REDUCE, COLLECTIVES, CONTEXT, EXCHANGE_SENDS, EXCHANGES, shard

__all__ = [
    "ALL_REDUCE", "COLLECTIVES", "CONTEXT", "EXCHANGES", "EXCHANGE_SENDS", "KEPT", "P2P",
    "appending", "between_kernels", "bytes_kept", "check_arithmetic", "chunked", "fuse",
    "kept_rows", "over_positions", "read_in_place", "refuse_context", "shard", "staged", "unfolded",
    "with_formats", "with_kv_heads", "with_sends",
    "without_resident", "without_weight_casts",
]  # fmt: skip
