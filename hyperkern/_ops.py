"""Where the operators of the package are registered, and found.

A build for the kernels hub puts a module of its own in this place, with a namespace that no other build has: so the
package asks for no namespace elsewhere.
"""

import torch

ops = torch.ops.hyperkern


def add_op_namespace_prefix(op_name: str) -> str:
    """The qualified name of an operator."""
    return f"hyperkern::{op_name}"
