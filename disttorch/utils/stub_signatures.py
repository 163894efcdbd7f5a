"""The text of one function's signature in a stub.

A parameter's type is what its ``def`` says; otherwise what the op's registration says (tensors,
optional ones, numbers); otherwise what its name means everywhere (``dtype``, ``device``, ``out``);
otherwise that of a bool default. Everything else is ``Any``: a stub refuses wrong names and numbers
of arguments, and leaves values to the functions, which say more.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import Any

from disttorch import ops, return_types
from disttorch.ops.core import Op
from disttorch.ops.elementwise_core import ElementwiseOp
from disttorch.ops.join import ListOp

ANY = "Any"
BUILTINS = ("bool", "bytes", "complex", "dict", "float", "int", "list", "object", "slice", "str",
            "tuple")
KNOWN = {name: f"_{name}" for name in BUILTINS} | {
    "Tensor": "Tensor", "Any": ANY, "Size": "_Size", "Generator": "_Generator",
    "dtype": "_dtype", "device": "_device", "memory_format": "_memory_format",
    "Callable": "Callable", "Iterable": "Iterable", "Iterator": "Iterator",
    "Sequence": "Sequence",
}
BY_NAME = {
    "dtype": "_dtype | None", "device": "_DeviceLike | None", "generator": "_Generator | None",
    "memory_format": "_memory_format | None",
}

# What a call returns depends on its arguments; parameters after the first, and the result
_REDUCED = (("*, out: Tensor | None = None", "Tensor"),
            ("other: Tensor, *, out: Tensor | None = None", "Tensor"))


def _along_dim(kind: str):
    result = f"_return_types.{kind}"
    return (
        (f"dim: _int | None, keepdim: _bool = False, *, out: {ANY} = None", result),
        (f"*, dim: _int, keepdim: _bool = False, out: {ANY} = None", result),
        (f"*, axis: _int, keepdim: _bool = False, keepdims: _bool = False, out: {ANY} = None",
         result),
    )


OVERLOADS = {
    **{n: (*_REDUCED, *_along_dim(n)) for n in ("max", "min")},
    **{n: (("", "Tensor"), *_along_dim(n)) for n in ("median", "nanmedian")},
    "nonzero": (("*, as_tuple: Literal[False] = False", "Tensor"),
                ("*, as_tuple: Literal[True]", "_tuple[Tensor, ...]")),
    "size": (("dim: None = None", "_Size"), ("dim: _int", "_int")),
    "stride": (("dim: None = None", "_tuple[_int, ...]"), ("dim: _int", "_int")),
    "type": (("dtype: None = None", "_str"),
             ("dtype: Any, non_blocking: _bool = False, **kwargs: Any", "Tensor")),
}

WHERE = (("condition: Tensor", "_tuple[Tensor, ...]"),
         ("condition: Tensor, input: Tensor | _Number, other: Tensor | _Number, *, "
          "out: Tensor | None = None", "Tensor"))


# ---------------------------------------------------------------- types
def translate(annotation: Any) -> str | None:
    """An annotation of the source in the stub's names; None if it names anything else."""
    if annotation is None or annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        annotation = getattr(annotation, "__name__", str(annotation))
    tree = ast.parse(annotation.strip("'\""), mode="eval").body
    try:
        return ast.unparse(_Renamed().visit(tree))
    except LookupError:
        return None


class _Renamed(ast.NodeTransformer):
    def visit_Name(self, node):
        if node.id == "TensorLike":
            raise LookupError(node.id)
        if node.id in return_types.__all__ and node.id not in KNOWN:
            return ast.Name(f"_return_types.{node.id}")
        return ast.Name(KNOWN[node.id])

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and node.value.id == "return_types":
            return ast.Name(f"_return_types.{node.attr}")
        return ast.Name(KNOWN[node.attr])


def parameter_type(op: Op | None, p: inspect.Parameter, returns: str) -> str:
    told = translate(p.annotation)
    if told is not None:
        return f"{told} | None" if p.default is None and "None" not in told != ANY else told
    if op is not None and p.name in op.params and op.params.index(p.name) in op.slots:
        return operand_type(op, op.params.index(p.name))
    if p.name == "out":
        return "Tensor | None" if returns == "Tensor" else ANY
    if p.name in BY_NAME and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
        return BY_NAME[p.name]
    return "_bool" if isinstance(p.default, bool) else ANY


def operand_type(op: Op, slot: int) -> str:
    """The type of an op's tensor parameter: elementwise ones of several also take numbers."""
    if isinstance(op, ListOp):
        return "Sequence[Tensor]"
    number = slot in op.numbers
    if isinstance(op, ElementwiseOp) and len(op.slots) > 1:
        number = slot not in op.tensor_only
    return "Tensor" + " | _Number" * number + " | None" * (slot in op.optional)


def return_type(name: str, function, op: Op | None, prefix: str) -> str:
    if op is not None:
        if op.nout == 1:
            return "Tensor"
        return f"_tuple[{', '.join(['Tensor'] * op.nout) or 'Tensor, ...'}]"
    annotation = inspect.signature(function).return_annotation
    if annotation in ("tuple", tuple):
        return "_tuple[Any, ...]"
    if annotation in (None, "None"):
        return "None"
    told = translate(annotation)
    if told is not None:
        return told
    kind = f"{prefix}{name}"
    if kind in return_types.__all__:
        return f"_return_types.{kind}"
    return "Tensor" if function.__name__ == "<lambda>" else ANY


