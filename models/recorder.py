"""Record one step of a model: every aten op, its inputs and its costs.

A `Recorder` is a dispatch mode. It sees each aten op after autograd and before any kernel, so it works the same on the
meta device (no memory, no arithmetic) and on a real one. Tensors are identified by their storage: a view is not an op,
and a reader of a storage depends on the last op that wrote it.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from models import shapes
from models.attention import ASIDE, current_role, needed
from models.boxes import box_of, rows_before, volume
from models.cache import KV_STORE
from models.recording import Node, Recording, Storage, alive, amounts, by_first_use, with_transfers
from models.scans import with_scans
from models.states import STATE_ELEMENT, STATE_LOAD, STATE_STORE
from sim.base.errors import InputError

#: Ops that read only the rows given by their indices.
GATHERS = {"embedding", "index", "index_select", "gather", "take", "take_along_dim"}

#: The op that makes the best values and their indices in one pass: its work is that of one of the two results.
CHOICE = "topk"

#: Ops that overwrite their first argument without reading it.
OVERWRITES = {"copy_", "fill_", "zero_"}

#: Matrix-vector products, for which torch's registry has no formula: two FLOPs per element of the matrix.
_MATRIX_ARGUMENT = {"mv": 0, "dot": 0, "vdot": 0, "addmv": 1}

#: Functions that run the model; frames outside of them are ignored.
_OUTSIDE = {"step", "active"}

#: Parts of function names, and the hint for ops issued inside such a function. The innermost function wins.
_HINTS = (("rotary", "rope"), ("rope", "rope"), ("mask", "mask"), ("experts_forward", "experts"))


#: Tensors with the pieces of memory behind them.
_Operands = list[tuple[torch.Tensor, Storage]]


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a place in its storage."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Modules:
    """Modules of a model, and the tensors of its checkpoint: the same for all of its recordings.

    paths: of each module. classes: names, by path. layers_path: of the list of layers. saved: tensors with their names.
    """

    paths: Mapping[torch.nn.Module, str]
    classes: dict[str, str]
    layers_path: str
    saved: tuple[tuple[str, torch.Tensor], ...]

    @classmethod
    def of(cls, model: torch.nn.Module, layers: int) -> Modules:
        """The modules of a model with so many layers. Raises InputError if it has no list of so many."""
        paths = {module: path for path, module in model.named_modules()}
        names = model.state_dict(keep_vars=True)
        # Constants that the code computes (rope frequencies, causal masks) are not weights.
        buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in names)
        return cls(
            paths=paths,
            classes={path: type(module).__name__ for module, path in paths.items()},
            layers_path=_layers_path(model, layers),
            saved=(*model.named_parameters(), *buffers),
        )


class Recorder(TorchDispatchMode):
    """Records while it is active. keep_calls: keep functions and arguments, so that the ops can be run again.

    names_only: record only `issued`, without inputs and costs, so that kernels without a cost formula may run.
    modules: those of the model, if they are known.
    issued: aten name and role of every op that is not a view, in order, helper work included.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: int,
        *,
        keep_calls: bool = False,
        names_only: bool = False,
        modules: Modules | None = None,
    ) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.issued: list[tuple[str, str]] = []
        self.storages: dict[int, Storage] = {}
        self.keep_calls, self.names_only = keep_calls, names_only
        self.kv_shape = (0, 0)
        self._states: dict[int, list[torch.Tensor]] = {}
        self._mixers: dict[int, str] = {}
        self._paths: list[str] = [""]
        made = modules or Modules.of(model, layers)
        self._names, self.classes, self.layers_path = made.paths, made.classes, made.layers_path
        self._layers = set(model.get_submodule(self.layers_path).children())
        self._results: set[int | None] = set()
        self._weights = [name for name, _ in made.saved]
        for name, tensor in made.saved:
            storage = self._storage(tensor)
            storage.kind, storage.name = "weight", name

    def recording(self, result: torch.Tensor) -> Recording:
        """The recorded ops, with the loads and stores of the cache made explicit.

        Ops that neither `result` nor the cache depends on are left out, as an engine would.
        """
        nodes = by_first_use(alive(self.nodes, self._storage(result).writers))
        return Recording(
            nodes=with_scans(with_transfers(nodes, self.storages), self.classes),
            classes=self.classes,
            layers_path=self.layers_path,
            storages=self.storages,
            kv_shape=self.kv_shape,
            hands_on=self._results.pop() if len(self._results) == 1 else None,
        )

    def register_cache(self, buffer: torch.Tensor, layer: int, past: int) -> None:
        """Register `buffer` [B, KV, rows, D] or [B, rows, D] as a cache of a layer; its first `past` rows are from before."""
        storage = self._storage(buffer)
        storage.kind, storage.layer, storage.past = "cache", layer, past
        storage.shape, storage.element = tuple(buffer.shape), buffer.element_size()
        if self.kv_shape == (0, 0) and buffer.dim() == 4:
            self.kv_shape = (buffer.shape[1], buffer.shape[3])

    def is_cache(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the whole of a KV cache."""
        raw = tensor.untyped_storage()
        known = raw._cdata in self.storages and self.storages[raw._cdata].kind == "cache"
        return known and raw.nbytes() == tensor.numel() * tensor.element_size()

    def register_state(self, part: torch.Tensor, layer: int, mixer: str = "") -> None:
        """Register a part of the state of a layer. mixer: path of the module that it belongs to; empty: that which reads it."""
        storage = self._storage(part)
        storage.kind, storage.layer = "state", layer
        self._states.setdefault(layer, []).append(part)
        self._mixers[layer] = mixer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch guards each call of the recorder against its compiler, which no step here runs under."""
        return False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record the ops that the model issues inside."""
        # Two hooks on all modules; two on each would take as long as the ops.
        handles = (register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, with_kwargs=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        self._paths.append(self._names.get(module, self._paths[-1]))

    def _leave(self, module: torch.nn.Module, args: Any, options: Any, result: Any) -> None:
        self._paths.pop()
        if module in self._layers:
            self._results.add(_hands_on(args[0] if args else options.get("hidden_states"), result))

    def _storage(self, tensor: torch.Tensor) -> Storage:
        raw = tensor.untyped_storage()
        known = self.storages.get(raw._cdata)
        if known is None:
            known = self.storages[raw._cdata] = Storage(keep=raw)
        return known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = shapes.result_of(func, args, kwargs)
        name, aside = func._overloadpacket.__name__, current_role()[0] == ASIDE
        results = _tensors(out)
        written = [t for t in _written(func, args, kwargs) if isinstance(t, torch.Tensor)]
        if name.startswith(("empty", "new_empty")) or (not results and not written):
            for tensor in () if aside else results:
                self._storage(tensor)
            return out
        operands = [*_tensors(args), *_tensors(kwargs)]
        held = {t.untyped_storage()._cdata for t in operands}
        fresh = [t for t in results if t.untyped_storage()._cdata not in held]
        if not fresh and not written:
            return out  # a view
        self.issued.append((f"aten.{name}", current_role()[0]))
        if aside or self.names_only:
            return out
        read = [(t, self._storage(t)) for t in operands if not (name in OVERWRITES and t is args[0])]
        for _, storage in read:
            if storage.kind == "state" and not storage.writers:
                self._load_state(storage.layer)
        self._append(func, name, args, kwargs, out, read, [(t, self._storage(t)) for t in (*fresh, *written)])
        return out

    def _load_state(self, cache: int) -> None:
        """Add the load of a layer's state. cache: its number among the layers of the cache."""
        parts, path = self._states[cache], self._mixers[cache] or self._paths[-1]
        while path and not any(name.startswith(f"{path}.") for name in self._weights):  # a kernel, and no mixer
            path = path.rpartition(".")[0]
        for part in parts:
            self._storage(part).writers = (len(self.nodes),)
        self.nodes.append(
            Node(
                name=STATE_LOAD,
                path=path,
                layer=self._layer(path),
                role=STATE_LOAD,
                dtype=str(parts[-1].dtype).removeprefix("torch."),
                shape=tuple(parts[-1].shape),
                costs=amounts(state_read=STATE_ELEMENT * sum(part.numel() for part in parts)),
                cache=cache,
            )
        )

    def _append(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, read: _Operands, made: _Operands) -> None:
        index = len(self.nodes)
        path = self._paths[-1]
        role, heads = current_role()
        hint = _hint(sys._getframe(2))
        inputs: set[int] = set()
        for _, storage in read:
            inputs.update(storage.writers)
            storage.readers.add(index)
        inputs.update(writer for tensor in needed() for writer in self._storage(tensor).writers)
        if any(storage.kind == "state" for _, storage in made):
            if name != "copy_":
                raise NotImplementedError(f"{name} at {path!r} changes the state of its layer in place")
            role = STATE_STORE  # families also copy to it themselves
        cache_append = role in (KV_STORE, STATE_STORE)
        flops = _flops(func, name, args, kwargs, out)
        experts = self._experts(name, hint, read)
        costs = self._costs(name, hint, flops, read, made, cache_append=cache_append, state_store=role == STATE_STORE)
        for _, storage in made:
            if storage.kind == "cache":
                # Two appends must not hide each other: an op that reads the cache needs both.
                storage.writers = (*storage.writers, index)
                continue
            if storage.kind == "state":  # what is read of it was loaded before
                storage.writers, storage.readers = (index,), set()
                continue
            # An op that overwrites a storage must wait for the readers of its old contents.
            inputs.update(storage.writers)
            inputs.update(storage.readers)
            storage.writers, storage.readers = (index,), set()
        inputs.discard(index)
        calls: tuple[Any, ...] = ()
        if self.keep_calls:
            calls = ((func, *tensor_refs((args, kwargs)), tensor_refs(out)),)
        first, storage = made[0]
        self.nodes.append(
            Node(
                name=f"aten.{name}",
                path=path,
                layer=storage.layer if role == STATE_STORE and self._layer(path) < 0 else self._layer(path),
                role=role,
                heads=heads,
                hint=hint,
                dtype=str(first.dtype).removeprefix("torch."),
                shape=tuple(first.shape),
                inputs=tuple(sorted(inputs)),
                costs=costs,
                experts=experts,
                cache=storage.layer,
                weights=tuple(sorted({storage.name for _, storage in read if storage.kind == "weight"})),
                reads=tuple(_reads(*each) for each in _distinct(read)) if self._states else (),
                makes=tuple(tensor.untyped_storage()._cdata for tensor, _ in made) if self._states else (),
                calls=calls,
                issued=(len(self.issued) - 1,),
            )
        )

    def _layer(self, path: str) -> int:
        prefix = self.layers_path + "."
        return int(path[len(prefix) :].split(".", 1)[0]) if path.startswith(prefix) else -1

    def _experts(self, name: str, hint: str, read: _Operands) -> tuple[int, int]:
        if name not in GATHERS or hint != "experts" or read[0][1].kind != "weight":
            return 0, 0
        all_of = read[0][0]
        return all_of.shape[0], _bytes(all_of) // all_of.shape[0]

    def _costs(
        self, name: str, hint: str, flops: int, read: _Operands, made: _Operands, *, cache_append: bool, state_store: bool
    ) -> tuple[int, ...]:
        weight = kv_write = act_read = act_write = state_write = 0
        gathered = False
        for position, (tensor, storage) in enumerate(_distinct(read)):
            size = _bytes(tensor)
            if name in GATHERS and position == 0:
                size = made[0][0].numel() * tensor.element_size()
                gathered = storage.kind == "weight" and hint == "experts"
            if storage.kind == "weight":
                weight += size
            elif storage.kind == "cache" and (not tensor.numel() or name.startswith("new_")):
                continue  # it reads nothing, or no more than the type
            elif storage.kind == "cache":
                box = box_of(tensor.shape, tensor.stride(), int(tensor.storage_offset()), storage.shape)
                if box is None:
                    raise NotImplementedError(f"{name} at {self._paths[-1]!r} reads parts of the cache with gaps between them")
                before = rows_before(box, storage.past)
                storage.read.add(before)
                old = volume(before) * tensor.element_size()
                storage.chosen |= bool(needed())
                act_read += size - old
            elif storage.kind == "activation" and not state_store:  # a state is stored from where its scan has it
                act_read += size
        for tensor, storage in made:
            if gathered:
                storage.kind = "gathered"
            elif storage.kind == "cache":
                kv_write += _bytes(tensor)
            elif storage.kind == "state":
                state_write += STATE_ELEMENT * tensor.numel()
            else:
                act_write += _bytes(tensor)
        vector_ops = 0
        if not flops and not gathered and not cache_append:
            results = [t.numel() for t, _ in made]
            produced = max(results) if name == CHOICE else sum(results)
            consumed = 0 if name in GATHERS else max((t.numel() for t, _ in read), default=0)
            vector_ops = max(produced, consumed)
        return flops, vector_ops, weight, 0, kv_write, act_read, act_write, 0, state_write


def _layers_path(model: torch.nn.Module, layers: int) -> str:
    """Path of the list of decoder layers: the outermost list of that many modules.

    Where a layer attends several times (twice in LongCat-Flash), the config counts each time: then it is the only list that
    is as far out as any and has a divisor of that many modules.
    """
    lists: dict[str, int] = {
        path: len(module) for path, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)
    }
    alike = [path for path, length in lists.items() if length == layers]
    if alike:
        return min(alike, key=lambda path: path.count("."))
    depth = min((path.count(".") for path in lists), default=0)
    outer = [path for path in lists if path.count(".") == depth]
    if len(outer) != 1 or layers % lists[outer[0]]:
        raise InputError(f"{type(model).__name__} has no list of {layers} decoder layers")
    return outer[0]


