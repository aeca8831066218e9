"""The `kdns` command: parse, call one function, print.

stdout is data, stderr is talk; 0 done, 1 found wrong, 2 asked wrong.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import click

from kdns import __version__, corefile, dump, environment, greeting, logs, serve
from kdns.app import Configuration
from kdns.errors import ConfigError, KdnsError, Problem, draw_all

# What several commands take, of manifests or of a cluster.
_inventory = click.option(
    "--inventory", "-i", multiple=True, metavar="PATH", help="Of manifests: a file, a folder, a glob."
)
_kubeconfig = click.option("--kubeconfig", metavar="FILE", help="Of a live cluster, as `kubectl` reaches it.")
_context = click.option(
    "--context", default="", metavar="NAME", help="With --kubeconfig, another context than the current one."
)
_service_cidr = click.option(
    "--service-cidr", multiple=True, metavar="CIDR", help="Where services get addresses from. [10.96.0.0/12]"
)
_cluster_ips = click.option(
    "--cluster-ips",
    type=click.Choice(["allocate", "endpoints"]),
    default="allocate",
    show_default=True,
    help="Of an inventory: give services addresses, or answer with their endpoints.",
)


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
@_service_cidr
@_cluster_ips
@click.option("--share-port", is_flag=True, help="Let another server that shares it listen at the same port.")
@click.option("--client", multiple=True, metavar="CIDR=NAMESPACE", help="Where clients stand that are no pods.")
@click.option(
    "--default-namespace",
    default="",
    metavar="NAME",
    help="Where all others stand. [default for loopback, nowhere for the rest]",
)
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
    share_port: bool,
    client: tuple[str, ...],
    default_namespace: str,
    print_corefile: bool,
) -> None:
    """Serve DNS from an inventory of manifests, from a cluster, or as a Corefile says."""
    if sum(map(bool, (inventory, kubeconfig, corefile_path))) != 1:
        raise click.UsageError("give one of --inventory PATH, --kubeconfig FILE and --corefile FILE")
    _only_with_its_source(kubeconfig, context)
    if kubeconfig and (service_cidr or cluster_ips != "allocate"):
        raise click.UsageError("--service-cidr and --cluster-ips are for an --inventory: a cluster has its addresses")
    if corefile_path and (client or default_namespace):
        raise click.UsageError("--client and --default-namespace go into a --corefile FILE as the directive `search`")
    if corefile_path and share_port:
        raise click.UsageError("--share-port goes into a --corefile FILE as the directive `multisocket`")
    if corefile_path:
        read = functools.partial(corefile.load, corefile_path)
    else:
        wish = serve.Wish(
            inventory,
            kubeconfig or "",
            context or "",
            listen,
            zone,
            forward,
            service_cidr,
            cluster_ips,
            share_port,
            client,
            default_namespace,
        )
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
        for line in greeting.start_lines(configuration, colour):
            click.echo(line, err=True, color=colour)

    raise SystemExit(serve.run(parsed, show, functools.partial(serve.tolerant, read)))


@kdns.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files: tuple[str, ...]) -> None:
    """Tell every mistake of Corefiles and inventories, and what means something else here than in CoreDNS.

    It needs no cluster, no network and no port.
    """
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
        click.echo(f"passed over: {greeting.kinds_text(passed_over)}", err=True)
    wrong = sum(not problem.warning for problem in problems)
    if wrong:
        click.echo(_count(wrong, "mistake"), err=True)
        raise SystemExit(1)
    kinds = Counter(problem.kind for problem in problems)
    click.echo(
        ", ".join(["no mistake", *(_count(kinds[kind], kind) for kind in ("warning", "note") if kinds[kind])]), err=True
    )


@kdns.command("dump")
@_inventory
@_kubeconfig
@_context
@click.option(
    "--format", "form", type=click.Choice(["yaml", "zone"]), default="yaml", show_default=True, help="How to print it."
)
@click.option(
    "--zone", default="cluster.local", show_default=True, help="The zone to print; a reverse one has the PTRs."
)
@click.option(
    "--ttl", type=click.IntRange(0, 3600), default=5, show_default=True, help="Seconds, with `--format zone`."
)
@_service_cidr
@_cluster_ips
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
    _only_with_its_source(kubeconfig, context, service_cidr)
    if kubeconfig:
        objects = dump.of_cluster(kubeconfig, context)
    else:
        objects = dump.of_inventory(inventory, serve.inventory_options(service_cidr, cluster_ips))
    _print(dump.as_zone(objects, zone, ttl) if form == "zone" else dump.as_yaml(objects))


@kdns.command("compare")
@click.option("--against", required=True, metavar="ADDR[:PORT]", help="The other server.")
@click.option("--inventory", "-i", multiple=True, metavar="PATH", help="Manifests with the names to ask for.")
@click.option("--kubeconfig", metavar="FILE", help="A cluster with the names to ask for.")
@_context
@click.option("--server", default="", metavar="ADDR[:PORT]", help="A kdns that runs. [this process answers for it]")
@click.option("--corefile", "corefile_path", default="", metavar="FILE", help="Answer as this Corefile says.")
@click.option("--questions", default="", metavar="FILE", help="More to ask for: lines of `NAME TYPE`.")
@click.option("--zone", default="cluster.local", show_default=True, help="The domain of the cluster.")
@_service_cidr
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Ask for N services and N pods only. [all]")
@click.option("--rate", type=click.FloatRange(1, 100_000), default=200, show_default=True, help="Questions a second.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=2, show_default=True, help="Seconds for a reply.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def compare_command(
    against: str,
    inventory: tuple[str, ...],
    kubeconfig: str | None,
    context: str,
    server: str,
    corefile_path: str,
    questions: str,
    zone: str,
    service_cidr: tuple[str, ...],
    sample: int | None,
    rate: float,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask another server and kdns the same questions, and tell what differs.

    Ends with 1 if there is a difference that docs/coredns.md doesn't explain.
    """
    # Not for a server that starts, which doesn't compare.
    from kdns.compare import report as comparison_report
    from kdns.compare import run as comparing
    from kdns.compare.asking import Gently

    if inventory and kubeconfig:
        raise click.UsageError("give either --inventory PATH or --kubeconfig FILE")
    if not inventory and not kubeconfig and not (server and questions):
        raise click.UsageError("give --inventory PATH, --kubeconfig FILE, or --server ADDR with --questions FILE")
    _only_with_its_source(kubeconfig, context, service_cidr)
    if server and corefile_path:
        raise click.UsageError("--corefile is for a kdns in this process; the one at --server has its own")
    wish = comparing.Wish(
        against=against,
        server=server,
        inventory=inventory,
        kubeconfig=kubeconfig or "",
        context=context,
        corefile=corefile_path,
        questions=questions,
        zone=zone,
        service_cidr=service_cidr,
        sample=sample,
        gently=Gently(rate=rate, seconds=timeout),
    )
    _log_nothing()
    # 1 is what a difference ends with.
    with _mistakes_end_with(2):
        report = comparing.run(wish, _progress)
    here = f"kdns at {server}" if server else "kdns"
    _print([comparison_report.as_json(report)] if as_json else comparison_report.as_text(report, against, here))
    if report.unexplained:
        raise SystemExit(1)


