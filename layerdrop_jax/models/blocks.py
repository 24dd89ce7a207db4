"""Encoder and decoder layers, and the one way to run a stack of them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.core.skip_scan import skip_scan
from layerdrop_jax.core.structured import drop_block, drop_connect, drop_path, drop_path_rows
from layerdrop_jax.models.attention import SAVED_NAME, Attention, heads_first
from layerdrop_jax.models.fused_attention import CHOICES, KERNELS, check_attention
from layerdrop_jax.models.layers import (
    ACTIVATIONS,
    GATED,
    LAYER_NORM_EPSILON,
    FeedForward,
    dropout,
    keep_rows_apart,
    linear,
    make_norm,
)
from layerdrop_jax.models.params import abstract_params, first_difference

NORMS = ("post", "pre")
DTYPES = ("float32", "bfloat16")
ROWS = ("all", "kept")
EXIT_PLACES = ("before_norm", "after_norm")

# What a layer keeps for its backward pass, besides its input; the rest is computed again.
# benchmarks/step_cost.py measures all three: docs/performance.md has the figures.
SAVED = {
    "all": None,
    # Products with weights, and what comes out of attention, but not the products inside it.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED_NAME),
    ),
    "nothing": jax.checkpoint_policies.nothing_saveable,
}


def exact(config: "BlockConfig") -> "BlockConfig":
    """Gives the config of the same network in float32, with attention written out.

    Two networks are compared so: rounding would hide, or look like, a difference.
    """
    return dataclasses.replace(config, dtype="float32", attention="plain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What a layer is made of; a model's config adds what stands around the layers.

    Attributes:
      embed_dim: model width D.
      ffn_dim: feed-forward width F.
      attention_heads: heads H; D must be a multiple, but where the config gives the head size.
      norm: ``post``, x <- LN(x + f(x)), or ``pre``, x <- x + f(LN(x)).
      activation: ``relu``, ``gelu`` (exact) or ``gelu_tanh``, its approximation, as GPT-2 has it.
      dropout: after the embedding and after every sub-layer.
      attention_dropout: on the attention weights.
      attention: ``plain`` writes the weights of attention out, and is the exact reference;
        ``fused`` leaves them to the kernel of the device (``flash`` on TPUs, ``cudnn`` on GPUs in
        16 bit, ``xla`` elsewhere; each may be named); ``auto`` is one of the two, see
        `choose_attention`.
      activation_dropout: inside the feed-forward sub-layer.
      drop_path: DropPath, of each example (a row) in each sub-layer; scales what stays.
      drop_path_rows: ``all`` rows are computed, and the dropped ones thrown away, or only a fixed
        number of ``kept`` ones.
      drop_block: DropBlock, of contiguous positions of each sub-layer's output; scales what stays.
      drop_block_size: positions in a block.
      drop_connect: DropConnect, of single weights; scales what stays.
      saved: what a layer keeps for its backward pass: ``all``, the matrix products (``dots``) or
        ``nothing``; what is not kept is computed again.
      share_layers: how many adjacent layers have one set of weights; 1 = each its own. The paper's
        appendix shares chunks of two.
      exit_maps: whether each layer has a linear map of its own for the case that it is the last one
        that runs: x + W x + b is then read in the place of x, with W and b zero at the start. A
        network that is left at several depths (nested training) need not make its layers give at
        each of them what the output layer reads. The tuned lens: Belrose et al. 2023, 2303.08112.
      exit_place: where that map lies: ``before_norm``, the stack's last norm; or ``after_norm``,
        where other weights can take it up once a network has been cut, see `fold_exits`.
      dtype: type of the computation, ``float32`` or ``bfloat16``; parameters are float32.
    """

    embed_dim: int
    ffn_dim: int
    attention_heads: int
    norm: str
    activation: str
    dropout: float
    attention_dropout: float
    attention: str
    activation_dropout: float
    drop_path: float
    drop_path_rows: str
    drop_block: float
    drop_block_size: int
    drop_connect: float
    dtype: str
    saved: str
    share_layers: int
    exit_maps: bool
    exit_place: str

    # What `LMConfig` makes fields of, and of one `EncoderConfig`; the reference's other networks
    # have these values. (No annotation: they are no fields here, and the defaults of the fields
    # there.)
    activations = tuple(ACTIVATIONS)
    norm_type = "layer"
    norm_epsilon = LAYER_NORM_EPSILON
    biases = "all"
    kv_heads = 0
    head_dim = 0
    qk_norm = False
    alibi = False

    def __post_init__(self):
        choices = {"norm": NORMS, "activation": self.activations, "dtype": DTYPES}
        choices["attention"] = (*CHOICES, *dict.fromkeys(KERNELS.values()))
        choices["exit_place"] = EXIT_PLACES
        for name, known in (choices | {"drop_path_rows": ROWS, "saved": tuple(SAVED)}).items():
            check_choice("model", name, getattr(self, name), known)
        sizes = ("embed_dim", "ffn_dim", "attention_heads", "drop_block_size", "share_layers")
        check_sizes("model", self, sizes)
        # A stack of no layers is what pruning leaves at depth 0.
        check_sizes("model", self, (f"{stack}_layers" for stack in self.stacks), least=0)
        for stack in self.stacks:
            if self.depth(stack) % self.share_layers:
                raise ValueError(
                    f"model.{stack}_layers={self.depth(stack)} is not a multiple of "
                    f"model.share_layers={self.share_layers}"
                )
        if self.embed_dim % self.attention_heads and not self.head_dim:
            raise ValueError(
                f"model.embed_dim={self.embed_dim} is not a multiple of "
                f"model.attention_heads={self.attention_heads}"
            )
        dropouts = ("dropout", "attention_dropout", "activation_dropout")
        for name in (*dropouts, "drop_path", "drop_block", "drop_connect"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} is not in [0, 1)")
        check_attention(self)

    @property
    def stacks(self) -> dict:
        """The class of the layers of each stack, by its name; layers alone have none."""
        return {}

    @property
    def cut_stack(self) -> str:
        """The stack that is cut to every depth where depths are compared: the last one."""
        return list(self.stacks)[-1]

    @property
    def importers(self) -> dict:
        """Functions ``f(state, config) -> parameters``, by the library whose weights they read."""
        return {}

    @property
    def exporters(self) -> dict:
        """Pairs of functions by the library they write for: of its config, and of its weights.

        They are ``f(config) -> fields`` and ``f(parameters, config) -> state``.
        """
        return {}

    def export_config(self, library: str) -> dict:
        """Writes what another library's config says of the network.

        Args:
          library: a key of ``exporters``.

        Raises:
          ValueError: the library is not known for this kind of network, or cannot hold this one;
            the message names the key.
        """
        return self._exporters(library)[0](self)

    def export_params(self, library: str, params: dict) -> dict:
        """Writes the network's parameters as another library's weights; undoes `import_params`.

        Args:
          library: a key of ``exporters``.
          params: nested dict as `make_params` gives.

        Returns:
          float32 arrays by that library's names.

        Raises:
          ValueError: as `export_config`.
        """
        return self._exporters(library)[1](params, self)

    def _exporters(self, library):
        if library not in self.exporters:
            raise ValueError(
                f"library={library!r} has no layout for {type(self).__name__}: "
                f"{', '.join(self.exporters) or 'none'} can be written"
            )
        return self.exporters[library]

    def import_params(self, library: str, state: dict) -> dict:
        """Makes the network's parameters of another library's weights.

        Args:
          library: the library whose names and shapes the state has, a key of ``importers``.
          state: arrays by that library's names, see its function in `layerdrop_jax.interop`.

        Returns:
          Nested dict as `make_params` gives, float32, the layers on axis 0.

        Raises:
          ValueError: the library is not known for this kind of network, or the state is not that
            of the network which the config describes.
        """
        if library not in self.importers:
            raise ValueError(
                f"library={library!r} has no weights for {type(self).__name__}: "
                f"{', '.join(self.importers) or 'none'} can be read"
            )
        params = self.importers[library](state, self)
        if said := first_difference(params, abstract_params(self)):
            raise ValueError(f"the state is of another network than the config: {said}")
        return params

    def depth(self, stack: str) -> int:
        """Counts the layers of a stack, N."""
        return getattr(self, f"{stack}_layers")

    @property
    def head_size(self) -> int:
        """Channels of a head, K."""
        return self.head_dim or self.embed_dim // self.attention_heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, G."""
        return self.kv_heads or self.attention_heads

    def attention_flops(self, queries: int, keys: int) -> int:
        """Counts the FLOPs of an attention sub-layer for one row, forward."""
        heads = self.attention_heads * queries + self.key_heads * keys  # q and out; k and v
        projections = 4 * self.embed_dim * self.head_size * heads
        products = 4 * self.attention_heads * self.head_size * queries * keys
        return projections + products  # scores, weighted values

    def ffn_flops(self, tokens: int) -> int:
        """Counts the FLOPs of a feed-forward sub-layer for one row, forward."""
        matrices = 3 if self.activation in GATED else 2
        return 2 * matrices * self.embed_dim * self.ffn_dim * tokens

    def exit_flops(self, tokens: int) -> int:
        """Counts the FLOPs of the map through which one row leaves a stack, forward."""
        return 2 * self.embed_dim**2 * tokens if self.exit_maps else 0

    def stored_layers(self, stack: str) -> int:
        """Counts the layers with weights of their own: the length of axis 0 of a stack."""
        return self.depth(stack) // self.share_layers


