// BatchNorm and PReLU on the CPU with all that an exact Hessian-vector product needs, at most two readings of memory a pass
#pragma once

#include <cstdint>

namespace fastmfr {

/// BatchNorm followed by PReLU, or by nothing: forward, backward, tangent and second backward on a CPU, as
/// kernels/batchnorm_prelu/reference.py defines them, with its names. Each pass reads its tensors at most twice: once
/// for sums per channel, once to write its result.
///
/// Tensors are matrices (pixels N, channels C), row by row, which are images with channels last. T is float or double.
/// Sums are taken in pieces that depend on the sizes alone, and no product is fused with a sum: the same bits come with
/// any number of threads.

struct Sizes {
    int64_t pixels, channels;
    int threads;
};

/// Of a layer, each (C,). `slope` is null without a PReLU; `slopes` is C, or 1 for one slope of all channels.
template <class T>
struct Layer {
    const T *mean, *r, *weight, *bias, *slope;
    int64_t slopes;
};

/// The direction of a tangent.
template <class T>
struct Moving {
    const T *weight, *bias, *slope;
};

/// Running statistics, each (C,), or null; `momentum` is the weight of the batch in them.
template <class T>
struct Running {
    T *mean, *variance, momentum;
};

/// Mean and r of x, each (C,). Updates the running statistics, if there are any, with the unbiased variance.
template <class T>
void batch_statistics(const Sizes& sizes, const Running<T>& running, T eps, const T* x, T* mean, T* r);

template <class T>
void forward(const Sizes& sizes, const Layer<T>& layer, const T* x, T* y);

/// `sum` (3, C): of dz, of xh dz, and of z dy where z <= 0. `batch`: whether mean and r are the batch's.
template <class T>
void backward(const Sizes& sizes, const Layer<T>& layer, bool batch, const T* x, const T* dy, T* dx, T* sum);

/// `moved` (2, C): sums of x' and of xh x'; 0 unless `batch`.
template <class T>
void tangent(const Sizes& sizes, const Layer<T>& layer, const Moving<T>& moving, bool batch, const T* x, const T* xd,
             T* yd, T* moved);

/// `sum` and `moved` are those of the two passes before; `sum_d` (3, C) are the derivatives of `sum`.
template <class T>
void second_backward(const Sizes& sizes, const Layer<T>& layer, const Moving<T>& moving, bool batch, const T* x,
                     const T* dy, const T* xd, const T* dyd, const T* sum, const T* moved, T* dxd, T* sum_d);

}  // namespace fastmfr
