"""Reads the compiled code: every loop of every kernel uses the full vectors of its instruction set.

A vectorised loop leaves less than one vector of elements over. The narrower loops that finish them,
its epilogues, are those that control reaches from it. A loop that the compiler did not vectorise,
or that it keeps as a fallback, is reached from no vectorised one.
"""

from __future__ import annotations

import ast
import inspect
import platform
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import table

REGISTER = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
MARCH = {
    "baseline": "generic64+ibt",
    "avx2": "generic64+avx2",
    "avx512": "generic64+avx512f+avx512vl+avx512dq+avx512bw",
}
"""What the GNU assembler calls these processors; endbr64 (ibt) is a no-op to those that do not know it."""
SUFFIX = {"float32": "s", "float64": "d"}
HASHES = re.compile(r"v?pmul(ld|udq)$")
ARITHMETIC = re.compile(r"v?(mul|add|sub|div|sqrt)([ps])([sd])$")
FUSED = re.compile(r"vf(n?m(add|sub)|maddsub|msubadd)")
ASKS_FIRST = re.compile(r"(__cpu_indicator_init|get_available_features)(\.\w+)*: xgetbv$")
"""What __builtin_cpu_init runs once CPUID has said that it is there."""
PREFIXES = {"bnd", "cs", "data16", "ds", "lock", "notrack", "rep", "repz", "repnz"}

