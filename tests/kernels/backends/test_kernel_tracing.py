"""Names in traces of torch's profiler: every operation under ours, forward and backward; the numbers stay the same."""

import torch
from torch.profiler import ProfilerActivity, profile

import emergence_kernels as ek


def step():
    """One of each, on small seeded tensors; returns the gradients' sum."""
    generator = torch.Generator().manual_seed(0)
    q, hidden, weight, x = (
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((1, 8, 2, 16), (1, 8, 32), (50, 32), (1, 8, 32))
    )
    targets = torch.arange(8)[None]
    loss = ek.attention(q, q, q).sum() + ek.position_loss(hidden, weight, targets).loss
    loss = loss + ek.linear_cross_entropy(hidden, weight, targets).sum() + ek.swiglu(x).sum()
    loss.backward()
    return torch.stack([leaf.grad.double().sum() for leaf in (q, hidden, weight, x)])


def test_operations_are_traced_by_their_names():
    before = step()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        during = step()
    names = {event.key for event in trace.key_averages()}
    ours = {f"emergence_kernels::{name}" for name in ("attention", "position_loss", "linear_cross_entropy", "swiglu")}
    assert ours <= names and "emergence_kernels::position_lossBackward" in names
    assert not {"Eager", "EagerBackward"} & names and torch.equal(before, during)


def test_a_compiled_graph_is_whole_with_a_profiler_and_without():
    """The name is no reason to compile again when a profiler starts, and no break of the graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    q = torch.randn(1, 8, 2, 16)
    compiled = torch.compile(lambda q: ek.attention(q, q, q), fullgraph=True, backend=backend)
    compiled(q)
    with profile(activities=[ProfilerActivity.CPU]):
        compiled(q)
    assert len(graphs) == 1
