"""One-line errors for values that do not fit the schema: the place and the nearest known key."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from mmnet.runtime.errors import ConfigError


def validate(model: type[Any], values: Any, where: str) -> Any:
    """Return the values as the model; `where` is their place in params.yaml.

    Raises:
        ConfigError: they do not fit; the message names the first mistake.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A mistyped key is reported twice, as unknown and as missing: the first helps more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        location = [where, *(str(part) for part in first["loc"] if part != "[key]")]
        whole = "" if first["type"] == "value_error" else "the file"
        dotted = ".".join(filter(None, location)) or whole
        message = f"params.yaml: {dotted} {_advice(model, first)}"
        raise ConfigError(" ".join(message.split())) from None


def _advice(model: type[BaseModel], error: Any) -> str:
    kind, location, value = error["type"], error["loc"], error["input"]
    if kind == "extra_forbidden":
        options = schema_at(model, location[:-1])
        known = [name for option in options for name in option.get("properties", {})]
        return "is unknown." + did_you_mean(str(location[-1]), known)
    if kind == "missing":
        return "is missing. Add it."
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"is {value!r}: must be one of {', '.join(known)}." + _closest(value, known)
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        exponent = re.fullmatch(r"[-+]?\d+e[-+]?\d+", value.lower())
        hint = " (YAML reads 1e-5 as text: write 1.0e-5)" if exponent else ""
        return f"is the text {value!r}: must be a number{hint}."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if kind == "value_error" else f"is {value!r}: "
    return f"{shown}{message}."


def schema_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Return what the model allows at a place, as JSON schemas; none where it allows anything."""
    schema = model.model_json_schema()
    options: list[Any] = [schema]
    for part in (*location, None):
        options = [option for node in options for option in node.get("anyOf", [node])]
        options = [
            schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
            for node in options
        ]
        if part is None:
            break
        inner = [
            node.get("properties", {}).get(part)
            or node.get("additionalProperties")
            or node.get("items")
            or next(iter(node.get("patternProperties", {}).values()), None)
            for node in options
        ]
        options = [node for node in inner if isinstance(node, dict)]
    return options


def did_you_mean(word: Any, known: Any) -> str:
    """Return the known word that is closest, or all of them where none is close."""
    return _closest(word, known) or (f" Known: {', '.join(known)}." if known else "")


def _closest(word: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
