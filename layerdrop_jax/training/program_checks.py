"""Reads a compiled program, and says what in it would make many devices slow or hang.

A program is the text of XLA's HLO after all optimisations, ``compiled.as_text()``. It is followed
from its arguments to its results, through loops, branches and fusions, with two things noted of
each value: which arrays of a stack it still is, with all layers, and between which devices it may
differ.
"""

import collections
import re
import typing

import jax
import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
COLLECTIVES += ("collective-broadcast", "ragged-all-to-all")
SAME = ("copy", "convert", "bitcast", "bitcast-convert", "reshape", "transpose", "domain")
SAME += ("copy-start",)
READS = ("slice", "dynamic-slice", "gather")
BITS = {"pred": 8, "token": 0, "opaque": 0}

_HEADER = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_START = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
# Numbers of devices in some order: [2,4]<=[4,2]T(1,0) are 0 to 7 as [4, 2], transposed, as [2, 4].
_ORDER = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
_GROUPS = re.compile(
    rf"replica_groups=(?:mesh\[([^\]]*)\] ?\{{([^}}]*)\}}|{_ORDER}|(\{{\{{.*?\}}\}}))"
)
# Between slices libtpu sends to the hosts, which send on: two lines that know each other by a name.
_BETWEEN = re.compile(r'_rendezvous="([^"]+)".*?_xla_megascale_transfer_type="([^"]+)"')


class Local(typing.NamedTuple):
    """Notes that a value differs between devices, but not between those of one class.

    ``classes`` has that of each device; None: any two may differ.
    """

    classes: tuple[int, ...] | None = None


class Instruction(typing.NamedTuple):
    """One line: ``kind`` is the type of its result, ``rest`` its attributes, both as text."""

    name: str
    opcode: str
    kind: str
    operands: tuple[str, ...]
    inside: str
    rest: str
    root: bool


class Collective(typing.NamedTuple):
    """``bytes`` on one device: what it receives, or of a reduce-scatter what it gives."""

    what: str
    bytes: int
    loops: tuple[str, ...]


class Program(typing.NamedTuple):
    """Attributes:
    collectives: each once, however many pieces the compiler made of it.
    layer_loops: the loops in which rows of a stack are read.
    problems: one line each; none is as it should be.
    """

    collectives: list[Collective]
    layer_loops: set
    problems: list[str]

    def in_layers(self, collective: Collective) -> bool:
        """Says whether a collective stands inside a loop over layers."""
        loops = collective.loops
        return any(loops[: n + 1] in self.layer_loops for n in range(len(loops)))

    def table(self) -> list[dict]:
        """Counts the collectives by what they do and where they stand, and adds up their bytes."""
        found = collections.defaultdict(list)
        for one in self.collectives:
            where = "each layer" if self.in_layers(one) else "a loop" if one.loops else "once"
            found[one.what, where].append(one.bytes)
        return [
            {"kind": what, "where": where, "count": len(sizes), "bytes": sum(sizes)}
            for (what, where), sizes in sorted(found.items())
        ]


def pieces_of(compiled) -> list[tuple[int, ...]]:
    """Finds which piece each device has of each argument of a `jax.stages.Compiled`.

    The text of a program does not say so in all versions of XLA.

    Returns:
      for each argument that the program reads, in its order, a number for each device: those that
      have the same piece have the same number.
    """

    def leaves(tree):
        return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)

    found = []
    for about, sharding in zip(
        leaves(compiled.args_info), leaves(compiled.input_shardings), strict=True
    ):
        if about is not None and sharding is not None:  # None: it is not read
            pieces = sharding.devices_indices_map(about.shape).values()
            pieces = [tuple((part.start, part.stop) for part in piece) for piece in pieces]
            known = list(dict.fromkeys(pieces))
            found.append(tuple(map(known.index, pieces)))
    return found


