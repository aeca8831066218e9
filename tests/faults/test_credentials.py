"""Who kdns is to the API server, and the server to kdns: tokens that rotate, rights that go, certificates of all kinds.

Rows W12 to W14. The server is the fake one over TLS, with an authority of the test's own, and kdns finds it as a pod
does: by two variables and the files of its service account.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from kdns.kubernetes import client
from kdns.kubernetes.api import Wanted
from kdns.kubernetes.credentials import Credentials, Source, at_endpoint, from_kubeconfig, in_cluster
from tests import needs
from tests.cluster.authority import Authority
from tests.faults.fake import HOST, Fake
from tests.faults.patience import always, eventually
from tests.faults.rows import beginnings
from tests.faults.trial import FAST, Trial, row, trial
from tests.faults.wire import End, Reply, Request
from tests.faults.world import WEB
from tests.kubeconfig import write_kubeconfig

# A client that lives a hundred times as fast looks at its files every 0.3 s.
HURRY = 100.0


def hurried() -> float:
    return time.monotonic() * HURRY


class Account:
    """The folder of a service account, and the certificate that the API server shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serve(self.authority)
        self.trust(self.authority)
        self.write("token", "first")

    def write(self, name: str, text: str) -> None:
        """Replace a file as a kubelet does, in one step."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.replace(self.folder / name)

    def trust(self, authority: Authority) -> None:
        """Let kdns trust whatever an authority signed."""
        self.write("ca.crt", authority.certificate.read_text())

    def serve(self, authority: Authority, address: str = HOST) -> None:
        """Let the server show a certificate of an authority for an address, in handshakes to come."""
        certificate, key = self.folder / "server.crt", self.folder / "server.key"
        authority.server(certificate, key, ["kubernetes.default.svc"], [address])
        self.tls.load_cert_chain(certificate, key)

    def serve_expired(self) -> None:
        """Let the server show a certificate of yesterday."""
        key, request, certificate = (self.folder / name for name in ("old.key", "old.csr", "old.crt"))
        extension = self.folder / "extension"
        extension.write_text(f"subjectAltName=IP:{HOST}\n")
        made = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=old"]
        _openssl([*made, "-keyout", key, "-out", request])
        signed = ["x509", "-req", "-in", request, "-CA", self.authority.certificate, "-CAkey", self.authority.key]
        _openssl([*signed, "-days", "-1", "-extfile", extension, "-out", certificate])
        self.tls.load_cert_chain(certificate, key)

    def source(self, fake: Fake) -> Source:
        """The credentials of a pod."""
        variables = {"KUBERNETES_SERVICE_HOST": HOST, "KUBERNETES_SERVICE_PORT": str(fake.port)}
        return in_cluster(variables, str(self.folder))


def _openssl(arguments: Sequence[str | Path]) -> None:
    subprocess.run([needs.command("openssl"), *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def make_account(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Account]:
    return lambda: Account(tmp_path_factory.mktemp("account"))


def same_answers(it: Trial) -> bool:
    return it.ask(WEB, "A") == ("NOERROR", frozenset(["10.96.0.1"]))


# W12 · tokens


@row
async def test_w12_a_token_that_is_refused_is_read_again_at_once(
    seed: int, make_account: Callable[[], Account]
) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source) as it:
        it.fake.tokens = {"second"}
        account.write("token", "second")
        began = it.fake.requests[-1].time
        it.fake.cut()
        await eventually(lambda: len(it.fake.watches) == 3)
        await it.churn(10)
        await it.in_step()
        # The clock has steps of milliseconds: what was asked at the very time when this began was asked before.
        refused = [each for each in it.fake.requests if each.time > began and each.token == "first"]
        assert len(refused) <= 5
        assert beginnings(it, began) == []


@row
async def test_w12_a_token_that_comes_late_is_waited_for(seed: int, make_account: Callable[[], Account]) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source) as it:
        it.fake.tokens = {"second"}
        it.fake.cut()
        await it.churn(10)
        await always(lambda: same_answers(it), 0.5)
        it.look_at_all()
        assert it.count("kdns_kubernetes_failures_total", status="401") >= 3
        # A refusal is a sign of life.
        assert not it.source.suspect
        account.write("token", "second")
        await it.in_step(FAST.longest_pause * 2 + 8)


@row
async def test_w12_a_new_token_is_used_before_the_old_one_ends(seed: int, make_account: Callable[[], Account]) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source, credential_clock=hurried) as it:
        it.fake.tokens = {"first", "second"}
        account.write("token", "second")
        # A minute of the client's time.
        await asyncio.sleep(60 / HURRY)
        it.fake.tokens = {"second"}
        await it.churn(10)
        it.fake.cut()
        await it.churn(10)
        await it.in_step()
        assert it.count("kdns_kubernetes_failures_total", status="401") == 0


@row
async def test_w12_a_token_file_that_is_away_for_a_moment(seed: int, make_account: Callable[[], Account]) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source, credential_clock=hurried) as it:
        it.fake.tokens = {"first"}
        (account.folder / "token").rename(account.folder / "away")
        await asyncio.sleep(60 / HURRY)
        it.fake.cut()
        await it.churn(10)
        await it.in_step()
        account.write("token", "")
        await asyncio.sleep(60 / HURRY)
        it.fake.cut()
        account.write("token", "first")
        await it.churn(10)
        await it.in_step()


class Plugin:
    """Credentials that take their time, as those do that another program fetches; `runs` counts."""

    def __init__(self, *seconds: float) -> None:
        self.runs = 0
        self._seconds = seconds
        self._fetched = False

    def source(self, fake: Fake) -> Source:
        async def read(refused: bool) -> Credentials:
            if refused or not self._fetched:
                seconds = self._seconds[min(self.runs, len(self._seconds) - 1)]
                self.runs += 1
                await asyncio.sleep(seconds)
                self._fetched = True
            return Credentials(fake.url, token=f"token-{self.runs}")

        return read


@row
async def test_w12_waiting_for_credentials_is_no_silence_of_the_server(seed: int) -> None:
    plugin = Plugin(FAST.silence * 3)
    async with trial(seed, started=False, credentials=plugin.source) as it:
        it.start()
        await always(lambda: not it.source.suspect, FAST.silence * 2.5)
        await it.synced()
        assert it.count("kdns_kubernetes_failures_total") == 0
        assert it.fake.asked("list") == []
        assert plugin.runs == 1


@row
async def test_w12_signs_of_life_need_no_new_credentials(seed: int) -> None:
    plugin = Plugin(0.0, FAST.silence * 3)
    async with trial(seed, credentials=plugin.source) as it:
        it.fake.tokens = {"token-2"}
        it.fake.cut()
        await eventually(lambda: plugin.runs == 2)
        began = it.fake.requests[-1].time
        await always(lambda: not it.source.suspect, FAST.silence * 2.5)
        probes = [each for each in it.fake.asked(after=began) if each.path == "/version"]
        assert len(probes) >= 3
        await it.churn(10)
        await it.in_step(10)
        # Once for all who were refused.
        assert plugin.runs == 2


@row
async def test_w12_credentials_that_never_come_are_said_and_asked_for_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MOST_CREDENTIAL_WAIT_SECONDS", 0.1)
    plugin = Plugin(2.0)
    async with trial(seed, started=False, credentials=plugin.source) as it:
        it.start()
        await eventually(lambda: all("no credentials: the credentials could not" in each for each in it.source.missing))
        assert it.fake.requests == []
        await it.synced()
        assert plugin.runs == 1


@row
async def test_w12_a_plugin_that_hangs_is_given_up_in_the_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_CREDENTIAL_SECONDS", 0.3)
    plugin = Plugin(3600.0, 0.0)
    async with trial(seed, started=False, credentials=plugin.source) as it:
        it.start()
        await it.synced()
        assert plugin.runs == 2


@row
async def test_w12_a_new_token_file_of_a_kubeconfig_is_used_before_the_old_one_ends(seed: int, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")

    def source(fake: Fake) -> Source:
        return from_kubeconfig(str(write_kubeconfig(tmp_path / "kubeconfig", fake.url, {"tokenFile": "token"})))

    async with trial(seed, credentials=source, credential_clock=hurried) as it:
        it.fake.tokens = {"first", "second"}
        (tmp_path / "token").write_text("second")
        # A minute of the client's time.
        await asyncio.sleep(60 / HURRY)
        began = asyncio.get_running_loop().time()
        it.fake.tokens = {"second"}
        it.fake.cut()
        await it.churn(10)
        await it.in_step()
        assert {each.token for each in it.fake.asked(after=began)} == {"second"}


# W13 · rights


@row
@pytest.mark.parametrize("resource", ["services", "endpointslices", "namespaces"])
async def test_w13_a_kind_whose_right_is_gone_stays_as_it_was_and_the_others_go_on(seed: int, resource: str) -> None:
    async with trial(seed) as it:
        for verb in ("list", "watch"):
            it.fake.forbid(verb, resource)
        # A watch that runs goes on.
        await it.churn(10)
        await it.in_step()
        it.fake.cut()
        watch = next(each for each in it.source.watches if each.resource.plural == resource)
        await eventually(lambda: "403" in watch.trouble or "not allowed" in watch.trouble)
        assert "watch" in watch.trouble
        assert resource in watch.trouble
        assert it.count("kdns_kubernetes_failures_total", kind=watch.resource.kind, status="403") >= 1
        frozen = dict(watch.known)
        await it.churn(30, a_second=100)
        # The others are as the server has them.
        await eventually(lambda: all(f"{resource} " in each for each in it.differences()))
        assert watch.known == frozen
        it.look_at_all()
        for verb in ("list", "watch"):
            it.fake.allow(verb, resource)
        await eventually(lambda: not watch.trouble)
        await it.in_step()


@row
async def test_w13_without_rights_from_the_start_what_is_missing_is_named(seed: int) -> None:
    async with trial(seed, started=False) as it:
        for verb in ("list", "watch"):
            it.fake.forbid(verb, "endpointslices")
        it.start()
        await eventually(lambda: len(it.source.missing) == 1 and ":" in it.source.missing[0])
        assert "endpointslices" in it.source.missing[0]
        await always(lambda: not it.source.synced, 0.3)
        for verb in ("list", "watch"):
            it.fake.allow(verb, "endpointslices")
        await it.synced()


@row
async def test_w13_named_namespaces_need_no_right_to_read_namespaces(seed: int) -> None:
    async with trial(seed, wanted=Wanted(namespaces=("shop", "other")), started=False) as it:
        for verb in ("list", "watch"):
            it.fake.forbid(verb, "namespaces")
        it.start()
        await it.synced()
        assert same_answers(it)
        await it.churn(20)
        it.fake.allow("list", "namespaces")
        it.fake.allow("watch", "namespaces")
        await eventually(lambda: not it.differences())


# W14 · certificates


@row
async def test_w14_a_new_authority_is_trusted_once_the_file_has_it(
    seed: int, make_account: Callable[[], Account]
) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source) as it:
        other = Authority(account.folder / "other")
        account.serve(other)
        asked = len(it.fake.requests)
        it.fake.cut()
        await it.churn(10)
        await always(lambda: same_answers(it), 0.5)
        assert len(it.fake.requests) == asked, "a request, and so a token, went to a server that isn't trusted"
        account.trust(other)
        await it.in_step(FAST.longest_pause * 2 + 8)


@row
async def test_w14_a_bundle_of_old_and_new_before_the_server_changes(
    seed: int, make_account: Callable[[], Account]
) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source, credential_clock=hurried) as it:
        other = Authority(account.folder / "other")
        bundle = account.authority.certificate.read_text() + other.certificate.read_text()
        account.write("ca.crt", bundle)
        await asyncio.sleep(60 / HURRY)
        # Watches that run are not disturbed.
        await it.churn(10)
        await it.in_step()
        assert it.count("kdns_kubernetes_failures_total") == 0
        account.serve(other)
        it.fake.cut(End.FIN)
        await it.churn(10)
        await it.in_step()


@row
async def test_w14_watches_go_on_however_often_the_authority_changes(
    seed: int, make_account: Callable[[], Account]
) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source, credential_clock=hurried) as it:
        first = account.authority.certificate.read_text()
        for number in range(4):
            account.write("ca.crt", f"# {number}\n{first}")
            await asyncio.sleep(60 / HURRY)
            await it.churn(5)
            await it.in_step()
        assert len(it.fake.asked("watch")) == 3
        assert it.count("kdns_kubernetes_failures_total") == 0


@row
async def test_w14_a_certificate_that_is_wrong_for_now_ends_no_watch(
    seed: int, make_account: Callable[[], Account]
) -> None:
    def end(request: Request, reply: Reply) -> Reply:
        async def nothing() -> AsyncIterator[End]:
            yield End.RESET

        return Reply(200, {"Content-Type": "application/json"}, stream=nothing())

    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source) as it:
        # The signs of life go to one server of several, which shows its new certificate first.
        account.serve(Authority(account.folder / "other"))
        it.fake.on("", "", end, times=None, where=lambda request: request.path == "/version")
        await always(lambda: len(it.fake.watches) == 3 and not it.source.suspect, FAST.probe * 8)
        await it.churn(10)
        await it.in_step()
        assert len(it.fake.asked("watch")) == 3
        it.fake.heal()


@row
@pytest.mark.parametrize("wrong", ["expired", "another name"])
async def test_w14_a_certificate_that_is_wrong_is_refused_until_it_is_right(
    seed: int, wrong: str, make_account: Callable[[], Account]
) -> None:
    account = make_account()
    async with trial(seed, tls=account.tls, credentials=account.source) as it:
        if wrong == "expired":
            account.serve_expired()
        else:
            account.serve(account.authority, "192.0.2.1")
        asked = len(it.fake.requests)
        it.fake.cut()
        await it.churn(10)
        await always(lambda: same_answers(it), 0.5)
        assert len(it.fake.requests) == asked, "a request, and so a token, went to a server that isn't trusted"
        account.serve(account.authority)
        await it.in_step(FAST.longest_pause * 2 + 8)


@row
async def test_w14_a_client_certificate_that_is_renewed_on_disk(seed: int, make_account: Callable[[], Account]) -> None:
    account = make_account()
    certificate, key = account.folder / "client.crt", account.folder / "client.key"
    account.authority.client(certificate, key, "kdns")
    account.tls.verify_mode = ssl.CERT_REQUIRED
    account.tls.load_verify_locations(account.authority.certificate)

    def source(fake: Fake) -> Source:
        return at_endpoint(fake.url, str(certificate), str(key), str(account.authority.certificate))

    async with trial(seed, tls=account.tls, credentials=source, credential_clock=hurried) as it:
        other = Authority(account.folder / "other")
        # From now on only clients of another authority are let in; what is open stays.
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        strict.load_cert_chain(account.folder / "server.crt", account.folder / "server.key")
        strict.verify_mode = ssl.CERT_REQUIRED
        strict.load_verify_locations(other.certificate)
        it.fake.tls = strict
        it.fake.refuse()
        await it.fake.accept()
        await it.churn(10)
        await always(lambda: same_answers(it), 0.4)
        other.client(certificate, key, "kdns")
        # With TLS 1.3 the refusal looks like any lost connection: the files are read in their turn.
        await it.in_step(60 / HURRY + FAST.longest_pause * 2 + 8)
