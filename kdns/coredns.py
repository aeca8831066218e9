"""The `coredns` command: CoreDNS's own flags onto the same app."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from kdns import __version__, corefile, logs, serve
from kdns.errors import ConfigError, draw

# Tools of Kubernetes read the first line and know CoreDNS's versions only.
COMPATIBLE_VERSION = "1.14.7"
_FLAGS = {"-conf", "-dns.port", "-p", "-pidfile", "-plugins", "-quiet", "-version"}


@click.command(add_help_option=False, context_settings={"allow_interspersed_args": False})
@click.option("--conf", default="", metavar="FILE", help="The Corefile; `stdin` reads standard input.")
@click.option("--dns.port", "--p", "port", type=click.IntRange(1, 65535), default=53, help="The default port.")
@click.option("--quiet", is_flag=True, help="Say nothing at start.")
@click.option("--version", is_flag=True, help="Show the versions.")
@click.help_option("--h", "--help")
def coredns(conf: str, port: int, quiet: bool, version: bool) -> None:
    """A server for DNS in Kubernetes, with the flags of CoreDNS."""
    if version:
        click.echo(f"CoreDNS-{COMPATIBLE_VERSION}\nkdns {__version__}")
        return
    logs.configure(sys.stdout)
    if conf == "stdin":
        parsed = corefile.parse(sys.stdin.read(), "stdin", default_port=port)
    else:
        parsed = corefile.load(conf or "Corefile", default_port=port)
    serve.run(parsed, _say_nothing if quiet else _say)


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)


def _say_nothing(lines: Sequence[str]) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Go's flags have one dash or two.
    spelled = [f"-{each}" if each.split("=")[0] in _FLAGS | {"-h"} else each for each in given]
    try:
        coredns.main(args=spelled, prog_name="coredns", standalone_mode=False)
    except ConfigError as error:
        sys.stderr.write("\n".join(draw(problem) for problem in error.problems) + "\n")
        raise SystemExit(1) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