@kdns.command("env", context_settings={"allow_interspersed_args": False})
@click.option("--namespace", "-n", required=True, metavar="NAME", help="Where the process would run.")
@click.option("--pod", default="", metavar="NAME", help="As which pod: one may have its service links switched off.")
@_inventory
@_kubeconfig
@_context
@_service_cidr
@click.option("--format", "form", type=click.Choice(list(environment.FORMATS)), help="How to print them. [env]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def env_command(
    namespace: str,
    pod: str,
    inventory: tuple[str, ...],
    kubeconfig: str | None,
    context: str,
    service_cidr: tuple[str, ...],
    form: str | None,
    command: tuple[str, ...],
) -> None:
    """Print the variables that a pod has of services, or run COMMAND with them."""
    if bool(inventory) == bool(kubeconfig):
        raise click.UsageError("give either --inventory PATH or --kubeconfig FILE")
    _only_with_its_source(kubeconfig, context, service_cidr)
    if command and form:
        raise click.UsageError("--format is for what is printed; a COMMAND gets the variables themselves")
    _log_nothing()
    if kubeconfig:
        found = environment.of_cluster(kubeconfig, context, namespace, pod)
    else:
        objects = dump.of_inventory(inventory, serve.inventory_options(service_cidr, "allocate"))
        found = environment.of_namespace(objects, namespace, pod)
    if found.warnings:
        _show(found.warnings)
    if not command:
        _print(environment.FORMATS[form or "env"](found.variables))
        return
    try:
        environment.run(command, found.variables)
    except OSError as error:
        click.echo(f"error: `{command[0]}`: {os.strerror(error.errno or 0).lower()}", err=True)
        # As a shell and env(1) say it: 127 is no such command, 126 one that can't be run.
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None


