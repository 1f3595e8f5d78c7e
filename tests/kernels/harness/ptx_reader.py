"""Reads PTX, the compilers' assembly text, into the form that ptx/execute.cpp takes.

A kernel's body becomes a list of instructions whose operands are numbers of 8-byte slots: registers, and after them constants,
special registers (%tid.x) and addresses of parameters. Nothing is skipped: what is not understood raises PtxError with its line.
"""

import re
from dataclasses import dataclass, field

SHARED_BASE = 3 << 10  # where shared memory starts, as emulate_hopper.h has it
WIDTHS = {
    "pred": 1,
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
}
SPECIAL = re.compile(r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]|%laneid|%warpid")
NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|\d+)U?")
FLOAT = re.compile(r"0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})")
SHARED = re.compile(r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.]+)(?:\[(\d*)\])?\s*;")
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.(?:global|const|shared)\s+)?(?:\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
ORDERS = re.compile(
    r"bar(rier)?[.\w]*\.sync.*|cp\.async\.wait.*|fence\..*|wgmma\.(fence|wait_group).*|mbarrier\.try_wait.*"
)
IGNORED = (".loc", ".pragma", ".file")


class PtxError(ValueError):
    """PTX that is not understood, and its line."""


@dataclass
class Statement:
    line: int
    text: str
    scopes: tuple[int, ...]


@dataclass
class Parameter:
    name: str
    offset: int
    bytes: int


@dataclass
class Kernel:
    """One entry. `program`: for execute.cpp."""

    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    shared_bytes: int  # static; dynamic shared memory starts here
    program: str
    # What orders threads: the name under which it can be left out -> opcode.
    order: dict[str, str] = field(default_factory=dict)


def kernels(text: str) -> dict[str, tuple[int, int]]:
    """Name of each entry -> where it starts and ends in the text."""
    kernels_by_name = {}
    for match in re.finditer(r"\.entry\s+([\w$]+)\s*\(", text):
        kernels_by_name[match[1]] = (match.start(), match.end())
    return kernels_by_name


def without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def read(text: str, name: str | None = None) -> Kernel:
    """The entry `name`, or the only one."""
    text = without_comments(text)
    entries = kernels(text)
    if name is None:
        if len(entries) != 1:
            raise PtxError(f"one entry expected, not {len(entries)}")
        (name,) = entries
    return _Reader(text, name, *entries[name]).kernel()


class _Reader:
    def __init__(self, text: str, name: str, start: int, parameters_at: int):
        self.text, self.name = text, name
        end = text.index(")", parameters_at)
        self.parameters, self.parameter_bytes = self._parameters(text[parameters_at:end])
        self.offsets = {p.name: p.offset for p in self.parameters}
        self.body = text.index("{", end) + 1
        self.first_line = text.count("\n", 0, self.body) + 1
        self.widths = ["4"]  # slot 0 takes what nobody wants
        self.extra: list[str] = []  # of slots that hold something from the start
        self.known: dict[tuple, int] = {}
        self.registers: dict[tuple[int, str], int] = {}
        self.labels: dict[tuple[int, str], int] = {}
        self.shared_bytes = 0
        self.shared: dict[str, int] = {}

    def _parameters(self, text: str) -> tuple[list[Parameter], int]:
        result, offset = [], 0
        for part in filter(None, (p.strip() for p in text.split(","))):
            match = PARAMETER.fullmatch(part)
            if match is None or match[2] not in WIDTHS:
                raise PtxError(f"{self.name}: parameter not understood: {part}")
            size = WIDTHS[match[2]] * int(match[4] or 1)
            align = int(match[1] or WIDTHS[match[2]])
            offset = -(-offset // align) * align
            result.append(Parameter(match[3], offset, size))
            offset += size
        return result, offset

    # ---- statements --------------------------------------------------------------------------------------------------

    def _statements(self) -> list[Statement]:
        """Of the body; notes where labels lead, and the registers that are declared."""
        text, at, line = self.text, self.body, self.first_line
        result: list[Statement] = []
        scopes, count = (0,), 0
        while True:
            match = re.compile(r"\s*").match(text, at)
            line += match[0].count("\n")
            at = match.end()
            if text[at] == "{":
                count += 1
                scopes, at = (*scopes, count), at + 1
            elif text[at] == "}":
                scopes, at = scopes[:-1], at + 1
                if not scopes:
                    return result
            elif text.startswith(IGNORED, at):
                at = text.index("\n", at)
            elif match := re.compile(r"([\w$%.]+)\s*:(?!:)").match(text, at):
                self.labels[scopes[-1], match[1]] = len(result)
                at = match.end()
            else:
                end = text.index(";", at)
                statement = " ".join(text[at:end].split())
                if statement.startswith(".reg"):
                    self._declare(statement, scopes[-1], line)
                elif not statement.startswith(".shared"):
                    result.append(Statement(line, statement, scopes))
                line += text.count("\n", at, end)
                at = end + 1

    def _declare(self, statement: str, scope: int, line: int) -> None:
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement)
        if match is None or match[1] not in WIDTHS:
            raise PtxError(f"line {line}: not understood: {statement}")
        for name in match[2].split(","):
            many = re.fullmatch(r"([%\w$]+)<(\d+)>", name.strip())
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
            for register in names:
                self.registers[scope, register] = len(self.widths)
                self.widths.append(str(WIDTHS[match[1]]))

    def _shared_memory(self, body: str) -> None:
        """Variables that this entry mentions, one after the other, dynamic memory last."""
        dynamic = []
        for match in SHARED.finditer(self.text):
            extern, align, kind, name, length = match.groups()
            if not re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", body):
                continue
            if extern:
                dynamic.append((name, int(align or 1)))
                continue
            step = int(align or WIDTHS[kind])
            self.shared_bytes = -(-self.shared_bytes // step) * step
            self.shared[name] = SHARED_BASE + self.shared_bytes
            self.shared_bytes += WIDTHS[kind] * int(length or 1)
        for _, align in dynamic:
            self.shared_bytes = -(-self.shared_bytes // align) * align
        for name, _ in dynamic:
            self.shared[name] = SHARED_BASE + self.shared_bytes

    # ---- operands ----------------------------------------------------------------------------------------------------

    def _slot(self, key: tuple, text: str, width: int = 8) -> int:
        if key not in self.known:
            self.known[key] = len(self.widths)
            self.extra.append(f"{key[0]} {len(self.widths)} {text}")
            self.widths.append(str(width))
        return self.known[key]

    def _constant(self, value: int, bits: int) -> int:
        value &= (1 << bits) - 1
        return self._slot(("constant", value), str(value))

    def _simple(self, text: str, scopes: tuple[int, ...], bits: int) -> int:
        """Slot of a register, number or symbol."""
        text = text.strip()
        for scope in reversed(scopes):
            if (scope, text) in self.registers:
                return self.registers[scope, text]
        if text == "_":
            return 0
        if SPECIAL.fullmatch(text):
            return self._slot(("special", text), text)
        if NUMBER.fullmatch(text):
            value = int(text.rstrip("U"), 0)
            return self._constant(int(value != 0) if bits == 1 else value, max(bits, 8))
        if match := FLOAT.fullmatch(text):
            return self._constant(int(match[2], 16), 64 if match[1] in "dD" else 32)
        if text in self.shared:
            return self._constant(self.shared[text], 32)
        if text in self.offsets:
            return self._slot(("parameter", text), str(self.offsets[text]))
        raise PtxError(f"what is {text}?")

    def _operand(self, text: str, scopes: tuple[int, ...], bits: int) -> list[int]:
        if text.startswith("["):
            if not text.endswith("]"):
                raise PtxError(f"address not understood: {text}")
            address, *rest = split(text[1:-1])
            match = re.fullmatch(r"([%\w$.]+)\s*(?:\+\s*(-?\w+))?", address.strip())
            if match is None:
                raise PtxError(f"address not understood: {text}")
            slots = [self._simple(match[1], scopes, 64), self._constant(int(match[2] or "0", 0), 64)]
            return slots + [slot for part in rest for slot in self._operand(part.strip(), scopes, 32)]
        if text.startswith("{"):
            return [self._simple(part, scopes, bits) for part in split(text[1:-1])]
        return [self._simple(part, scopes, bits) for part in text.split("|")]  # a value and a predicate

    def _instruction(self, s: Statement) -> str:
        match = re.fullmatch(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", s.text)
        if match is None:
            raise PtxError("not understood")
        negated, guard, opcode, rest = match.groups()
        guard = "-" if guard is None else f"{negated}{self._simple(guard, s.scopes, 1)}"
        if opcode.split(".")[0] == "bra":
            for scope in reversed(s.scopes):
                if (scope, rest) in self.labels:
                    return f"{s.line} {guard} {opcode} @{self.labels[scope, rest]}"
            raise PtxError(f"no label {rest}")
        kind = opcode.split(".")[-1]
        bits = 1 if kind == "pred" else 8 * WIDTHS.get(kind, 4)
        operands = []
        for place, operand in enumerate(split(rest)):
            wide = 64 if opcode.startswith("mad.wide") and place == 3 else bits
            if "|" in operand and not opcode.startswith(("shfl.", "elect.")):
                raise PtxError("two results are not understood")
            operands.append(",".join(map(str, self._operand(operand.strip(), s.scopes, wide))))
        return " ".join([str(s.line), guard, opcode, *operands])

    def kernel(self) -> Kernel:
        statements = self._statements()
        self._shared_memory("\n".join(s.text for s in statements))
        code, order = [], {}
        for s in statements:
            try:
                code.append(self._instruction(s))
            except PtxError as error:
                raise PtxError(f"line {s.line}: {s.text}: {error}") from None
            if match := ORDERS.match(code[-1].split()[2]):
                order[f"line {s.line}"] = match[0]
        lines = ["widths " + "".join(self.widths), *self.extra, *(f"code {line}" for line in code)]
        return Kernel(
            self.name, self.parameters, self.parameter_bytes, self.shared_bytes, "\n".join(lines) + "\n", order
        )


def split(text: str) -> list[str]:
    """By commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "[{(":
            depth += 1
        elif c in "]})":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    last = text[start:]
    return parts + [last] if last.strip() else parts
