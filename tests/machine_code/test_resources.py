"""Machine code without a GPU: every check catches the kernel that breaks it, and loops are what they seem."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nntk.bench.cli import app as cli
from nntk.bench.machine_code import checks, machines, resources
from nntk.bench.machine_code.catalogue import MODULES
from nntk.bench.machine_code.flow import Flow
from nntk.bench.machine_code.listing import sass
from nntk.bench.machine_code.measure import measure
from nntk.bench.machine_code.sample import SAMPLE, sampled
from nntk.kernels.ahead_of_time import Case, Compiled, Product, Work

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="there is no Triton on this system")

COMMAND = [sys.executable, "-m", "nntk.bench", "resources", "--module", "kernels_to_judge"]
# Interpreted functions cannot be compiled: the command must see to that itself.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TRITON_INTERPRET": "1"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """One run of the command over kernels_to_judge.py: what it printed, its exit status, its JSON."""
    path = tmp_path_factory.mktemp("resources") / "resources.json"
    done = subprocess.run([*COMMAND, "--json", path], capture_output=True, text=True, env=ENVIRONMENT)
    return done, json.loads(path.read_text())


@pytest.mark.machine_code
@pytest.mark.xdist_group("resources")
@pytest.mark.parametrize(
    ("case", "arch", "caught"),
    [
        ("good", "sm_80", {}),
        ("good", "sm_86", {}),
        ("good", "sm_89", {}),
        ("good", "sm_120", {}),
        ("good", "sm_90", {}),
        ("good", "sm_100", {}),
        ("good", "gfx942", {}),
        ("good tf32", "sm_90", {}),
        ("no loop", "sm_100", {}),
        ("good noise", "sm_90", {}),
        ("stack", "sm_90", {"stack": "bytes of stack a thread", "spills": "registers are spilled", "wgmma": ""}),
        ("stack", "gfx942", {"stack": "bytes of stack a thread", "spills": "registers are spilled"}),
        ("shared memory", "sm_90", {"shared_memory": "bytes of shared memory, 232,448 are there"}),
        ("tensor memory", "sm_100", {"tensor_memory": "768 columns", "trap": "a trap", "matrix_instructions": "do 0"}),
        ("no tensor cores", "sm_90", {"matrix_instructions": "do 0 of 32,768 multiply-adds"}),
        ("half the product", "sm_90", {"matrix_instructions": "do 262,144 of 524,288 multiply-adds"}),
        ("no wgmma", "sm_90", {"wgmma": "no wgmma but HMMA.16816.F32.BF16"}),
        ("two loops stated", "sm_90", {"main_loops": "1 main loops in the code, the case states 2"}),
        ("no loop stated", "sm_90", {"main_loops": "1 main loops in the code, the case states 0"}),
        ("inner loop", "sm_90", {"main_loops": "a main loop holds a loop"}),
        ("registers", "sm_90", {"register_budget": "registers a thread, 16 are allowed"}),
        ("normals", "sm_90", {"normal_budget": "instructions a normal, 10 are allowed"}),
        ("signs", "sm_90", {"sign_budget": "instructions a sign, 10 are allowed"}),
        ("no signs stated", "sm_90", {"sign_budget": "and states none"}),
        ("not tensor-bound", "sm_90", {"tensor_bound": "products take 128"}),
        ("does not compile", "sm_90", {"compiles": "this kernel never compiles"}),
        ("crash", "sm_90", {"compiles": "the compiler crashed"}),
    ],
)
def test_each_check_catches_the_kernel_that_breaks_it(case, arch, caught, judged):
    """And no other check does."""
    done, content = judged
    (row,) = (row for row in content["rows"] if (row["case"], row["arch"]) == (case, arch))
    assert row["failures"].keys() == caught.keys()
    for check, message in caught.items():
        assert message in row["failures"][check] and f"{case} on {arch}: {check}: " in done.stdout


@pytest.mark.machine_code
@pytest.mark.xdist_group("resources")
def test_every_check_is_broken_by_some_kernel(judged):
    """The list above is complete."""
    broken = {check for row in judged[1]["rows"] for check in row["failures"]}
    assert broken == {check.__name__ for check in checks.CHECKS} | {"compiles"}


@pytest.mark.machine_code
@pytest.mark.xdist_group("resources")
def test_the_json_says_what_it_was_made_with(judged):
    """Versions, commit, limits, what each case states, and counts by pipe of every loop."""
    done, content = judged
    assert done.returncode == 1 and content["status"] == "failed" and content["schema"] == 1
    assert {"triton", "torch", "nntk"} <= content["versions"].keys() and content["limits"]["sm_90"]["shared"] == 232_448
    row = next(row for row in content["rows"] if (row["case"], row["arch"]) == ("good noise", "sm_90"))
    assert row["stated"]["kernel"] == "noisy" and row["stated"]["normal_budget"] == 100
    (loop,) = row["loops"]
    assert loop["matrix"] == {"HGMMA.64x64x16.F32.BF16": 4} and loop["multiply_adds"] == {"bf16": 64**3}
    assert loop["cycles"]["tensor"] == 64**3 / 2048 and row["limit"] == max(row["cycles"], key=row["cycles"].get)
    assert row["instructions_per_normal"] == sum(loop["instructions"].values()) * 4 * 32 / 64**2


WAIT = "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR7+0x18000], R7"
LOOP = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P1 EXIT ;
.L_x_0:
        /*0020*/                   {wait} ;
        /*0030*/              @!P0 BRA `(.L_x_3) ;
.L_x_1:
        /*0040*/               @P2 BRA `(.L_x_2) ;
        /*0050*/                   FFMA R2, R2, R3, R4 ;
        /*0060*/                   MUFU.LG2 R2, R2 ;
.L_x_2:
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], R24, gsb0 ;
        /*0080*/                   ISETP.GE.AND P0, PT, R0, R5, PT ;
        /*0090*/              @!P0 BRA `(.L_x_0) ;
        /*00a0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   {wait} ;
        /*00d0*/              @!P0 BRA `(.L_x_3) ;
        /*00e0*/                   BRA `(.L_x_1) ;
"""


