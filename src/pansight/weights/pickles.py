"""Read a pickle as data: its instructions are followed, but nothing that it names is ever imported or called.

A pickle is a program for a small stack machine. The machine here builds strings, numbers, lists and dicts. Whatever a
pickle asks to be built by a class or a function becomes a `Made`, which holds the name and the arguments and does
nothing; ``weights.unpickle`` and ``weights.torch_files`` read the few of them that stand for numbers. Time and memory
are bounded by the size of the file: instructions are counted, and nothing is hashed or visited that could hide a tree
of shared branches (a few hundred bytes of nested lists have more leaves than there is time).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pansight.errors import PansightError

MAX_INSTRUCTIONS = 1_000_000
"""A checkpoint of a thousand tensors with its optimiser has a hundred thousand."""


class Name:
    """A class or function that a pickle names: ``torch._utils._rebuild_tensor_v2``."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text


class Made:
    """What a pickle would make by calling `name`. state: what it would set on the result, or None."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Sequence[Any] = ()):
        self.name, self.arguments = name, tuple(arguments)
        self.state: Any = None


class Reference:
    """An object outside the pickle, such as the memory of a tensor. parts: how the pickle calls it."""

    __slots__ = ("parts",)

    def __init__(self, parts: Any):
        self.parts = parts


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


NUMBERS: set[str] = {
    *_names("numpy", "dtype ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *_names("torch._utils", "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_qtensor"),
    *_names("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state _rebuild_sparse_tensor"),
    *_names("torch._tensor", "_rebuild_from_type_v2"),
    *_names("torch.storage", "UntypedStorage TypedStorage"),
    *_names("torch", "Tensor UntypedStorage DoubleStorage FloatStorage HalfStorage BFloat16Storage LongStorage"),
    *_names("torch", "IntStorage ShortStorage CharStorage ByteStorage BoolStorage ComplexFloatStorage"),
    *_names("torch", "ComplexDoubleStorage QInt8Storage QUInt8Storage QInt32Storage QUInt4x2Storage QUInt2x4Storage"),
    *_names("torch.nn.parameter", "Parameter Buffer"),
    "_codecs.encode",
}
"""What tensors and arrays are made of."""

PYTHON = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
DTYPES = "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128"
PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
FLOATS_OF_8_BITS = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
HARMLESS: set[str] = {
    *_names("builtins", PYTHON),
    *_names("__builtin__", f"{PYTHON} long unicode xrange"),
    *_names("collections", "OrderedDict defaultdict Counter deque"),
    *_names("copyreg", "_reconstructor __newobj__"),
    *_names("copy_reg", "_reconstructor __newobj__"),
    *_names("datetime", "datetime date time timedelta timezone"),
    *_names("pathlib", PATHS),
    *_names("pathlib._local", PATHS),
    *_names("torch", f"{DTYPES} {FLOATS_OF_8_BITS} Size device Generator strided preserve_format contiguous_format"),
    *_names("torch.serialization", "_get_layout"),
    *_names("torch", "per_tensor_affine per_channel_affine per_channel_affine_float_qparams"),
    *_names("numpy", f"{DTYPES} float128 longdouble bool_ str_ bytes_ void object_ datetime64 timedelta64"),
    *_names("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
    *_names("numpy.random._mt19937", "MT19937"),
    *_names("numpy.random._pcg64", "PCG64"),
    *_names("typing", "Any Union Optional"),
    *_names("omegaconf.dictconfig", "DictConfig"),
    *_names("omegaconf.listconfig", "ListConfig"),
    *_names("omegaconf.base", "ContainerMetadata Metadata"),
    *_names("omegaconf.nodes", "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode"),
    *(f"{home}.AttributeDict" for home in ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data")),
    *(f"{home}.utilities.parsing.AttributeDict" for home in ("pytorch_lightning", "lightning.pytorch")),
    *(f"{home}.CfgNode" for home in ("yacs.config", "fvcore.common.config", "detectron2.config.config")),
    *("argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    *("easydict.EasyDict", "addict.addict.Dict", "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict"),
    "ml_collections.config_dict.config_dict.ConfigDict",
}
"""Values beside the weights (arguments of a training, dates, paths, configurations). They are passed over, not made."""


def load(data: Any, source: str | Path) -> tuple[Any, list[Reference]]:
    """(the object that the pickle at the place of `data` describes, all references in it); `data` then stands after it.

    data: read() must not ask for memory beyond the end of the file, as of io.BytesIO and mmap. source: for messages.
    Raises PansightError for a name beside NUMBERS and HARMLESS and for too many instructions; ValueError, LookupError
    or TypeError where the pickle is damaged.
    """
    machine = _Machine(source)
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if count == MAX_INSTRUCTIONS:
            limit = f"a pickle of at most {MAX_INSTRUCTIONS} instructions"
            raise PansightError(where=source, expected=limit, found="more", hint="save the state_dict() alone")
        if operation.name == "STOP":
            return machine.stack.pop(), machine.references
        machine.run(operation.name, argument)
    raise ValueError("no end")  # genops itself says so first


class _Machine:
    def __init__(self, source: str | Path):
        self.source = source
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # a stack for each mark that is open
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []

    def run(self, operation: str, argument: Any) -> None:
        if operation in VALUES:
            self.stack.append(argument)
        elif operation in CONSTANTS:
            self.stack.append(CONSTANTS[operation]())
        elif operation in COLLECTIONS:
            items = self.marked()
            self.stack.append(COLLECTIONS[operation](items))
        elif operation in ACTIONS:
            ACTIONS[operation](self, argument)
        else:
            raise ValueError(f"the instruction {operation}")

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What lies above the last mark, which goes."""
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def drop(self, _: Any) -> None:
        self.marked()

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("a tuple of more than there is")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Made):  # what is passed over swallows its items
            raise TypeError(f"items of {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Made):
            raise TypeError(f"keys of {type(target).__name__}")

    def append_one(self, _: Any) -> None:
        self.append([self.stack.pop()])

    def set_item(self, _: Any) -> None:
        value = self.stack.pop()
        self.set_items([self.stack.pop(), value])

    def name(self, text: str) -> None:
        """text: module and name, with a blank between."""
        module, _, name = text.partition(" ")
        full = f"{module}.{name}"
        if full not in NUMBERS and full not in HARMLESS:
            found = f"the name {full}, which could run code"
            hint = "save its state_dict() alone, as .pth or .safetensors"
            raise PansightError(where=self.source, expected="tensors only", found=found, hint=hint)
        self.stack.append(Name(full))

    def name_of_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module:s} {name:s}")

    def call(self, what: Any, arguments: Any) -> None:
        if not isinstance(what, Name) or not isinstance(arguments, tuple | list):
            raise TypeError(f"a call of {type(what).__name__}")
        make = MAKERS.get(what.text)
        self.stack.append(make(arguments) if make is not None else Made(what.text, arguments))

    def reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments)

    def new_with_keywords(self, _: Any) -> None:
        self.stack.pop()
        self.reduce(_)

    def instance(self, text: str) -> None:
        arguments = self.marked()
        self.name(text)
        self.call(self.stack.pop(), arguments)

    def make_object(self, _: Any) -> None:
        what, *arguments = self.marked()
        self.call(what, arguments)

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Made):
            target.state = state

    def refer(self, parts: Any) -> None:
        self.references.append(Reference(parts))
        self.stack.append(self.references[-1])


VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
    ]
)
"""Instructions that carry a value."""

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}

COLLECTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": list,
    "DICT": lambda items: dict(zip(map(_key, items[::2]), items[1::2], strict=True)),
}
"""Of what lies above a mark. Sets are lists here: nothing looks into them, and their items need no hash."""

ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.drop,
    "DUP": lambda machine, argument: machine.stack.append(machine.stack[-1]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE1": lambda machine, argument: machine.tuple_of(1),
    "TUPLE2": lambda machine, argument: machine.tuple_of(2),
    "TUPLE3": lambda machine, argument: machine.tuple_of(3),
    "APPEND": _Machine.append_one,
    "APPENDS": lambda machine, argument: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, argument: machine.append(machine.marked()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, argument: machine.set_items(machine.marked()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "INST": _Machine.instance,
    "OBJ": _Machine.make_object,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
    "PERSID": _Machine.refer,
    "BINPERSID": lambda machine, argument: machine.refer(machine.stack.pop()),
}


def _key(value: Any) -> Any:
    """A key of a dict: text or a number of usual size. Anything else, whose hash may take for ever, becomes a blank."""
    if isinstance(value, str | bytes | float | bool | None) or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    return Made("key")


def _dict_of(arguments: Sequence[Any]) -> dict[Any, Any]:
    """``OrderedDict([(key, value), …])`` as Python 2 wrote it; newer files set the items afterwards."""
    pairs = arguments[0] if arguments else []
    return {_key(key): value for key, value in pairs}


def _encoded(arguments: Sequence[Any]) -> bytes:
    """``_codecs.encode(text, "latin1")``: how Python 3 writes bytes in the protocols of Python 2."""
    text, encoding = arguments
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("an encoding other than latin1")
    return text.encode("latin1")


def _bytes_of(arguments: Sequence[Any]) -> bytes:
    """``bytes()``: how Python 3 writes empty ones in the protocols of Python 2."""
    if arguments:
        raise ValueError("bytes of something")
    return b""


def _reconstructed(arguments: Sequence[Any]) -> Made:
    """``copyreg._reconstructor(class, base, state)``: how protocols 0 and 1 make an object."""
    if not arguments or not isinstance(arguments[0], Name):
        raise TypeError("an object of no class")
    return Made(arguments[0].text)


MAKERS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "collections.OrderedDict": _dict_of,
    "collections.defaultdict": lambda arguments: {},
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _bytes_of,
    **{f"{home}._reconstructor": _reconstructed for home in ("copyreg", "copy_reg")},
}
"""What is made at once, since it holds weights or is a part of an array."""