# ---------------------------------------------------------------- signatures
def signature_of(name: str, function, prefix: str = "") -> tuple[list, str, Op | None]:
    """(``inspect.Parameter`` list, the result's type, the op if it is one) of a public function."""
    op = getattr(function, "op", None)
    if op is not None:
        parameters = list(inspect.signature(op.forward).parameters.values())[1:]
        if op.has_out:
            out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None)
            parameters = _inserted(parameters, out)
    else:
        parameters = list(inspect.signature(function).parameters.values())
    base = name.removesuffix("_") if name.endswith("_") else None
    if base in ops.PUBLIC and any(p.kind is p.VAR_KEYWORD for p in parameters):
        # the in-place form takes what the function takes, and returns its own tensor
        rest = [p for p in signature_of(base, ops.PUBLIC[base])[0][1:] if p.name != "out"]
        first = parameters[0].replace(annotation="Tensor")
        return [first, *rest], "Tensor", getattr(ops.PUBLIC[base], "op", None)
    return parameters, return_type(name, function, op, prefix), op


def _inserted(parameters: list, new: inspect.Parameter) -> list:
    """With one more keyword-only parameter, before ``**kwargs`` if there are any."""
    end = len(parameters) - any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [*parameters[:end], new, *parameters[end:]]


def numpy_words(name: str, function, parameters: list) -> list:
    """The parameters and NumPy's words for them, where the function takes those."""
    takes = name in ops._NUMPY_WORDS and function is ops.PUBLIC[name]
    if not takes or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    at = next((i for i, p in enumerate(parameters) if p.name in ("dim", "dims")), None)
    if at is None:
        return parameters
    if parameters[at].kind is not inspect.Parameter.VAR_POSITIONAL:
        after = parameters[at + 1 :]
        if parameters[at].default is inspect.Parameter.empty:
            if any(p.default is p.empty and p.kind is not keyword for p in after):
                return parameters  # dim may not have a default here
            parameters = [*parameters[:at], parameters[at].replace(default=...), *after]
    words = ["axis"] + ["keepdims"] * any(p.name == "keepdim" for p in parameters)
    for word in words:
        default = False if word == "keepdims" else ...
        parameters = _inserted(parameters, inspect.Parameter(word, keyword, default=default))
    return parameters


def default_text(value: Any) -> str:
    plain = value is None or isinstance(value, (bool, int, str))
    if isinstance(value, tuple):
        plain = all(isinstance(v, (bool, int)) for v in value)
    if isinstance(value, float):
        plain = value == value and abs(value) != float("inf")
    return repr(value) if plain else "..."


def parameter_texts(parameters: Sequence[inspect.Parameter], op, returns, method) -> list[str]:
    texts, starred = [], False
    for i, p in enumerate(parameters):
        if i == 0 and method:
            texts.append("self")
            continue
        if p.kind is p.VAR_POSITIONAL:
            starred = True
        elif p.kind is p.KEYWORD_ONLY and not starred:
            texts.append("*")
            starred = True
        stars = "*" * (p.kind is p.VAR_POSITIONAL) + "**" * (p.kind is p.VAR_KEYWORD)
        text = f"{stars}{p.name}: {parameter_type(op, p, returns)}"
        if p.default is not p.empty:
            text += f" = {default_text(p.default)}"
        texts.append(text)
    return texts


def text_of(name: str, parameters: Sequence[str], returns: str, indent: str = "") -> str:
    """One ``def``, folded where the line would be too long."""
    line = f"{indent}def {name}({', '.join(parameters)}) -> {returns}: ...\n"
    if len(line) <= 101:
        return line
    inner = f"{indent}    {', '.join(parameters)}\n"
    if len(inner) > 101 or "*args" in inner or "**" in inner:
        inner = "".join(f"{indent}    {p},\n" for p in parameters)
    return f"{indent}def {name}(\n{inner}{indent}) -> {returns}: ...\n"


def _overloaded(name: str, forms, indent: str) -> str:
    return "".join(
        f"{indent}@overload\n" + text_of(name, [parameters], returns, indent)
        for parameters, returns in forms
    )


def define(name: str, function, prefix: str = "", method: bool = False) -> str:
    """The definition of a function, or of a method."""
    indent = "    " if method else ""
    if name == "where" and not method:
        return _overloaded(name, WHERE, "")
    if name in OVERLOADS:
        first = "self" if method else "input: Tensor"
        forms = [(f"{first}, {rest}".removesuffix(", "), out) for rest, out in OVERLOADS[name]]
        return _overloaded(name, forms, indent)
    parameters, returns, op = signature_of(name, function, prefix)
    parameters = numpy_words(name, function, parameters)
    return text_of(name, parameter_texts(parameters, op, returns, method), returns, indent)


__all__ = ["ANY", "define", "parameter_texts", "signature_of", "text_of"]
