"""What the Triton kernels compile to, without a GPU: `python bench/compile_table.py` prints it as a Markdown table.

The launchers run on tensors without memory, and each launch they would make is compiled instead, with its very tile
and arguments, for each architecture. Sizes come from ptxas and the machine code; tests/test_compile_gate.py holds them
to tests/compile_budget.toml. `--record` keeps the table in tests/compile_table.jsonl, so that the tests compile again
only what has changed since: a kernel's source, its launch or Triton.
"""

import os
import sys

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # it must be gone before a kernel is defined

import argparse
import hashlib
import importlib
import itertools
import json
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import triton
from fastmfr.kernels import gather, meta_update
from fastmfr.kernels.batchnorm_prelu import fused
from fastmfr.kernels.cos_lse import backward, by_chunks, by_chunks_twice, double_backward, forward, tiles
from fastmfr.kernels.inverse_norm import _launch_inverse_norm
from fastmfr.kernels.sgd_rows import _launch_sgd_rows
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

RECORD = Path(__file__).parent.parent / "tests/compile_table.jsonl"
ARCHITECTURES = (80, 90, 100)
HOPPER = 90  # here all variants are compiled, elsewhere those that show what is particular there
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes of one program; a multiprocessor has 1 KiB more
B, C = 1000, 100_003  # ragged on purpose: nothing about them can be assumed
DIVISIBLE = 1024, 100_000  # by 16, as in training: the compiler then assumes aligned rows
CHUNK = 65_536  # identities, of which DIVISIBLE and C both make two chunks
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CONFIGURATIONS = (  # embeddings, weights, D
    (BF16, BF16, 512),
    (BF16, BF16, 256),
    (BF16, FP32, 512),
    (FP16, FP16, 512),
    (FP32, FP32, 512),
)
_TYPES = {BF16: "bf16", FP16: "fp16", FP32: "fp32", torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}
_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")  # become HMMA, HGMMA and UTCMMA
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_SIZES = {"num_warps": 4, "num_stages": 3, "maxnreg": None, "enable_fp_fusion": True}  # Triton's own where not given


class Launch(NamedTuple):
    """One launch, told so that another process can compile it."""

    case: str
    arch: int
    module: str
    kernel: str
    signature: dict
    constants: dict
    divisible: tuple
    options: dict


def launches(case, arch, call):
    """The launches that `call` would make on a GPU of this architecture."""
    found = []

    def run(kernel, *args, grid, warmup, **kwargs):
        options = {name: kwargs.pop(name, default) for name, default in _SIZES.items()}
        bound = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, divisible = {}, {}, []
        for at, name in enumerate(kernel.arg_names):
            value = bound[name] if name in bound else kernel.params[at].default
            if kernel.params[at].is_constexpr or value is None:
                signature[name], constants[(at,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{_TYPES[value.dtype]}"
                divisible.append(at)
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                divisible += [at] if isinstance(value, int) and value % 16 == 0 else []
        where = kernel.fn.__module__, kernel.fn.__name__
        found.append(Launch(case, arch, *where, signature, constants, tuple(divisible), options))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(tiles, "architecture", return_value=arch),
        mock.patch.object(tiles, "multiprocessors", return_value=132),
    ):
        call()
    return found


def _source(launch):
    """What Triton compiles for a launch, the same wherever in its file a kernel stands."""
    for module in [module for name, module in sys.modules.items() if name.startswith("fastmfr.kernels")]:
        for function in vars(module).values():
            if isinstance(function, JITFunction):
                function.starting_line_number = 0
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    aligned = {(at,): [["tt.divisibility", 16]] for at in launch.divisible}
    return ASTSource(kernel, launch.signature, launch.constants, aligned)


def fingerprint(launch):
    """Changes with whatever decides on what a launch compiles to: kernel, arguments, options, architecture, Triton."""
    parts = triton.__version__, launch.arch, sorted(launch.options.items()), _source(launch).hash()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def compiled(launch, listing=False):
    """What one launch compiles to: a row of the table; `listing` counts instructions too, which takes as long again."""
    source = _source(launch)
    binary = triton.compile(source, target=GPUTarget("cuda", launch.arch, 32), options=launch.options)
    usage = _tool("cuobjdump", "-res-usage", binary.asm["cubin"])
    registers, stack, local = map(int, re.search(r"REG:(\d+).*?STACK:(\d+).*?LOCAL:(\d+)", usage).groups())
    shared, threads = binary.metadata.shared, 32 * binary.metadata.num_warps
    resident = min(
        32,
        2048 // threads,
        65536 // (-(-registers // 8) * 8 * threads),
        (SHARED_LIMIT[launch.arch] + 1024) // (shared + 1024),
    )
    row = {
        "kernel": f"{launch.module.rsplit('.', 1)[1]}.{launch.kernel.removesuffix('_kernel')}",
        "case": launch.case,
        "arch": launch.arch,
        "warps": binary.metadata.num_warps,
        "registers": registers,
        "stack": stack,
        "local": local,
        "shared": shared,
        "resident": resident,
        "tensor core": len(_TENSOR_CORE.findall(binary.asm["ptx"])),
    }
    if listing:
        code = _tool("nvdisasm", "-c", binary.asm["cubin"])
        row["instructions"] = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M))
    return row