def opcodes(flow, weights):
    """Return how often each opcode runs."""
    return {one.opcode: weight for block, weight in weights.items() for one in flow.blocks[block].instructions}


def test_a_wait_out_of_line_is_no_loop():
    """It is one where the branch depends on anything else."""
    waiting, comparing = (Flow(sass(LOOP.format(wait=wait))) for wait in (WAIT, "ISETP.GT.AND P0, PT, R0, R7, PT"))
    assert len(waiting.loops) == 1 and len(comparing.loops) == 2
    runs = opcodes(waiting, waiting.turn(waiting.loops[0]))
    assert runs["SYNCS.PHASECHK.TRANS64.TRYWAIT"] == runs["HGMMA.64x128x16.F32.BF16"] == 1 and "STG.E.128" not in runs


def test_a_conditional_block_counts_half():
    """And what follows it, whole; outside of the loop stands the rest."""
    flow = Flow(sass(LOOP.format(wait=WAIT)))
    runs = opcodes(flow, flow.turn(flow.loops[0]))
    assert runs["FFMA"] == runs["MUFU.LG2"] == 0.5 and runs["ISETP.GE.AND"] == 1
    assert opcodes(flow, flow.outside(flow.loops)) == {"LDC": 1, "EXIT": 1, "STG.E.128": 1}


NESTED = """
        /*0000*/                   MOV R1, R2 ;
.L_outer:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
.L_inner:
        /*0020*/                   FFMA R2, R2, R3, R4 ;
        /*0030*/               @P1 BRA `(.L_after) ;
        /*0040*/               @P0 BRA `(.L_inner) ;
.L_after:
        /*0050*/               @P2 BRA `(.L_outer) ;
        /*0060*/                   EXIT ;
"""


def test_a_call_to_a_label_is_a_jump():
    """As ptxas leaves a long loop on sm_80; a call of a function comes back."""
    left = LOOP.replace("@!P0 BRA `(.L_x_0) ;", "@P0 CALL.REL.NOINC `(.L_x_4) ;\n /*0098*/ BRA `(.L_x_0) ;\n.L_x_4:", 1)
    assert len(Flow(sass(left.format(wait=WAIT))).loops) == 1
    called = LOOP.replace("@P2 BRA `(.L_x_2)", "CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn)")
    flow = Flow(sass(called.format(wait=WAIT)))
    assert opcodes(flow, flow.turn(flow.loops[0]))["FFMA"] == 1


