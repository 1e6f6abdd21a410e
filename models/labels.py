"""Labels of aten ops: the named op that each belongs to, as kind, module path and part.

A label is derived from the role under which the attention function issued a node, its module and function, the parameters it
reads, and the readers of its result. There is no code per family: module names are used where a convention is common, data flow
where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from models import latent
from models.attention import ROLES
from models.cache import KV_STORE
from models.op import HYPER, OF_STATE, SCAN, WINDOW
from models.recording import CHOSEN, KV_LOAD, TRANSFERS, Recording
from models.scans import CONVOLUTION
from models.states import STATE_LOAD

#: kind, path, part
Label = tuple[str, str, str]

#: Common names of the projections of an MLP. Others are recognized by data flow.
_MLP = {
    "gate_proj": ("gate_proj", "w1"),
    "up_proj": ("up_proj", "w3", "fc1", "c_fc", "fc_in", "dense_h_to_4h", "lin1", "wi"),
    "down_proj": ("down_proj", "w2", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "lin2", "wo"),
    "gate_up_proj": ("gate_up_proj",),
}
_MLP_KIND = {name: kind for kind, group_names in _MLP.items() for name in group_names}
_INTO_MLP = {"gate_proj", "up_proj", "gate_up_proj"}

#: Kind of a projection, by the operands of attention that it computes.
_PROJECTIONS = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "kv": "kv_proj",
    "qk": "qk_proj",
    "qv": "qv_proj",
    "qkv": "qkv_proj",
}

#: Kind of the op that scores all tokens and chooses the best.
INDEXER = "indexer"

#: Kind of the op that makes compressed rows of the windows of tokens that a step ends.
COMPRESS = "compress"

_ROUTERS = {"gate", "router"}


def _above(paths: Iterable[str]) -> set[str]:
    """The modules that hold modules at some of the paths."""
    found: set[str] = set()
    for path in paths:
        parts = path.split(".")
        found.update(".".join(parts[:n]) for n in range(1, len(parts)))
    return found


class Labels:
    """Labels the nodes of a recording, rule by rule; a rule never overwrites the label of an earlier one."""

    def __init__(self, recording: Recording) -> None:
        self.nodes = recording.nodes
        self.classes = recording.classes
        self.layers_path = recording.layers_path
        self.labels: list[Label | None] = [None] * len(self.nodes)
        self.users: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                self.users[j].append(i)
        self.by_layer: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            self.by_layer.setdefault(node.layer, []).append(i)
        self.mixtures = _above(path for path in self.classes if "expert" in path)
        self.attends = _above(path for path, name in self.classes.items() if "attention" in name.lower())
        self._hyper_connections()
        for indices in self.by_layer.values():
            self._compressor(indices)
        self._by_origin()
        for layer, indices in self.by_layer.items():
            if layer >= 0:
                self._mixer(indices)
                self._indexer(indices)
                self._attention(indices)
                self._experts(indices)
                self._mlp(indices)
                self._router(indices)
                self._same_module(indices)
                self._residuals(indices)
        self._outside(self.by_layer.get(-1, []))

    def _set(self, i: int, kind: str, path: str = "", part: str = "") -> None:
        if self.labels[i] is None:
            self.labels[i] = (kind, path or self.nodes[i].path, part)

    def _by_origin(self) -> None:
        """Label by place in the code: attention roles, norms, rope, masks, routers, embeddings."""
        norms: dict[str, str] = {}  # by path, as several nodes share it
        for i, node in enumerate(self.nodes):
            if (norm := norms.get(node.path)) is None:
                norm = norms[node.path] = self._norm(node.path)
            parts = node.path.split(".")
            if node.role in (*ROLES, *latent.ROLES, *TRANSFERS, *OF_STATE):
                self._set(i, node.role, part=CHOSEN if node.hint == CHOSEN else "")
            elif norm:
                self._set(i, "norm", norm)
            elif any("rotary" in part for part in parts) or (node.hint == "rope" and node.layer < 0):
                self._set(i, "rope", part="table")
            elif node.hint == "mask":
                self._set(i, "mask")
            elif node.name == "aten.embedding":
                self._set(i, "embedding")
            elif (at := self._router_at(parts)) and node.layer >= 0:
                self._set(i, "router", ".".join(parts[: at + 1]))

    def _hyper_connections(self) -> None:
        """Label what mixes the streams of a residual: weights made by a small product, and the sums by them."""
        modules = [path for path, name in self.classes.items() if "hyper" in name.lower()]
        for i, node in enumerate(self.nodes):
            for path in modules:
                if f"{node.path}.".startswith(f"{path}."):
                    self._set(i, HYPER, path)

    def _compressor(self, indices: list[int]) -> None:
        """Label what makes compressed rows of tokens: all that leads to the store of a cache in a module of that name."""
        own = {i for i in indices if "compressor" in self.nodes[i].path.split(".")}
        for i in self._back((i for i in indices if self.nodes[i].role == KV_STORE), own | set(indices)) & own:
            if self._linear(i):
                self._set(i, "compress_proj")
            elif self.nodes[i].role != KV_STORE:
                parts = self.nodes[i].path.split(".")
                last = max(n for n, part in enumerate(parts) if part in ("compressor", "indexer"))
                self._set(i, COMPRESS, ".".join(parts[: last + 1]))

    def _router_at(self, parts: list[str]) -> int:
        """The place among the modules on a path of the router of a mixture, 0 if there is none."""
        at = next((k for k, part in enumerate(parts) if part in _ROUTERS), 0)
        return at if ".".join(parts[:at]) in self.mixtures else 0

    def _norm(self, path: str) -> str:
        """The outermost norm on `path`, by its class or its own name; empty if there is none. None of them has attention."""
        parts = path.split(".")
        for n in range(1, len(parts) + 1):
            prefix = ".".join(parts[:n])
            named = "norm" in self.classes.get(prefix, "").lower() or parts[n - 1].startswith("ln_")
            if named and prefix not in self.attends:
                return prefix
        return ""

    def _back(self, starts: Iterable[int], among: set[int], *, through: Callable[[int], bool] = lambda _: True) -> set[int]:
        """Nodes of `among` from which `starts` can be reached, by way of nodes that `through` accepts."""
        return self._flood(starts, among, lambda i: self.nodes[i].inputs, through)

    def _forth(self, starts: Iterable[int], among: set[int], *, through: Callable[[int], bool] = lambda _: True) -> set[int]:
        """Nodes of `among` that can be reached from `starts`, by way of nodes that `through` accepts."""
        return self._flood(starts, among, lambda i: self.users[i], through)

    @staticmethod
    def _flood(
        starts: Iterable[int], among: set[int], step: Callable[[int], Iterable[int]], through: Callable[[int], bool]
    ) -> set[int]:
        seen: set[int] = set()
        stack = [i for i in starts if i in among]
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                if through(i):
                    stack.extend(j for j in step(i) if j in among)
        return seen

    def _linear(self, i: int) -> bool:
        return self.nodes[i].costs[0] > 0 and bool(self.nodes[i].weights) and self.nodes[i].role not in ROLES

    def _mixer(self, indices: list[int]) -> None:
        """Label convolution and projections of a layer that keeps a state by their place before or after its scan."""
        mixers = {self.nodes[i].path for i in indices if self.nodes[i].role == STATE_LOAD}
        own = {i for i in indices if any(f"{self.nodes[i].path}.".startswith(f"{mixer}.") for mixer in mixers)}
        inner = {i for i in own if self.nodes[i].role in (WINDOW, SCAN)}
        before, after = self._back(inner, own), self._forth(inner, own)
        for i in sorted(own):
            if self.nodes[i].name == CONVOLUTION:
                self._set(i, "conv")
            elif self._linear(i):
                self._set(i, "in_proj" if i not in after else "ssm_proj" if i in before else "out_proj")

    def _indexer(self, indices: list[int]) -> None:
        """Label what an indexer computes between its projections, norm and rope, and what it hands to attention."""
        for i in indices:
            parts = self.nodes[i].path.split(".")
            at = next((n for n, part in enumerate(parts) if part == "indexer"), 0)
            if not at or self.nodes[i].hint == "rope":
                continue
            if self._linear(i):
                self._set(i, "index_proj")
            elif not (self.nodes[i].path.endswith("norm") or self.nodes[i].name == "aten.cat"):
                self._set(i, INDEXER, ".".join(parts[: at + 1]))

    def _attention(self, indices: list[int]) -> None:
        """Label projections and rope by the operands of attention that they compute."""
        scores = [i for i in indices if self.nodes[i].role == "scores"]
        paths = dict.fromkeys(self.nodes[i].path for i in scores)
        for path in paths:  # of one attention, or of several, one after another
            self._one_attention(path, indices if len(paths) == 1 else [i for i in indices if self._is_in(path, i)])

    def _is_in(self, path: str, i: int) -> bool:
        return f"{self.nodes[i].path}.".startswith(f"{path}.")

    def _one_attention(self, path: str, indices: list[int]) -> None:
        """As `_attention`, of the attention at a path. indices: nodes of its layer, or its own if the layer has others."""
        among = set(indices)
        scores = [i for i in indices if self.nodes[i].role == "scores"]
        stores = [i for i in indices if self.nodes[i].role == KV_STORE]
        own = {i for i in among if self._is_in(path, i)}
        roles = {*ROLES, KV_LOAD, KV_STORE}
        keys = {i for s in stores for i in self.nodes[s].sources[0]}
        both = any(label and label[0] == COMPRESS for i in indices if (label := self.labels[i]))  # a row is key and value
        values = keys if both else {i for s in stores for i in self.nodes[s].sources[:2][-1]}
        # Nodes between the cache and the scores (the expansion of a latent cache) do not belong to the queries.
        unpacked = self._forth((i for i in indices if self.nodes[i].role == KV_LOAD), among) - set(stores)
        queries = {j for j in self.nodes[scores[0]].inputs if j in own and self.nodes[j].role not in roles}
        queries -= keys | unpacked
        makes = {
            "q": self._back(queries or keys, own),
            "k": self._back(keys, own),
            "v": self._back(values, own),
        }
        results = {i for i in indices if self.nodes[i].role == "weighted_values"}
        after = self._forth(results, own)
        # Where the output projection lives in another module, it is the first product that reads the result.
        after |= self._forth(results, among, through=lambda i: not self._linear(i))
        for i in sorted(own | after):
            operands = "".join(name for name, nodes in makes.items() if i in nodes)
            if self._linear(i):
                if operands:
                    self._set(i, _PROJECTIONS[operands])
                elif i in unpacked and i not in after:
                    self._set(i, "kv_proj")
                elif i in after:
                    self._set(i, "o_proj")
            elif self.nodes[i].hint == "rope":
                part = "q" if operands == "q" else "k" if operands in {"k", "v", "kv"} else "table"
                self._set(i, "rope", path, part if i not in after else "out")
        # Rope of a part of the head ends in a concatenation outside of the function.
        for i in sorted(own):
            for j in self.nodes[i].inputs:
                label = self.labels[j]
                if label and label[0] == "rope" and label[2] in ("q", "k", "out") and self.nodes[i].name == "aten.cat":
                    self._set(i, *label)

    def _experts(self, indices: list[int]) -> None:
        """Label the products with gathered weights of chosen experts, and the ops around them."""
        own = [i for i in indices if self.nodes[i].hint == "experts"]
        if not own:
            return
        among = set(own)
        path = min((self.nodes[i].path for i in own), key=len)
        for i in own:
            if self.nodes[i].weights:
                self._set(i, self.nodes[i].weights[0].split(".")[-1].removesuffix("_bias"), path, "experts")
        for i in own:  # the product, and the bias, of gathered weights
            for j in self.nodes[i].inputs:
                label = self.labels[j]
                if (
                    label
                    and j in among
                    and self.nodes[j].weights
                    and (self.nodes[i].costs[0] or self.nodes[i].name == "aten.add_")
                ):
                    self._set(i, *label)
        products = [i for i in own if self.nodes[i].costs[0]]
        if not products:
            return
        before = self._back(products[:1], among)
        after = self._forth(products[-1:], among)
        for i in own:
            self._set(i, "dispatch" if i in before else "combine" if i in after else "act", path, "experts")

    def _mlp(self, indices: list[int]) -> None:
        among = set(indices)
        free = [i for i in indices if self._linear(i) and self.labels[i] is None]
        for i in free:
            if kind := _MLP_KIND.get(self.nodes[i].path.split(".")[-1]):
                self._set(i, kind)
        unknown = [i for i in free if self.labels[i] is None]
        plain = {i for i in among if self.labels[i] is None}
        for i in unknown:
            ahead = self._forth([i], plain) - {i}
            behind = self._back([i], plain) - {i}
            if any(j in ahead for j in unknown):
                self._set(i, "up_proj")
            elif any(j in behind for j in unknown):
                self._set(i, "down_proj")
        ups = [i for i in indices if (label := self.labels[i]) and label[0] in _INTO_MLP and not label[2]]
        for down in [i for i in indices if (label := self.labels[i]) and label[0] == "down_proj" and not label[2]]:
            loose = {i for i in among if self.labels[i] is None}
            behind = self._back([down], loose | {down})
            ahead = self._forth(ups, loose | set(ups))
            path = self.nodes[down].path.rpartition(".")[0]
            for i in sorted(behind & ahead):
                self._set(i, "act", path)

    def _router(self, indices: list[int]) -> None:
        """Label ops that choose the experts outside of the router's own module."""
        among = set(indices)
        routers = [i for i in indices if (label := self.labels[i]) and label[0] == "router"]
        experts = [i for i in indices if self.nodes[i].hint == "experts"]
        if not routers or not experts:
            return
        free = {i for i in among if self.labels[i] is None}
        ahead = self._forth(routers, free | set(routers))
        behind = self._back((j for i in experts for j in self.nodes[i].inputs), free | set(routers))
        label = self.labels[routers[0]]
        assert label is not None
        for i in sorted(ahead & behind):
            self._set(i, *label)

    def _same_module(self, indices: list[int]) -> None:
        """Label ops that a linear module issues besides its product, such as a separate bias addition."""
        linears = [
            i for i in indices if self._linear(i) and self.nodes[i].role not in latent.ROLES
        ]  # those are attention's own
        of_module = {label[1]: label for i in linears if (label := self.labels[i])}
        for i in indices:
            if self.labels[i] is None and (found := of_module.get(self.nodes[i].path)):
                self._set(i, *found)

    def _residuals(self, indices: list[int]) -> None:
        """Label sums of two activations in the layer's own code, each with scaling that only it uses."""
        for i in reversed(indices):
            node = self.nodes[i]
            at_layer = node.path == f"{self.layers_path}.{node.layer}"
            if self.labels[i] is None and at_layer and node.name in ("aten.add", "aten.add_") and len(node.inputs) > 1:
                if self._of_streams(i):
                    continue
                self.labels[i] = ("residual", node.path, "")
                for j in node.inputs:
                    alone = self.users[j] == [i]
                    if (
                        self.labels[j] is None
                        and alone
                        and self.nodes[j].path == node.path
                        and self.nodes[j].name != "aten.add"
                    ):
                        self.labels[j] = ("residual", node.path, "")

    def _of_streams(self, total: int) -> bool:
        """Label a sum of streams that a hyper-connection mixes, with all that only leads to it; returns whether it is one."""
        path = self.nodes[total].path
        inner = {i for i in self.by_layer[self.nodes[total].layer] if self.nodes[i].path == path and self.labels[i] is None}
        inner = {i for i in inner if i == total or self.nodes[i].name != self.nodes[total].name}  # that is the sum before
        found = self._back([total], inner)
        mixers = [label for i in found for j in self.nodes[i].inputs if (label := self.labels[j]) and label[0] == HYPER]
        for i in found if mixers else ():
            self._set(i, "residual", part=mixers[0][1].split(".")[-1])
        return bool(mixers)

    def _outside(self, indices: list[int]) -> None:
        linears = [i for i in indices if self._linear(i)]
        if not linears:
            return
        head = linears[-1]
        self._set(head, "lm_head")
        for i in sorted(self._forth([head], {j for j in indices if self.labels[j] is None or j == head})):
            self._set(i, "lm_head", self.nodes[head].path)