needs_objdump = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("objdump"),
    reason="reads x86-64 code with objdump (package binutils)",
)


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a direct jump goes."""
        found = re.match(r"[0-9a-f]+\b", self.operands) if self.name[0] == "j" else None
        return int(found[0], 16) if found else None

    @property
    def arithmetic(self) -> tuple[str, bool, str] | None:
        """For floating-point arithmetic the operation, whether it is packed, and s or d."""
        found = ARITHMETIC.match(self.name)
        return (found[1], found[2] == "p", found[3]) if found else None


FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$", re.MULTILINE)
LINE = re.compile(r"^ *([0-9a-f]+):\s+(\S.*)$", re.MULTILINE)


def cut(listing: str) -> dict[str, str]:
    """The lines of every function in the output of ``objdump -d --no-show-raw-insn``."""
    parts = FUNCTION.split(listing)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def instruction(address: str, text: str) -> Instruction:
    words = text.split(maxsplit=1)
    while words[0] in PREFIXES and len(words) > 1:
        words = words[1].split(maxsplit=1)
    return Instruction(int(address, 16), words[0], "".join(words[1:]))


def parse(lines: str) -> list[Instruction]:
    """The instructions of a function."""
    return [instruction(*line) for line in LINE.findall(lines)]


def reached(start: Iterable[int], edges: dict[int, set[int]]) -> frozenset[int]:
    """All that can be reached from ``start`` by one edge or more."""
    found: set[int] = set()
    waiting = set().union(*(edges[node] for node in start))
    while waiting:
        node = waiting.pop()
        found.add(node)
        waiting |= edges[node] - found
    return frozenset(found)


def finished(edges: dict[int, set[int]]) -> list[int]:
    """All nodes, each after those that a search in depth has reached from it first."""
    order: list[int] = []
    seen: set[int] = set()
    for start in edges:
        path = [] if start in seen else [(start, iter(edges[start]))]
        seen.add(start)
        while path:
            node, rest = path[-1]
            for following in rest:
                if following not in seen:
                    seen.add(following)
                    path.append((following, iter(edges[following])))
                    break
            else:
                order.append(node)
                path.pop()
    return order


def cycles(edges: dict[int, set[int]]) -> list[set[int]]:
    """The sets of nodes that can each reach all of the others and themselves (Kosaraju's algorithm)."""
    back: dict[int, set[int]] = {node: set() for node in edges}
    for node, following in edges.items():
        for other in following:
            back[other].add(node)
    found: list[set[int]] = []
    seen: set[int] = set()
    for start in reversed(finished(edges)):
        if start in seen:
            continue
        component, waiting = {start}, [start]
        while waiting:
            new = back[waiting.pop()] - seen - component
            component |= new
            waiting += new
        seen |= component
        if len(component) > 1 or start in edges[start]:
            found.append(component)
    return found


@dataclass(frozen=True)
class Loop:
    body: list[Instruction]
    after: frozenset[int]
    """Addresses that control can reach from it."""

    def operations(self, packed: bool) -> set[str]:
        found = (i.arithmetic for i in self.body)
        return {a[0] for a in found if a and a[1] == packed}

    @property
    def hashes(self) -> bool:
        """Whether it makes random bits, several at a time."""
        return any(HASHES.match(i.name) for i in self.body)

    def is_epilogue_of(self, other: Loop) -> bool:
        return self.body[0].address in other.after


def loops_of(code: list[Instruction]) -> list[Loop]:
    """What runs more than once: the sets of instructions that can each reach all of the others."""
    edges: dict[int, set[int]] = {i.address: set() for i in code}
    for instruction, following in zip(code, [*code[1:], None], strict=True):
        if following and not instruction.name.startswith(("jmp", "ret", "ud2", "hlt")):
            edges[instruction.address].add(following.address)
        if instruction.target in edges:
            edges[instruction.address].add(instruction.target)
    bodies = cycles(edges)
    return [Loop([i for i in code if i.address in body], reached(body, edges)) for body in bodies]


def complaints(
    code: list[Instruction], isa: str, dtype: str, formula: set[str], rounds: bool = False
) -> list[str]:
    """What is wrong with a kernel; ``formula`` is which of div and sqrt its formula has.

    dtype: of its arithmetic. rounds: whether it rounds by random bits, for which it multiplies integers.
    """
    found = []
    if fused := {i.name for i in code if FUSED.match(i.name)}:
        found.append(f"{', '.join(sorted(fused))}: a fused multiply-add")
    if any(i.name.startswith("call") for i in code):
        found.append("a call")

    def full_width(instruction: Instruction) -> bool:
        kind = instruction.arithmetic
        if HASHES.match(instruction.name):
            return f"%{REGISTER[isa]}" in instruction.operands
        return kind is None or (
            kind[1] and kind[2] == SUFFIX[dtype] and f"%{REGISTER[isa]}" in instruction.operands
        )

    loops = loops_of(code)
    main = [x for x in loops if x.operations(packed=True) and all(map(full_width, x.body)) and x.hashes >= rounds]
    if not main:
        return [*found, f"none of its {len(loops)} loops is vectorised with {REGISTER[isa]}"]
    for loop in loops:
        if loop not in main and not any(loop.is_epilogue_of(m) for m in main):
            where = f"the loop at {loop.body[0].address:x}"
            found.append(f"{where} is neither vectorised nor an epilogue")
    for loop in main:
        operations = loop.operations(packed=True)
        if "mul" not in operations:
            found.append("the vectorised loop multiplies nothing")
        if loop.hashes > rounds:
            found.append("the vectorised loop makes random bits")
        for operation in ["div", "sqrt"]:
            if (operation in operations) != (operation in formula):
                has = "has" if operation in operations else "lacks"
                found.append(f"the vectorised loop {has} {operation}, unlike the formula")
    return found


# -- The kernels -----------------------------------------------------------------------------------


def isa_of(function: str) -> str:
    """The instruction set that a kernel is compiled for, by its name; all else must run everywhere."""
    suffix = re.sub(r"(\.\w+)*$", "", function).rpartition("_")[2]
    return suffix if suffix in MARCH else "baseline"


@lru_cache(maxsize=1)
def functions(isa: str) -> dict[str, str]:
    """The lines of every function that is compiled for an instruction set."""
    command = ["objdump", "-d", "--no-show-raw-insn", table.EXTENSION]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: lines for name, lines in cut(listing).items() if isa_of(name) == isa}


