"""What is read in compiled programs: right ones, and wrong ones that are made on purpose."""

import collections
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from layerdrop_jax.core.skip_scan import skip_scan
from layerdrop_jax.training import program_checks
from tests import patience, quick_xla

N, B, D = 5, 16, 24
SPLIT, ROWS, WHOLE = PartitionSpec(None, None, "data"), PartitionSpec("data"), PartitionSpec()
LAYER = D * D * 4  # bytes


@pytest.fixture(scope="module")
def found():
    """In a process of its own, because the number of devices is fixed when JAX starts."""
    flags = quick_xla.with_devices(8)
    root = pathlib.Path(__file__).resolve().parents[2]
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = patience.run([sys.executable, __file__], env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def collectives(program):
    return {(one["kind"], one["where"]): (one["count"], one["bytes"]) for one in program["table"]}


@pytest.mark.parametrize("name", ["skip", "cond"])
def test_a_loop_gathers_and_sums_one_layer_at_a_time(found, name):
    program = found[name]
    assert program["problems"] == []
    sums = collections.Counter()
    for one in program["table"]:
        assert one["where"] != "once"
        sums[one["kind"]] += one["bytes"]
    # Forward and backward; cond reads weights that it has saved in its backward loop.
    assert sums == {"all-gather": 2 * LAYER, "all-reduce": LAYER}
    assert "each layer" in {one["where"] for one in program["table"]}


def test_parameters_that_are_whole_are_gathered_nowhere(found):
    program = found["whole"]
    assert program["problems"] == []
    assert not [kind for kind, _ in collectives(program) if kind == "all-gather"]


def test_a_loop_in_python_was_unrolled(found):
    (problem,) = found["unrolled"]["problems"]
    assert f"the {N} layers of decoder" in problem
    assert "unrolled" in problem


def test_so_was_one_whose_rows_are_data(found):
    (problem,) = found["unrolled, order is data"]["problems"]
    assert "unrolled" in problem


def test_a_stack_that_is_gathered_whole_is_named(found):
    (problem,) = found["gathered"]["problems"]
    assert "all-gather of params['decoder']['kernel'] with all its layers" in problem


def test_a_collective_in_a_branch_of_a_devices_own_is_refused(found):
    (problem,) = found["own branch"]["problems"]
    assert "all-reduce in a branch" in problem


def test_a_collective_in_a_loop_of_a_devices_own_length_is_refused(found):
    (problem,) = found["own trips"]["problems"]
    assert "all-reduce in a loop" in problem


def test_what_all_devices_agree_on_may_decide(found):
    """The sum over all rows is the same everywhere, and so is the branch."""
    assert found["common branch"]["problems"] == []
    assert [kind for kind, _ in collectives(found["common branch"])] == ["all-reduce"]


def test_the_pieces_of_arguments_that_are_read_are_known(found):
    """One that is not read, and one that is None, are no arguments of the program."""
    assert found["pieces"] == [list(range(8)), list(range(8)), [0] * 8]


def test_another_number_of_arguments_is_refused():
    with pytest.raises(ValueError, match="1 arguments, and 2 are described"):
        program_checks.check_program(TEXT, {}, [range(4), range(4)])


TEXT = """HloModule made_by_hand

%wrapped (p: f32[3,8,4]) -> f32[3,8,16] {
  %p = f32[3,8,4]{2,1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = f32[3,8,16]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, dimensions={2}
}

ENTRY %main (w: f32[3,8,4]) -> (f32[3,8,16], bf16[6]) {
  %w = f32[3,8,4]{2,1,0:T(8,128)} parameter(0), metadata={op_name="params[\\'decoder\\'][\\'kernel\\']"}
  %copy-start = (f32[3,8,4]{2,1,0}, f32[3,8,4]{2,1,0}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = f32[3,8,4]{2,1,0} copy-done(%copy-start)
  %piece = f32[3,8,16]{2,1,0} fusion(%copy-done), kind=kLoop, calls=%wrapped
  %begun = (f32[2]{0}, f32[8]{0}) all-gather-start(%b), channel_id=3, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}
  %b = bf16[6]{0} all-reduce(%copy-done), channel_id=9, replica_groups={{0,1},{2,3}}
  ROOT %out = (f32[3,8,16]{2,1,0}, bf16[6]{0}) tuple(%piece, %b)
}
"""  # noqa: E501


def test_what_an_accelerators_compiler_writes():
    """Pieces in fusions, copies that begin and end, layouts with brackets, groups by axes."""
    program = program_checks.check_program(TEXT, {"decoder": 3}, [range(4)])
    assert sorted((one.what, one.bytes) for one in program.collectives) == [
        ("all-gather", 8 * 4),  # what comes out, not what goes in
        ("all-gather", 3 * 8 * 16 * 4),
        ("all-reduce", 6 * 2),
    ]
    assert any("all-gather of params['decoder']['kernel']" in p for p in program.problems)


@pytest.mark.parametrize(
    ("groups", "everyone"),
    [
        ("{}", True),
        ("{{0,1,2,3}}", True),
        ("{{0,1},{2,3}}", False),
        ("[1,4]<=[4]", True),
        ("[2,2]<=[2,2]T(1,0)", False),
        ("mesh['axis_0'=1,'axis_1'=4] {'axis_1'}", True),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", False),
    ],
)
def test_a_sum_over_some_devices_alone_leaves_them_different(groups, everyone):
    """So a branch that it decides may not hold a collective."""
    text = TEXT_OF_A_BRANCH.replace("GROUPS", groups)
    program = program_checks.check_program(text, {}, [range(4)])
    assert (program.problems == []) == everyone


@pytest.mark.parametrize(
    ("groups", "alike"),
    [
        ("{{0,2},{1,3}}", True),  # over data, of rows that two devices of model share
        ("[2,2]<=[2,2]T(1,0)", True),
        ("mesh['data'=2,'model'=2] {'data'}", True),
        ("{{0,1},{2,3}}", False),
        ("[2,2]<=[4]", False),
        ("mesh['data'=2,'model'=2] {'model'}", False),
        ("mesh['data'=4] {'data':(1)2}", False),  # not known
    ],
)
def test_devices_that_share_rows_may_add_them_up_apart(groups, alike):
    """Along one axis of a mesh, where the other has copies: each group finds the same sum."""
    text = TEXT_OF_A_BRANCH.replace("GROUPS", groups)
    program = program_checks.check_program(text, {}, [SHARED])
    assert (program.problems == []) == alike


def test_pieces_of_a_sum_are_no_longer_shared():
    """A reduce-scatter gives each device another one, of whoever had the same before."""
    text = TEXT_OF_A_BRANCH.replace("GROUPS", "{{0,2},{1,3}}")
    piece = """  %own = f32[] reduce(%piece, %zero), dimensions={0}, to_apply=%add
"""
    text = text.replace(
        "  %own = f32[] reduce(%rows, %zero), dimensions={0}, to_apply=%add\n",
        "  %piece = f32[2]{0} reduce-scatter(%rows), channel_id=5, replica_groups={{0,1},{2,3}}, "
        "dimensions={0}, to_apply=%add\n" + piece,
    )
    assert program_checks.check_program(text, {}, [SHARED]).problems != []


@pytest.mark.parametrize("sent", ["sum", "own", ""])
def test_a_sum_over_one_slice_is_not_that_of_the_next(sent):
    """libtpu compiles the program of one slice; a transfer joins it with the others."""
    text = TEXT_OF_A_BRANCH.replace("GROUPS", "{{0,1,2,3}}")
    text = text.replace("made_by_hand", "by_hand, num_partitions=4", 1)
    if sent:
        text = text.replace("  %large = pred[] compare(%sum,", TRANSFER + "compare(%joined,")
        text = text.replace("send(%sum,", f"send(%{sent},")
    program = program_checks.check_program(text, {}, [range(8)])
    # What a device has of its own is added up for each place in a slice, and differs there.
    assert (program.problems == []) == (sent == "sum")
    between = [row for row in program.table() if "between slices" in row["kind"]]
    assert [row["bytes"] for row in between] == ([4] if sent else [])


ABOUT = """is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="sum_0",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}"""
TRANSFER = f"""  %token = token[] after-all()
  %recv = (f32[], u32[], token[]) recv(%token), channel_id=8, {ABOUT}
  %send = (f32[], u32[], token[]) send(%sum, %token), channel_id=9, {ABOUT}
  %sent = token[] send-done(%send), channel_id=9
  %received = (f32[], token[]) recv-done(%recv), channel_id=8
  %joined = f32[] get-tuple-element(%received), index=0
  %large = pred[] """

SHARED = (0, 0, 1, 1)  # the pieces that four devices have of rows, two the same one

TEXT_OF_A_BRANCH = """HloModule made_by_hand

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%yes (x: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %all-reduce.2 = f32[] all-reduce(%x), channel_id=2, replica_groups={}, to_apply=%add
}

%no (y: f32[]) -> f32[] {
  ROOT %y = f32[] parameter(0)
}

ENTRY %main (rows: f32[4]) -> f32[] {
  %rows = f32[4]{0} parameter(0), metadata={op_name="rows"}
  %zero = f32[] constant(0)
  %own = f32[] reduce(%rows, %zero), dimensions={0}, to_apply=%add
  %sum = f32[] all-reduce(%own), channel_id=1, replica_groups=GROUPS, to_apply=%add
  %large = pred[] compare(%sum, %zero), direction=GT
  ROOT %out = f32[] conditional(%large, %sum, %zero), true_computation=%yes, false_computation=%no
}
"""


def test_another_text_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        program_checks.check_program("module @jit_step {}", {}, [])


# The programs


def layer(h_BxD, w_DxD):
    after_BxD = jnp.tanh(h_BxD @ w_DxD)
    return after_BxD, None


def by_scan(mode):
    def loss(params, h_BxD, keep):
        h_BxD, _ = skip_scan(layer, h_BxD, params["decoder"]["kernel"], keep, mode=mode)
        return jnp.sum(h_BxD**2)

    return loss


def unrolled(params, h_BxD, keep):
    for n in range(N):
        h_BxD = jnp.where(keep[n], layer(h_BxD, params["decoder"]["kernel"][n])[0], h_BxD)
    return jnp.sum(h_BxD**2)


def unrolled_by_data(params, h_BxD, keep):
    order = jnp.argsort(~keep, stable=True)
    for n in range(N):
        h_BxD, _ = layer(h_BxD, params["decoder"]["kernel"][order[n]])
    return jnp.sum(h_BxD**2)


def gathered(params, h_BxD, keep):
    whole = jax.lax.with_sharding_constraint(params["decoder"]["kernel"], WHOLE)
    return by_scan("skip")({"decoder": {"kernel": whole}}, h_BxD, keep)


def own(decide):
    """Sums over the devices inside what ``decide(rows of a device, add)`` runs."""

    def run(h_BxD):
        def local(h_BxD):
            return decide(h_BxD, lambda x: jax.lax.psum(x, "data"))

        return jax.shard_map(local, in_specs=ROWS, out_specs=ROWS, check_vma=False)(h_BxD)

    return run


def own_branch(h_BxD, add):
    return jax.lax.cond(jnp.sum(h_BxD) > 0, add, lambda x: x, h_BxD)


def own_trips(h_BxD, add):
    trips = jnp.int32(jnp.abs(h_BxD[0, 0]))
    return jax.lax.fori_loop(0, trips, lambda _, x: add(x) + 1.0, h_BxD)


def common_branch(h_BxD, add):
    return jax.lax.cond(jnp.sum(add(h_BxD)) > 0, add, lambda x: x, h_BxD)


def main():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def place(shape, spec, kind=np.float32):
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))

    def read(function, *arguments):
        with jax.set_mesh(mesh):
            compiled = jax.jit(function).lower(*arguments).compile()
        pieces = program_checks.pieces_of(compiled)
        program = program_checks.check_program(compiled.as_text(), {"decoder": N}, pieces)
        return {"table": program.table(), "problems": program.problems}

    rows, keep = place((B, D), ROWS), place((N,), WHOLE, bool)
    split = {"decoder": {"kernel": place((N, D, D), SPLIT)}}
    whole = {"decoder": {"kernel": place((N, D, D), WHOLE)}}
    found = {"whole": read(jax.grad(by_scan("skip")), whole, rows, keep)}
    for name, loss in {
        "skip": by_scan("skip"),
        "cond": by_scan("cond"),
        "unrolled": unrolled,
        "unrolled, order is data": unrolled_by_data,
        "gathered": gathered,
    }.items():
        found[name] = read(jax.grad(loss), split, rows, keep)
    for decide in (own_branch, own_trips, common_branch):
        found[decide.__name__.replace("_", " ")] = read(own(decide), rows)
    with jax.set_mesh(mesh):
        several = jax.jit(lambda unread, h, tree, key: (h, tree, jax.random.split(key)))
        key = jax.eval_shape(lambda: jax.random.key(0))
        pair = place((4, B), PartitionSpec(None, "data"))
        compiled = several.lower(rows, rows, {"none": None, "pair": pair}, key).compile()
    found["pieces"] = program_checks.pieces_of(compiled)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
