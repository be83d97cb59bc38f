"""Malformed requests to a running demo, the same ones for the same seed. What they ask for is read from the
page itself, so that a new tab is covered by no new line."""

import base64
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dit_heads.io.pictures import png_bytes

API = "/gradio_api"
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Request:
    """One request; `session` is that of an event, whose outcome is read afterwards."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    session: str = ""


# --- files ---


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header says so large a picture, with hardly a pixel in it."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + png_chunk(b"IEND", b"")


def picture_as(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format=kind)
    return buffer.getvalue()


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../../outside.txt", b"\0" * 2**24)
    return buffer.getvalue()


def files() -> list[bytes]:
    """Bytes that are no picture of the page, no LoRA and no head set."""
    good = png_bytes(Image.new("RGB", (8, 8)), {"prompt": "a cat"})
    bomb = b"parameters\0\0" + zlib.compress(b"[" * 2**26, 9)
    settings: list[Any] = [
        *([], 7, None, "text", {}, {"prompt": 3}, {"prompt": "a", "model": "../../etc"}, {"heads": ["L0"]}),
        *({"prompt": "a", "model": "tiny", name: value} for name in SETTINGS for value in VALUES[::7]),
    ]
    return [
        *(
            b"",
            b"no picture",
            good[:40],
            good[:-30],
            good[::-1],
            good + good,
            zip_bomb(),
            b"\x80\x04\x95pickle.",
        ),
        *(png_of(60_000, 60_000), png_of(0, 0), png_of(2**31 - 1, 1), png_of(8, 8)),
        png_of(8, 8, png_chunk(b"zTXt", bomb)),
        png_of(8, 8, png_chunk(b"tEXt", b"parameters\0" + b"[" * 200_000)),
        png_of(8, 8, png_chunk(b"tEXt", b'parameters\0{"prompt": NaN, "seed": 1e999}')),
        *(picture_as(kind) for kind in ("GIF", "BMP", "TIFF", "WEBP", "JPEG", "PPM")),
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        struct.pack("<Q", 2**63 - 1) + b"{}",
        struct.pack("<Q", 40) + b'{"a":{"dtype":"F32","shape":[99999999]}}',
        b'{"heads": ["L0H' + b"9" * 999 + b'"], "unguided": NaN}',
        *(png_bytes(Image.new("RGB", (8, 8)), each) for each in settings if isinstance(each, dict)),
        *(
            png_of(8, 8, png_chunk(b"tEXt", b"parameters\0" + json.dumps(each).encode()))
            for each in settings[:4]
        ),
    ]


SETTINGS = (
    "prompt",
    "heads",
    "scale",
    "softness",
    "steps",
    "seed",
    "width",
    "region",
    "temperature",
    "start",
)


# --- values ---


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def file_value(path: str) -> dict[str, Any]:
    """What Gradio's own components send for a file."""
    return {"path": path, "url": path, "orig_name": path, "meta": {"_type": "gradio.FileData"}}


PATHS = (
    *("/etc/passwd", "../../../../etc/passwd", "..\\..\\windows\\win.ini", "file:///etc/passwd", "a\0b"),
    *("/proc/self/environ", "http://127.0.0.1:9/x", "//127.0.0.1/x", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    *("~/.bashrc", "/dev/zero"),
)
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 3.5, 1e308, -1e308, 2**31, 2**62, 2**70, 10**400, "", " ", "x" * 5_000),
    *("a\0b", "\U0001f600\u202e\ufeff", "<script>alert(1)</script>", "{prompt}", "%s%n", "L9H9"),
    *("L0H0-99999999", "L0-999999999", "L0-999H0-999"),
    *("L0H0, " * 3_000, "nan", "inf", "0x10", "1_000", "identity", "temperature", "tiny", "\u0661", "\ud800"),
    *(
        [],
        {},
        [[]],
        [None] * 50,
        {"text": 3},
        {"text": "L0H0" * 900},
        {"text": None, "scores": {"L0H0": "x"}},
    ),
    *(
        {"heads": []},
        {"settings": []},
        {"data": 3},
        {"__type__": "update", "value": 3},
        nested(8),
        nested(40),
    ),
    *PATHS,
    *(file_value(path) for path in PATHS),
]


def some_value(chance: random.Random, kinds: list[bytes]) -> Any:
    if chance.random() < 0.2:
        coded = base64.b64encode(chance.choice(kinds)).decode()
        named = {"name": "../x.png", "data": coded}
        return chance.choice([coded, {"data": coded}, named, f"data:image/png;base64,{coded}"])
    return chance.choice(VALUES)


