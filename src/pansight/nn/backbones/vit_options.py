"""The arguments of timm's vision transformers that a setting may give, what they mean, and which values they may have.

Others would replace what our code relies on (the size of the input, the classes of layers), or name a file of weights
to open.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pansight.errors import PansightError

LARGEST, MOST = 10**6, 2**16
"""Of the numbers, and of those that are counted."""

Kind = Literal["count from 0", "count from 1", "share", "number", "flag", "layer"]

EXPECTED: dict[Kind, str] = {
    "count from 0": "a whole number from 0",
    "count from 1": "a whole number from 1",
    "share": "a share, 0 … 1",
    "number": "a number above 0",
    "flag": "true or false",
    "layer": "the name of a layer of timm",
}


class Key(NamedTuple):
    meaning: str
    kind: Kind

    @property
    def expected(self) -> str:
        return EXPECTED[self.kind]


KEYS: dict[str, Key] = {
    "embed_dim": Key("width of the tokens", "count from 1"),
    "depth": Key("blocks", "count from 1"),
    "num_heads": Key("heads of the attention", "count from 1"),
    "reg_tokens": Key("register tokens, of ViTs with learned positions", "count from 0"),
    "num_reg_tokens": Key("register tokens, of ViTs with rotary positions", "count from 0"),
    "drop_rate": Key("dropout before the head, which is not used here", "share"),
    "pos_drop_rate": Key("dropout of the tokens with their positions", "share"),
    "proj_drop_rate": Key("dropout after the projections", "share"),
    "attn_drop_rate": Key("dropout of the attention's weights", "share"),
    "drop_path_rate": Key("stochastic depth of the last block", "share"),
    "mlp_ratio": Key("width of the feed-forward layers, in widths of a token", "number"),
    "init_values": Key("first value of the layer scale; none: no layer scale", "number"),
    "rope_temperature": Key("base of the rotary frequencies", "number"),
    "rope_grid_offset": Key("offset of the rotary positions", "number"),
    "rope_shift_coords": Key("random shift of the rotary positions in training", "number"),
    "rope_jitter_coords": Key("random stretch of them by axis", "number"),
    "rope_rescale_coords": Key("random stretch of them", "number"),
    "qkv_bias": Key("bias of queries, keys and values", "flag"),
    "proj_bias": Key("bias of the projections", "flag"),
    "qk_norm": Key("norms of queries and keys", "flag"),
    "scale_attn_norm": Key("norm within the attention", "flag"),
    "scale_mlp_norm": Key("norm within the feed-forward layers", "flag"),
    "scale_mlp": Key("the same, as ViTs with rotary positions call it", "flag"),
    "swiglu_mlp": Key("gated feed-forward layers", "flag"),
    "pre_norm": Key("norm before the first block", "flag"),
    "class_token": Key("a class token", "flag"),
    "no_embed_class": Key("no position for the class token", "flag"),
    "use_abs_pos_emb": Key("learned positions", "flag"),
    "use_rot_pos_emb": Key("rotary positions", "flag"),
    "rope_rotate_half": Key("rotary positions turn the halves of a head", "flag"),
    "act_layer": Key("activation", "layer"),
    "norm_layer": Key("norm", "layer"),
}


def check_vit_options(options: Any) -> None:
    """Raises PansightError for anything but a table, a key that is none of KEYS, or a value that it cannot have."""
    if options is None:
        return
    if not isinstance(options, dict):
        found = f"{options!r:.80}"
        raise PansightError(expected="vit_options as a table (in a recipe)", found=found)
    for key, value in options.items():
        if key not in KEYS:
            expected = f"a ViT that takes {', '.join(KEYS)}"
            raise PansightError(expected=expected, found=f"{key!r:.80}")
        if not _fits(value, KEYS[key].kind):
            where, expected = f"vit_options.{key}", KEYS[key].expected
            raise PansightError(where=where, expected=expected, found=f"{value!r:.80}")


def _fits(value: Any, kind: Kind) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    match kind:
        case "count from 0" | "count from 1":
            return type(value) is int and int(kind[-1]) <= value <= MOST
        case "share":
            return is_number and 0 <= value < 1
        case "number":
            return value is None or (is_number and value >= 0)
        case "flag":
            return isinstance(value, bool)
        case "layer":
            return isinstance(value, str) and len(value) < 40