def test_loops_nest_and_are_left_in_the_middle():
    """A turn of the outer one is a turn of the inner one; whichever way that is left, what follows runs once."""
    flow = Flow(sass(NESTED))
    outer, inner = flow.loops
    assert inner.members < outer.members and flow.dominators[max(outer.members)] >= {outer.header, inner.header}
    assert opcodes(flow, flow.turn(outer)) == {"IADD3": 1, "FFMA": 1, "BRA": 1}
    assert opcodes(flow, flow.outside([inner])) == {"MOV": 1, "IADD3": 1, "BRA": 1, "EXIT": 1}


AMD = """
kernel:
\ts_mov_b32 s0, 0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\ts_and_saveexec_b64 s[2:3], vcc
\ts_cbranch_execz .LBB0_2
\tglobal_load_dwordx4 v[0:3], v[4:5], off
.LBB0_2:
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\tv_sin_f32_e32 v20, v20
\ts_cbranch_scc0 .LBB0_1
.LBB0_3:
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\ts_cbranch_scc0 .LBB0_3
\ts_endpgm
.Lfunc_end0:
    .vgpr_count:     32
    .vgpr_spill_count: 0
    .private_segment_fixed_size: 16
"""


def test_an_unrolled_loop_is_counted_by_its_products():
    """Two turns in one, and a second loop for the rest; masks are not empty, so nothing is skipped."""
    case = Case("unrolled", None, {}, num_warps=1, loops=(Work(normals=64, products=(Product(32, 32, 8),)),))
    measured = measure(case, Compiled("kernel", b"", AMD, 1, 0, 0), "gfx942")
    (loop,) = measured.loops
    assert loop.unrolled == 2 and loop.instructions == {
        "uniform": 1, "other": 2, "memory128": 1, "tensor": 2, "special": 1
    }  # fmt: skip
    assert measured.issued_per("normals", 64) == 7 / 2 and measured.cycles["issue"] == (2 * 1 + 4) / 2
    assert measured.cycles["tensor"] == 32 * 32 * 8 / 1024
    assert checks.failures(case, "gfx942", measured) == {"stack": "16 bytes of stack a thread"}


def test_a_product_done_twice_is_not_unrolled():
    """No second loop is there for the rest: instructions are not halved, and the matrix pipe is busy twice as long."""
    twice = AMD.replace("s_cbranch_scc0 .LBB0_3", "s_nop 0")
    case = Case("twice", None, {}, num_warps=1, loops=(Work(normals=64, products=(Product(32, 32, 8),)),))
    measured = measure(case, Compiled("kernel", b"", twice, 1, 0, 0), "gfx942")
    assert measured.loops[0].unrolled == 1 and measured.issued_per("normals", 64) == 7
    assert measured.cycles["tensor"] == 2 * 32 * 32 * 8 / 1024


@pytest.mark.parametrize(
    ("opcode", "operand", "multiply_adds", "warps"),
    [
        ("HMMA.16816.F32.BF16", "bf16", 16 * 8 * 16, 1),
        ("HMMA.16816.F32", "fp16", 16 * 8 * 16, 1),
        ("HMMA.1688.F32.TF32", "tf32", 16 * 8 * 8, 1),
        ("HGMMA.64x256x16.F32.BF16", "bf16", 64 * 256 * 16, 4),
        ("HGMMA.64x128x8.F32.TF32", "tf32", 64 * 128 * 8, 4),
        ("UTCHMMA.128x256x16", "bf16", 128 * 256 * 16, 8),
        ("v_mfma_f32_32x32x8_bf16_1k", "bf16", 32 * 32 * 8, 1),
        ("v_mfma_f32_16x16x16_f16", "fp16", 16 * 16 * 16, 1),
        ("v_mfma_f32_32x32x4_xf32", "tf32", 32 * 32 * 4, 1),
        ("v_mfma_f32_32x32x4_2b_bf16", "bf16", 32 * 32 * 4 * 2, 1),
        ("HMMA.NEW", "fp16", 0, 1),
    ],
)
def test_shapes_of_matrix_instructions(opcode, operand, multiply_adds, warps):
    """The counts are those of a program with 8 warps; an unknown opcode counts nothing, so that a check fails."""
    assert machines.matrix_shape(opcode, 8) == machines.MatrixShape(operand, multiply_adds, warps)


