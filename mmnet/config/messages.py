"""Refusing what does not fit the schema, in one line that names the place and the nearest key."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from mmnet.runtime.errors import ConfigError


def validate(model: type[Any], values: Any, where: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A mistyped key is both unknown and missed: its unknown half tells more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        location = [str(part) for part in first["loc"] if part != "[key]"]
        dotted = ".".join([*([where] if where else []), *location]) or "the file"
        message = f"params.yaml: {dotted} {_advice(model, first)}"
        raise ConfigError(" ".join(message.split())) from None


def _advice(model: type[BaseModel], error: Any) -> str:
    kind, location, value = error["type"], error["loc"], error["input"]
    if kind == "extra_forbidden":
        return "is unknown." + did_you_mean(str(location[-1]), _fields_at(model, location[:-1]))
    if kind == "missing":
        return "is missing. Add it."
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"is {value!r}: must be one of {', '.join(known)}." + did_you_mean(value, known)
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        exponent = re.fullmatch(r"[-+]?\d+e[-+]?\d+", value.lower())
        hint = " (YAML reads 1e-5 as text: write 1.0e-5)" if exponent else ""
        return f"is the text {value!r}: must be a number{hint}."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if kind == "value_error" else f"is {value!r}: "
    return f"{shown}{message}."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names the schema knows at a place, found by walking it."""
    schema = model.model_json_schema()
    node: Any = schema

    def resolved(node: Any) -> Any:
        for option in node.get("anyOf", []):
            if option.get("type") != "null":
                node = option
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        return node

    for part in location:
        node = resolved(node)
        patterns = list(node.get("patternProperties", {}).values())
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or patterns
        node = node[0] if isinstance(node, list) and node else node
        node = node if isinstance(node, dict) else {}
    return list(resolved(node).get("properties", {}))


def did_you_mean(word: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known: {', '.join(known)}." if known else ""
