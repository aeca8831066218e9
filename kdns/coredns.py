"""The `coredns` command: CoreDNS's own flags onto the same app.

Law: CoreDNS 1.14.7, coremain/run.go: flags with one dash or two, what is said on stdout, exit codes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from kdns import __version__, corefile, logs, serve
from kdns.app import Configuration
from kdns.errors import ConfigError, KdnsError, draw_all
from kdns.plugins import PLUGINS

log = logging.getLogger("kdns")

# Tools of Kubernetes read the first line and know CoreDNS's versions only.
COMPATIBLE_VERSION = "1.14.7"
_TAKE_A_VALUE = ("conf", "dns.port", "p", "pidfile")
_SWITCHES = ("plugins", "quiet", "version")
# What Go calls them.
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
# What CoreDNS doesn't warn of: the root, a reverse zone, labels that begin with a letter (RFC 1035 §2.3.1).
_USUAL_ZONE = re.compile(r"\.|(.*\.)?(in-addr|ip6)\.arpa\.|([A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+")


class _Flag(click.Option):
    """An option that is shown as Go shows it, with one dash."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return (record[0].replace("--", "-"), record[1]) if record else None


@click.command(add_help_option=False)
@click.option("--conf", cls=_Flag, default="", metavar="FILE", help="The Corefile; `stdin` reads standard input.")
@click.option(
    "--dns.port", "--p", "port", cls=_Flag, type=click.IntRange(1, 65535), default=53, help="The default port."
)
@click.option("--pidfile", cls=_Flag, default="", metavar="FILE", help="Where to write the process id.")
@click.option("--plugins", cls=_Flag, is_flag=True, help="List the directives.")
@click.option("--quiet", cls=_Flag, is_flag=True, help="Say nothing at start but warnings.")
@click.option("--version", cls=_Flag, is_flag=True, help="Show the versions.")
@click.help_option("--h", "--help", cls=_Flag)
@click.argument("surplus", nargs=-1, metavar="")
def coredns(
    conf: str, port: int, pidfile: str, plugins: bool, quiet: bool, version: bool, surplus: tuple[str, ...]
) -> None:
    """A server for DNS in Kubernetes, with the flags of CoreDNS."""
    if surplus:
        raise KdnsError(f"extra command line arguments: [{' '.join(surplus)}]")
    if version:
        click.echo(_versions())
        return
    if plugins:
        # An empty line at its end, too.
        click.echo("".join(f"{name}\n" for name in sorted(plugin.name for plugin in PLUGINS)))
        return
    logs.configure(sys.stdout)
    # It can be read once only, and a reload wants it again.
    given = sys.stdin.read() if conf == "stdin" else ""
    read = functools.partial(_corefile, conf, port, given)
    parsed = read()
    cleaning = contextlib.ExitStack()

    def show(configuration: Configuration) -> None:
        if pidfile:
            cleaning.enter_context(_pid_written_to(Path(pidfile)))
        serve.log_warnings(parsed, configuration)
        if not quiet:
            print("\n".join(zone_lines(configuration)), flush=True)
        if any(plugin.name == "reload" for plugin in configuration.plugins):
            logs.plugin_logger("reload").info("Running configuration SHA512 = %s", configuration.fingerprint)
        if not quiet:
            print(_versions(), flush=True)

    with cleaning:
        raise SystemExit(serve.run(parsed, show, read))


@contextlib.contextmanager
def _pid_written_to(path: Path) -> Iterator[None]:
    """A file with the process id, for as long as the process lasts. Without it the process serves all the same."""
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        log.error("Could not write pidfile: open %s: %s", path, os.strerror(error.errno or 0).lower())
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def zone_lines(configuration: Configuration) -> list[str]:
    """What CoreDNS says of each zone: `cluster.local.:53 on 10.1.2.3`."""
    said = sorted(
        (f"{site.zone_text}:{listener.port}" + (f" on {listener.address}" if listener.address else ""), site.zone_text)
        for listener in configuration.listeners
        for site in listener.sites
    )
    lines: list[str] = []
    for line, zone in said:
        if not _USUAL_ZONE.fullmatch(zone):
            lines.append(f'Warning: Domain "{zone}" does not follow RFC1035 preferred syntax')
        lines.append(line)
    return lines


def _corefile(conf: str, port: int, given: str) -> corefile.Corefile:
    """The Corefile as it is now; `given` is what stdin said."""

    def read() -> corefile.Corefile:
        if conf == "stdin":
            return corefile.parse(given, "stdin", default_port=port, environment=os.environ)
        if not conf and not Path("Corefile").exists():
            return msgspec.structs.replace(
                corefile.parse(serve.NO_BLOCK, "no Corefile", default_port=port), default=True
            )
        return corefile.load(conf or "Corefile", default_port=port)

    return serve.tolerant(read, port)


def _versions() -> str:
    machine = platform.machine()
    system = f"{platform.system().lower()}/{_MACHINES.get(machine, machine)}"
    return f"CoreDNS-{COMPATIBLE_VERSION}\n{system}, Python {platform.python_version()}, kdns {__version__}"


def _two_dashes(arguments: Sequence[str]) -> list[str]:
    """The arguments with Go's `-flag` as `--flag`, but for what is a flag's value; `-quiet=false` is left out."""
    spelled: list[str] = []
    value = False
    for each in arguments:
        flag = not value and each.startswith("-") and each != "-"
        name, equals, said = each.lstrip("-").partition("=")
        if flag and equals and name in _SWITCHES and said in _TRUE + _FALSE:
            spelled += [f"--{name}"] if said in _TRUE else []
            continue
        spelled.append(f"--{each.lstrip('-')}" if flag else each)
        value = flag and each.lstrip("-") in _TAKE_A_VALUE
    return spelled


# As Go's flag package reads a bool.
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process: 0 done, 1 found wrong, 2 asked wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        coredns.main(args=_two_dashes(given), prog_name="coredns", standalone_mode=False)
    except ConfigError as error:
        sys.stderr.write(draw_all(serve.in_order(error.problems)) + "\n")
        raise SystemExit(1) from None
    except KdnsError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        sys.stderr.write(told.getvalue().replace("--", "-"))
        raise SystemExit(2) from None
    except click.exceptions.Abort:
        raise SystemExit(130) from None