def test_tensor_memory_instructions_carry_their_shape_in_a_register():
    """The descriptor of m128 n256, bf16 to float32; a copy of it is known too, another register's content is not."""
    move, product = "UMOV UR43, 0x8400490 ;\n", "UTCHMMA gdesc[UR12], gdesc[UR18], tmem[UR32], idesc[UR{}], UPT ;"
    for between, register, shape in (
        ("NOP ;\n", 43, "128x256x16"),
        ("UMOV UR7, UR43 ;\n", 7, "128x256x16"),
        ("R2UR UR43, R5 ;\n", 43, "0x0x16"),
    ):
        lines = (move + between + product.format(register)).splitlines()
        code = "\n".join(f"/*{16 * number:04x}*/ {line}" for number, line in enumerate(lines))
        assert sass(code).instructions[2].opcode == f"UTCHMMA.{shape}"


def test_the_list_needs_no_compiling():
    """Architecture, module and name, filtered."""
    done = subprocess.run([*COMMAND, "--list", "--kernel", "noise"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout == "sm_90   kernels_to_judge  good noise\n"


def test_an_interrupt_ends_it_with_130():
    """Ctrl-C reaches the workers too: no traceback of theirs, and none is left to hold the pipes open."""
    process = subprocess.Popen(
        [*COMMAND, "--arch", "sm_90"], stdout=-1, stderr=-1, text=True, env=ENVIRONMENT, start_new_session=True
    )
    assert process.stdout.readline() == "Resources\n"
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "") and "interrupted: " in printed, printed


def test_workers_end_with_who_started_them(tmp_path):
    """Also where it is killed, and can end nobody: none is left to hold the pipe open."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from nntk.bench.machine_code.resources import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        input()\n"
    )
    process = subprocess.Popen([sys.executable, script], stdin=-1, stdout=-1, text=True, env=ENVIRONMENT)
    assert int(process.stdout.readline()) != process.pid
    process.kill()
    assert process.communicate(timeout=60)[0] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "sm_75"], "argument --arch: must be of sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,gfx942, got 'sm_75'"),
        (["--arch", ""], "argument --arch: must be of sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,gfx942, got ''"),
        (["--json"], "Option '--json' requires an argument"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(options, message, capsys):
    """Before anything is compiled."""
    assert cli.main(["resources", *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--module", "nntk.nowhere"], "nntk.nowhere lists no kernels: ModuleNotFoundError"),
        (["--module", "kernels_to_judge", "--kernel", "x!"], "none of 3 kernels has 'x!' in its name; see --list"),
        (["--module", "kernels_to_judge", "--kernel", "good", "--json", "/proc/version/x"], "'/proc/version'"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_2(options, message, monkeypatch, capsys):
    """Modules, kernels, folders."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert cli.main(["resources", "--arch", "gfx942,sm_80", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_without_triton_it_says_so(monkeypatch, capsys):
    """One line, not an ImportError."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["resources"]) == 2
    assert capsys.readouterr().err == (
        "nntk-bench resources: error: Triton is not installed (pip install triton; it is made for Linux)\n"
    )


def test_the_sample_covers_every_kernel():
    """Every case of the sample exists, and every kernel that has cases is among them."""
    listed = resources.catalogue(MODULES, list(SAMPLE))
    chosen = sampled(listed)
    assert sorted((task.arch, task.case) for task in chosen) == sorted((a, name) for a in SAMPLE for name in SAMPLE[a])
    kernels = {(task.module, task.case.split()[0].partition("(")[0]) for task in listed}
    assert kernels == {(task.module, task.case.split()[0].partition("(")[0]) for task in chosen}
