"""What plain torch costs: operations that are launched one by one, and the bytes that each reads and writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Counts, while it is entered, torch's operations (`launches`) and the bytes of their inputs and outputs (`bytes`).

    Views and allocations move nothing and do not count. An operation may be more than one kernel on a GPU, and what a cache
    serves is counted too: launches are a lower bound, bytes an upper one. Triton's kernels are not torch's operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        aliased = [each.alias_info for each in func._schema.returns]
        view = bool(aliased) and all(each is not None and not each.is_write for each in aliased)
        name = func.__name__.split(".")[0]
        if not view and "empty" not in name and name not in ("detach", "_local_scalar_dense", "_unsafe_view"):
            touched = {id(each): each for each in tree_leaves((args, kwargs, made)) if isinstance(each, Tensor)}
            self.launches += 1
            self.bytes += sum(min(each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in touched.values())
        return made
