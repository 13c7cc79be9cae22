"""The pickles inside PyTorch's files, read by an interpreter that can build tensors' descriptions and nothing else.

Python's own unpickler calls whatever a file names. This one knows the instructions that a dict of tensors needs, and of the names
in a pickle those of `_STORAGES` and `_CALLS`: no foreign code runs, nothing is imported, and nothing is allocated but what
the instructions themselves spell out.
"""

import pickletools
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_CALLS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict")
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT")
_MAX_AXES = 8


class Storage(NamedTuple):
    """A run of numbers in another entry of the archive."""

    dtype: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage, strides and offset in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """Something that the pickle refers to by module and name, and that is allowed."""

    name: str


_MARK = object()


def read_tensors(pickled: bytes) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, by name.

    Raises:
      ValueError: it names anything that is not allowed (which is named in turn), uses other instructions, or is no dict of tensors.
    """
    try:
        result = _run(pickled)
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the pickle is damaged: {type(error).__name__}") from error
    if not isinstance(result, dict):
        raise ValueError("the pickle is not a dict of tensors")
    for key, value in result.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"the pickle is not a dict of tensors: it holds a {type(value).__name__}")
    return result


def _run(pickled: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case name if name in _LITERALS:
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "BINPUT" | "LONG_BINPUT":
                memo[_integer(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_integer(argument)])
            case "GLOBAL":
                stack.append(_allowed(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(f"{module:s}.{name:s}"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(opcode.name[-1]) :] = [tuple(stack[-int(opcode.name[-1]) :])]
            case "TUPLE":
                items = _popped_to_mark(stack)
                stack.append(tuple(items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = _popped_to_mark(stack)
                _set_items(stack[-1], items)
            case "BUILD":  # a state dict carries the versions of its modules as an attribute
                if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
                    raise ValueError("the pickle sets attributes of something that is not a dict, which is not allowed")
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, call = stack.pop(), stack.pop()
                stack.append(_called(call, arguments))
            case name:
                raise ValueError(f"the pickle uses the instruction {name}, which is not allowed: only tensors are read")
    raise ValueError("the pickle is cut short")


def _allowed(name: str) -> _Name:
    module, _, last = name.rpartition(".")
    if name in _CALLS or (module == "torch" and last in _STORAGES):
        return _Name(name)
    raise ValueError(f"the pickle names {name[:100]!a}, which is not allowed: only tensors are read")


def _called(call: Any, arguments: Any) -> Any:
    if not isinstance(call, _Name) or not isinstance(arguments, tuple) or call.name not in _CALLS:
        raise ValueError("the pickle calls something that is not allowed: only tensors are read")
    if call.name == "collections.OrderedDict" and not arguments:
        return {}
    if call.name == "torch._utils._rebuild_parameter" and arguments and isinstance(arguments[0], Tensor):
        return arguments[0]
    if call.name == "torch._utils._rebuild_tensor_v2" and _is_tensor(arguments):
        return Tensor(*arguments[:4])
    raise ValueError(f"the pickle calls {call.name} with arguments that make no tensor")


def _is_tensor(arguments: tuple[Any, ...]) -> bool:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        return False
    _, offset, shape, strides = arguments[:4]
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        return False
    return len(shape) == len(strides) <= _MAX_AXES and all(map(_is_count, (offset, *shape, *strides)))


def _storage(identity: Any) -> Storage:
    if isinstance(identity, tuple) and len(identity) == 5 and isinstance(identity[1], _Name):
        kind, name, key, _, count = identity
        dtype = _STORAGES.get(name.name.removeprefix("torch."))
        if kind == "storage" and dtype is not None and isinstance(key, str) and _is_count(count):
            return Storage(dtype, key, count)
    raise ValueError("the pickle refers to something that is not a tensor's storage")


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("the pickle is not a dict of tensors: it has keys that are not text")
    target.update(zip(items[::2], items[1::2], strict=True))


def _popped_to_mark(stack: list[Any]) -> list[Any]:
    start = len(stack)
    while stack[start - 1] is not _MARK:
        start -= 1
        if start == 0:
            raise LookupError
    items = stack[start:]
    del stack[start - 1 :]
    return items


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _integer(argument: Any) -> int:
    assert isinstance(argument, int)
    return argument


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The pickle that `torch.load` makes a state dict of, protocol 2 as PyTorch writes it."""
    items = b"".join(_text(name) + _pickled(tensor) for name, tensor in tensors.items())
    return b"\x80\x02}(" + items + b"u."


def _pickled(tensor: Tensor) -> bytes:
    kind = next(name for name, dtype in _STORAGES.items() if dtype == tensor.storage.dtype)
    location = b"(" + _text("storage") + _name("torch", kind) + _text(tensor.storage.key) + _text("cpu")
    storage = location + _number(tensor.storage.count) + b"tQ"
    sizes = _tuple(tensor.shape) + _tuple(tensor.strides)
    hooks = _name("collections", "OrderedDict") + b")R"
    return (
        _name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + _number(tensor.offset)
        + sizes
        + b"\x89"
        + hooks
        + b"tR"
    )


def _tuple(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
