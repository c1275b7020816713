"""Multi-head attention (Vaswani et al. 2017, section 3.2) whose weights can be looked at."""

from collections.abc import Collection
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.core.config import ConfigError
from vitvlm.nn.attend import attend, attention_weights, is_plain
from vitvlm.nn.attend_plain import over_heads, tokens_in_lanes
from vitvlm.nn.caches import Cache, ContextCache
from vitvlm.nn.calls import CALL, LAYER, Call, PerLayer
from vitvlm.nn.dense import Dense
from vitvlm.nn.norms import MakeNorm
from vitvlm.nn.relative import DecomposedRelative, Positional, RelativeBuckets, RelativeTable
from vitvlm.nn.roles import NORM, Roles, under
from vitvlm.nn.visibility import both, rules_of
from vitvlm.nn.windows import Windows

PROJECTIONS = ("query", "key", "value", "out")

# Output of attention: tokens, the captured weights, and what it leaves in the cache.
Attended = tuple[Float[Array, "B N D"], Float[Array, "_ K _N _M"] | None, Cache | ContextCache | None]


class Attention(nn.Module):
    """Self-attention, or cross-attention to the call's context: softmax(scale Q K^T) V, then a linear map.

    Fields:
      heads: K; kv_heads: Kv, of keys and values, each of which serves K / Kv query heads that follow each other
        (Ainslie et al. 2023); by default K.
      head_dim: d, by default D / K; scale: of the scores, by default d^-0.5; soft_cap: see `nn.attend`.
      biases: which of "query", "key", "value" and "out" have one.
      qk_norm: makes norms of each head's queries and keys ("query_norm", "key_norm"), before positions; None: none.
      positional: parts that rotate queries and keys or add a bias, see `nn.relative.Positional`.
      cross: whether keys and values come from the call's context, with its mask, instead of the tokens. A token that
        may look nowhere, such as a text's before its first image, gets exactly zero, from weights of zero; with a
        context of no tokens all do.
      joined: with cross, whether the tokens stand behind the context as keys and values too (the Perceiver resampler;
        Alayrac et al. 2022, appendix A.1.1). All tokens see each other then.
      causal: whether a token sees only itself and those before it; local: how many it sees at most, itself included.
      windows: what cuts the tokens into windows that see only each other; None: all see all.
      dropout: rate at which attention weights are dropped in training (rng "dropout").
      kind: how it is computed, see `nn.attend.attend`; weights that are captured, dropped or perturbed are computed
        plainly.
      dtype: of the products; the softmax is float32 always.

    Call: `layer` holds this attention's own cache and perturbation under "attention". Returned are the tokens, with
    "attention" in `call.capture` the weights [B, K, N, M] that multiply the values (before dropout and perturbation),
    differentiable, and the cache with these tokens, None without one. With windows the weights are
    [B * windows, K, T, T], image by image, windows row by row.

    Raises ValueError if the heads do not divide the width and head_dim is not given, and for a mask, bias or cache in
    windows; ConfigError for a context that is missing, and for joined tokens with a cache.
    """

    roles: ClassVar[Roles] = (
        *under("(query|key|value|out)/", Dense.roles),
        *under("(query|key)_norm/", NORM),
        *RelativeTable.roles,
        *RelativeBuckets.roles,
        *DecomposedRelative.roles,
    )

    heads: int
    head_dim: int | None = None
    biases: Collection[str] = PROJECTIONS
    kv_heads: int | None = None
    scale: float | None = None
    soft_cap: float | None = None
    qk_norm: MakeNorm | None = None
    positional: tuple[Positional, ...] = ()
    cross: bool = False
    joined: bool = False
    causal: bool = False
    local: int | None = None
    windows: Windows | None = None
    dropout: float = 0.0
    kind: str = "auto"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], call: Call = CALL, layer: PerLayer = LAYER) -> Attended:
        width, head_dim = x.shape[-1], self._head_dim(x.shape[-1])
        cache = None if layer.cache is None else layer.cache.get("attention")
        self._check(call, cache)
        tokens = x if self.windows is None else self.windows.cut(x)
        query = self._project("query", tokens, self.heads, head_dim)
        if self.cross:
            key, value = self._context(tokens, call, cache, head_dim)
            mask, bias, rules = self._context_mask(call, len(tokens[0])), None, None
            cache = None if layer.cache is None else ContextCache(key, value)
            if not key.shape[2]:
                return (
                    jnp.zeros_like(x),
                    jnp.zeros((*query.shape[:3], 0)) if "attention" in call.capture else None,
                    cache,
                )
        else:
            key, value = self._keys(tokens, head_dim)
            query, key, value, mask, bias, rules, cache = self._place(query, key, value, call, cache)
            if self.windows is not None:
                mask = self.windows.mask(len(x))

        perturb = None if layer.perturb is None else layer.perturb.get("attention")
        capture = "attention" in call.capture
        weights, sees = None, None if mask is None or not self.cross else mask.any(axis=-1, keepdims=True)
        if capture or perturb is not None or (call.train and self.dropout):
            how = {"scale": self.scale, "soft_cap": self.soft_cap}
            weights = attention_weights(query, key, both(mask, rules), bias, **how)
            weights = weights if sees is None else jnp.where(sees, weights, 0)
            used = weights if perturb is None else weights + perturb
            used = nn.Dropout(self.dropout, deterministic=not call.train)(used)
            mixed = over_heads("BKNM,BKMd->BKNd", used.astype(self.dtype), value)
        else:
            scores = {"scale": self.scale, "soft_cap": self.soft_cap, "kind": self.kind}
            mixed = attend(query, key, value, mask, bias, rules, **scores)
            mixed = mixed if sees is None else jnp.where(sees, mixed, 0)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(*tokens.shape[:2], self.heads * head_dim)
        y = self._dense("out", width)(mixed)
        if sees is not None and "out" in self.biases:
            y = jnp.where(sees.any(axis=1), y, 0)
        return y if self.windows is None else self.windows.join(y), weights if capture else None, cache

    def _head_dim(self, width: int) -> int:
        if self.head_dim is None and width % self.heads:
            raise ValueError(f"width {width} is not divisible by {self.heads} heads: change heads or give head_dim")
        return self.head_dim or width // self.heads

    def _check(self, call: Call, cache: Cache | ContextCache | None) -> None:
        if self.windows is not None and (call.mask is not None or call.bias is not None or cache is not None):
            raise ValueError("attention in windows takes no mask, bias or cache: windows have their own mask")
        if call.segments is not None and (cache is not None or self.windows is not None):
            raise ValueError("attention: segments say nothing of a cache's keys, nor of windows; leave them out")
        placed = {"positional": self.positional, "causal": self.causal, "local": self.local, "windows": self.windows}
        if self.cross and (given := [name for name, value in placed.items() if value]):
            raise ConfigError(f"attention.{given[0]}: a context has no places in the sequence; leave it out with cross")
        if self.joined and (not self.cross or cache is not None):
            raise ConfigError(
                "attention.joined: is of cross-attention, and its keys change from call to call: no cache"
            )
        if self.cross and call.context is None and (cache is None or cache.key is None):
            raise ConfigError("cross-attention: the call has no context, and none is cached; give Call(context=...)")
        if unknown := set(self.biases) - set(PROJECTIONS):
            raise ConfigError(f"attention.biases: no {sorted(unknown)[0]!r}; there is: {', '.join(PROJECTIONS)}")

    def _dense(self, name: str, features: int) -> Dense:
        return Dense(features, name in self.biases, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    def _project(self, name: str, tokens: Float[Array, "B T _"], heads: int, head_dim: int) -> Float[Array, "B _ T d"]:
        projected = self._dense(name, heads * head_dim)(tokens)
        if self._goes_to_attend(name, tokens.shape[1]):
            projected = tokens_in_lanes(projected)
        projected = projected.reshape(*tokens.shape[:2], heads, head_dim)
        if self.qk_norm is not None and name != "value":
            projected = self.qk_norm(name=f"{name}_norm")(projected)
        return projected.transpose(0, 2, 1, 3)

    def _goes_to_attend(self, name: str, N: int) -> bool:
        """Tells whether a projection of N tokens is what plain attention reads, with nothing computed between."""
        between = name != "value" and (self.qk_norm is not None or self.positional)
        return not between and not self.cross and is_plain(self.kind, N, N)

    def _context(
        self, tokens: Float[Array, "B N D"], call: Call, cache: ContextCache | None, head_dim: int
    ) -> tuple[Float[Array, "B Kv M d"], Float[Array, "B Kv M d"]]:
        """Keys and values of the context: of the call's, else the cached ones."""
        if call.context is None:
            return cache.key, cache.value
        if not call.context.shape[1] and not self.is_initializing():  # of any width
            empty = jnp.zeros((len(tokens), self.kv_heads or self.heads, 0, head_dim), self.dtype)
            return empty, empty
        if self.joined:
            return self._keys(jnp.concatenate([call.context, tokens], axis=1), head_dim)
        return self._keys(call.context, head_dim)

    def _context_mask(self, call: Call, N: int) -> Bool[Array, "#B #K #N M"] | None:
        mask = call.context_mask
        if mask is None or not self.joined:
            return mask
        mask = jnp.broadcast_to(mask, (*mask.shape[:3], call.context.shape[1]))
        return jnp.pad(mask, [(0, 0), (0, 0), (0, 0), (0, N)], constant_values=True)

    def _keys(
        self, tokens: Float[Array, "B M _"], head_dim: int
    ) -> tuple[Float[Array, "B Kv M d"], Float[Array, "B Kv M d"]]:
        """Keys and values of tokens."""
        heads = self.kv_heads or self.heads
        return self._project("key", tokens, heads, head_dim), self._project("value", tokens, heads, head_dim)

    def _place(self, query, key, value, call: Call, cache: Cache | None):
        """Gives the new tokens their places in the sequence: positions, cache, and who sees whom."""
        B, _, N, _ = query.shape
        unrotated = query
        before = 0 if cache is None else cache.length
        places = before + jnp.arange(N)
        if self.positional:
            positions = jnp.broadcast_to(places, (B, N)) if call.positions is None else call.positions
            for part in self.positional:
                query, key = part.rotate(query, key, positions)
        mask, key_places = call.mask, places
        if cache is not None:
            kept = cache.append(key, value)
            key, value, key_places = kept.key.astype(key.dtype), kept.value.astype(value.dtype), kept.places()
            mask = None if mask is None else kept.of_places(mask)
            cache = kept.kept()
        order = {"causal": self.causal, "local": self.local, "cached": cache is not None}
        tokens = {"prefix": call.prefix, "segments": call.segments, "alone": call.alone}
        rules = rules_of(places, key_places, **order, **tokens)
        biases = [call.bias, *(part.bias(self.param, unrotated, places, key_places) for part in self.positional)]
        biases = [bias for bias in biases if bias is not None]
        return query, key, value, mask, sum(biases[1:], biases[0]) if biases else None, rules, cache
