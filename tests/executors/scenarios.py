"""Random scenarios of real models: batches, prompts, drafts, full caches, experts, closed loops, replicas, tiles, costs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from sim.scenario.shipped import scenarios as shipped
from tests.machine.test_invariants import arbiters, with_effect

SCHEDULERS = ("serial", "earliest", "sticky", "critical_path", "oldest_token", "shortest")
TRANSFERS = ("kv_load", "kv_store", "weight_load", "act_load")
#: Rules for a full KV cache, of which only swaps move something.
WHEN_FULL = ({"full": "wait"}, {"full": "recompute"}, {"full": "swap"}, {"full": "swap", "moves": "between"})
TOKEN_BYTES = {"llama-3.2-1b": 2048, "gpt-oss-20b": 2048}  # of the KV cache of a layer; that of gpt-oss-20b has a window
XEON = str(next(iter(shipped().values())).parent / "profiles" / "xeon_1_thread.yaml")

DENSE = ("llama-3.2-1b", "gemma-3-1b", "gpt2", "qwen3-0.6b")
OTHERS = ("qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b")  # experts, latents, windows
COMPRESSED = "deepseek-v4-flash"  # layers 2 and 3, from 0, have a row for 4 and for 128 tokens, the first two a window alone


#: A prompt in the middle of which the window of Gemma 3 is full, that of gpt-oss long before.
FULL = {"context": 500, "prompt": 19}


def times(*units: str) -> st.SearchStrategy[str]:
    return st.builds("{} {}".format, st.integers(0, 40), st.sampled_from(units))


@st.composite
def requests(draw: st.DrawFn, *, together: bool) -> list[dict[str, Any]]:
    """together: they may share prompts, since they share steps."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        each = {"tokens": draw(st.integers(1, 6)), "count": draw(st.integers(1, 3))}
        each |= draw(
            st.sampled_from(({"prompt": 1}, {"prompt": 19}, {"prompt": 40}, {"context": 5}, {"context": 70}, FULL, {}))
        )
        each |= {"arrival": draw(times("us"))} if draw(st.booleans()) else {}
        if together and "prompt" in each and draw(st.booleans()):
            each["samples"] = draw(st.integers(2, 3))
        found.append(each)
    return found