def _tool(name, option, cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([_TOOLS / name, option, file.name], capture_output=True, text=True, check=True).stdout


def _empty(*shape, dtype=FP32):
    return torch.empty(shape, dtype=dtype, device="meta")


# By chunks products have 16 bits on both sides, whatever the weights are: what training uses stands for all.
PLAIN = "", "by chunks"  # variants that are compiled for every architecture, and at divisible sizes too
_BY_CHUNKS = ((BF16, FP32, 512), (FP16, FP16, 512))


def _calls(x_dtype, w_dtype, D, B=B, C=C):
    """(name, call) for each variant of each pass.

    A variant is compiled for one pair of dtypes if the others differ from it by what the plain variant shows: the
    running maximum and kept exponentials for bf16, the gradient without weights for bf16 embeddings and fp32 weights.
    """
    x, w, r, label = _empty(B, D, dtype=x_dtype), _empty(C, D, dtype=w_dtype), _empty(C), _empty(B, dtype=torch.int64)
    row, width = _empty(B), tiles.kept_width(C)
    kept, nothing = _empty(B, width, dtype=BF16), _empty(0, dtype=BF16)
    given, configuration = (x, w, r, label), (x_dtype, w_dtype, D)
    yield "", lambda: forward.forward(*given, 64.0, False)
    yield "", lambda: backward.backward(*given, 64.0, row, nothing, row, row, True, True)
    twice = *given, 64.0, row, row, row, _empty(C, D), r, _empty(B, D)
    yield "", lambda: double_backward.double_backward(*twice, _empty(C, D), True)
    if configuration == (BF16, BF16, 512):
        yield "running maximum", lambda: forward.forward(*given, 100.0, False)
        yield "kept", lambda: forward.forward(*given, 64.0, True)
        yield "kept", lambda: backward.backward(*given, 64.0, row, kept, row, row, True, True)
    if configuration == (BF16, FP32, 512):
        yield "weights outside", lambda: double_backward.double_backward(*twice, None, True)
        yield "weights frozen", lambda: double_backward.double_backward(*twice, None, False, (row, row))
    if configuration not in _BY_CHUNKS:
        return
    yield "by chunks", lambda: by_chunks.forward(*given, 64.0, False)
    yield "by chunks, running maximum", lambda: by_chunks.forward(*given, 100.0, False)
    yield "by chunks, kept", lambda: by_chunks.forward(*given, 64.0, True)
    yield "by chunks", lambda: by_chunks.backward(*given, 64.0, row, nothing, row, row, True, True)
    yield "by chunks, kept", lambda: by_chunks.backward(*given, 64.0, row, kept, row, row, True, True)
    yield "by chunks", lambda: by_chunks_twice.double_backward(*twice, _empty(C, D), True)
    yield "by chunks, weights outside", lambda: by_chunks_twice.double_backward(*twice, None, True)
    yield "by chunks, weights frozen", lambda: by_chunks_twice.double_backward(*twice, None, False, known=(row, row))
    yield "by chunks, several", lambda: by_chunks.forward(*given, 64.0, False, size=CHUNK)  # sums carried over chunks


def _sgd_rows():
    rates = {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    whole, some = _empty(C, 512), _empty(1000, dtype=torch.int64)
    _launch_sgd_rows(whole, whole, whole, _empty(C), **rates)
    _launch_sgd_rows(whole, _empty(1000, 512), whole, _empty(C), some, **rates)


def _meta_update():
    flat = _empty(4_673_000)
    rates = {"splits": 3, "rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    meta_update._launch_look_ahead(flat, flat, flat, alpha=0.1)
    meta_update._launch_add_split(flat, flat, flat, flat, alpha=0.1, gamma=0.5)
    meta_update._launch_meta_sgd(flat, flat, flat, flat, flat, flat, alpha=0.1, gamma=0.5, **rates)


def _batchnorm_prelu(dtype, plain=False):
    """The four passes, `plain` without what may be left out: PReLU and batch statistics."""
    image, channel, ctx = _empty(32, 64, 30, 30, dtype=dtype), _empty(64), SimpleNamespace()
    slope = None if plain else channel
    fused.forward(
        ctx,
        image,
        channel,
        channel,
        slope,
        running=(channel, channel),
        batch_statistics=not plain,
        momentum=0.1,
        eps=1e-5,
    )
    fused.backward(ctx, image)
    fused.tangent(ctx, image, channel, channel, slope)
    fused.second_backward(ctx, image)


def shipped(architectures=ARCHITECTURES, configurations=CONFIGURATIONS):
    """Every launch that ships, none twice."""
    found = []
    for arch, (x_dtype, w_dtype, D) in itertools.product(architectures, configurations):
        if arch != HOPPER and (x_dtype == FP16 or D == 256):  # the kernels of bf16 with other factors, other widths
            continue
        dtypes = " x ".join(dict.fromkeys((_TYPES[x_dtype], _TYPES[w_dtype])))
        variants = list(_calls(x_dtype, w_dtype, D))
        if (x_dtype, w_dtype) == (BF16, FP32):
            divisible = _calls(x_dtype, w_dtype, D, *DIVISIBLE)
            variants += [(f"{name} divisible".strip(), call) for name, call in divisible if name in PLAIN]
        for name, call in variants:
            if arch == HOPPER or name in PLAIN:
                found += launches(", ".join(filter(None, (dtypes, f"D = {D}", name))), arch, call)
    for arch, dtype in itertools.product(architectures, (BF16, FP32)):
        found += launches(_TYPES[dtype], arch, partial(_launch_inverse_norm, _empty(C, 512, dtype=dtype)))
    image, index = _empty(8, 120, 120, 3, dtype=torch.uint8), _empty(64, dtype=torch.int64)
    whole, real = _empty(64, dtype=torch.int32), _empty(64)
    change = {
        "mirror_B": _empty(64, dtype=torch.bool),
        "shift_B2": _empty(64, 2, dtype=torch.int32),
        "block_B": whole,
        "gain_B": real,
        "offset_B": real,
    }
    for arch, (name, given) in itertools.product(architectures, (("as they are", {}), ("all changes", change))):
        call = partial(gather._launch_gather_images, image, index, **given, mean=127.5, std=128.0)
        found += launches(name, arch, call)
    for arch in architectures:
        found += launches("fp32, D = 512", arch, _sgd_rows)
        found += launches("fp32", arch, _meta_update)
        for dtype in (FP32, BF16):
            found += launches(_TYPES[dtype], arch, partial(_batchnorm_prelu, dtype))
        found += launches("fp32, no PReLU, running statistics", arch, partial(_batchnorm_prelu, FP32, plain=True))
    return list({repr(launch[1:]): launch for launch in reversed(found)}.values())[::-1]


def table(wanted, listing=False, processes=2):
    """A row for each launch, in order; compiled in processes of their own."""
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(partial(compiled, listing=listing), wanted))


def recorded():
    """{fingerprint: row} of what was compiled before."""
    rows = map(json.loads, RECORD.read_text().splitlines())
    return {row.pop("of"): row for row in rows}


def checked():
    """(the whole table, the rows compiled for it, what the record had in their place or None, a row that spills).

    Compiled are the launches that the record lacks. Of each module the launch with the fewest registers, which compiles
    soonest, is compiled although the record has it.
    """
    known, wanted = recorded(), shipped()
    prints = [fingerprint(launch) for launch in wanted]
    large_first = sorted((of for of in prints if of in known), key=lambda of: -known[of]["registers"])
    module = {of: launch.module for of, launch in zip(prints, wanted, strict=True)}
    samples = {module[of]: of for of in large_first}.values()
    todo = [at for at, of in enumerate(prints) if of not in known or of in samples]
    fresh = dict(zip(todo, table([wanted[at] for at in todo]), strict=True))
    whole = [fresh[at] if at in fresh else known[of] | {"case": wanted[at].case} for at, of in enumerate(prints)]
    return whole, list(fresh.values()), [known.get(prints[at]) for at in todo], compiled(_spilling(wanted))


def _spilling(wanted):
    """One of the launches with too few registers: what is said of it shows that a spill would be seen."""
    launch = next(one for one in wanted if one.kernel == "sum_exponentials_kernel")
    return launch._replace(options=launch.options | {"maxnreg": 64})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=ARCHITECTURES, help="such as 90, which is Hopper")
    parser.add_argument("--check", action="store_true", help="compile only what the record lacks, and print JSON")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}, for all architectures")
    arguments = parser.parse_args()
    if arguments.check:
        json.dump(checked(), sys.stdout)
        return
    if arguments.record:
        wanted = shipped()
        lines = [{"of": fingerprint(launch)} | row for launch, row in zip(wanted, table(wanted), strict=True)]
        RECORD.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    rows = table(shipped(arguments.arch), listing=True)
    print(f"triton {triton.__version__}, torch {torch.__version__}; B = {B}, C = {C}\n")
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    main()