def check_choice(section: str, name: str, value, known) -> None:
    """Raises a ValueError that lists the known values where ``value`` is not one of them."""
    if value not in known:
        raise ValueError(f"{section}.{name}={value!r} is unknown: it is one of {', '.join(known)}")


def check_sizes(section: str, config, names, *, least: int = 1) -> None:
    """Raises a ValueError where one of the fields ``names`` of a config is below ``least``."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{section}.{name}={getattr(config, name)} is not {least} or more")


class _SubLayers(nnx.Module):
    """What encoder and decoder layers share: the sub-layers one after the other, and their wiring.

    Attributes:
      SUBLAYERS: names of the sub-layers, in order; the norm of each is called NAME_norm.
    """

    config: BlockConfig
    SUBLAYERS: tuple[str, ...]

    def _make_exit(self, rngs):
        """Makes the map through which the stack is left after this layer, see `leave`."""
        if self.config.exit_maps:
            dim, zeros = self.config.embed_dim, nnx.initializers.zeros_init()
            self.exit_map = linear(self.config, dim, dim, rngs, kernel_init=zeros)

    def _run(self, x_BxTxD, functions, key, groups, mode):
        """Runs the sub-layers that ``groups`` keeps; one that is dropped is the identity.

        Args:
          x_BxTxD: the layer's input.
          functions: for each sub-layer ``f(x, key, rows, keep_H)``; ``rows`` says which rows of the
            batch ``x`` holds, None all of them.
          key: PRNG key, or None to drop nothing.
          groups: what `sample_groups` drew for this layer, and ``scale``, float32[S], where the
            sub-layers that run are scaled; None runs everything.
          mode: how `skip_scan` skips a sub-layer.
        """
        groups = groups or {}
        keys = [None] * len(functions) if key is None else jax.random.split(key, len(functions))
        for s, (name, function) in enumerate(zip(self.SUBLAYERS, functions, strict=True)):
            keep_H = groups["heads"][s] if "heads" in groups and name != "ffn" else None
            scale = groups["scale"][s] if "scale" in groups else None

            def add(x_BxTxD, name=name, function=function, key=keys[s], keep_H=keep_H, scale=scale):
                norm = getattr(self, f"{name}_norm")
                return self._add(norm, x_BxTxD, partial(function, keep_H=keep_H), key, scale)

            if "sublayers" in groups:
                # One step of skip_scan: the sub-layer's weights stay where they are.
                keep_1 = groups["sublayers"][s][None]
                x_BxTxD, _ = skip_scan(
                    lambda x, _, add=add: (add(x), None), x_BxTxD, None, keep_1, mode=mode
                )
            else:
                x_BxTxD = add(x_BxTxD)
        return x_BxTxD

    def _add(self, norm, x_BxTxD, function, key, scale):
        """Adds a sub-layer: post-norm LN(x + drop(f(x))), pre-norm x + drop(f(LN(x)))."""
        config, pre = self.config, self.config.norm == "pre"
        names = ("inside", "out", "block", "path")
        keys = {name: None if key is None else named_key(key, name) for name in names}

        def branch(x_BxTxD, rows=None):
            out_BxTxD = function(norm(x_BxTxD) if pre else x_BxTxD, keys["inside"], rows)
            out_BxTxD = dropout(out_BxTxD, config.dropout, keys["out"])
            if key is not None and config.drop_block:
                out_BxTxD = drop_block(
                    keys["block"], out_BxTxD, config.drop_block, config.drop_block_size
                )
            return out_BxTxD if scale is None else out_BxTxD * scale.astype(out_BxTxD.dtype)

        if key is None or config.drop_path == 0:
            x_BxTxD = x_BxTxD + branch(x_BxTxD)
        elif config.drop_path_rows == "kept":
            x_BxTxD = drop_path_rows(keys["path"], branch, x_BxTxD, config.drop_path)
        else:
            x_BxTxD = x_BxTxD + drop_path(keys["path"], branch(x_BxTxD), config.drop_path)
        return x_BxTxD if pre else norm(x_BxTxD)

    def keys_values(self, x_BxTxD, position_BxT=None):
        """Computes the keys and values that self-attention makes of what enters the layer."""
        x_BxTxD = self.self_attn_norm(x_BxTxD) if self.config.norm == "pre" else x_BxTxD
        return self.self_attn.keys_values(x_BxTxD, position_BxT)

    def _feed_forward(self, x_BxTxD, key, rows, keep_H):
        del rows, keep_H
        return self.ffn(x_BxTxD, key)


class EncoderLayer(_SubLayers):
    """Self-attention, then feed-forward; under a causal mask, a layer of a language model."""

    SUBLAYERS = ("self_attn", "ffn")

    def __init__(self, config: BlockConfig, *, rngs):
        self.config = config
        self.self_attn = Attention(config, rngs=rngs)
        self.self_attn_norm = make_norm(config, rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = make_norm(config, rngs)
        self._make_exit(rngs)

    def __call__(self, x_BxTxD, mask_BxTxT, key=None, groups=None, mode="skip", position_1xT=None):
        """Runs the layer; ``position_1xT`` is for rotary positions and ALiBi, or else None."""

        def self_attention(x_BxTxD, key, rows, keep_H):
            mask = _take(mask_BxTxT, rows)
            return self.self_attn(x_BxTxD, x_BxTxD, mask, key, keep_H, position_1xT)

        return self._run(x_BxTxD, (self_attention, self._feed_forward), key, groups, mode)

    def step(self, x_BxTxD, self_attention):
        """Runs the layer with attention over a cache: the argument maps [B, T, D] to [B, T, D]."""
        functions = (lambda x, *_, **__: self_attention(x), self._feed_forward)
        return self._run(x_BxTxD, functions, None, None, "skip")


class DecoderLayer(_SubLayers):
    """Self-attention, cross-attention, then feed-forward."""

    SUBLAYERS = ("self_attn", "cross_attn", "ffn")

    def __init__(self, config: BlockConfig, *, rngs):
        self.config = config
        self.self_attn = Attention(config, rngs=rngs)
        self.self_attn_norm = make_norm(config, rngs)
        self.cross_attn = Attention(config, rngs=rngs)
        self.cross_attn_norm = make_norm(config, rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = make_norm(config, rngs)
        self._make_exit(rngs)

    def __call__(
        self,
        x_BxTxD,
        memory_BxSxD,
        mask_BxTxT,
        memory_mask_BxTxS,
        key=None,
        groups=None,
        mode="skip",
    ):
        def self_attention(x_BxTxD, key, rows, keep_H):
            return self.self_attn(x_BxTxD, x_BxTxD, _take(mask_BxTxT, rows), key, keep_H)

        def cross_attention(x_BxTxD, key, rows, keep_H):
            memory, mask = (_take(a, rows) for a in (memory_BxSxD, memory_mask_BxTxS))
            return self.cross_attn(x_BxTxD, memory, mask, key, keep_H)

        functions = (self_attention, cross_attention, self._feed_forward)
        return self._run(x_BxTxD, functions, key, groups, mode)

    def step(self, x_BxTxD, self_attention, cross_attention):
        """Runs the layer with attention over caches: both arguments map [B, T, D] to [B, T, D]."""
        functions = (
            lambda x, *_, **__: self_attention(x),
            lambda x, *_, **__: cross_attention(x),
            self._feed_forward,
        )
        return self._run(x_BxTxD, functions, None, None, "skip")


def _take(a_B___, rows):
    """Takes the rows of a batch that a sub-layer computes."""
    return a_B___ if rows is None else jax.tree.map(lambda a_B: a_B[rows], a_B___)


def make_stack(make_layer, num_layers: int, rngs):
    """Makes one module of ``num_layers`` layers, 0 or more, on axis 0 of every parameter."""
    keys = jax.random.split(rngs.params(), num_layers)
    return nnx.vmap(lambda key: make_layer(nnx.Rngs(params=key)))(keys)


class Watch:
    """Asks a model what its layers do: hand one to its call, and read ``seen`` when it returns.

    ``look(stack, before, after)`` is called where a layer of the stack of that name runs, with what
    enters the layer and what leaves it, and gives a pytree of arrays. ``seen`` then has for each
    stack these trees with the layers on axis 0, zeros where a layer did not run. All of it belongs
    to one trace: a function that is jitted or differentiated has to return what is used outside.
    """

    def __init__(self, look):
        self.look = look
        self.seen = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """How a network runs: which layers, what is dropped inside them, who looks on.

    Attributes:
      keep: bool[N] by stack; a stack that is absent runs whole.
      groups: what is dropped inside the layers, by stack, see `EncoderLayer`; a stack that is
        absent drops nothing there.
      key: PRNG key of the dropouts; None, as in evaluation, drops nothing.
      mode: how `skip_scan` runs the stacks.
      watch: a `Watch`, or None.
    """

    keep: dict | None = None
    groups: dict | None = None
    key: jax.Array | None = None
    mode: str = "skip"
    watch: Watch | None = None

    def named(self, name: str) -> "How":
        """Returns the same `How` with the key of a named part of the network."""
        return (
            self if self.key is None else dataclasses.replace(self, key=named_key(self.key, name))
        )

    def kept(self, stack: str, num_layers: int):
        """Returns which layers of a stack run, bool[N]."""
        keep_N = (self.keep or {}).get(stack)
        return jnp.ones(num_layers, bool) if keep_N is None else keep_N


WHOLE = How()  # every layer, nothing dropped


def run_layers(model, stack: str, x, layer_call, how: How):
    """Runs a stack of a network by its name.

    Args:
      model: the network, with the stack under that name.
      stack: the stack's name.
      x: what enters the first layer.
      layer_call: ``layer_call(layer, x, key, groups) -> x``.
      how: which layers run, and how.

    Returns:
      What is read of the stack, see `leave`.
    """

    def step(layer, x, key, groups):
        return layer_call(layer, x, key, groups), None

    layers, keep_N = getattr(model, stack), how.kept(stack, model.config.depth(stack))
    x, seen = run_stack(
        layers,
        x,
        keep_N,
        step,
        key=how.key,
        mode=how.mode,
        extra=(how.groups or {}).get(stack),
        look=how.watch and partial(how.watch.look, stack),
    )
    if how.watch:
        how.watch.seen[stack] = seen
    return leave(model, stack, x, keep_N)


def leave(model, stack: str, x, keep_N):
    """Turns what a stack's last layer that runs gives into what is read of the stack.

    Args:
      model: the network, with the stack under its name, and its last norm, where it has one, under
        ``STACK_norm``.
      stack: the stack's name.
      x: [..., D], what leaves the layer.
      keep_N: bool[N], the layers that run; where none does, no exit map is read.
    """
    layers, norm = getattr(model, stack), getattr(model, f"{stack}_norm", lambda x: x)
    if not (layers.config.exit_maps and keep_N.shape[0]):
        return norm(x)
    last = jnp.max(jnp.where(keep_N, jnp.arange(keep_N.shape[0]), -1))
    graphdef, params = nnx.split(layers.exit_map)
    row = jnp.maximum(last, 0) // layers.config.share_layers
    exit_map = nnx.merge(graphdef, jax.tree.map(lambda a: a[row], params))

    def mapped(x):
        return jnp.where(last >= 0, x + exit_map(x), x)

    after = layers.config.exit_place == "after_norm"
    return mapped(norm(x)) if after else norm(mapped(x))


def run_stack(layers, x, keep_N, step, *, key=None, mode="skip", extra=None, look=None):
    """Runs the layers that ``keep_N`` marks.

    Args:
      layers: a stack from `make_stack`.
      x: the carry that enters the first layer.
      keep_N: bool[N].
      step: ``step(layer, x, key, extra) -> (x, y)``.
      key: one PRNG key for the stack, or None to drop nothing inside the layers.
      mode: how `skip_scan` runs the stack.
      extra: pytree with the layers on axis 0 (caches, say); each step gets its row.
      look: ``look(before, after)``, what a `Watch` wants of each layer; it takes the place of y.

    Returns:
      ``(x, ys)``, as `skip_scan` returns them.
    """
    config = layers.config
    graphdef, params = nnx.split(layers)
    # By index, so that a layer's dropout does not depend on which other layers run.
    keys = None if key is None else jax.random.split(named_key(key, "layers"), keep_N.shape[0])

    def run_layer(x, inputs):
        params, key, extra = inputs
        x = keep_rows_apart(x)
        if key is not None and config.drop_connect:
            params = drop_connect(named_key(key, "connect"), params, config.drop_connect)
        new, y = step(nnx.merge(graphdef, params), x, key, extra)
        return new, (y if look is None else look(x, new))

    policy, share = SAVED[config.saved], config.share_layers
    if share == 1:
        return skip_scan(run_layer, x, (params, keys, extra), keep_N, mode=mode, policy=policy)

    # A step is a chunk of layers over the same weights: they are neither copied nor read twice
    # from the stack, and the chunk's own loop adds their gradients up.
    def run_chunk(x, inputs):
        params, keep_S, keys, extra = inputs

        def run_one(x, inputs):
            return run_layer(x, (params, *inputs))

        return skip_scan(run_one, x, (keys, extra), keep_S, mode=mode, policy=policy)

    keep_CxS, keys, extra = jax.tree.map(
        lambda a: a.reshape(-1, share, *a.shape[1:]), (keep_N, keys, extra)
    )
    inputs = (params, keep_CxS, keys, extra)
    x, ys = skip_scan(run_chunk, x, inputs, keep_CxS.any(axis=1), mode=mode)
    return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ys)


def keys_values_of(layers, x_BxTxD, keep_N, *position):
    """Computes what the layers that ``keep_N`` marks make of one and the same x: keys and values.

    Args:
      layers: a stack from `make_stack`.
      position: what `keys_values` of a layer takes besides, where positions are rotary.

    Returns:
      a pytree of [N, B, G, T, K], zeros for the other layers.
    """

    def run_layer(layer, x_BxTxD, _, __):
        return x_BxTxD, jax.tree.map(heads_first, layer.keys_values(x_BxTxD, *position))

    return run_stack(layers, x_BxTxD, keep_N, run_layer)[1]
