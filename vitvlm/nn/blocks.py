"""The transformer block: branches of attention and MLP, each added to the tokens, with norms where they are wanted."""

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.nn.attention import Attention
from vitvlm.nn.calls import CALL, LAYER, Call, PerLayer
from vitvlm.nn.mlps import Mlp
from vitvlm.nn.norms import MakeNorm
from vitvlm.nn.roles import NORM, Role, Roles, under

NORM_PLACES = ("pre", "post", "sandwich", "output")
BRANCHES = ("attention", "cross", "mlp", "text_mlp")

Make = Callable[..., nn.Module]  # makes a part from its `name`: functools.partial(Attention, heads=8), say
# Output of a block: tokens, the captured attention weights by kind, and the caches by kind.
BlockOutput = tuple[Float[Array, "B N D"], dict[str, Any] | None, dict[str, Any] | None]


class Block(nn.Module):
    """Branches one after the other: tokens + Attention(norm(tokens)), then cross-attention, then the MLP.

    Fields:
      attention, cross, mlp: make the parts; a part that is None is left out. See `nn.attention.Attention`, whose
        `cross` the cross-attention needs, and `nn.mlps.Mlp`.
      norm: makes a norm, see `nn.norms.make_norm`.
      norms: where they stand for a branch f of tokens x: "pre", x + f(norm(x)) (Dosovitskiy et al. 2021, equations 2
        and 3); "post", norm(x + f(x)) (Vaswani et al. 2017, BERT); "sandwich", x + norm2(f(norm(x))) (Gemma 2);
        "output", x + norm(f(x)) (OLMo 2). They are called "attention_norm" and so on, the second of a sandwich
        "attention_output_norm".
      context_norm: whether the context passes a norm first, "context_norm".
      parallel: x + Attention(norm(x)) + MLP(norm(x)) with one norm, "attention_norm" (GPT-J, Phi); needs norms "pre".
      queries, text_mlp: the first so many tokens alone look at the context and pass the MLP; those behind them, a text,
        have an MLP of their own (Q-Former; Li et al. 2023, section 3.1).
      gated: branches that are multiplied by tanh of a learned number, 0 at first (Flamingo; Alayrac et al. 2022).
      gate_channels: whether that is a number for each channel (Idefics' `alpha_type` "vector").
      look: makes a block, called "look", that the tokens pass before: one that looks at the context, which a language
        model is given on top of its own blocks, whose parameters keep their paths (Flamingo, section 2.2).
      layer_scale: initial value of a learned factor per channel on each branch (Touvron et al. 2021), or None.
      dropout: of each branch's output (rng "dropout").

    Call: `layer.drop_path` is the probability, in training, that a branch is left out for a whole example (Huang et al.
    2016); the others are scaled up by 1 / (1 - drop_path). Weights and caches are returned by kind, "attention" and
    "cross", None where nothing is captured or cached.

    Raises ConfigError for an unknown place of norms or branch, for a cross-attention behind a block that looks, and for
    parallel branches with a cross-attention or with norms other than "pre".
    """

    roles: ClassVar[Roles] = (
        *under("(look/)?(attention|cross)/", Attention.roles),
        *under("(look/)?(text_)?mlp/", Mlp.roles),
        *under("(look/)?(attention|cross|mlp|text_mlp|context)(_output)?_norm/", NORM),
        ("(look/)?(attention|cross|mlp|text_mlp)_(scale|gate)", Role("scale")),
    )

    attention: Make | None = None
    mlp: Make | None = None
    cross: Make | None = None
    norm: MakeNorm = nn.LayerNorm
    norms: str = "pre"
    context_norm: bool = False
    parallel: bool = False
    queries: int | None = None
    text_mlp: Make | None = None
    gated: Collection[str] = ()
    gate_channels: bool = False
    look: Make | None = None
    layer_scale: float | None = None
    dropout: float = 0.0
    param_dtype: DTypeLike = jnp.float32

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of attention that the block has, by which weights, caches and perturbations are named."""
        before = () if self.look is None else self.look(name=None, parent=None).kinds
        return tuple(kind for kind in ("attention", "cross") if getattr(self, kind) is not None or kind in before)

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"], call: Call = CALL, layer: PerLayer = LAYER) -> BlockOutput:
        self._check()
        if self.context_norm and call.context is not None:
            call = call.replace(context=self.norm(name="context_norm")(call.context))
        weights, caches = {}, {}
        if self.look is not None:
            tokens, captured, cached = self.look(name="look")(tokens, call, layer)
            weights |= captured or {}
            caches |= cached or {}

        def attend(kind: str) -> Callable[[Array], Array]:
            module = getattr(self, kind)(name=kind)

            def apply(x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
                update, weights[kind], caches[kind] = module(x, call, layer.of(kind))
                return update

            return apply

        branch = {kind: attend(kind) for kind in ("attention", "cross") if getattr(self, kind) is not None}
        if self.mlp is not None:
            branch["mlp"] = self.mlp(name="mlp")
        if self.parallel:
            normed = self.norm(name="attention_norm")(tokens)
            for name, function in branch.items():
                tokens = tokens + self._weighed(name, function(normed), call, layer)
        else:
            if "attention" in branch:
                tokens = self._add("attention", tokens, branch.pop("attention"), call, layer)
            behind = tokens[:, self.queries :] if self.queries is not None else tokens[:, :0]
            tokens = tokens[:, : self.queries]
            for name, function in branch.items():
                tokens = self._add(name, tokens, function, call, layer)
            if behind.shape[1]:
                if self.text_mlp is not None:
                    behind = self._add("text_mlp", behind, self.text_mlp(name="text_mlp"), call, layer)
                tokens = jnp.concatenate([tokens, behind], axis=1)
        captured = weights if "attention" in call.capture else None
        return tokens, captured, None if layer.cache is None else caches

    def _check(self) -> None:
        if self.norms not in NORM_PLACES:
            raise config.ConfigError(f"model.norms: {self.norms!r}; {config.suggest(self.norms, NORM_PLACES)}")
        if unknown := set(self.gated) - set(BRANCHES):
            raise config.ConfigError(f"block.gated: no branch {sorted(unknown)[0]!r}; there is: {', '.join(BRANCHES)}")
        if self.look is not None and self.cross is not None:
            raise config.ConfigError("block.look: looks at the context; leave out the block's own cross-attention")
        if self.parallel and (self.cross is not None or self.norms != "pre" or self.queries is not None):
            raise config.ConfigError('block.parallel: takes an attention and an MLP, with norms "pre", and no queries')

    def _add(
        self, name: str, tokens: Float[Array, "B N D"], function: Callable[[Array], Array], call: Call, layer: PerLayer
    ) -> Float[Array, "B N D"]:
        """The tokens with one branch added, and its norms."""
        if self.norms == "post":
            added = tokens + self._weighed(name, function(tokens), call, layer)
            return self.norm(name=f"{name}_norm")(added)
        if self.norms == "output":
            update = self.norm(name=f"{name}_norm")(function(tokens))
        else:
            update = function(self.norm(name=f"{name}_norm")(tokens))
            if self.norms == "sandwich":
                update = self.norm(name=f"{name}_output_norm")(update)
        return tokens + self._weighed(name, update, call, layer)

    def _weighed(self, name: str, update: Float[Array, "B N D"], call: Call, layer: PerLayer) -> Float[Array, "B N D"]:
        """A branch's output as it is added: scaled, gated, and in training dropped in part or as a whole."""
        if self.layer_scale is not None:
            init = nn.initializers.constant(self.layer_scale)
            scale = self.param(f"{name}_scale", init, (update.shape[-1],), self.param_dtype)
            update = update * scale.astype(update.dtype)
        if name in self.gated:
            shape = (update.shape[-1],) if self.gate_channels else ()
            gate = self.param(f"{name}_gate", nn.initializers.zeros_init(), shape, self.param_dtype)
            update = update * jnp.tanh(gate).astype(update.dtype)
        update = nn.Dropout(self.dropout, deterministic=not call.train)(update)
        if call.train and layer.drop_path is not None:
            update = drop_examples(update, layer.drop_path, self.make_rng("dropout"))
        return update


def drop_examples(update: Float[Array, "B *N D"], rate: ArrayLike, rng: Array) -> Float[Array, "B *N D"]:
    """Zeroes whole examples with probability `rate` in [0, 1), and scales the others to keep the mean."""
    kept = jax.random.bernoulli(rng, 1 - rate, (len(update), *[1] * (update.ndim - 1)))
    return update * (kept / (1 - rate)).astype(update.dtype)