def raw_json(value: Any, chance: random.Random) -> bytes:
    """JSON text, sometimes damaged."""
    text = json.dumps(value).encode()
    kind = chance.randrange(12)
    damaged = {
        0: text[: len(text) // 2],
        1: b"[" * 100_000,
        2: text.replace(b"null", b"NaN").replace(b"1", b"1e999"),
        3: b"\xff\xfe" + text,
        4: b"",
    }
    return damaged.get(kind, text)


# --- requests ---


class Page:
    """What a running page says of itself.

    Args:
        config: of its Gradio blocks.
        routes: all paths that Gradio has.
        seed: of the choices.
    """

    def __init__(self, config: dict[str, Any], routes: list[str], seed: int) -> None:
        self.chance = random.Random(seed)
        self.events = config["dependencies"]
        self.parts = {part["id"]: part for part in config["components"]}
        self.routes, self.files, self.count = routes, files(), 0

    def requests(self, count: int) -> Iterator[Request]:
        kinds = (self.event, self.event, self.event, self.call, self.mcp, self.route, self.upload, self.loose)
        for _ in range(count):
            yield self.chance.choice(kinds)()

    def event(self) -> Request:
        """An event of the page with some of its values replaced."""
        chance, event = self.chance, self.chance.choice(self.events)
        data = [self.parts[number]["props"].get("value") for number in event["inputs"]]
        for place in range(len(data)):
            if chance.random() < 0.3:
                data[place] = some_value(chance, self.files)
        self.count += 1
        session = f"malformed{self.count}"
        value = some_value(chance, self.files)
        names = ("data", "settings", "name", "id", "key", "files", "index", "value", "scale", "softness")
        sent = {name: value for name in names if chance.random() < 0.7}
        body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": sent}
        body |= {"trigger_id": None}
        if chance.random() < 0.1:
            body[chance.choice([*body, "batched", "simple_format", "event_id"])] = chance.choice(VALUES)
        return Request("POST", f"{API}/queue/join", raw_json(body, chance), JSON, session)

    def call(self) -> Request:
        """A call of the API."""
        chance = self.chance
        names = ("prompt", "heads", "scale", "softness", "perturbation", "region", "start", "stop", "seed")
        names += ("negative_prompt", "guidance_scale", "steps", "model")
        named = {name: some_value(chance, self.files) for name in names if chance.random() < 0.2}
        if chance.random() < 0.5:
            named = {"prompt": "a cat", "steps": 1, **named}
        listed = [some_value(chance, self.files) for _ in range(chance.choice([0, 1, 13, 13, 14]))]
        name = chance.choice(["draw"] * 6 + ["drawing", "../draw", "%00", "nothing"])
        way = chance.choice(["call/v2", "call", "run"])
        body = named if way == "call/v2" else {"data": listed}
        return Request("POST", f"{API}/{way}/{name}", raw_json(body, chance), JSON)

    def mcp(self) -> Request:
        """A message to the MCP endpoint."""
        chance = self.chance
        arguments = {"prompt": some_value(chance, self.files), "steps": chance.choice([1, *VALUES])}
        params: Any = {"name": chance.choice(["draw", "nothing", 3]), "arguments": arguments}
        methods = ("tools/call", "tools/call", "tools/list", "initialize", "resources/read", "no/method")
        method = chance.choice(methods)
        body: Any = {
            "jsonrpc": "2.0",
            "id": chance.choice([1, "a", None]),
            "method": method,
            "params": params,
        }
        if chance.random() < 0.2:
            body = chance.choice(
                [[body] * 3, {"jsonrpc": "1"}, VALUES[0], "text", {**body, "params": nested(9)}]
            )
        accept = chance.choice(["application/json, text/event-stream", "text/html", ""])
        path = chance.choice(["/mcp/", "/mcp", "/mcp/http/", "/mcp/messages/?session_id=x", "/mcp/nothing"])
        return Request("POST", API + path, raw_json(body, chance), {**JSON, "accept": accept})

    def route(self) -> Request:
        """Any route of Gradio, by any method."""
        chance, path = self.chance, self.chance.choice(self.routes)
        while "{" in path:
            head, _, rest = path.partition("{")
            value = chance.choice([*PATHS, "draw", "1", "-1", "x" * 300]).replace("\0", "%00")
            path = head + value + rest.partition("}")[2]
        queries = ("", "", "?session_hash=malformed", "?deep_link=../../x", "?upload_id=1", "?view=api")
        query = chance.choice(queries)
        method = chance.choice(["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
        content = b"" if method in ("GET", "HEAD") else raw_json({"data": [], "prompt": "x"}, chance)
        return Request(method, path.replace("\\", "%5c").replace(" ", "%20") + query, content, JSON)

    def upload(self) -> Request:
        """A file for one of Gradio's own routes for files."""
        chance, line = self.chance, b"--cut\r\n"
        name = chance.choice([*PATHS, "a.png", "a.html", "x" * 300 + ".png", '"; filename="b'])
        head = (
            line + b'Content-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n'
        )
        body = head + chance.choice(self.files) + b"\r\n--cut--\r\n"
        if chance.random() < 0.2:
            body = body[: len(body) // 2]
        kinds = ["multipart/form-data; boundary=cut", "multipart/form-data", "text/plain", "application/json"]
        paths = ("/upload", "/upload?upload_id=x", "/process_recording", "/component_server", "/queue/join")
        path = chance.choice(paths)
        return Request("POST", API + path, body, {"content-type": chance.choice(kinds)})

    def loose(self) -> Request:
        """What belongs to no event: ends of others' events, wrong types of content, headers that lie."""
        chance = self.chance
        body: Any = {name: chance.choice(VALUES) for name in ("session_hash", "fn_index", "event_id", "data")}
        headers = chance.choice(
            [
                JSON,
                {"content-type": "text/plain"},
                {"content-type": "application/json; charset=utf-7"},
                {**JSON, "content-encoding": "gzip"},
                {**JSON, "range": "bytes=0-99999999999999999999"},
                {**JSON, "cookie": 'access-token=\x01; a="', "authorization": "Basic !!!"},
                {
                    **JSON,
                    "x-forwarded-host": "evil.example/../",
                    "x-forwarded-proto": "javascript",
                    "origin": "null",
                },
            ]
        )
        path = chance.choice(
            ["/cancel", "/reset", "/queue/join", "/stream/x", "/heartbeat/../x", "/queue/data"]
        )
        return Request("POST", API + path, raw_json(body, chance), headers)
