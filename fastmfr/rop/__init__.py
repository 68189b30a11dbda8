"""The R-operator: exact Hessian-vector products of any network made of known operations, without autograd in the body.

Pearlmutter, "Fast exact multiplication by the Hessian" (1994): differentiate the forward and the backward pass along a
direction. `Program` reads a module, `Tape` runs a batch through it.
"""

from fastmfr.rop.program import Program, Tape
from fastmfr.rop.tracing import NoROperator

__all__ = ["NoROperator", "Program", "Tape"]