@st.composite
def workloads(draw: st.DrawFn, config: str) -> dict[str, Any]:
    policy = draw(st.sampled_from(("independent", "static", "continuous", "continuous")))
    workload: dict[str, Any] = {"sequences": draw(requests(together=policy == "continuous"))}
    batching: dict[str, Any] = {"policy": policy}
    if draw(st.integers(0, 4)) == 0:
        workload = {
            "generate": {
                "count": draw(st.integers(1, 6)),
                "arrivals": {"process": "poisson", "rate": draw(st.sampled_from(("1000/s", "30000/s")))},
                "context": draw(st.sampled_from((0, 33))),
                "tokens": {"distribution": "uniform", "min": 1, "max": 6},
            }
        }
    elif draw(st.integers(0, 2)) == 0:
        workload["concurrency"] = {"users": draw(st.integers(1, 4)), "think": draw(times("us"))}
        for each in workload["sequences"]:
            each.pop("arrival", None)
    if policy != "independent":
        batching |= draw(
            st.fixed_dictionaries({}, optional={"max_batch": st.integers(3, 5), "max_tokens": st.integers(36, 60)})
        )
        if config in TOKEN_BYTES and "sequences" in workload and draw(st.booleans()):
            block = draw(st.sampled_from((4, 16)))
            wanted = max(
                (each.get("prompt", 0) + each.get("context", 0) + each["tokens"] + 4) * each.get("samples", 1)
                for each in workload["sequences"]
            )
            blocks = -(-wanted // block) + each_more(draw, block)
            capacity = f"{blocks * block * TOKEN_BYTES[config]} B"
            batching["kv"] = {"capacity": capacity, "block": block, **draw(st.sampled_from(WHEN_FULL))}
    if draw(st.integers(0, 2)) == 0:
        workload["prefill"] = {"chunk": draw(st.sampled_from((1, 7, 16)))}
    if draw(st.integers(0, 2)) == 0:
        accepted = st.one_of(st.sampled_from((0, 0.5, 1)), st.lists(st.integers(0, 2), min_size=1, max_size=3))
        workload["speculative"] = {"draft": draw(st.integers(2, 4)), "acceptance": draw(accepted)}
    return workload | {"batching": batching}


def each_more(draw: st.DrawFn, block: int) -> int:
    """Blocks beyond those of the longest request."""
    return draw(st.integers(3, 6 + 64 // block))


def machines() -> st.SearchStrategy[dict[str, Any]]:
    share = st.integers(1, 20).map(lambda n: n / 20)
    memory = st.fixed_dictionaries(
        {
            "bandwidth": st.just("100 GB/s"),
            "arbiter": arbiters(TRANSFERS, 1_000_000),
            "latency": st.one_of(st.just("0 ns"), times("ns")),
            "channels": st.fixed_dictionaries(
                {"count": st.integers(1, 3), "route": st.sampled_from(("interleaved", "sequence", "class"))}
            ),
        },
        optional={
            "port_bandwidth": st.integers(1, 99).map("{} GB/s".format),
            "efficiency": st.dictionaries(st.integers(1, 5).map(str), share, min_size=1),
        },
    )
    engines = st.fixed_dictionaries({"count": st.integers(1, 4)}, optional={"overhead": st.just("300 ns")})
    host = st.builds(lambda link: {"link": link}, links())
    small = st.builds(lambda link, size: {"link": link, "memory": size}, links(), st.sampled_from(("1 KB", "90 KB", "400 KB")))
    ssd = st.builds(lambda link: [{"name": "ssd", "link": link}], links())
    return st.one_of(
        st.fixed_dictionaries({"memory": memory, "engines": engines}, optional={"host": host}),
        st.fixed_dictionaries({"memory": memory, "engines": engines, "host": small, "tiers": ssd}),
    )


def links() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({
        "bandwidth": st.sampled_from(("450 GB/s", "64 GB/s", "1 GB/s")), "latency": st.one_of(st.just("0 ns"), times("ns")),
        "arbiter": st.sampled_from(
            ("fifo", "processor_sharing", {"name": "round_robin", "burst": "1 KiB"}, "priority", "proportional")
        ),
    })  # fmt: skip


def connections() -> st.SearchStrategy[dict[str, Any]]:
    islands = st.fixed_dictionaries({"size": st.just(2), "link": links()})
    topology = st.sampled_from(("switch", "switch", "all_to_all", "ring", "mesh"))
    return st.fixed_dictionaries({"link": links(), "topology": topology}, optional={"islands": islands})


def parallelism() -> st.SearchStrategy[dict[str, Any]]:
    tensor = st.fixed_dictionaries({
        "tensor": st.sampled_from((2, 2, 4)), "fold": st.booleans(),
        "algorithm": st.sampled_from(("ring", "two_shot", "one_shot", "tree", "auto")),
        "sequence": st.booleans(), "overlap_chunks": st.sampled_from((1, 1, 2, 4)),
    })  # fmt: skip
    pipeline = st.fixed_dictionaries({"pipeline": st.just(2), "micro_batches": st.integers(1, 3)})
    return st.one_of(tensor, pipeline, st.builds(lambda one, other: one | other, tensor, pipeline))


def mappings() -> st.SearchStrategy[dict[str, Any]]:
    tiles = st.one_of(st.integers(1, 5), st.just("engines"), st.just({"o_proj": 3}))
    given = st.fixed_dictionaries(
        {"heads": st.sampled_from(("fused", "fused", "fused", "split"))},
        optional={
            "softmax": st.sampled_from(("three_pass", "fused", "online")),
            "kv_loads": st.sampled_from(("layer", "head")),
            "weights": st.sampled_from(("streamed", "resident", {"resident": 0.4})),
            "activations": st.sampled_from(("on_chip", "off_chip")),
            "attention": st.sampled_from(("sequence", "batch")),
            "fuse": st.just({"qkv": True, "gate_up": True}),
            "tiles": tiles,
        },
    )
    how = st.one_of(
        st.sampled_from(("prefetch", "stream", "blocking")).map(lambda name: {"execution": name}),
        st.sampled_from(("stream", "blocking")).map(lambda name: {"execution": name, "kv": "operands"}),
    )
    return st.builds(lambda one, other: one | other, given, how)


COSTS = (
    "roofline", "roofline", {"model": "fixed"}, {"model": "fixed", "jitter": 0.3},
    {"model": "profiled", "profile": XEON, "otherwise": "roofline"},
)  # fmt: skip


def sequences_of(workload: dict[str, Any]) -> int:
    """How many sequences there are."""
    if "generate" in workload:
        return workload["generate"]["count"]
    return sum(each["count"] * each.get("samples", 1) for each in workload["sequences"])


@st.composite
def served(draw: st.DrawFn, *, devices: bool = False, more: bool = False) -> dict[str, Any]:
    """A scenario; a few of them are refused, as what cannot be. devices: there are several, else only in some. more: with
    compressed caches and replicas.
    """
    config = draw(st.sampled_from((*DENSE, DENSE[0], DENSE[0], *OTHERS, *([COMPRESSED] if more else []))))
    model = {"config": config, "scope": draw(st.sampled_from(("block", "block", "model"))), "layers": draw(st.integers(1, 2))}
    if config == COMPRESSED:
        model["layers"] = draw(st.integers(3, 4))
    workload = draw(workloads(config))
    if "kv" in workload["batching"]:
        model["layers"] = 1
    mapping = draw(mappings())
    machine = draw(machines())
    if mapping.get("weights", "streamed") == "streamed":
        machine["sram"] = draw(st.sampled_from((None, "600 MiB", "1200 MiB")))
        if draw(st.booleans()) and config == DENSE[0] and model["scope"] == "block":
            machine["sram"], mapping["tiles"] = draw(st.sampled_from(("10 MiB", "40 MiB"))), 8
    kinds = {"weight_load"} if mapping["execution"] == "prefetch" and mapping.get("weights") != "resident" else set()
    kinds |= {"kv_load", "kv_store"} - ({"kv_load"} if mapping.get("kv") == "operands" else set())
    tier = "ssd" if "tiers" in machine else "host" if "host" in machine else None
    cost = "roofline" if devices else draw(st.sampled_from(COSTS))
    if tier and cost == "roofline" and mapping.get("weights", "streamed") == "streamed" and draw(st.integers(0, 2)) == 0:
        mapping["offload"] = {"weights": "all", "tier": tier}
        link = (machine["tiers"][0] if tier == "ssd" else machine["host"])["link"]
        if isinstance(link["arbiter"], dict):  # weights in turns of 1 KiB would be a hundred thousand turns a step
            link["arbiter"] = {"name": "round_robin", "burst": "64 KiB"}
        kinds -= {"weight_load"}
    kinds |= {"act_load"} if mapping["execution"] == "prefetch" and mapping.get("activations") == "off_chip" else set()
    machine["memory"]["arbiter"] = with_effect(machine["memory"]["arbiter"], sequences_of(workload), kinds)
    kv, samples = workload["batching"].get("kv"), any("samples" in each for each in workload.get("sequences", ()))
    if kv is not None and kv["full"] != "swap" and "tiers" in machine and cost == "roofline" and not samples:
        kv |= {"prefix_cache": True, "evicted": "tiers"}
    if devices or (cost == "roofline" and "kv" not in workload["batching"] and draw(st.booleans())):
        parallel = mapping["parallel"] = draw(parallelism())
        if more and workload["batching"]["policy"] != "independent" and draw(st.integers(0, 2)) == 0:
            parallel["data"], workload["router"] = 2, draw(st.sampled_from(("round_robin", "least_loaded", "prefix_hash")))
        count = parallel.get("data", 1) * parallel.get("tensor", 1) * parallel.get("pipeline", 1)
        machine["devices"] = {"count": count, **draw(connections())}
        if (
            "tensor" in parallel
            and config in (*OTHERS, COMPRESSED)
            and workload["batching"]["policy"] != "independent"
            and draw(st.booleans())
        ):
            parallel["expert"] = parallel["tensor"]
        if parallel.get("tensor") and config == "gemma-3-1b" and mapping.get("softmax") == "online":
            parallel["context"] = draw(st.sampled_from((1, 2)))  # it has one KV head
        if parallel.get("tensor") and mapping.get("attention") == "batch":
            parallel |= draw(
                st.sampled_from(({}, {"token_chunks": 2, "token_chunks_from": 2}, {"token_chunks": 3, "token_chunks_from": 7}))
            )
        if parallel.get("pipeline", 1) > 1:
            model["layers"] = 4 if config == COMPRESSED else 2
    return {
        "model": model, "workload": workload, "hardware": machine, "mapping": mapping,
        "scheduler": draw(st.sampled_from(SCHEDULERS)), "cost": cost, "seed": draw(st.integers(0, 3)),
    }  # fmt: skip


@st.composite
def apart(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario of a mixture whose devices have sequences of their own; a few of them are refused, as what cannot be."""
    data, count = draw(served(devices=True)), draw(st.sampled_from((2, 4)))
    config = draw(st.sampled_from((*OTHERS, "granite-4.0-h-small")))  # that has states
    data["model"] = {"config": config, "layers": 2, "scope": draw(st.sampled_from(("block", "model")))}
    batching, mapping, machine = data["workload"]["batching"], data["mapping"], data["hardware"]
    batching["policy"] = "continuous" if batching["policy"] == "independent" else batching["policy"]
    if kv := batching.get("kv"):  # whose caches do not move
        kv |= {"full": "recompute" if kv["full"] == "swap" else kv["full"], "evicted": "lost"}
    replicas = draw(st.sampled_from((1, 1, 2)))
    data["workload"]["router"] = draw(st.sampled_from(("round_robin", "least_loaded", "prefix_hash", "prefix_aware")))
    mapping["parallel"] = {
        "tensor": count, "expert": count, "attention": "data", "dispatch": "all_to_all", "data": replicas,
        "micro_batches": draw(st.sampled_from((1, 1, 2))),
    }  # fmt: skip
    mapping["tiles"] = draw(st.sampled_from((1, 3, "engines")))
    mapping.pop("offload", None)  # of whole mixtures, over links that may serve a KiB at a time
    machine["devices"]["count"], machine["sram"] = count * replicas, None
    machine["memory"]["arbiter"] = draw(st.sampled_from(("fifo", "processor_sharing")))
    return data