def div_and_sqrt(kernel: str, subset: int) -> set[str]:
    """Which of them the formula has, as its NumPy twin writes it."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(table.twin_of(kernel))).lstrip())))
    divides = any(
        isinstance(node, ast.Div) or (isinstance(node, ast.Attribute) and node.attr == "divide") for node in nodes
    )
    takes_root = any(isinstance(node, ast.Attribute) and node.attr == "sqrt" for node in nodes)
    return {name for name, there in [("div", divides), ("sqrt", takes_root)] if there}


def complaints_of(isa: str, kernels: Iterable[tuple[str, int, str]]) -> list[str]:
    """What is wrong with kernels, each with its name."""
    found = []
    for kernel, subset, format in kernels:
        name = f"{kernel}_{subset}_{format}_{isa}"
        assert name in functions(isa), f"{name}: no such symbol in {table.EXTENSION}; is it stripped?"
        parameter, _, states = table.FORMATS[format]
        has_states = subset or table.TABLE[kernel]["state"]
        rounds = "bfloat16" in (parameter, states if has_states else parameter)
        arithmetic = "float32" if parameter == "bfloat16" else parameter
        wrong = complaints(parse(functions(isa)[name]), isa, arithmetic, div_and_sqrt(kernel, subset), rounds)
        found += [f"{name}: {'; '.join(wrong)}"] if wrong else []
    return found


@pytest.fixture(params=REGISTER, scope="module")
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set in turn, because its listing is long."""
    return str(request.param)


# gradients of 16 bits are converted before a kernel takes them: their formats have no kernels of their own
COMPILED = [
    kernel for kernel in [*table.KERNELS, *table.MATRIX_KERNELS] if table.FORMATS[kernel[2]][1] in table.DTYPES
]
FEW = [kernel for kernel in COMPILED if kernel[0] in table.KINDS or kernel[2] in table.DTYPES]
REST = [kernel for kernel in COMPILED if kernel not in FEW]


@needs_objdump
@pytest.mark.parametrize("kernels", [FEW, pytest.param(REST, marks=table.nightly)], ids=["few", "rest"])
def test_every_loop_of_every_kernel_is_vectorised(isa: str, kernels: list[tuple[str, int, str]]) -> None:
    wrong = complaints_of(isa, kernels)
    assert not wrong, "\n".join(wrong)


def beyond(found: dict[str, str], isa: str, folder: Path) -> set[str]:
    """The instructions of these functions that no processor with ``isa`` alone can run.

    The assembler knows: told the processor, it refuses them.
    """
    lines: dict[str, str] = {}  # each distinct instruction, with a function that has it
    for name, text in found.items():
        for line in {line for _, line in LINE.findall(text)}:
            i = instruction("0", line)
            operands = re.sub("^[0-9a-f]+ <.*", ".", i.operands)  # where it jumps to
            lines.setdefault(f"{i.name} {re.sub('<.*?>|#.*', '', operands)}".strip(), name)
    (folder / "code.s").write_text("\n".join(lines) + "\n")
    command = ["as", f"-march={MARCH[isa]}", "-o", "/dev/null", "code.s"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    refused = {int(n) - 1 for n in re.findall(r"^code.s:(\d+): Error", done.stderr, re.MULTILINE)}
    assert bool(refused) == bool(done.returncode), done.stderr
    return {f"{name}: {line}" for k, (line, name) in enumerate(lines.items()) if k in refused}


@needs_objdump
def test_instructions_stay_in_the_kernels_of_their_instruction_set(isa: str, tmp_path: Path) -> None:
    found = functions(isa)
    assert len(found) >= len(COMPILED)
    wrong = {line for line in beyond(found, isa, tmp_path) if not ASKS_FIRST.match(line)}
    assert not wrong, "\n".join(sorted(wrong))
    for name, lines in found.items():
        assert not re.search(rf"\s{FUSED.pattern}", lines), f"{name}: a fused multiply-add"


# -- The reader of code, on code that is wrong -----------------------------------------------------

VECTOR_LOOP = """
  10:	vmulps (%rsi,%rax,1),%ymm1,%ymm0
  14:	vaddps (%rdi,%rax,1),%ymm0,%ymm0
  18:	vmovups %ymm0,(%rdi,%rax,1)
  1c:	add    $0x20,%rax
  20:	cmp    %rax,%rcx
  24:	jne    10 <f+0x10>
"""
SCALAR_LOOP = """
  40:	vmulss (%rsi,%rax,4),%xmm1,%xmm0
  44:	vaddss (%rdi,%rax,4),%xmm0,%xmm0
  48:	vmovss %xmm0,(%rdi,%rax,4)
  4c:	inc    %rax
  50:	cmp    %rax,%rcx
  54:	ja     40 <f+0x40>
"""
RETURN = "  60:	ret\n"


def read(*parts: str, isa: str = "avx2", formula: str = "", rounds: bool = False) -> str:
    return "; ".join(complaints(parse("".join(parts)), isa, "float32", set(formula.split()), rounds))


def test_reader_accepts_a_vectorised_loop_and_its_epilogue() -> None:
    assert read(VECTOR_LOOP, SCALAR_LOOP, RETURN) == ""
    assert read(VECTOR_LOOP, RETURN) == ""


def test_reader_is_not_misled_by_a_block_that_was_moved_behind() -> None:
    jump = "  30:	ja     70 <f+0x70>\n  34:	nop\n"
    moved = "  70:	vmulss %xmm1,%xmm0,%xmm0\n  74:	jmp 34 <f+0x34>\n"
    assert read(VECTOR_LOOP, jump, RETURN, moved) == ""


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ((SCALAR_LOOP, RETURN), "none of its 1 loops is vectorised"),
        ((RETURN,), "none of its 0 loops is vectorised"),
        ((VECTOR_LOOP.replace("ymm", "xmm"), SCALAR_LOOP, RETURN), "vectorised with ymm"),
        ((VECTOR_LOOP.replace("ps", "pd"), RETURN), "vectorised with ymm"),
        ((VECTOR_LOOP.replace("vaddps", "vaddss"), RETURN), "vectorised with ymm"),
        # a fallback, chosen at run time: no way leads from one loop to the other
        (
            ("  04:	je 40 <f>\n", VECTOR_LOOP, "  28:	ret\n", SCALAR_LOOP, RETURN),
            "the loop at 40 is neither vectorised nor an epilogue",
        ),
        ((VECTOR_LOOP.replace("vaddps", "vfmadd213ps"), RETURN), "fused multiply-add"),
        ((VECTOR_LOOP.replace("add    $0x20,%rax", "call   99 <expf>"), RETURN), "a call"),
        ((VECTOR_LOOP.replace("vmulps", "vdivps"), RETURN), "has div, unlike the formula"),
        ((VECTOR_LOOP.replace("vmulps", "vmovaps"), RETURN), "multiplies nothing"),
    ],
)
def test_reader_refuses(code: tuple[str, ...], complaint: str) -> None:
    assert complaint in read(*code)


