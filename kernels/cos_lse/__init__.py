"""The margin-free part of margin softmax: over unit rows, the log-sum-exp of all identities but the true one.

    z[b, c] = scale * x[b] . w[c]   log_sum[b] = log sum_{c != y} exp(z[b, c])   cos[b] = x[b] . w[y]   y = label[b]

A margin changes the true cosine only. So every margin acts on (B,) vectors, outside of this package.

    reference.py        the formula in plain PyTorch, on materialised logits
    chunked.py          forward, backward and double backward a chunk of identities at a time: the path on the CPU
    tiles.py            block sizes of the Triton kernels, by pass, dtype and embedding
    forward.py          log_sum and cos in Triton
    backward.py         their gradients: rows or identities stay in place while the others pass by
    double_backward.py  the gradients' gradients, likewise
    by_chunks.py        forward and backward for large batches: a chunk of identities at a time, products in cuBLAS
    by_chunks_twice.py  double backward likewise
    normalisation.py    what weights of any length add to their gradients: both projections, over whole rows
    operator.py         the public function: checks, the choice of a path, operators of torch.library
"""

from .operator import cos_lse
from .reference import cos_lse_ref

__all__ = ["cos_lse", "cos_lse_ref"]