def check_program(text: str, stacks: dict, pieces: typing.Sequence) -> Program:
    """Follows a program, and lists what should not be in it.

    These are problems: a loop over layers that was unrolled, or is not there; a gather of an array
    of a stack with all its layers; a collective in a branch or a loop that not all devices
    need to take, or to take equally often: there they would wait for each other for ever.

    Args:
      text: HLO, in which the arguments have the names that JAX gives them.
      stacks: rows that the arrays of each stack have, by its name: an argument below it, such as
        ``state['params']['decoder'][...]``, with so many rows of a matrix or vector is one.
      pieces: what `pieces_of` finds.

    Raises:
      ValueError: no HLO, or ``pieces`` of another number of arguments.
    """
    entry, computations = parse(text)
    if entry is None:
        raise ValueError("the text is not that of a compiled program: it has no ENTRY")
    arguments = sum(one.opcode == "parameter" for one in computations[entry])
    if arguments != len(pieces):  # as where JAX makes arguments of constants
        raise ValueError(f"the program has {arguments} arguments, and {len(pieces)} are described")
    found = re.search(r"\bnum_partitions=(\d+)", text)
    devices = int(found[1]) if found else 0
    # A program of several slices is that of one; its arguments are those of all of them.
    total = max(map(len, pieces), default=devices)
    slices = max(total // devices, 1) if devices else 1
    stacks = {stack: n for stack, n in stacks.items() if n > 1}
    walk = _Walk(computations, stacks, pieces, devices, slices)
    walk.run(entry, None, ())
    return Program(list(walk.collectives.values()), walk.layer_loops(), walk.all_problems())


def parse(text: str) -> tuple[str | None, dict[str, list[Instruction]]]:
    """Splits a program into its computations: ``(name of the first to run, lines by name)``."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if found := _START.match(line):
            if current is not None:
                current.append(_instruction(found, line))
        elif found := _HEADER.match(line):
            current = computations[found[2]] = []
            entry = found[2] if found[1] else entry
    return entry, computations


def _instruction(found, line) -> Instruction:
    kind, place = _balanced(line, found.end())
    opening = line.index("(", place)
    inside, end = _balanced(line, opening)
    return Instruction(
        name=found[2],
        opcode=line[place:opening].strip(),
        kind=kind,
        operands=tuple(_NAME.findall(inside)),
        inside=inside[1:-1],
        rest=line[end:],
        root=bool(found[1]),
    )


def _balanced(line, start) -> tuple[str, int]:
    """Reads what begins at a place: up to its closing bracket, or to the next space."""
    if line[start] != "(":
        end = line.index(" ", start)
        return line[start:end], end
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if not depth:
            return line[start : place + 1], place + 1
    raise ValueError(f"a bracket that does not close: {line[:80]}")


def _dims(kind) -> tuple[int, ...]:
    found = _ARRAY.search(kind)
    return tuple(int(n) for n in found[2].split(",") if n) if found else ()


def _sizes(kind) -> list[int]:
    """Computes the bytes of each array of a type."""
    sizes = []
    for name, dims in _ARRAY.findall(kind.replace("/*", "")):
        digits = re.search(r"\d+", name)
        bits = BITS.get(name, int(digits[0]) if digits else 0)
        size = bits
        for axis in filter(None, dims.split(",")):
            size *= int(axis)
        sizes.append(size // 8)
    return sizes


def _local(tags) -> frozenset:
    return frozenset(tag for tag in tags if isinstance(tag, Local))


def _tags(value) -> frozenset:
    if isinstance(value, frozenset):
        return value
    return frozenset().union(*map(_tags, value))


def _join(one, other):
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(map(_join, one, other))
    return _tags(one) | _tags(other)


def _add(value, tags):
    return tuple(_add(v, tags) for v in value) if isinstance(value, tuple) else value | tags


def _attribute(rest, name) -> list[str]:
    """Lists the computations that an attribute names."""
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", rest)
    return _NAME.findall(found[1]) if found else []


def _numbers(text) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _ordered(shape, source, axes):
    """Arranges the numbers of devices as an `_ORDER` says."""
    devices = np.arange(np.prod(_numbers(source))).reshape(_numbers(source))
    return (devices.transpose(_numbers(axes)) if axes else devices).reshape(_numbers(shape))


def _groups(rest, devices: int):
    """Lists the groups of devices that a collective joins; None where the text does not say so.

    Args:
      rest: the attributes of the collective.
      devices: how many there are.
    """
    found = _GROUPS.search(rest)
    if not found:
        told = "replica_groups=" in rest and "replica_groups={}" not in rest
        return None if told else [list(range(devices))]
    axes, used, shape, source, order, listed = found.groups()
    if shape:
        return _ordered(shape, source, order).tolist()
    if listed:
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed)]
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
    names = re.findall(r"'(\w+)'", used)
    if ":" in used or not set(names) <= set(sizes):
        return None
    lengths = [int(size) for size in sizes.values()]
    order = [n for n, name in enumerate(sizes) if name not in names]
    order += [list(sizes).index(name) for name in names]
    joined = int(np.prod([int(sizes[name]) for name in names]))
    return (
        np.arange(np.prod(lengths)).reshape(lengths).transpose(order).reshape(-1, joined).tolist()
    )


class _Walk:
    """Follows values from a program's arguments on; what it meets is in its attributes."""

    def __init__(self, computations, stacks, pieces, devices, slices=1):
        # The devices are those of one slice.
        self.computations, self.stacks, self.pieces = computations, stacks, pieces
        self.devices, self.slices = devices, slices
        self.collectives = {}  # by loops and channel
        self._sent = {}  # what goes to another slice, by the name of the transfer
        self._received = {}  # (name, kind) of the transfer that an instruction receives
        self.reads = collections.defaultdict(set)  # by array and loops: (static, which)
        self.leaves = {}  # arrays of stacks: (stack, rank), by argument
        self.problems = {}  # a dict for its order
        self._known, self._has_collective = {}, {}

    def run(self, name, arguments, loops):
        """Computes what is noted of a computation's result from what is noted of its arguments."""
        key = name, arguments, loops
        if key not in self._known:
            values, kinds, root = {}, {}, frozenset()
            for one in self.computations[name]:
                kinds[one.name] = one.kind
                if one.opcode == "parameter":
                    number = int(one.inside)
                    values[one.name] = (
                        arguments[number] if arguments is not None else self._start(one)
                    )
                else:
                    values[one.name] = self._result(one, values, kinds, loops)
                root = values[one.name] if one.root else root
            self._known[key] = root
        return self._known[key]

    def _start(self, one):
        """Notes of an argument of the program whether it is split, and which stack's it is."""
        tags = set()
        classes = self.pieces[int(one.inside)]
        if len(set(classes)) > 1:
            tags.add(Local(tuple(classes)))
        found = re.search(r'op_name="([^"]*)"', one.rest)
        name, dims = (found[1].replace("\\'", "'") if found else ""), _dims(one.kind)
        for stack, rows in self.stacks.items():
            named = f"['{stack}']" in name and "['scores']" not in name
            if named and len(dims) > 1 and dims[0] == rows:
                self.leaves[name] = stack, len(dims)
                tags.add(name)
        return frozenset(tags)

    def _result(self, one, values, kinds, loops):
        given = [values.get(name, frozenset()) for name in one.operands]
        opcode = one.opcode
        base = opcode.removesuffix("-start")
        if opcode == "tuple":
            return tuple(given)
        if opcode == "get-tuple-element":
            number = int(re.search(r"index=(\d+)", one.rest)[1])
            return given[0][number] if isinstance(given[0], tuple) else given[0]
        if opcode == "while":
            return self._while(one, given[0], loops)
        if opcode == "conditional":
            return self._conditional(one, given, loops)
        called = _attribute(one.rest, "calls")
        called = called or (_attribute(one.rest, "to_apply") if opcode == "call" else [])
        if called:
            return self.run(called[0], tuple(given), loops)
        if base in COLLECTIVES:
            return self._collective(one, base, _tags(tuple(given)), kinds, loops)
        if opcode in ("partition-id", "replica-id"):
            return frozenset([Local()])
        if found := opcode in ("send", "recv") and _BETWEEN.search(one.rest):
            if opcode == "send":
                self._sent[found[1]] = _tags(given[0])
            else:
                self._received[one.name] = found.groups()
            return frozenset()
        if opcode == "recv-done" and one.operands[0] in self._received:
            return self._from_other_slices(one, loops)
        if opcode.endswith(("-done", "-update")) or opcode == "optimization-barrier":
            return given[0]
        tags = _tags(tuple(given))
        kept = self._still_whole(one, given, loops) if tags - _local(tags) else frozenset()
        return _local(tags) | kept

    def _still_whole(self, one, given, loops):
        """Lists the arrays of stacks that a result still is; notes a read of their rows."""
        opcode = one.opcode
        if opcode == "dynamic-update-slice":  # a part of a stack, put where it belongs
            given = given[1:]
        elif opcode not in SAME + READS:
            return frozenset()
        whole = _tags(given[0]) - _local(_tags(given[0]))
        rows = _dims(one.kind)[:1]
        kept = frozenset(leaf for leaf in whole if rows == (self.stacks[self.leaves[leaf][0]],))
        for leaf in whole - kept if opcode in READS else ():
            place = re.search(r"slice=\{\[(\d+):", one.rest) if opcode == "slice" else None
            self.reads[leaf, loops].add((bool(place), place[1] if place else one.name))
        return kept

    def _while(self, one, carry, loops):
        (condition,), (body,) = _attribute(one.rest, "condition"), _attribute(one.rest, "body")
        inside = (*loops, one.name)
        while True:
            after = _join(carry, self.run(body, (carry,), inside))
            if after == carry:
                break
            carry = after
        differs = _local(_tags(self.run(condition, (carry,), inside)))
        if differs:
            self._must_agree([body, condition], one, "a loop whose number of trips")
            return _add(carry, differs)
        return carry

    def _conditional(self, one, given, loops):
        branches = _attribute(one.rest, "branch_computations") or [
            *_attribute(one.rest, "true_computation"),
            *_attribute(one.rest, "false_computation"),
        ]
        found = [self.run(b, (v,), loops) for b, v in zip(branches, given[1:], strict=True)]
        value = found[0]
        for other in found[1:]:
            value = _join(value, other)
        differs = _local(_tags(given[0]))
        if differs:
            self._must_agree(branches, one, "a branch that")
            value = _add(value, differs)
        return value

    def _must_agree(self, names, one, what):
        kinds = sorted(set().union(*map(self._collectives_in, names)))
        if kinds:
            self.problems[
                f"{' and '.join(kinds)} in {what} depends on a device's own rows ({one.name}): the "
                "devices would wait for each other for ever"
            ] = None

    def _collectives_in(self, name) -> set:
        """Lists the kinds of collectives in a computation and in what it calls."""
        if name not in self._has_collective:
            kinds = self._has_collective[name] = set()
            for one in self.computations[name]:
                base = one.opcode.removesuffix("-start")
                kinds |= {base} & set(COLLECTIVES)
                if one.opcode == "send" and _BETWEEN.search(one.rest):
                    kinds.add("a transfer between slices")
                for attribute in ("calls", "to_apply", "body", "condition", "branch_computations",
                                  "true_computation", "false_computation"):  # fmt: skip
                    for called in _attribute(one.rest, attribute):
                        kinds |= self._collectives_in(called)
        return self._has_collective[name]

    def _collective(self, one, base, tags, kinds, loops):
        channel = re.search(r"channel_id=(\d+)", one.rest)
        sizes = _sizes(one.kind)
        if base == "reduce-scatter":
            sizes = [size for name in one.operands for size in _sizes(kinds.get(name, ""))]
        elif one.opcode == "all-gather-start":  # what goes in, and what comes out
            sizes = sizes[len(sizes) // 2 :]
        key = loops, base, channel[1] if channel else one.name
        self.collectives[key] = Collective(base, sum(sizes), loops)
        gathers = base in ("all-gather", "all-reduce")
        arrays = tags - _local(tags)
        if gathers:
            for leaf in sorted(arrays):
                self.problems[
                    f"{base} of {leaf} with all its layers ({one.name}): a device has to hold the "
                    "whole stack; one layer at a time is meant"
                ] = None
        if gathers or base == "collective-broadcast":
            groups = _groups(one.rest, self.devices)
            local = self._joined(groups and self._in_every_slice(groups), _local(tags))
        else:  # each device gets another piece
            local = frozenset([Local()])
        return local | (arrays if base == "all-gather" else frozenset())

    def _from_other_slices(self, one, loops):
        """Notes of what was received whether slices joined it: devices in the same place do."""
        name, kind = self._received[one.operands[0]]
        what = f"{kind.lower().replace('_', '-')} between slices"
        self.collectives[loops, what, name] = Collective(what, _sizes(one.kind)[0], loops)
        local = _local(self._sent.get(name, frozenset([Local()])))
        if kind not in ("ALL_REDUCE", "ALL_GATHER"):
            return frozenset([Local()])
        places = range(self.devices)
        return self._joined(
            [[slice * self.devices + n for slice in range(self.slices)] for n in places], local
        )

    def _in_every_slice(self, groups):
        return [
            [slice * self.devices + device for device in group]
            for slice in range(self.slices)
            for group in groups
        ]

    def _joined(self, groups, local) -> frozenset:
        """Notes between which devices a value differs that groups of them have made together.

        Devices whose groups were given alike have the same; ``groups`` is None where the program
        does not tell.
        """
        if groups is None:
            return local
        if not local or len(groups) == 1:
            return frozenset()
        if any(tag.classes is None for tag in local):
            return local
        given = list(zip(*(tag.classes for tag in sorted(local)), strict=True))
        made, known = {}, []
        for group in groups:
            made |= dict.fromkeys(group, tuple(given[device] for device in group))
        for device in range(len(given)):
            if made[device] not in known:
                known.append(made[device])
        classes = tuple(known.index(made[device]) for device in range(len(given)))
        return frozenset([Local(classes)]) if len(known) > 1 else frozenset()

    def layer_loops(self) -> set:
        """Lists the loops, each as the names of it and of those around it, that read rows."""
        return {loops for _, loops in self.reads if loops}

    def all_problems(self) -> list[str]:
        """Lists the problems, those of the loops over layers first."""
        return [*self._unrolled(), *self.problems]

    def _unrolled(self):
        for stack, rows in self.stacks.items():
            ranks = [rank for name, rank in self.leaves.values() if name == stack]
            if not ranks:  # beam search reads nothing of the encoder
                continue
            leaves = [leaf for leaf, about in self.leaves.items() if about == (stack, max(ranks))]
            fixed = collections.Counter()
            turning = collections.defaultdict(dict)
            for (leaf, loops), found in self.reads.items():
                if leaf in leaves:
                    fixed[leaf] = max(fixed[leaf], len({w for static, w in found if static}))
                    turning[loops][leaf] = sum(not static for static, _ in found)
            read = {leaf for leaf, _ in self.reads}
            leaves = [leaf for leaf in leaves if leaf in read]
            if not leaves:
                continue
            most = max((min(t.get(x, 0) for x in leaves) for t in turning.values()), default=0)
            if max(fixed.values()) >= rows or (rows > 2 and most >= rows):
                yield (
                    f"the loop over the {rows} layers of {stack} was unrolled: the program reads "
                    f"each of them by itself, and grows with their number"
                )
            elif not any(loops for leaf, loops in self.reads if leaf in leaves):
                yield f"no loop reads the {rows} layers of {stack}: they are not run one by one"