def test_reader_misses_what_the_formula_has() -> None:
    assert "lacks sqrt" in read(VECTOR_LOOP, RETURN, formula="sqrt")


def test_reader_looks_for_random_bits() -> None:
    makes = VECTOR_LOOP.replace("add    $0x20,%rax", "vpmulld %ymm2,%ymm3,%ymm3")
    assert read(makes, SCALAR_LOOP, RETURN, rounds=True) == ""
    assert "makes random bits" in read(makes, RETURN)
    assert "none of its 1 loops is vectorised" in read(VECTOR_LOOP, RETURN, rounds=True)
    assert "vectorised with ymm" in read(
        makes.replace("%ymm3", "%xmm3").replace("%ymm2", "%xmm2"), RETURN, rounds=True
    )


@needs_objdump
@pytest.mark.parametrize(
    ("instruction", "isa", "refused"),
    [
        ("mulps  %xmm1,%xmm0", "baseline", False),
        ("jne    10 <f+0x10>", "baseline", False),
        ("call   99 <malloc@plt>", "baseline", False),
        ("movaps 0x99(%rip),%xmm1        # 99 <f+0x99>", "baseline", False),
        ("haddps %xmm0,%xmm0", "baseline", True),
        ("pshufb %xmm1,%xmm0", "baseline", True),
        ("roundss $0x9,%xmm0,%xmm0", "baseline", True),
        ("popcnt %eax,%eax", "baseline", True),
        ("vmulps %xmm2,%xmm1,%xmm0", "baseline", True),
        ("vmulps %ymm2,%ymm1,%ymm0", "avx2", False),
        ("vfmadd213ps %ymm2,%ymm1,%ymm0", "avx2", True),
        ("vmulps %ymm2,%ymm1,%ymm16", "avx2", True),
        ("vmulps %zmm2,%zmm1,%zmm0", "avx512", False),
        ("vpermb %zmm2,%zmm1,%zmm0", "avx512", True),
    ],
)
def test_reader_tells_instruction_sets_apart(instruction: str, isa: str, refused: bool, tmp_path: Path) -> None:
    found = beyond(cut(f"0000 <f>:\n  10:\t{instruction}\n"), isa, tmp_path)
    assert len(found) == refused
