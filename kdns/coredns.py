"""The `coredns` command: CoreDNS's own flags onto the same app.

Law: CoreDNS 1.14.7, coremain/run.go: flags with one dash or two, what is said on stdout, exit codes.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kdns import __version__, corefile, logs, serve
from kdns.app import Configuration
from kdns.errors import ConfigError, KdnsError, Problem, draw_all
from kdns.plugins import PLUGINS

log = logging.getLogger("kdns")

# Tools of Kubernetes read the first line and know CoreDNS's versions only.
COMPATIBLE_VERSION = "1.14.7"
_TAKE_A_VALUE = ("conf", "dns.port", "p", "pidfile")


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
        click.echo("Server types:\n  dns\n\nOther plugins:")
        for name in sorted(plugin.name for plugin in PLUGINS):
            click.echo(f"  dns.{name}")
        return
    logs.configure(sys.stdout)
    if pidfile:
        try:
            Path(pidfile).write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise KdnsError(f"can't write the process id to `{pidfile}`: {os.strerror(error.errno or 0)}") from error
    parsed = _corefile(conf, port)

    def show(configuration: Configuration) -> None:
        for problem in serve.warnings(parsed, configuration):
            log.warning("%s", _line(problem))
        if not quiet:
            print("\n".join(zone_lines(configuration)), flush=True)
        if any(plugin.name == "reload" for plugin in configuration.plugins):
            logs.plugin_logger("reload").info("Running configuration SHA512 = %s", configuration.fingerprint)
        if not quiet:
            print(_versions(), flush=True)

    serve.run(parsed, show, lambda: _corefile(conf, port))


def zone_lines(configuration: Configuration) -> list[str]:
    """What CoreDNS says of each zone: `cluster.local.:53 on 10.1.2.3`."""
    return sorted(
        f"{site.zone_text}:{listener.port}" + (f" on {listener.address}" if listener.address else "")
        for listener in configuration.listeners
        for site in listener.sites
    )


def _line(problem: Problem) -> str:
    where = f"{problem.place.file}:{problem.place.line}" if problem.place else ""
    text = ": ".join(filter(None, (where, problem.subject, problem.message)))
    return f"{text} ({problem.hint})" if problem.hint else text


def _corefile(conf: str, port: int) -> corefile.Corefile:
    def read() -> corefile.Corefile:
        if conf == "stdin":
            return corefile.parse(sys.stdin.read(), "stdin", default_port=port, environment=os.environ)
        if not conf and not Path("Corefile").exists():
            return corefile.parse(serve.NO_BLOCK, "no Corefile", default_port=port)
        return corefile.load(conf or "Corefile", default_port=port)

    return serve.tolerant(read, port)


def _versions() -> str:
    system = f"{platform.system().lower()}/{platform.machine()}"
    return f"CoreDNS-{COMPATIBLE_VERSION}\n{system}, Python {platform.python_version()}, kdns {__version__}"


def _two_dashes(arguments: Sequence[str]) -> list[str]:
    """The arguments with Go's `-flag` as `--flag`, but for what is a flag's value."""
    spelled: list[str] = []
    value = False
    for each in arguments:
        flag = not value and each.startswith("-") and each != "-"
        spelled.append(f"--{each.lstrip('-')}" if flag else each)
        value = flag and each.lstrip("-") in _TAKE_A_VALUE
    return spelled


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
