"""The `kdns` command: parse, call one function, print.

stdout is data, stderr is talk; 0 done, 1 found wrong, 2 asked wrong.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import click

from kdns import __version__, corefile, dump, logs, serve
from kdns.app import Configuration
from kdns.errors import ConfigError, KdnsError, Problem, draw_all


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def kdns() -> None:
    """The cluster DNS server for Kubernetes."""


@kdns.command("serve")
@click.option("--inventory", "-i", multiple=True, metavar="PATH", help="Manifests to serve: a file, a folder, a glob.")
@click.option("--kubeconfig", metavar="FILE", help="Serve the cluster that a kubeconfig leads to. Pods have no names.")
@click.option("--context", metavar="NAME", help="With --kubeconfig: which context. [the current one]")
@click.option("--corefile", "corefile_path", metavar="FILE", help="Serve what a Corefile says.")
@click.option("--listen", "-l", multiple=True, metavar="ADDR[:PORT]", help="Where to listen. [127.0.0.1:1053]")
@click.option("--zone", default="cluster.local", show_default=True, help="The domain of the cluster.")
@click.option(
    "--forward", metavar="ADDR", help="Who answers for all other names, such as 192.0.2.1 or /etc/resolv.conf."
)
@click.option("--service-cidr", multiple=True, metavar="CIDR", help="Where services get addresses from. [10.96.0.0/12]")
@click.option("--cluster-ips", type=click.Choice(["allocate", "endpoints"]), default="allocate", show_default=True)
@click.option("--print-corefile", is_flag=True, help="Print the Corefile that the options amount to, and end.")
def serve_command(
    inventory: tuple[str, ...],
    kubeconfig: str | None,
    context: str | None,
    corefile_path: str | None,
    listen: tuple[str, ...],
    zone: str,
    forward: str | None,
    service_cidr: tuple[str, ...],
    cluster_ips: str,
    print_corefile: bool,
) -> None:
    """Serve DNS from an inventory of manifests, from a cluster, or as a Corefile says."""
    if sum(map(bool, (inventory, kubeconfig, corefile_path))) != 1:
        raise click.UsageError("give one of --inventory PATH, --kubeconfig FILE and --corefile FILE")
    if context and not kubeconfig:
        raise click.UsageError("--context is one of a --kubeconfig FILE")
    if kubeconfig and (service_cidr or cluster_ips != "allocate"):
        raise click.UsageError("--service-cidr and --cluster-ips are for an --inventory: a cluster has its addresses")
    if corefile_path:
        read = functools.partial(corefile.load, corefile_path)
    else:
        wish = serve.Wish(inventory, kubeconfig or "", context or "", listen, zone, forward, service_cidr, cluster_ips)
        read = functools.partial(corefile.parse, serve.corefile_text(wish), serve.OPTIONS)
    if print_corefile:
        click.echo(corefile.render(read()), nl=False)
        return
    parsed = serve.tolerant(read)
    colour = _colour(sys.stderr.isatty())
    logs.configure(sys.stderr, colour)

    def show(configuration: Configuration) -> None:
        if warnings := serve.warnings(parsed, configuration):
            _show(warnings)
            click.echo(err=True)
        for line in serve.start_lines(configuration, colour):
            click.echo(line, err=True, color=colour)

    serve.run(parsed, show, functools.partial(serve.tolerant, read))


@kdns.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files: tuple[str, ...]) -> None:
    """Tell every mistake of Corefiles and inventories, without a cluster, a network or a port."""
    problems: list[Problem] = []
    passed_over: Counter[str] = Counter()
    for file in files:
        checked = serve.check(file)
        problems += checked.problems
        passed_over += Counter(checked.passed_over)
    if problems:
        _show(problems)
        click.echo(err=True)
    if passed_over:
        click.echo(f"passed over: {serve.kinds_text(passed_over)}", err=True)
    wrong = sum(not problem.warning for problem in problems)
    if wrong:
        click.echo(_count(wrong, "mistake"), err=True)
        raise SystemExit(1)
    click.echo("no mistake" + (f", {_count(len(problems), 'warning')}" if problems else ""), err=True)


@kdns.command("dump")
@click.option("--inventory", "-i", multiple=True, metavar="PATH", help="Of manifests: a file, a folder, a glob.")
@click.option("--kubeconfig", metavar="FILE", help="Of a live cluster, as `kubectl` reaches it.")
@click.option("--context", default="", metavar="NAME", help="With --kubeconfig, another context than the current one.")
@click.option("--format", "form", type=click.Choice(["yaml", "zone"]), default="yaml", show_default=True)
@click.option(
    "--zone", default="cluster.local", show_default=True, help="The zone to print; a reverse one has the PTRs."
)
@click.option(
    "--ttl", type=click.IntRange(0, 3600), default=5, show_default=True, help="Seconds, with `--format zone`."
)
@click.option("--service-cidr", multiple=True, metavar="CIDR", help="Where services get addresses from. [10.96.0.0/12]")
@click.option("--cluster-ips", type=click.Choice(["allocate", "endpoints"]), default="allocate", show_default=True)
def dump_command(
    inventory: tuple[str, ...],
    kubeconfig: str | None,
    context: str,
    form: str,
    zone: str,
    ttl: int,
    service_cidr: tuple[str, ...],
    cluster_ips: str,
) -> None:
    """Print manifests or a cluster as a zone file, or as manifests with all addresses and endpoints in full."""
    if bool(inventory) == bool(kubeconfig):
        raise click.UsageError("give either --inventory PATH or --kubeconfig FILE")
    if kubeconfig:
        objects = dump.of_cluster(kubeconfig, context)
    else:
        objects = dump.of_inventory(inventory, serve.inventory_options(service_cidr, cluster_ips))
    _print(dump.as_zone(objects, zone, ttl) if form == "zone" else dump.as_yaml(objects))


@kdns.command()
def version() -> None:
    """Print the versions of kdns and of what it runs on."""
    click.echo(f"kdns {__version__}\nPython {platform.python_version()} {platform.system()} {platform.machine()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process: 0 done, 1 found wrong, 2 asked wrong."""
    try:
        kdns.main(args=list(arguments) if arguments is not None else None, prog_name="kdns", standalone_mode=False)
    except ConfigError as error:
        _show(serve.in_order(error.problems))
        raise SystemExit(1) from None
    except KdnsError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except click.exceptions.Abort:
        raise SystemExit(130) from None


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has what it wanted, as `head` does; click would call that a failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(problems: Sequence[Problem]) -> None:
    colour = _colour(sys.stderr.isatty())
    click.echo(draw_all(problems, colour), err=True, color=colour)


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def _colour(terminal: bool) -> bool:
    return terminal and not os.environ.get("NO_COLOR")