def _hands_on(hidden: Any, result: Any) -> int | None:
    """How a layer returns what it makes of its input: 0 as a tensor, else the length of the tuple that starts with it."""
    first = result[0] if isinstance(result, tuple) and result else result
    if not isinstance(first, torch.Tensor) or not isinstance(hidden, torch.Tensor) or first.shape != hidden.shape:
        return None
    return len(result) if isinstance(result, tuple) else 0


def _tensors(tree: Any) -> list[torch.Tensor]:
    """Tensors among arguments or results of an op, which are nested in nothing but tuples, lists and dicts."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    found: list[torch.Tensor] = []
    for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ():
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, (tuple, list)):
            found += _tensors(each)
    return found


def _distinct(operands: _Operands) -> _Operands:
    """Each operand once, even if an op takes it twice (`x * x`)."""
    if len(operands) < 2:
        return operands
    keys = [(id(storage), t.shape, t.stride(), t.storage_offset()) for t, storage in operands]
    return [each for i, each in enumerate(operands) if keys.index(keys[i]) == i]


def _reads(tensor: torch.Tensor, storage: Storage) -> tuple[Any, int, int, bool]:
    """A tensor that an op reads: its place, its storage, its bytes on chip or of weights, and whether of weights."""
    cell = tensor.untyped_storage()._cdata
    place = (cell, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
    return place, cell, _bytes(tensor) if storage.kind in ("activation", "weight") else 0, storage.kind == "weight"


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of the memory behind a tensor: an expanded dimension (stride 0) counts once."""
    strides = tensor.stride()
    if 0 not in strides:
        return tensor.numel() * tensor.element_size()
    sizes = (size if stride else 1 for size, stride in zip(tensor.shape, strides, strict=True))
    return math.prod(sizes) * tensor.element_size()


