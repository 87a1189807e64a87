"""Open a page on which a digit can be drawn and attacked, until Ctrl-C."""

import argparse
import os
import socket
import threading
from importlib.util import find_spec
from pathlib import Path

from mnist_jax import data
from mnist_jax.commands import console
from mnist_jax.errors import InputError
from mnist_jax.storage import checkpoint
from mnist_jax.unstable import compile_quickly

HERE = "127.0.0.1"
# Host names that requests may have where the page listens to this machine only. Others are refused: a web site could
# have its own name point to this address, and so read the page (DNS rebinding).
NAMES = [HERE, "localhost", "[::1]", "::1"]
PORT = 7860  # default; the one that Gradio's pages have, too
MOST_AT_ONCE = 32  # requests that are answered at the same time; an open page makes two; chosen, not tuned
BETWEEN_LOOKS = 0.2  # seconds between two checks for Ctrl-C


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = console.Parser("demo", __doc__)
    parser.add_argument(
        "--host", default=HERE, help="address to listen on; 0.0.0.0 admits the network's other machines"
    )
    parser.add_argument("--port", type=console.number(int, 0, 65535), default=PORT, help="0 for any that is free")
    names = "networks of MNIST to offer, by path or by a name such as CNN (default: all that ship with the project)"
    parser.add_argument("--models", nargs="+", metavar="NAME", default=argparse.SUPPRESS, help=names)
    parser.add_argument("--output", type=Path, default=checkpoint.RUNS, help="folder of your own networks")
    return parser.parse_args(argv)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on that address and port. Raises `InputError` where the system refuses it."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot listen on {host}, port {port} ({reason}); choose another --port or --host") from error


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(f'the page needs {" and ".join(missing)}: pip install "mnist_jax[demo]"')
    compile_quickly()  # for single images compiling takes longer than the programs run: the first answer comes sooner
    console.start()
    import uvicorn

    from mnist_jax.demo.answers import Demo
    from mnist_jax.demo.page import application

    shipped = sorted(checkpoint.shipped().glob("*.safetensors"))
    paths = [checkpoint.find(model, options.output) for model in options.models] if "models" in options else shipped
    demo = Demo(paths, data.load_split("val"))
    if "models" in options:  # networks that ship with the project are loaded when they are first asked for
        for name in demo.paths:
            demo.network(name)
    hosts = NAMES if options.host in NAMES else ["*"]
    settings = uvicorn.Config(
        application(demo, hosts),
        lifespan="off",
        ws="none",
        log_level="error",
        server_header=False,
        limit_concurrency=MOST_AT_ONCE,
    )
    listener = listen(options.host, options.port)
    serving = threading.Thread(target=uvicorn.Server(settings).run, kwargs={"sockets": [listener]}, daemon=True)
    serving.start()
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    console.report({"address": address}, f"{address}  (Ctrl-C ends it)", as_json=options.json)
    with console.Interrupt() as interrupt:
        while serving.is_alive() and interrupt.wanted is None:
            serving.join(BETWEEN_LOOKS)
    # A search that runs can't be interrupted, and there is nothing to save: the process ends without waiting for it.
    os._exit(console.ended(interrupt.wanted) if interrupt.wanted else 1)
