"""What `make gpu` runs, a process each: figures that only a CUDA device can give. See bench/gpu.py for their order.

    lines.py        one line of JSON a figure, flushed at once; the pytest plugin that writes one a test
    timing.py       contenders timed in turn, by CUDA events; peak memory
    kernel_tests.py the kernels' tests, spread over processes
    whole_run.py    a training run on the device beside the same run on the CPU
    ceilings.py     what the device can do at most
    accuracy.py     margin softmax at real sizes against float64, and twice for equal bits
    margin.py       margin softmax beside eager, tuned and compiled PyTorch
    operators.py    BatchNorm + PReLU, flat updates, classifier rows, gathering, beside eager
    meta_step.py    the meta step with and without its CUDA graph, beside ordinary steps and autograd twice
    pretraining.py  whole pretraining steps beside eager and compiled PyTorch
    ten_million.py  ten million identities in one head
    profile.py      where the time of a step goes, kernel by kernel
    paths.py        the paths of cos_lse that are timed beside each other

Each takes `--small`: the same figures at toy sizes, on the CPU where there is no GPU; their numbers mean nothing.
"""
