"""Run .pte files through ExecuTorch's own Python runtime, and look into them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


class Program:
    """All methods of one .pte; only this way of loading shares the buffers between them."""

    def __init__(self, path: Path) -> None:
        import executorch.kernels.quantized  # noqa: F401  embeddings of integers
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  llama.*
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)
        self._methods = {name: self._program.load_method(name) for name in self.method_names}

    @property
    def method_names(self) -> set[str]:
        return set(self._program.method_names)

    def constant(self, name: str) -> int:
        return self._methods[name].execute([])[0]

    def fill(self, token_ids: Tensor, position: int) -> list[Tensor]:
        """hidden [1, T, D] and, with per-layer embeddings, rest [1, T, R, P]."""
        return self._run("fill", token_ids.reshape(1, -1), torch.tensor([position]))

    def verify(self, token_ids: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """As EagerModel.verify: logits [T, V], activations [T, D]."""
        found = self._run("finish", *self.fill(token_ids, position), torch.tensor([position]))
        return found[0][0], found[1][0]

    def draft(self, token_id: Tensor, hidden: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """As EagerModel.draft: logits [V], projected activations [D]."""
        inputs = token_id.reshape(1, 1), hidden.reshape(1, 1, -1).contiguous()
        found = self._run("draft", *inputs, torch.tensor([position]))
        return found[0][0, 0], found[1][0, 0]

    def _run(self, name: str, *inputs: Tensor) -> list[Tensor]:
        return [output.clone() for output in self._methods[name].execute(inputs)]


@dataclass(frozen=True)
class Plan:
    """What one method is made of."""

    num_delegates: int
    operators: Mapping[str, int]  # undelegated ones: name -> calls
    buffers: Mapping[str, tuple[int, int]]  # shared buffer -> arena, offset


def read_plans(path: Path) -> dict[str, Plan]:
    """Every method that does something; the constant ones do not."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    working = [plan for plan in plans if any(chain.instructions for chain in plan.chains)]
    return {plan.name: _plan(plan) for plan in working}


def _plan(plan) -> Plan:
    arguments = [call.instr_args for chain in plan.chains for call in chain.instructions]
    kernels = Counter(
        plan.operators[call.op_index].name
        for call in arguments
        if type(call).__name__ == "KernelCall"
    )
    delegates = sum(type(call).__name__ == "DelegateCall" for call in arguments)
    tensors = [value.val for value in plan.values if hasattr(value.val, "extra_tensor_info")]
    buffers = {
        tensor.extra_tensor_info.fully_qualified_name: (
            tensor.allocation_info.memory_id,
            tensor.allocation_info.memory_offset_low,
        )
        for tensor in tensors
        if tensor.extra_tensor_info
        and tensor.extra_tensor_info.fully_qualified_name
        and tensor.allocation_info
    }
    return Plan(delegates, dict(kernels), buffers)