@cache
def _write_positions(func: Any) -> tuple[tuple[int, str], ...]:
    arguments = func._schema.arguments
    return tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in _write_positions(func)]


def _flops(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    if func._overloadpacket in flop_registry:
        return int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
    if name == "linalg_solve_triangular":  # n^2 / 2 multiply-adds for each column
        return int(args[0].shape[-1] * args[1].numel())
    if name in _MATRIX_ARGUMENT:
        return 2 * int(args[_MATRIX_ARGUMENT[name]].numel())
    return 0


def _hint(frame: FrameType | None) -> str:
    while frame is not None:
        hint = _hint_of(frame.f_code.co_name)
        if hint is not None:
            return hint
        frame = frame.f_back
    return ""


@cache
def _hint_of(function: str) -> str | None:
    """The hint for ops issued inside of a function, empty if no function outside of it has one; None to look there."""
    if function in _OUTSIDE:
        return ""
    return next((hint for part, hint in _HINTS if part in function), None)


def tensor_refs(tree: Any) -> Any:
    """The same structure with each tensor as a `TensorRef`."""

    def ref(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        storage = leaf.untyped_storage()._cdata
        return TensorRef(storage, tuple(leaf.shape), leaf.stride(), int(leaf.storage_offset()), leaf.dtype)

    return tree_map(ref, tree)
