"""Bodies of requests: JSON, or a form with files. Both become the same checked object."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile

from vlmo.serving.errors import ServiceError
from vlmo.serving.schemas import Body
from vlmo.serving.settings import MAX_FILTER, MAX_LABELS, MAX_PICTURES, MAX_TEXTS

JSON, FORM = "application/json", "multipart/form-data"

_FIELDS = MAX_TEXTS + MAX_LABELS + 10
# UTF-8 takes up to four bytes a character; texts are checked exactly afterwards.
_FIELD_BYTES = 4 * max(1000, MAX_FILTER) + 1
_HINT = "GET /openapi.json describes every field"

B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B]) -> B:
    """The body of a request, checked.

    Raises:
        ServiceError: It cannot be read, or a value is wrong.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == JSON:
        raw = await request.body()
        # Large ones take a while to parse; others are answered meanwhile.
        return await asyncio.to_thread(_from_json, kind, raw)
    if media == FORM:
        fields = await _read_form(request, kind)
        return await asyncio.to_thread(_from_fields, kind, fields)
    raise ServiceError(415, f"content type {media!r}", hint=f"send {JSON} or {FORM}")


def described(kind: type[Body]) -> dict[str, Any]:
    """The OpenAPI description of a body that `read_body` reads."""
    schema = kind.model_json_schema()
    form = json.loads(json.dumps(schema))
    for name, field in form["properties"].items():
        if name in {"picture", "pictures"}:
            file = {"type": "string", "contentMediaType": "application/octet-stream"}
            counted = {limit: field[limit] for limit in ("minItems", "maxItems") if limit in field}
            form["properties"][name] = {"type": "array", "items": file, **counted} if name in kind.repeated else file
            form["properties"][name]["description"] = field.get("description", "A picture's file.")
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, FORM: {"schema": form}}}}


def _from_json(kind: type[B], raw: bytes) -> B:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _invalid(error) from None


def _from_fields(kind: type[B], fields: dict[str, Any]) -> B:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


async def _read_form(request: Request, kind: type[Body]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    try:
        async with request.form(max_files=MAX_PICTURES, max_fields=_FIELDS, max_part_size=_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                content = await value.read() if isinstance(value, UploadFile) else value
                if name in kind.repeated:
                    fields.setdefault(name, []).append(content)
                elif name in fields:
                    raise ServiceError(422, f"{name!r:.80} is given twice", hint=_HINT)
                else:
                    fields[name] = content
    except FormParserError as error:
        raise ServiceError(400, f"the form cannot be read: {error}") from error
    return fields


def _invalid(error: ValidationError) -> ServiceError:
    """The first thing that is wrong, in words."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ServiceError(422, f"{where}: {message}" if where else message, hint=_HINT)
