"""What a forward pass may not call on displaced tensors, and the tensors that it makes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.models.isolation.epsilon import ModelEpsilon
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced
from nntk.propagation.registry import RANDOM, NoRule, function_name


class UnsupportedOpGuard(ModelEpsilon):
    """Context manager that raises where PyTorch would lose differences, or digits of them, without calling a rule.

    It also notes the memory of plain tensors that are new, which the model may write displaced values to.

    Args:
        ctx: Context of the evaluation.
    """

    def __init__(self, ctx: PropagationContext) -> None:
        super().__init__(ctx.dtype)
        self.ctx = ctx

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise NoRule("model transforms functions by torch.func, which has no rules for displaced values.")
        if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
            raise NoRule("model uses autocast, which rounds displaced values.")
        if function in RANDOM:
            raise NoRule(f"model calls {function_name(function)}, which draws random numbers.")
        if function is torch.tensor and any(is_displaced(leaf) for leaf in tree_leaves(arguments)):
            raise NoRule("model calls torch.tensor on displaced values, which loses their differences.")
        result = super().__torch_function__(function, types, arguments, options)
        if type(result) is Tensor and result.layout == torch.strided:
            memory = result.untyped_storage()._cdata
            leaves = tree_leaves((arguments, options)) if memory not in self.ctx.new_storages else []
            plain = [leaf for leaf in leaves if type(leaf) is Tensor and leaf.layout == torch.strided]
            if all(leaf.untyped_storage()._cdata != memory for leaf in plain):
                self.ctx.new_storages.add(memory)
        return result
