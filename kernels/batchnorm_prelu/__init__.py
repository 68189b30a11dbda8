"""BatchNorm followed by PReLU, or by nothing, as one operation with all that an exact Hessian-vector product needs."""
