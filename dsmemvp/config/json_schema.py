"""JSON Schema of a recipe, for editors that complete and check YAML. It has the keys, their sentences and their ranges;
rules between fields are the reading's."""

from typing import Any

from pydantic import TypeAdapter

from dsmemvp.config.methods import DEFAULT, method_module, method_names, settings_class
from dsmemvp.config.recipe import START, Recipe
from dsmemvp.config.stages import OF_STAGE

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Of a recipe file; imports all methods."""
    schema = _closed(TypeAdapter(Recipe).json_schema())
    names = sorted(method_names(), key=lambda name: name != DEFAULT)
    schema["properties"]["method"] = {"oneOf": [_of_method(name) for name in names]}
    of_stage = {"type": "object", "properties": _of_stage(schema), "additionalProperties": False}
    schema["properties"]["stages"]["additionalProperties"] = of_stage
    return {"$schema": DIALECT, "title": "A recipe of dsmemvp", **schema, "required": ["name"]}


def _of_stage(schema: dict[str, Any]) -> dict[str, Any]:
    """The keys of a stage: some of two groups, without their defaults."""
    found: dict[str, Any] = {START: {"type": "string", "description": "A run or a checkpoint that it starts from."}}
    for group, names in OF_STAGE.items():
        known = schema["$defs"][group.capitalize()]["properties"]
        properties = {name: {k: v for k, v in known[name].items() if k != "default"} for name in names}
        found[group] = {"type": "object", "properties": properties, "additionalProperties": False}
    return found


def _of_method(name: str) -> dict[str, Any]:
    schema = _closed(TypeAdapter(settings_class(name)).json_schema())
    about = " ".join((method_module(name).__doc__ or "").partition("\n\n")[0].split())
    schema["properties"]["name"] |= {"const": name, "default": name, "description": about}
    needed = [] if name == DEFAULT else ["name"]
    return schema | {"title": name, "description": about, "required": needed}


def _closed(schema: Any) -> Any:
    """Without the titles that pydantic makes of names and line breaks in sentences, and with no other keys than those
    of the schema."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if isinstance(found.get("description"), str):
        found["description"] = " ".join(found["description"].split())
    return found | {"additionalProperties": False} if found.get("type") == "object" else found
