"""Kernels for test_resources.py: one that keeps every promise, and one that breaks each."""

import os

import triton
import triton.language as tl

from nntk.kernels.ahead_of_time import Case, Product, Work


@triton.jit
def matmul(a, b, c, k, stride_c_m, TILE: tl.constexpr, PRECISION: tl.constexpr):
    BM: tl.constexpr = TILE[0]
    BN: tl.constexpr = TILE[1]
    BK: tl.constexpr = TILE[2]
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, k, BK):
        total = tl.dot(a.load([m, i]), b.load([n, i]).T, total, input_precision=PRECISION)
    at = (m + tl.arange(0, BM))[:, None].to(tl.int64) * stride_c_m + (n + tl.arange(0, BN))[None, :]
    tl.store(c + at, total)


@triton.jit
def one_product(a, b, c):
    """No loop: on sm_100 there is still one, in the code that waits for tensor memory."""
    at = tl.arange(0, 128)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(c + at, tl.dot(a.load([0, 0]), b.load([0, 0]).T))


@triton.jit
def noisy(b, c, k, turns, INNER: tl.constexpr):
    """The rows of A are made of bits in the loop."""
    total = tl.zeros((64, 64), tl.float32)
    at = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    for i in range(0, k, 64):
        bits = at + i
        for _ in range(turns if INNER else 1):
            for _ in tl.static_range(8):
                bits = (bits * 1664525 + 1013904223) ^ (bits >> 7)
        total = tl.dot(bits.to(tl.bfloat16), b.load([0, i]).T, total)
    tl.store(c + at, total)


@triton.jit
def three_accumulators(a, b, c, k):
    """768 columns of tensor memory."""
    first, second, third = (
        tl.zeros((128, 256), tl.float32),
        tl.zeros((128, 256), tl.float32),
        tl.zeros((128, 256), tl.float32),
    )
    for i in range(0, k, 64):
        x, y = a.load([0, i]), b.load([0, i]).T
        first, second, third = tl.dot(x, y, first), tl.dot(x, y, second), tl.dot(x, -y, third)
    at = tl.arange(0, 128)[:, None] * 256 + tl.arange(0, 256)[None, :]
    tl.store(c + at, first + second + third)


@triton.jit
def never():
    tl.static_assert(False, "this kernel never compiles")


class Crash:
    """Options that bring the process down when the compiler reads them."""

    def keys(self):
        """Die as an assertion in LLVM does."""
        os._exit(9)


def product(name, tile=(64, 64, 64), operand="bf16", stated=1, precision="tf32", **promises):
    kind = f"tensordesc<{'fp32' if operand != 'bf16' else operand}[%d, {tile[2]}]>"
    signature = {"a": kind % tile[0], "b": kind % tile[1], "c": "*fp32:16", "k": "i32", "stride_c_m": "i32:16"}
    promises = {"num_stages": 2, "loops": (Work(products=(Product(*tile, operand),) * stated),)} | promises
    return Case(name, matmul, signature, {"TILE": tile, "PRECISION": precision}, **promises)


def noise(name, inner=False, normals=64 * 64, signs=0, **promises):
    work = Work(normals=normals, signs=signs, products=(Product(64, 64, 64),))
    signature = {"b": "tensordesc<bf16[64, 64]>", "c": "*fp32:16", "k": "i32", "turns": "i32"}
    return Case(name, noisy, signature, {"INNER": inner}, num_stages=2, loops=(work,), **promises)


def cases(arch):
    result = [product("good")]
    if arch == "sm_90":
        result += [
            product("good tf32", (64, 64, 32), "tf32"),
            product("stack", options={"maxnreg": 64}, num_warps=2),
            product("shared memory", (64, 64, 256), num_stages=4),
            product("no tensor cores", (32, 32, 32), "tf32", precision="ieee"),
            product("half the product", stated=2),
            product("no wgmma", num_warps=2),
            product("two loops stated", loops=(Work(products=(Product(64, 64, 64),)),) * 2),
            product("no loop stated", loops=()),
            product("registers", register_budget=16),
            noise("good noise", normal_budget=100),
            noise("normals", normal_budget=10),
            noise("signs", normals=0, signs=64 * 64, sign_budget=10),
            noise("no signs stated", sign_budget=10),
            noise("not tensor-bound", tensor_bound=True),
            noise("inner loop", inner=True),
            Case("does not compile", never, {}),
            product("crash", options=Crash()),
        ]
    if arch == "sm_100":
        signature = {"a": "tensordesc<bf16[128, 64]>", "b": "tensordesc<bf16[256, 64]>", "c": "*fp32:16", "k": "i32"}
        work = Work(products=(Product(128, 256, 64),) * 3)
        result.append(Case("tensor memory", three_accumulators, signature, {}, 8, 2, (work,)))
        signature = {"a": "tensordesc<bf16[128, 64]>", "b": "tensordesc<bf16[64, 64]>", "c": "*fp32:16"}
        result.append(Case("no loop", one_product, signature, {}, once=Work(products=(Product(128, 64, 64),))))
    if arch == "gfx942":
        result.append(product("stack", (256, 256, 128), num_warps=8))
    return result
