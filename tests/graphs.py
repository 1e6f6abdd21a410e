"""Hand-made op graphs for tests: one block of Llama-3.2-1B, and graphs from a few lines."""

from __future__ import annotations

from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph


class GraphBuilder:
    """Collects ops; costs are constants, or (constant, per token of context)."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.polynomials: dict[tuple[int, ...], int] = {}

    def add(
        self, kind: str, *inputs: int, layer: int = 0, part: str = "", heads: int = 0, **costs: int | tuple[int, int]
    ) -> int:
        numbers = []
        for name in QUANTITIES:
            cost = costs.pop(name, 0)
            constant, slope = cost if isinstance(cost, tuple) else (cost, 0)
            polynomial = [0] * len(MONOMIALS)
            polynomial[MONOMIALS.index((0, 0, 0))], polynomial[MONOMIALS.index((0, 0, 1))] = constant, slope
            numbers.append(self.polynomials.setdefault(tuple(polynomial), len(self.polynomials)))
        assert not costs, f"unknown costs {costs}"
        self.ops.append(
            Op(
                kind=kind, path=f"layers.{layer}.{kind}", layer=layer, part=part, heads=heads, dtype="bfloat16",
                inputs=tuple(sorted(set(inputs))), costs=tuple(numbers),
            )
        )  # fmt: skip
        return len(self.ops) - 1

    def graph(self) -> OpGraph:
        return OpGraph(ops=tuple(self.ops), polynomials=tuple((p,) for p in self.polynomials))


def llama_block(layers: int = 1, heads: int = 32, hidden: int = 2048, mlp: int = 8192, kv: int = 512) -> OpGraph:
    """Blocks of a Llama with the shapes of Llama-3.2-1B, bfloat16, costs by hand arithmetic."""
    b = GraphBuilder()
    x: tuple[int, ...] = ()
    w = 2
    for layer in range(layers):

        def add(kind: str, *inputs: int, _layer: int = layer, **rest: object) -> int:
            return b.add(kind, *inputs, layer=_layer, **rest)  # type: ignore[arg-type]

        def product(kind: str, k: int, n: int, *inputs: int) -> int:
            return add(kind, *inputs, flops=2 * k * n, weight=w * k * n, act_read=w * k, act_write=w * n)

        load = add("kv_load", kv_read=(0, 2 * kv * w))
        norm = add("norm", *x, vector_ops=4 * hidden, weight=w * hidden)
        q, k, v = (product(f"{p}_proj", hidden, n, norm) for p, n in (("q", hidden), ("k", kv), ("v", kv)))
        rope_q = add("rope", q, part="q", vector_ops=3 * hidden)
        rope_k = add("rope", k, part="k", vector_ops=3 * kv)
        add("kv_store", v, rope_k, kv_write=2 * kv * w)
        scores = add("scores", load, rope_q, rope_k, heads=heads, flops=(2 * hidden, 2 * hidden))
        top = add("softmax_max", scores, heads=heads, vector_ops=(heads, heads))
        exp = add("softmax_exp", top, heads=heads, vector_ops=(heads, heads))
        soft = add("softmax_norm", exp, heads=heads, vector_ops=(heads, heads))
        values = add("weighted_values", load, v, soft, heads=heads, flops=(2 * hidden, 2 * hidden))
        o = product("o_proj", hidden, hidden, values)
        residual = add("residual", *x, o, vector_ops=hidden)
        norm = add("norm", residual, vector_ops=4 * hidden, weight=w * hidden)
        gate, up = product("gate_proj", hidden, mlp, norm), product("up_proj", hidden, mlp, norm)
        act = add("act", gate, up, vector_ops=2 * mlp)
        down = product("down_proj", mlp, hidden, act)
        x = (add("residual", residual, down, vector_ops=hidden),)
    return b.graph()