@kdns.command("explain")
@click.argument("name")
@click.argument("rtype", metavar="[TYPE]", default="")
@click.option("--from", "of", default="", metavar="NS[/POD]", help="The pod that asks, or its namespace. [default]")
@click.option("--client", default="", metavar="IP", help="Who asks, by address.")
@click.option("--server", "place", default="", metavar="ADDR:PORT", help="Which running kdns, where there are several.")
@_inventory
@_kubeconfig
@_context
@click.option("--corefile", "corefile_path", default="", metavar="FILE", help="With what a Corefile says.")
@click.option("--zone", default="cluster.local", show_default=True, help="Without a Corefile: the cluster's domain.")
@_service_cidr
@_cluster_ips
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for tools.")
def explain_command(
    name: str,
    rtype: str,
    of: str,
    client: str,
    place: str,
    inventory: tuple[str, ...],
    kubeconfig: str | None,
    context: str,
    corefile_path: str,
    zone: str,
    service_cidr: tuple[str, ...],
    cluster_ips: str,
    as_json: bool,
) -> None:
    """Tell why NAME resolves or doesn't: by a running kdns, or of an inventory, a cluster, a Corefile.

    Ends with 0 if it resolves or is for others to resolve, with 1 if it doesn't, with 2 if there is no telling.
    """
    # A server loads it when the first explanation is asked of it, and others have no need of it.
    from kdns import explaining

    if inventory and kubeconfig:
        raise click.UsageError("give one of --inventory PATH and --kubeconfig FILE")
    offline = bool(inventory or kubeconfig or corefile_path)
    if place and offline:
        raise click.UsageError("--server is for a running kdns; the others do without one")
    _only_with_its_source(kubeconfig, context)
    ask = explaining.Ask(name, rtype, of, client)
    wish = explaining.Wish(inventory, kubeconfig or "", context, corefile_path, zone, service_cidr, cluster_ips)
    # 1 is what a name that doesn't resolve ends with.
    with _mistakes_end_with(2):
        told = explaining.offline(ask, wish) if offline else explaining.ask_running(ask, place)
        _print([explaining.as_json(told)] if as_json else explaining.as_text(told, _colour(sys.stdout.isatty())))
    raise SystemExit(1 if told.resolves is False else 0)


@kdns.command()
def version() -> None:
    """Print the versions of kdns and of what it runs on."""
    click.echo(f"kdns {__version__}\nPython {platform.python_version()} {platform.system()} {platform.machine()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process: 0 done, 1 found wrong, 2 asked wrong."""
    try:
        with _mistakes_end_with(1):
            kdns.main(args=list(arguments) if arguments is not None else None, prog_name="kdns", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except click.exceptions.Abort:
        raise SystemExit(130) from None


@contextlib.contextmanager
def _mistakes_end_with(status: int) -> Iterator[None]:
    """Tell what was wrong, and end with this status."""
    try:
        yield
    except ConfigError as error:
        _show(serve.in_order(error.problems))
        raise SystemExit(status) from None
    except KdnsError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(status) from None


def _only_with_its_source(kubeconfig: str | None, context: str | None, service_cidr: tuple[str, ...] = ()) -> None:
    """Refuse what would have no effect, since it is about another source."""
    if context and not kubeconfig:
        raise click.UsageError("--context is one of a --kubeconfig FILE")
    if service_cidr and kubeconfig:
        raise click.UsageError("--service-cidr is for an --inventory: a cluster has its addresses")


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as error:
        # Python writes what is left once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Who read our output has what it wanted, as `head` does; click would call that a failure.
        if not isinstance(error, BrokenPipeError):
            raise KdnsError(f"the output can't be written: {os.strerror(error.errno or 0).lower()}") from None


def _log_nothing() -> None:
    """Leave the log out of a command's talk: what matters of it the command itself says."""
    logging.getLogger("kdns").addHandler(logging.NullHandler())


@contextlib.contextmanager
def _progress(label: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal."""
    with click.progressbar(length=steps, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield functools.partial(bar.update, 1)


def _show(problems: Sequence[Problem]) -> None:
    colour = _colour(sys.stderr.isatty())
    click.echo(draw_all(problems, colour), err=True, color=colour)


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def _colour(terminal: bool) -> bool:
    return terminal and not os.environ.get("NO_COLOR")
