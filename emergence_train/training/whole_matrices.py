"""Where ZeRO has put the pieces of matrices, for an optimizer that needs them whole (Muon)."""

from typing import Any

from torch import Tensor, nn

from emergence_train.checkpoint.engine_state import EngineState
from emergence_train.optim.muon_step import Fragment, MuonAdamW
from emergence_train.parallel.mesh import Mesh


def attach(engine: Any, mesh: Mesh) -> None:
    """Attach the optimizer inside an engine, if it is one that needs whole matrices."""
    state = EngineState(engine, mesh)
    if not isinstance(state.optimizer, MuonAdamW):
        return
    linear = {id(module.weight) for module in engine.module.modules() if isinstance(module, nn.Linear)}
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    shapes, parts = state.shapes, {part.name: part for part in state.parts}
    fragments: dict[Tensor, list[Fragment]] = {}
    for flat, parameters in state.updated():
        matrices = []
        for name in (names[id(parameter)] for parameter in parameters if id(parameter) in linear):
            part = parts.get(name)  # none where this rank has no piece
            place = (part.start, part.count, part.offset) if part else (0, 0, 0)
            rows, columns = shapes[name]
            matrices.append(Fragment(rows, columns, *place))
        if matrices:
            fragments[flat] = matrices
    shared = state.stage > 0 and mesh.gradients.size > 1
    over = mesh.gradients
    state.optimizer.attach(fragments, over.handle, *((over.size, over.rank) if shared else (1, 0)))
